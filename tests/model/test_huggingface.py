"""transformers on the artifact's tokenizer and on the PyTorch model: AutoTokenizer, generate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lucid_deploy.artifact import Artifact
from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.errors import LucidError
from lucid_deploy.generation.generate import Generation
from lucid_deploy.runtimes import open_session
from tests.byte_level_checkpoints import TEXT

transformers: Any = pytest.importorskip("transformers")

WithTokenizer = Callable[..., tuple[Path, Artifact]]
NEW = 16


def load(checkpoint: Path | str) -> Any:
    from lucid_deploy.model.huggingface import LucidForGeneration

    return LucidForGeneration.from_checkpoint(checkpoint)


def ours(artifact: Artifact, prompt: str) -> list[int]:
    ids = TextTokenizer(artifact.directory).encode(prompt)
    return [*ids, *Generation(open_session(artifact), ids, NEW)]


def test_auto_tokenizer_reads_the_artifact(with_byte_level_tokenizer: WithTokenizer) -> None:
    _, artifact = with_byte_level_tokenizer()
    theirs = transformers.AutoTokenizer.from_pretrained(str(artifact.directory))
    text = TextTokenizer(artifact.directory)
    for prompt in TEXT:
        assert theirs(prompt)["input_ids"] == text.encode(prompt)
        assert theirs.decode(text.encode(prompt), skip_special_tokens=True) == text.decode(text.encode(prompt))


@pytest.mark.parametrize("options", [{}, {"prompt_lookup_num_tokens": 3}])
def test_generate_gives_the_artifacts_tokens(with_byte_level_tokenizer: WithTokenizer, options: dict[str, Any]) -> None:
    """Prompt lookup proposes tokens, checks several at once, and crops the cache of those it rejects."""
    checkpoint, artifact = with_byte_level_tokenizer()
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(artifact.directory))
    model = load(checkpoint)
    for prompt in TEXT:
        inputs = tokenizer(prompt, return_tensors="pt")
        made = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=NEW,
            do_sample=False,
            **options,
        )
        expected = ours(artifact, prompt)
        assert made[0].tolist()[: len(expected)] == expected


def test_generate_of_a_padded_batch(with_byte_level_tokenizer: WithTokenizer) -> None:
    checkpoint, artifact = with_byte_level_tokenizer()
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(artifact.directory), padding_side="left")
    tokenizer.pad_token = tokenizer.eos_token
    inputs = tokenizer(list(TEXT), return_tensors="pt", padding=True)
    made = load(checkpoint).generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        max_new_tokens=NEW,
        do_sample=False,
        pad_token_id=1,
    )
    for row, mask, prompt in zip(made, inputs["attention_mask"], TEXT, strict=True):
        expected = ours(artifact, prompt)
        assert row[int((mask == 0).sum()) :].tolist()[: len(expected)] == expected


def test_beam_search_and_sampling_run_on_the_bundled_model() -> None:
    model = load("demo")
    from lucid_deploy.model.checkpoint import resolve

    tokenizer = transformers.AutoTokenizer.from_pretrained(str(resolve("demo")))
    inputs = tokenizer("fox has red lamp, owl has blue cup, bear has green key. owl has", return_tensors="pt")
    for options in ({"num_beams": 3}, {"do_sample": True, "top_p": 0.9}):
        made = model.generate(**inputs, max_new_tokens=8, **options)
        assert tokenizer.decode(made[0], skip_special_tokens=True).endswith("owl has blue cup")


def test_too_long_a_context_is_refused() -> None:
    model = load("demo")
    with pytest.raises(LucidError, match="made for 512"):
        model(torch.ones(1, 513, dtype=torch.int64))
