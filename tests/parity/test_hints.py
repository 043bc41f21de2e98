"""Faults in an exported artifact: each is caught, and its cause is found in the layer and tensor where it was put."""

import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner

from lucid_deploy.cli import main
from tests.parity.faults import (
    broken_operator,
    change_weight,
    diagonal,
    edit_graphs,
    low_precision_e,
    normalised_keys,
    shifted_rope,
    swap_cache,
    swap_layers,
)

CONTEXT = 32  # prompts of 21 tokens with 6 steps


@pytest.fixture
def copy(exported, tmp_path):
    """Return a function giving a copy of an artifact to damage, of two layers: the fault is in one of them."""

    def make(**options):
        _, artifact = exported(max_position_embeddings=CONTEXT, **options)
        return shutil.copytree(artifact.directory, tmp_path / "artifact")

    return make


def verify(directory):
    command = ["verify", str(directory), "--quick", "--steps", "6", "--json", "-"]
    return CliRunner().invoke(main, command, catch_exceptions=False)


def layer_of(part):
    """``layer 1`` of ``layer 1 K``; embedding and logits stay."""
    return part.rsplit(" ", 1)[0]


def localised(directory, part, hint, also=()):
    """Check that verification fails, where it says the error starts, and that no other layer is said to err by itself.

    Returns:
        What it found.
    """
    result = verify(directory)
    assert result.exit_code == 1, result.stdout[:300]
    data = json.loads(result.stdout)
    found = data["explanation"]
    assert found["origin"] is not None, result.stderr
    assert (found["origin"]["part"], found["origin"]["passed"]) == (part, False)
    assert hint in found["hint"]
    failed = {layer_of(item["part"]) for item in found["own_errors"] if not item["passed"]}
    assert failed == {layer_of(part), *also}
    message = " ".join(result.stderr.split())
    assert f"The error starts in {part}" in message and hint in message
    return data


@pytest.mark.parametrize(
    ("name", "part", "hint"),
    [
        ("0.self_attn.k_proj.weight", "layer 0 K", "k_proj"),
        ("1.self_attn.q_proj.weight", "layer 1 output", "Its K and Y are right"),
    ],
)
def test_an_element_of_a_weight_changed_by_one_percent(copy, name, part, hint):
    directory = copy()
    change_weight(directory, f"model.layers.{name}")
    data = localised(directory, part, hint)
    if "_proj" in hint:
        assert "the error lies in key/value head" in data["explanation"]["hint"]


def test_a_weight_outside_the_layers(copy):
    directory = copy()
    change_weight(directory, "lm_head.weight", whole=True)
    localised(directory, "logits", "lm_head")


def test_two_layers_swapped(copy):
    directory = copy()
    swap_layers(directory, 0, 1)
    localised(
        directory, "layer 0 K", "Layers 0 and 1 are each wrong by themselves: were they swapped?", also=["layer 1"]
    )


def test_k_and_y_swapped_in_the_cache(copy):
    directory = copy()
    edit_graphs(directory, swap_cache(0))
    localised(directory, "layer 0 K", "K and Y are swapped in the cache")


def test_normalised_keys_in_the_cache(copy):
    directory = copy()
    edit_graphs(directory, normalised_keys(0))
    localised(directory, "layer 0 K", "normalised keys")


def test_rope_off_by_one_position_in_decode_only(copy):
    directory = copy()
    edit_graphs(directory, shifted_rope(1), stages=["decode"])
    data = localised(directory, "layer 1 K", "rotated by one position too far")
    assert data["explanation"]["origin"]["feeding"] == "decode"


def test_a_diagonal_that_is_not_one(copy):
    directory = copy()
    edit_graphs(directory, broken_operator(1, "Precondition", diagonal(0.9998)))
    localised(directory, "layer 1 Y", "The diagonal of L is 0.9998")


def test_e_in_bfloat16(copy):
    directory = copy()
    edit_graphs(directory, broken_operator(1, "DecodeAttention", low_precision_e))
    localised(directory, "layer 1 Y", "E (the exponentials) is in bfloat16")


def test_other_kinds_of_artifact(copy):
    directory = copy(cache="static", cache_dtype="int8")
    # One element is less than an int8 cache rounds by, so a layer's own error shows only if all are changed.
    change_weight(directory, "model.layers.0.self_attn.k_proj.weight", 1.5, np.float32, whole=True)
    localised(directory, "layer 0 K", "k_proj")


def test_standard_attention(copy):
    directory = copy(attention_type="llama")
    change_weight(directory, "model.layers.1.self_attn.v_proj.weight")
    localised(directory, "layer 1 V", "v_proj")
