"""A tiny Llama of transformers, its artifact, and data sets in the published form."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from lucid_deploy.artifact import Artifact, open_artifact
from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.evaluation.suites.documents import open_haystack
from lucid_deploy.export import ExportOptions, export
from lucid_deploy.runtimes import open_session
from lucid_deploy.runtimes.session import Session
from tests.once_per_run import made_once, run_folder

# Before datasets and its like are imported: no network.
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", HF_EVALUATE_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1")
CONTEXT = 1536


@dataclass(frozen=True)
class Pair:
    """One model twice.

    Attributes:
        checkpoint: Of transformers' Llama, with its tokenizer.
        artifact: Exported from it.
        session: Of the artifact, in onnxruntime.
        tokenizer: Of the artifact.
    """

    checkpoint: Path
    artifact: Artifact
    session: Session[Any]
    tokenizer: TextTokenizer


def write_llama(folder: Path) -> None:
    """A random Llama that answers with words: its heads see little, so that it goes on where its own words lead."""
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1000,
        special_tokens=["<pad>", "<bos>", "<eos>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    words = " ".join(open_haystack("bundled", None).words)
    tokenizer.train_from_iterator([words, "The grass is green. VAR = One of the special magic numbers " * 20], trainer)
    special = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
    chat = (
        "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant] {% endif %}"
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=chat, **special)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=CONTEXT,
        initializer_range=0.5,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)


@pytest.fixture(scope="session")
def llama_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The random Llama and its tokenizer, as transformers writes them, once per run."""
    root = run_folder(tmp_path_factory, "suites")
    return made_once(root, "checkpoint", lambda folder: write_llama(folder / "llama")) / "llama"


@pytest.fixture(scope="session")
def llama_tokenizer(llama_checkpoint: Path) -> TextTokenizer:
    """The Llama's tokenizer, for tests that run no model."""
    return TextTokenizer(llama_checkpoint)


@pytest.fixture(scope="session")
def llama(llama_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """The random Llama twice, exported once per run."""

    def make(folder: Path) -> None:
        export(llama_checkpoint, folder / "artifact", ExportOptions(logits="all", cache="growing"))

    artifact = open_artifact(made_once(run_folder(tmp_path_factory, "suites"), "artifact", make) / "artifact")
    return Pair(llama_checkpoint, artifact, open_session(artifact), TextTokenizer(artifact.directory))


@pytest.fixture(scope="session")
def reference(llama: Pair) -> Any:
    """lm_eval's own backend over transformers' class, in float32."""
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoTokenizer, LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(llama.checkpoint, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(llama.checkpoint)
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, device="cpu", max_length=CONTEXT)


@pytest.fixture(scope="session")
def write_rows() -> Callable[[Path, list[dict[str, Any]]], None]:
    """Return a function that writes documents, a JSON object a line."""

    def write(path: Path, rows: list[dict[str, Any]]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    return write


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory, write_rows: Callable[..., None]) -> Path:
    """Small data sets in the published form, at their places in a directory of data."""
    root = tmp_path_factory.mktemp("data")
    sentences = " ".join(open_haystack("bundled", None).words).split(". ")
    for name in ("2wikimqa", "qasper"):
        rows = [
            {
                "context": ". ".join(sentences[i : i + 3]),
                "question": f"What stands {'behind' if i % 2 else 'beside'} the house?",
                "answers": ["the wheel", "a shelf above the window"],
                "all_classes": None,
            }
            for i in range(3)
        ]
        write_rows(root / f"longbench/{name}.jsonl", rows)
    for name in ("qa1", "qa10"):
        rows = [
            {"input": f"{sentences[i]}. Mary went to the garden.", "question": "Where is Mary? ", "target": "garden"}
            for i in range(3)
        ]
        write_rows(root / f"babilong/0k/{name}.jsonl", rows)
    for name in ("qasper", "qmsum"):
        answers = [("a", "the old oil"), ("a", "oil"), ("b", "Yes"), ("c", "No"), ("d", "the boy repaired it")]
        rows = [
            {"id": key, "pid": f"{key}_{i}", "input": f"Is it {key}?\n\n{sentences[i]}. ", "output": answer}
            for i, (key, answer) in enumerate(answers)
        ]
        write_rows(root / f"scrolls/{name}/validation.jsonl", rows)
    paragraphs = [
        {"context": sentences[i], "qas": [_squad_question(i, j) for j in range(3)]} for i in range(len(sentences) // 2)
    ]
    (root / "squad").mkdir()
    (root / "squad/dev-v2.0.json").write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    return root


def _squad_question(paragraph: int, number: int) -> dict[str, Any]:
    text = f"What does paragraph {paragraph} say about {number}?"
    return {"question": text, "is_impossible": number == 2, "answers": [{"text": "The wheel."}, {"text": "oil"}]}
