"""Opening checkpoints: every published layout loads, and tensors that do not fit are one error that names them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_model
from transformers import GenerationConfig

from lucid_deploy.model.checkpoint import Checkpoint, load_model
from tests.model.stored_checkpoints import parameters, refusal, store, stored

MakeCheckpoint = Callable[..., Path]

Q_PROJ = "model.layers.0.self_attn.q_proj.weight"
EMBEDDING = "model.embed_tokens.weight"


def test_a_single_file_loads_every_tensor(make_checkpoint: MakeCheckpoint) -> None:
    checkpoint = make_checkpoint()
    loaded, tensors = parameters(checkpoint), stored(checkpoint)
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_other_floating_types_load_as_float32(make_checkpoint: MakeCheckpoint, dtype: torch.dtype) -> None:
    checkpoint = make_checkpoint()
    tensors = {name: value.to(dtype) for name, value in stored(checkpoint).items()}
    store(checkpoint, tensors)
    assert torch.equal(parameters(checkpoint)[Q_PROJ], tensors[Q_PROJ].float())


def test_a_tied_head_is_the_embedding(make_checkpoint: MakeCheckpoint) -> None:
    loaded = parameters(make_checkpoint(tie_word_embeddings=True))
    assert loaded["lm_head.weight"].data_ptr() == loaded[EMBEDDING].data_ptr()


def test_a_tied_head_may_be_stored_if_it_equals_the_embedding(make_checkpoint: MakeCheckpoint) -> None:
    checkpoint = make_checkpoint(tie_word_embeddings=True)
    tensors = stored(checkpoint)
    store(checkpoint, {**tensors, "lm_head.weight": tensors[EMBEDDING].clone()})
    assert torch.equal(parameters(checkpoint)["lm_head.weight"], tensors[EMBEDDING])


@pytest.mark.parametrize("rows", [97, 96], ids=["other values", "other shape"])
def test_a_tied_head_that_differs_is_refused(make_checkpoint: MakeCheckpoint, rows: int) -> None:
    checkpoint = make_checkpoint(tie_word_embeddings=True)
    store(checkpoint, {**stored(checkpoint), "lm_head.weight": torch.zeros(rows, 64)})
    assert "lm_head.weight" in refusal(checkpoint)


def test_all_tensors_that_do_not_fit_are_in_one_error(make_checkpoint: MakeCheckpoint) -> None:
    checkpoint = make_checkpoint()
    tensors = stored(checkpoint)
    del tensors["model.norm.weight"], tensors["lm_head.weight"]
    tensors |= {"model.extra": torch.ones(1), Q_PROJ: torch.ones(3, 64)}
    tensors[EMBEDDING] = tensors[EMBEDDING].to(torch.int8)
    store(checkpoint, tensors)
    message = refusal(checkpoint)
    assert "missing: lm_head.weight, model.norm.weight;" in message
    assert "unexpected: model.extra;" in message
    assert f"wrong shape: {Q_PROJ} is [3, 64], config.json asks for [144, 64];" in message
    assert f"{EMBEDDING} is I8" in message


@pytest.mark.parametrize("part", ["beta_proj", "forget_gate"])
def test_tensors_of_a_variant_are_refused_by_name(make_checkpoint: MakeCheckpoint, part: str) -> None:
    checkpoint = make_checkpoint()
    name = f"model.layers.0.self_attn.{part}.weight"
    store(checkpoint, {**stored(checkpoint), name: torch.ones(1)})
    assert f"unexpected: {name}" in refusal(checkpoint)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[]", "holds a JSON list"),
        (None, "has no config.json"),
    ],
)
def test_a_broken_configuration_file_is_named(
    make_checkpoint: MakeCheckpoint, content: bytes | None, said: str
) -> None:
    checkpoint = make_checkpoint()
    (checkpoint / "config.json").unlink()
    if content is not None:
        (checkpoint / "config.json").write_bytes(content)
    message = refusal(checkpoint)
    assert str(checkpoint) in message
    assert said in message


def test_only_the_head_of_a_tied_pair_may_be_stored(make_checkpoint: MakeCheckpoint) -> None:
    """safetensors' own save_model keeps the first name of tensors that share memory: the head."""
    checkpoint = make_checkpoint(tie_word_embeddings=True)
    path, model = checkpoint / "model.safetensors", load_model(checkpoint)
    save_model(model, str(path))
    assert "model.embed_tokens.weight" not in load_file(path)
    opened = Checkpoint(checkpoint)
    assert torch.equal(load_model(opened).model.embed_tokens.weight, model.model.embed_tokens.weight)
    assert opened.notes == ("lm_head.weight is stored and model.embed_tokens.weight is not: it is used as both.",)


@pytest.mark.parametrize(
    ("named", "ends", "said"),
    [
        ({"eos_token_id": 7}, (1, 2, 7), "eos_token_id 1, 2 of"),
        ({"eos_token_id": [2, 7]}, (1, 2, 7), "eos_token_id 1 of"),
        ({"eos_token_id": [7, 2, 1]}, (1, 2, 7), None),
        ({"bos_token_id": 3}, (1, 2), "eos_token_id 1, 2 of"),
        (None, (1, 2), None),
    ],
)
def test_end_tokens_of_both_files(
    make_checkpoint: MakeCheckpoint, named: Any, ends: tuple[int, ...], said: str | None
) -> None:
    """All of them end a text; transformers takes those of generation_config.json alone, and a note says so."""
    checkpoint = make_checkpoint(eos_token_id=[1, 2])
    if named is not None:
        (checkpoint / "generation_config.json").write_text(json.dumps(named))
    opened = Checkpoint(checkpoint)
    assert opened.config.eos_token_ids == ends
    assert [note for note in opened.notes if "transformers continues" in note] == list(opened.notes)
    assert len(opened.notes) == (said is not None) and all(said in note for note in opened.notes)
    given = GenerationConfig.from_pretrained(checkpoint).eos_token_id if named is not None else [1, 2]
    theirs = {given} if isinstance(given, int) else set(given or ())
    assert theirs <= set(ends) and (theirs == set(ends)) == (said is None), "what transformers ends at"
