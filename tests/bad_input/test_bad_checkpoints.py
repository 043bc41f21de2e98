"""Checkpoints that export must refuse."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tests.model.families.flash_model import ATTENTION, Flash

Refused = Callable[..., str]
MakeCheckpoint = Callable[..., Path]


@pytest.fixture
def refused_export(refused: Refused, tmp_path: Path) -> Refused:
    """Return a function that exports a checkpoint and expects a refusal."""
    return lambda checkpoint, **how: refused("export", checkpoint, "--output", tmp_path / "artifact", **how)


def edit_config(checkpoint: Path, **changes: object) -> None:
    config = checkpoint / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **changes}))


@pytest.mark.parametrize("process", [False, True], ids=["", "process"])
def test_a_missing_directory_is_refused(refused_export: Refused, tmp_path: Path, process: bool) -> None:
    message = refused_export(tmp_path / "nothing", process=process)
    assert message == f"Error: There is no checkpoint at {tmp_path / 'nothing'}: the directory does not exist."


@pytest.mark.parametrize("part", ["vision_config", None])
def test_the_hint_to_use_llama_is_given_only_for_language_models(
    refused_export: Refused, make_checkpoint: MakeCheckpoint, part: str | None
) -> None:
    checkpoint = make_checkpoint()
    edit_config(checkpoint, model_type="unknown", architectures=["Unknown"], **({part: {"depth": 2}} if part else {}))
    message = refused_export(checkpoint)
    assert ('set model_type to "llama"' in message) == (part is None), message


def test_a_name_too_long_for_the_file_system_is_refused(refused_export: Refused) -> None:
    assert "File name too long" in refused_export("a" * 300)


def test_an_artifact_as_checkpoint_is_refused(refused_export: Refused, artifact_copy: Path, tmp_path: Path) -> None:
    artifact_copy.rename(tmp_path / "exported")
    assert "is an exported artifact; a checkpoint is needed" in refused_export(tmp_path / "exported")


def test_a_companion_that_is_no_file_is_refused(refused_export: Refused, make_checkpoint: MakeCheckpoint) -> None:
    checkpoint = make_checkpoint()
    for name in ("chat_template.jinja", "additional_chat_templates/tool_use.jinja", "tokenizer.json"):
        path = checkpoint / name
        path.parent.mkdir(exist_ok=True)
        for make in (os.mkfifo, os.mkdir, lambda path: os.symlink("nowhere", path)):
            make(path)
            assert f"{path} is not a file. Replace or remove it." in refused_export(checkpoint)
            path.rmdir() if path.is_dir() else path.unlink()


@pytest.mark.usefixtures("untraced")
def test_weights_too_large_for_the_type_fail(refused: Refused, make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    path = make_checkpoint() / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"][5] = 1e6
    save_file(tensors, path)
    words = ("export", path.parent, "--output", tmp_path / "new" / "artifact", "--dtype", "float16")
    assert "model.norm.weight has values that are not finite in float16" in refused(*words)


@pytest.mark.parametrize("content", [b"{}", b"", b"\xff", b"[1]"], ids=["object", "empty", "bytes", "list"])
def test_a_tokenizer_that_cannot_be_read_is_refused(
    refused_export: Refused, make_checkpoint: MakeCheckpoint, content: bytes
) -> None:
    path = make_checkpoint() / "tokenizer.json"
    path.write_bytes(content)
    message = refused_export(path.parent)
    assert str(path) in message and "is not a readable tokenizer" in message


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("embedding_multiplier", "embedding_multiplier is known to change the numbers"),
        ("attention_type", "attention_type is known to change the numbers"),
        ("rope_scaling.factor", "rope_scaling.factor is known to change the numbers"),
        ("pad_token_id", "has no unknown key pad_token_id: leave out --assume-unused pad_token_id"),
        ("gian", "has no unknown key gian: leave out --assume-unused gian, or correct its spelling"),
        ("", "has no unknown key"),
    ],
)
def test_a_key_that_cannot_be_assumed_unused_is_refused(
    refused: Refused, make_checkpoint: MakeCheckpoint, tmp_path: Path, key: str, said: str
) -> None:
    checkpoint = make_checkpoint()
    edit_config(checkpoint, gain=3, pad_token_id=0)
    words = ("export", checkpoint, "-o", tmp_path / "artifact", "--assume-unused", "gain", "--assume-unused", key)
    assert said in refused(*words)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[]", "holds a JSON list"),
        ("{", "is not valid JSON"),
        ('{"eos_token_id": true}', "Expected `int | array`, got `bool` - at `$.eos_token_id`"),
        ('{"eos_token_id": [1, "2"]}', "got `str` - at `$.eos_token_id[1]`"),
        ('{"eos_token_id": -1}', "Expected `int` >= 0 - at `$.eos_token_id`"),
        ('{"eos_token_id": 97}', "eos_token_id 97 is outside the vocabulary"),
    ],
)
def test_an_invalid_generation_configuration_is_refused(
    refused_export: Refused, make_checkpoint: MakeCheckpoint, content: str, said: str
) -> None:
    path = make_checkpoint() / "generation_config.json"
    path.write_text(content)
    message = refused_export(path.parent)
    assert str(path) in message
    assert said in message


GATED: dict[str, Any] = {"model_type": "gated_deltanet", "head_dim": 12, "expand_v": 1.0, "num_hidden_layers": 2}
SAVED: dict[str, Any] = {"model_type": "delta_net", "num_hidden_layers": 2}


@pytest.mark.parametrize(
    ("model", "change", "said"),
    [
        (SAVED, {"conv_size": 1}, "conv_size is 1; short convolutions over 2 to 64 tokens are supported"),
        (SAVED, {"conv_size": 3}, "q_conv1d.weight is [48, 1, 4], config.json asks for [48, 1, 3]"),
        (SAVED, {"num_heads": 5}, "hidden_size · expand_k (48) is not a multiple of num_heads (5)"),
        (SAVED, {"expand_v": 0.3}, "hidden_size · expand_v is 14.4, which is not a whole number"),
        (SAVED, {"attn": {**ATTENTION, "num_heads": 7}}, "is not a multiple of attn.num_heads (7)"),
        (GATED, {"num_v_heads": 6}, "num_v_heads (6) is not a multiple of num_heads (4)"),
    ],
    ids=str,
)
def test_sizes_that_do_not_divide_are_refused(
    model: dict[str, Any], change: dict[str, Any], said: str, refused: Refused, tmp_path: Path
) -> None:
    flash = Flash(model)
    flash.raw |= change
    message = refused("export", flash.save(tmp_path / "checkpoint"), "--output", tmp_path / "artifact")
    assert said in " ".join(message.split())
