"""``quant_method`` ``fp8``: settings, and the names that follow from them; numbers: test_float_weight.py."""

from __future__ import annotations

import pytest

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
