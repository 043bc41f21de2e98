"""The model for lm_eval gives what lm_eval's own backend over transformers gives, for several kinds of tokenizers."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from lucid_deploy.artifact import Artifact
from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.errors import LucidError
from lucid_deploy.generation.sampling import Sampling
from lucid_deploy.model.checkpoint import load_model
from lucid_deploy.runtimes.session import Session
from lucid_deploy.runtimes.torch.session import TorchSession

# Before these are imported: no network.
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", HF_EVALUATE_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1")
pytest.importorskip("lm_eval")
pytest.importorskip("accelerate")
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from lucid_deploy.evaluation.lm_eval_adapter import LucidLM, cut, cut_at, read_options
from lucid_deploy.export.companions import read_tokenizer

Exported = Callable[..., tuple[Path, Artifact]]
WINDOW = 16
# How each kind of tokenizer frames a text, and the tokens that its files name. The configuration says bos 1, eos 2.
KINDS: dict[str, tuple[str | None, dict[str, Any]]] = {
    "adds BOS and EOS": ("<bos> $A <eos>", {"bos_token": "<bos>", "eos_token": "<eos>"}),
    "names another BOS": (None, {"bos_token": "<pad>", "eos_token": "<eos>"}),
    "names no BOS": (None, {"bos_token": None, "eos_token": "<eos>"}),
    "names another EOS": ("<bos> $A", {"bos_token": "<bos>", "eos_token": "lam"}),
}
TEXTS = ["Hello", "", "<bos>Hello", "<eos>", "The lamp is red. " * 12, "<bos>" + "The lamp is red. " * 12]
PROMPTS = ["The lamp", "is", "The lamp is red.", "<bos>Hello", "é日本 🙂", "red \t", "lamp\n"]
STOPS = [[], "e", ["e", "he"], ["he", "e"], ["s", "is", " is"], ["<eos>"], ["<pad>"], ["\ufffd"]]
PAIRS = [("", "Hello"), ("", "<bos>Hello"), ("", "<eos> a"), ("The lamp", " is"), ("<bos>The lamp", " is"), ("a ", "b")]
CHAT = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def tokenizer_at(directory: Path, frame: str | None, names: dict[str, Any]) -> Path:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<pad>", "<bos>", "<eos>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["The lamp is red. Hello world. " * 9], trainer)
    if frame:
        special = [("<bos>", 1), ("<eos>", 2)]
        tokenizer.post_processor = processors.TemplateProcessing(single=frame, special_tokens=special)
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **names}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        initializer_range=0.5,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )
    folder = tmp_path_factory.mktemp("hflm") / "checkpoint"
    LlamaForCausalLM(config).save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(CHAT)
    return tokenizer_at(folder, *KINDS["adds BOS and EOS"])


@pytest.fixture(scope="module")
def artifact(exported: Exported, checkpoint: Path) -> Artifact:
    """Another model's manifest with the checkpoint's tokenizer: no graph is run."""
    return dataclasses.replace(exported()[1], directory=checkpoint)


@pytest.fixture(scope="module")
def session(checkpoint: Path) -> Session[Any]:
    return TorchSession(load_model(checkpoint))


def reference_for(checkpoint: Path, tokenizer: Path, **options: Any) -> HFLM:
    from transformers import AutoTokenizer, LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="eager")
    return HFLM(pretrained=model, tokenizer=AutoTokenizer.from_pretrained(tokenizer), device="cpu", **options)


@pytest.fixture(scope="module", params=KINDS)
def both(
    request: pytest.FixtureRequest, checkpoint: Path, session: Session[Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[HFLM, LucidLM]:
    directory = tokenizer_at(tmp_path_factory.mktemp("tokenizer"), *KINDS[request.param])
    reference = reference_for(checkpoint, directory, batch_size=1, max_length=WINDOW)
    return reference, LucidLM(session=session, tokenizer=read_tokenizer(directory), max_length=WINDOW, truncate="left")


def asked(kind: str, *arguments: tuple[Any, ...]) -> list[Any]:
    return [Instance(kind, {}, pair, i, metadata=("task", i, 1)) for i, pair in enumerate(arguments)]


def test_long_texts_are_scored_in_the_same_windows(both: tuple[HFLM, LucidLM]) -> None:
    """Float32 rounds in the fifth digit here; a token more or less is 1 and up."""
    reference, ours = both
    requests = asked("loglikelihood_rolling", *((text,) for text in TEXTS))
    expected = reference.loglikelihood_rolling(requests, disable_tqdm=True)
    assert len(reference.tok_encode(TEXTS[4])) > 2 * WINDOW
    assert ours.loglikelihood_rolling(requests, disable_tqdm=True) == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_continuations_are_scored_alike(both: tuple[HFLM, LucidLM]) -> None:
    reference, ours = both
    likeliest = reference.generate_until(asked("generate_until", ("The lamp", {"max_gen_toks": 4})), disable_tqdm=True)
    requests = asked("loglikelihood", *PAIRS, ("The lamp", likeliest[0] or " is"), ("The lamp is red. " * 9, " is"))
    expected = reference.loglikelihood(requests, disable_tqdm=True)
    found = ours.loglikelihood(requests, disable_tqdm=True)
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], rel=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


def test_answers_end_alike(both: tuple[HFLM, LucidLM]) -> None:
    """Stop sequences may begin within each other, and the tokenizer's end token be another than the configuration's."""
    reference, ours = both
    prompts = {i: (PROMPTS[i % len(PROMPTS)], PROMPTS[(i + 3) % len(PROMPTS)]) for i in range(len(STOPS))}
    requests = [(each, {"until": stop, "max_gen_toks": 10}) for i, stop in enumerate(STOPS) for each in prompts[i]]
    expected = reference.generate_until(asked("generate_until", *requests), disable_tqdm=True)
    assert ours.generate_until(asked("generate_until", *requests), disable_tqdm=True) == expected
    assert len(set(expected)) > 5


def test_token_ids_are_the_same(both: tuple[HFLM, LucidLM]) -> None:
    reference, ours = both
    assert (ours.prefix_token_id, ours.eot_token_id) == (reference.prefix_token_id, reference.eot_token_id)
    for text in (*TEXTS, "".join(PAIRS[2])):
        assert ours.tok_encode(text) == reference.tok_encode(text)
        for added in (True, False):
            assert ours.tok_encode(text, add_special_tokens=added) == reference.tok_encode(text, added)


def test_chats_are_the_same(artifact: Artifact, checkpoint: Path, session: Session[Any]) -> None:
    ours, reference = LucidLM(artifact, session=session), reference_for(checkpoint, checkpoint)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " hi "}]
    for opened in (True, False):
        assert ours.apply_chat_template(messages, opened) == reference.apply_chat_template(messages, opened)
    plain = LucidLM(session=session, tokenizer=TextTokenizer(checkpoint))
    assert ours.tokenizer_name == LucidLM(artifact, session=session).tokenizer_name != plain.tokenizer_name
    with pytest.raises(LucidError, match="no chat template: leave apply_chat_template out"):
        plain.apply_chat_template(messages)
    with pytest.raises(LucidError, match="cannot be chosen by name: pass True, not 'rag'"):
        plain.chat_template("rag")


def test_without_all_logits_the_result_is_the_same(
    checkpoint: Path, session: Session[Any], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = LucidLM(session=session, tokenizer=TextTokenizer(checkpoint))
    requests = asked("loglikelihood", ("The lamp", " is red."), ("The lamp", " is"), ("Hello", " world."))
    fast = lm.loglikelihood(requests, disable_tqdm=True)
    monkeypatch.setattr(TorchSession, "gives_all_logits", False)
    caplog.clear()
    found = [lm.loglikelihood(requests, disable_tqdm=True) for _ in range(2)]
    assert sum("--logits all" in record.message for record in caplog.records) == 1
    for one, other in zip(found[1], fast, strict=True):
        assert one == (pytest.approx(other[0], abs=1e-4), other[1])


def test_contexts_that_are_too_long(session: Session[Any], checkpoint: Path) -> None:
    words = TextTokenizer(checkpoint)
    lm = LucidLM(session=session, tokenizer=words, max_length=20)
    long = "The lamp is red. " * 9
    for kind, arguments in (("loglikelihood", (long, " is")), ("generate_until", (long, {"max_gen_toks": 4}))):
        requests = asked(kind, arguments, ("is", arguments[1]))
        with pytest.raises(LucidError, match=r"1 of 2 prompts are too long.*--truncate left"):
            getattr(lm, kind)(requests, disable_tqdm=True)
        assert [lm.is_cut(request) for request in requests] == [True, False]
    with pytest.raises(LucidError, match="leave no room for a prompt in"):
        lm.generate_until(asked("generate_until", ("is", {"max_gen_toks": 20})), disable_tqdm=True)
    with pytest.raises(LucidError, match="leave no room for a prompt in"):
        lm.loglikelihood(asked("loglikelihood", ("is", long)), disable_tqdm=True)


@pytest.mark.parametrize(
    ("room", "way", "kept"),
    [(9, "left", [0, 1, 2, 3, 4, 5]), (4, "left", [2, 3, 4, 5]), (4, "middle", [0, 1, 4, 5]), (1, "middle", [5])],
)
def test_which_tokens_are_cut(room: int, way: str, kept: list[int]) -> None:
    assert cut(list(range(6)), room, way) == kept


def test_generation_options() -> None:
    assert read_options({}, 256) == ([], 256, Sampling())
    assert read_options({"until": "x", "max_gen_toks": 3}, 256) == (["x"], 3, Sampling())
    assert read_options({"until": ["", "y"], "temperature": 1, "do_sample": False}, 256) == (["y"], 256, Sampling())
    assert read_options({"until": None, "max_tokens": "7"}, 256) == ([], 7, Sampling())
    assert read_options({"do_sample": True, "temperature": 0.5, "top_k": 4}, 9)[2] == Sampling(0.5, 4, 1.0, 0)
    assert read_options({"temperature": 0.5}, 9)[2] == Sampling(0.5, 50, 1.0, 0)  # transformers' 50 tokens
    assert cut_at("The lamp", ["e", "he"]) == "Th" and cut_at("The lamp", ["he", "e"]) == "T"


def test_bad_arguments_are_refused(artifact: Artifact, checkpoint: Path, session: Session[Any]) -> None:
    words = TextTokenizer(checkpoint)
    for options, message in (
        ({}, "together with its tokenizer"),
        ({"session": session}, "together with its tokenizer"),
        ({"session": session, "tokenizer": words, "truncate": "right"}, "left or middle, not 'right'"),
        ({"session": session, "tokenizer": words, "max_length": 65}, "max_length must be 2 to 64"),
        ({"artifact": artifact, "pretrained": "other"}, "does not take these options: .*pretrained"),
        ({"session": session, "tokenizer": words, "batch_size": "auto"}, "batch size"),
        ({"session": session, "tokenizer": words, "batch_size": 0}, "batch size"),
    ):
        with pytest.raises(LucidError, match=message):
            LucidLM(**options)
