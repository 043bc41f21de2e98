"""Settings of the delta rule's layers: read strictly, and what follows from them for the cache."""

from __future__ import annotations

from typing import Any

import pytest

from lucid_deploy.cache.layout import bytes_per_token, layout_bytes
from lucid_deploy.errors import LucidError
from lucid_deploy.model.description import describe, layout_of
from lucid_deploy.model.layers.delta_settings import delta_settings, state_layout
from tests.model.config_samples import LLAMA, parse

SETTINGS: dict[str, Any] = {"key_heads": 2, "value_heads": 4, "key_width": 8, "value_width": 12, "kernel": 4}


def settings(**changes: Any) -> Any:
    return delta_settings(parse(LLAMA, layer_settings={"delta": {**SETTINGS, **changes}}), "delta")


def test_the_state_is_wide_whatever_rows_are() -> None:
    for dtype, wide in (("float16", "float32"), ("bfloat16", "float32"), ("float64", "float64")):
        assert [tensor.dtype for tensor in state_layout(settings(), "float32", dtype)] == [dtype, wide]
    assert [tensor.dtype for tensor in state_layout(settings(), "bfloat16", "bfloat16")] == ["bfloat16"] * 2


def test_a_cache_of_such_layers_does_not_grow() -> None:
    config = parse(LLAMA, layer_settings={"delta": SETTINGS}, layer_kinds=["delta", "delta"])
    layout = layout_of(describe(config, "float32"))
    assert bytes_per_token(layout) == 0
    assert layout_bytes(layout, 1) == layout_bytes(layout, 100_000) == 2 * 4 * (80 * 3 + 4 * 8 * 12)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"value_heads": 3}, "value_heads (3) is not a multiple of key_heads (2)"),
        ({"key_width": 0}, "`$.key_width`"),
        ({"kernel": 1}, "kernel is 1; short convolutions over 2 to 64 tokens are supported"),
        ({"kernel": 2.5}, "`$.kernel`"),
        ({"gate": "tanh"}, "`$.gate`"),
        ({"has_beta": 1}, "`$.has_beta`"),
        ({"heads": 4}, "unknown field `heads`"),
        ({"key_heads": None}, "field `key_heads`"),
    ],
)
def test_settings_that_no_layer_can_have_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(LucidError) as caught:
        settings(**changes)
    assert said in str(caught.value) and str(caught.value).startswith("layer_settings.delta")
