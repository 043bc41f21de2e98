"""What a family is by default, and the check of lists of layers."""

from __future__ import annotations

import msgspec
import pytest

from lucid_deploy.errors import LucidError
from lucid_deploy.model.checkpoint import expected_shapes
from lucid_deploy.model.families import families, family_named, family_of
from lucid_deploy.model.families.family import FULL, SLIDING, Family, StoredParameter, listed_types
from tests.model.config_samples import LLAMA, parse


class Own(Family):
    model_type = "own"
    architectures = ("OwnForCausalLM",)


class Keys(msgspec.Struct, kw_only=True, frozen=True):
    gain: float = 1.0
    depth: int = 0


class Gaining(Own):
    keys = Keys


def test_all_that_a_family_leaves_out_is_llamas() -> None:
    family, config = Own(), parse()
    assert family.computed == frozenset() and Gaining().computed == {"gain", "depth"}
    assert family.normalized(LLAMA, "config.json") == LLAMA
    assert family.configure(config, family.keys(), "config.json") == config
    assert family.layer_types(family.keys(), 3) == [FULL] * 3
    assert family.layer(config, 0, "blocked") is None
    assert all(family.stored(name, config) == StoredParameter(name) for name in expected_shapes(config))


@pytest.mark.parametrize("model_type", families())
def test_a_family_is_found_by_its_type_and_by_its_classes(model_type: str) -> None:
    family = family_named(model_type)
    assert family.model_type == model_type
    assert family_of({"model_type": model_type}) is family
    for name in family.architectures:
        assert family_of({"architectures": [name]}) is family
    assert family_of({}) is family_named("llama")
    assert family_of({"model_type": [model_type]}) is None


@pytest.mark.parametrize("model_type", families())
def test_the_keys_of_a_family_are_told_apart(model_type: str) -> None:
    """A key that is computed is neither refused nor passed over."""
    family = family_named(model_type)
    groups = [family.computed, family.refused.keys(), family.ignored]
    assert sum(map(len, groups)) == len(frozenset().union(*groups))
    assert family.about


def test_lists_of_layers_fit_the_model() -> None:
    assert listed_types([FULL, SLIDING], 2, 5, "config.json") == [FULL, SLIDING]
    assert listed_types([FULL, FULL], 2, None, "config.json") == [FULL, FULL]
    for given, window, said in (
        ([FULL], 5, "layer_types names 1 layers, num_hidden_layers is 2"),
        ([FULL, "chunked_attention"], 5, "layer_types names 'chunked_attention', which is not supported"),
        ([FULL, SLIDING], None, "sliding_window does not say over how many tokens"),
    ):
        with pytest.raises(LucidError, match=said):
            listed_types(given, 2, window, "config.json")


@pytest.mark.parametrize(
    ("family", "key"),
    [
        ("smollm3", "rope_theta"),
        ("smollm3", "max_position_embeddings"),
        ("gemma3_text", "rope_theta"),
        ("gemma3_text", "num_attention_heads"),
        ("phi3", "rms_norm_eps"),
    ],
)
def test_null_is_the_familys_default_and_not_llamas(family: str, key: str) -> None:
    """transformers takes null for none of them: it says no more than a key that is missing."""
    plain = {name: value for name, value in {**LLAMA, "model_type": family}.items() if name != key}
    assert getattr(parse(plain), key) != getattr(parse({**plain, "num_attention_heads": 4, "model_type": "llama"}), key)
    assert parse({**plain, key: None}) == parse(plain)
