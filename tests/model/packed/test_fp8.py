"""``quant_method`` ``fp8``: settings, and the names that follow from them; numbers: test_float_weight.py."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

from lucid_deploy.model.packed.float_weight import InputRounding
from lucid_deploy.model.packed.fp8 import Fp8Layout
from tests.model.packed.floats import fine_grained


@pytest.mark.parametrize(
    ("settings", "required", "block", "inputs"),
    [
        (fine_grained("dynamic", [128, 64]), "weight weight_scale_inv", (128, 64), InputRounding("group", 64)),
        (
            fine_grained("static", [128, 128]),
            "weight weight_scale_inv activation_scale",
            (128, 128),
            InputRounding("static"),
        ),
        (fine_grained("dynamic", None), "weight weight_scale_inv", None, InputRounding("token")),
        (fine_grained("static"), "weight weight_scale input_scale", None, InputRounding("static")),
    ],
)
def test_settings(settings: dict, required: str, block: tuple | None, inputs: InputRounding) -> None:
    layout = Fp8Layout.from_settings({**settings, "modules_to_not_convert": ["lm_head"], "ignored_layers": None})
    assert (" ".join(layout.required), layout.block, layout.inputs) == (required, block, inputs)


@pytest.mark.parametrize("block", [(128, 128), (64, 32), (96, 48)])
def test_blocks_mean_what_they_mean_in_transformers(block: tuple[int, int]) -> None:
    """Its own conversion of such checkpoints to floats, which takes blocks that divide a weight."""
    draw = torch.Generator().manual_seed(3)
    rows, width = 2 * block[0], 3 * block[1]
    weight = torch.randn(rows, width, generator=draw).to(torch.float8_e4m3fn)
    parts = {"weight": weight, "weight_scale_inv": torch.rand(2, 3, generator=draw) + 0.01}
    wanted = Fp8Dequantize(SimpleNamespace()).convert(dict(parts))["weight"]
    found = Fp8Layout.from_settings(fine_grained("dynamic", list(block))).read(parts).dequantize()
    assert wanted.dtype == torch.float32 and found.to(torch.float32).equal(wanted)
