"""The library's solve against float64: its error is held against that of the dense float32 path."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from lucid_deploy.plugins.hosts.onnxruntime.build import kernels_name
from lucid_deploy.plugins.precondition.torch_operator import precondition
from lucid_deploy.plugins.table import PRECONDITION
from tests.plugins.cpu_sessions import check, keys, poison, run, runnable, session


def solve(k, v, k_past, y_past, mask, dtype="float32"):
    """Return the float64 solution on these inputs, and the dense path's."""
    exact = precondition(*(x.double() for x in (k, v, k_past, y_past)), mask=mask, implementation="reference")
    return exact, precondition(k, v, k_past, y_past, mask, implementation="reference")


def problem(tokens, past, width, correlation, batch=1, heads=2, dtype=torch.float32):
    """Return K, V of the new tokens and K, Y of the past, with a Y that a solve gave."""
    generator = torch.Generator().manual_seed(tokens + past + width)
    k = keys(generator, batch, heads, past + tokens, width, correlation).to(dtype)
    v = torch.randn(batch, heads, past + tokens, width, generator=generator).to(dtype)
    y_past = precondition(k[:, :, :past], v[:, :, :past])
    return k[:, :, past:], v[:, :, past:], k[:, :, :past], y_past


@pytest.mark.parametrize(("past", "correlation"), [(0, 0.99), (1, 0.9), (100, 1.0)])
def test_sizes_and_correlations(library, fastest, past, correlation):
    for tokens in (1, 63, 97, 129, 1000):
        # The error of a few rows, or of few distinct keys, is a matter of luck, the dense path's too.
        batch = 24 if tokens <= 2 else 6 if correlation == 1.0 and tokens <= 257 else 1
        k, v, k_past, y_past = problem(tokens, past, 64, correlation, batch)
        mask = torch.ones(batch, past + tokens, dtype=torch.bool)
        exact, dense = solve(k, v, k_past, y_past, mask)
        for name in runnable(library):
            kernels_name(library, name)
            for threads in (1, 2):
                (y,) = run(session(PRECONDITION, library, threads), k, v, k_past, y_past, mask)
                check(y, dense, exact)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("width", [16, 68, 256])
def test_widths_padding_and_batches(library, fastest, width, dtype):
    tokens, past = 150, 110
    k, v, k_past, y_past = problem(tokens, past, width, 0.9, batch=2, dtype=getattr(torch, dtype))
    mask = torch.ones(2, past + tokens, dtype=torch.bool)
    mask[0, :98] = False  # left, a whole tile and more
    mask[1, -40:] = False  # right
    mask[1, past + 7] = False
    exact, dense = solve(k, v, k_past, y_past, mask)
    token = mask[:, None, past:, None]
    for name in runnable(library):
        kernels_name(library, name)
        (clean,) = run(session(PRECONDITION, library, 2, dtype), k, v, k_past, y_past, mask)
        assert torch.equal(clean.where(~token, v), v), "a padded row's Y is its V"
        garbage = [poison(x, mask[:, part]) for x, part in zip((k, v, k_past, y_past), _parts(past), strict=True)]
        (y,) = run(session(PRECONDITION, library, 2, dtype), *garbage, mask)
        assert torch.equal(y.where(token, clean), clean), "the contents of padding must not matter"
        check(y.where(token, v), dense, exact, dtype)


def _parts(past):
    new, old = slice(past, None), slice(None, past)
    return new, new, old, old


@pytest.mark.parametrize("width", [36, 64])
def test_chunks_give_the_result_of_one_call(library, fastest, width):
    """To the last bit, with every instruction set: a prompt may be cut anywhere."""
    k, v, k_past, y_past = problem(400, 0, width, 0.9)
    mask = torch.ones(1, 400, dtype=torch.bool)
    mask[:, :3], mask[:, 170:180] = False, False
    for name in runnable(library):
        kernels_name(library, name)
        (whole,) = run(session(PRECONDITION, library, 2), k, v, k_past, y_past, mask)
        pieces = y_past
        for start, end in pairwise((0, 1, 35, 130, 131, 200, 290, 400)):
            part = slice(start, end)
            inputs = k[:, :, part], v[:, :, part], k[:, :, :start], pieces, mask[:, :end]
            (y,) = run(session(PRECONDITION, library, 2), *inputs)
            pieces = torch.cat([pieces, y], dim=2)
        assert torch.equal(pieces, whole)


def test_zero_new_tokens(library):
    k, v, k_past, y_past = problem(5, 3, 64, 0.9)
    mask = torch.ones(1, 3, dtype=torch.bool)
    (y,) = run(session(PRECONDITION, library), k[:, :, :0], v[:, :, :0], k_past, y_past, mask)
    assert y.shape == (1, 2, 0, 64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda k, v, kp, yp, m: (k, v[:, :, 1:], kp, yp, m), "K and V differ in shape"),
        (lambda k, v, kp, yp, m: (k, v, kp, yp[:, :, 1:], m), "K_past and Y_past differ"),
        (lambda k, v, kp, yp, m: (k, v, kp[..., :8], yp[..., :8], m), "differ in batch, heads or width"),
        (lambda k, v, kp, yp, m: (k, v, kp, yp, m[:, 1:]), "mask is not"),
    ],
)
def test_shapes_that_do_not_fit(library, change, message):
    k, v, k_past, y_past = problem(5, 3, 64, 0.9)
    with pytest.raises(Exception, match=message):
        run(session(PRECONDITION, library), *change(k, v, k_past, y_past, torch.ones(1, 8, dtype=torch.bool)))


@pytest.mark.parametrize("diagonal", [1, 0, 0.5, -1.0])
def test_an_invalid_diagonal_is_refused(library, diagonal):
    """Integers too: read as a float there would be none, and the diagonal 1 without a word."""
    with pytest.raises(Exception, match="diagonal must be the float 0 or 1"):
        session(PRECONDITION, library, 1, diagonal=diagonal)
