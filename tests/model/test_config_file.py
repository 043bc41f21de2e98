"""The form of config.json: types are exact, and what is left out is what transformers fills in."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest
from msgspec import UNSET, Meta
from transformers import LlamaConfig

from lucid_deploy.errors import LucidError
from lucid_deploy.model.config_file import ConfigFile, GenerationFile, RopeBlock, checked, read_object, token_ids
from tests.model.config_samples import LLAMA

UNGIVEN = ("num_key_value_heads", "max_position_embeddings")
BIASES = ("attention_bias", "mlp_bias")


class Form(msgspec.Struct, kw_only=True, frozen=True):
    size: Annotated[int, Meta(gt=0, le=9, description="a small number")]
    gain: float = 1.5
    name: str | None = None


def refusal(values: dict[str, Any], form: type[msgspec.Struct] = Form) -> str:
    with pytest.raises(LucidError) as caught:
        checked(values, form, "config.json")
    return str(caught.value)


def test_what_is_left_out_is_what_llamas_class_says() -> None:
    ours, theirs = checked({key: LLAMA[key] for key in LLAMA if key not in UNGIVEN}, ConfigFile, ""), LlamaConfig()
    for key in ("rms_norm_eps", "max_position_embeddings", "tie_word_embeddings", *BIASES, "hidden_act"):
        assert getattr(ours, key) == getattr(theirs, key), key
    assert ours.rope_theta == theirs.rope_parameters["rope_theta"]
    assert ours.num_key_value_heads is ours.head_dim is UNSET
    block, usual = checked({}, RopeBlock, ""), {"beta_fast": 32.0, "beta_slow": 1.0, "truncate": True}
    assert {key: getattr(block, key) for key in usual} == usual


def test_null_is_nothing_and_other_keys_are_passed_over() -> None:
    assert checked({"size": 3, "gain": None, "other": object()}, Form, "") == Form(size=3)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "size is missing."),
        ({"size": None}, "size is missing."),
        ({"size": True}, "size must be a small number, not True."),
        ({"size": 0}, "size must be a small number, not 0."),
        ({"size": 10}, "size is 10; more than 9 is not supported."),
        ({"size": 3.0}, "size must be a small number, not 3.0."),
        ({"size": 3, "gain": "x"}, "gain must be of type float, not 'x'."),
    ],
)
def test_a_value_of_another_form_is_said_in_one_line(values: dict[str, Any], said: str) -> None:
    assert refusal(values) == f"config.json: {said}"


def test_tokens_are_one_or_several() -> None:
    for given, ids in ((5, (5,)), ([5, 7], (5, 7)), ([], ()), (None, ())):
        assert token_ids(checked({"eos_token_id": given}, GenerationFile, "").eos_token_id) == ids
    message = refusal({"eos_token_id": [True]}, GenerationFile)
    assert message.endswith("not [True]. Write [] or null if there is none.")


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"[]", "holds a JSON list"), (b"{", "is not valid JSON"), (b"\xff", "is not valid JSON")],
)
def test_a_file_that_holds_no_object(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(LucidError, match=said):
        read_object(tmp_path / "config.json")
