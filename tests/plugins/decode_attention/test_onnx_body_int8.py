"""The ONNX body that multiplies by Y in int8, against float64 on the same stored numbers.

Gates come from the path without it: the rows converted to the model's type, then the dense operator.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx.inliner
import pytest
import torch

from lucid_deploy.plugins.table import DECODE_ATTENTION_INT8
from tests.plugins.cpu_sessions import check, run
from tests.plugins.onnx_bodies import operator_model, session_of, single_operator
from tests.plugins.stored_caches import padded_mask, paths, problem, store


@pytest.fixture(scope="module", params=[("float32", False), ("float16", False), ("float32", True)], ids=str)
def of_type(request: pytest.FixtureRequest):
    dtype, training = request.param
    return dtype, training, single_operator(DECODE_ATTENTION_INT8, dtype, training)


@pytest.fixture(scope="module")
def body():
    return single_operator(DECODE_ATTENTION_INT8)


def check_all(session, new, stored, mask, dtype="float32", training=False):
    exact, plain = paths(new, stored, mask, training)
    for got, dense, true in zip(run(session, *new, *stored, mask), plain, exact, strict=True):
        check(got, dense, true, dtype)


def all_tokens(batch, past):
    return torch.ones(batch, past + 1, dtype=torch.bool)


@pytest.mark.parametrize("correlation", [0.9, 1.0])
def test_sizes_and_correlations(of_type, correlation):
    dtype, training, session = of_type
    for past in (0, 1, 63, 129, 1030):
        # The error of a few rows, or of few distinct keys, is a matter of luck, the dense path's too.
        batch = 12 if past < 20 else 4 if correlation == 1.0 else 1
        new, k, y = problem(past, 64, 4, batch, dtype, correlation)
        if training:  # small keys, where training's diagonal is not 1
            new, k = (new[0], new[1] / 16, new[2]), k / 16
        check_all(session, new, store(k, y, "int8"), all_tokens(batch, past), dtype, training)


@pytest.mark.parametrize(
    ("width", "groups"),
    [(2, 1), (36, 3), (68, 8), (256, 5)],
)
def test_widths_groups_and_padding(of_type, width, groups):
    dtype, training, session = of_type
    new, k, y = problem(1300, width, groups, 4, dtype)
    mask, stored = padded_mask(1300), store(k, y, "int8")
    check_all(session, new, stored, mask, dtype, training)
    clean = run(session, *new, *stored, mask)
    assert torch.equal(clean[1][2], new[2][2]), "a padded row's Y is its V"
    assert training or torch.equal(clean[1][3], new[2][3]), "without a past, Y is V"
    hidden = ~mask[:, None, :1300, None]
    garbage = [stored[0].masked_fill(hidden, -128), stored[1].masked_fill(hidden, -128)]
    garbage += [scale.masked_fill(hidden, 1e3) for scale in stored[2:]]
    for got, same in zip(run(session, *new, *garbage, mask), clean, strict=True):
        assert torch.equal(got, same), "the contents of padding must not matter"


def test_rows_of_zeros_and_full_scale(body):
    """Rows of zeros have the scale 0; rows of ±1 are all ±127."""
    new, k, y = problem(300, 36, 3, 2)
    k[:, :, ::3], y[:, :, 1::3] = k[:, :, ::3].sign(), y[:, :, 1::3].sign()
    k[:, :, 5::7], y[:, :, 5::11] = 0.0, 0.0
    for rows in (store(k, y, "int8"), store(0 * k, 0 * y, "int8")):
        check_all(body, new, rows, all_tokens(2, 300))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_reach_the_outputs(body, bad):
    new, k, y = problem(300, 64, 4)
    numbers, values, k_scale, y_scale = store(k, y, "int8")
    for scales in ((k_scale, y_scale.clone()), (k_scale.clone(), y_scale)):
        changed = scales[0 if scales[1] is y_scale else 1]
        changed[0, 1, 7] = bad
        o, y_new = run(body, *new, numbers, values, *scales, all_tokens(1, 300))
        assert not o[0, 4:].isfinite().any() and o[0, :4].isfinite().all()
        assert not y_new[0, 1].isfinite().any() and y_new[0, 0].isfinite().all()


def test_digits_are_at_most_128():
    """Twice 128 · 127 fits into 16 bits, in which processors without VNNI add two products; larger bytes do not."""
    model = onnx.inliner.inline_local_functions(operator_model(DECODE_ATTENTION_INT8))
    [product] = [node for node in model.graph.node if node.op_type == "MatMulInteger"]
    model.graph.output.append(onnx.helper.make_tensor_value_info(product.input[0], onnx.TensorProto.UINT8, None))
    session = session_of(model)
    for correlation in (0.0, 0.9, 1.0):
        new, k, y = problem(2000, 64, 4, 2, correlation=correlation)
        digits = run(session, *new, *store(k, y, "int8"), all_tokens(2, 2000))[2]
        assert digits.shape == (2, 2, 20, 2000)
        assert digits.min() == 0 and digits.max() == 128
