"""The CPU kernel of decode attention against float64."""

from __future__ import annotations

import pytest
import torch

from lucid_deploy.plugins.decode_attention.torch_operator import decode_attention
from lucid_deploy.plugins.hosts.onnxruntime.build import kernels_name
from lucid_deploy.plugins.table import DECODE_ATTENTION, DECODE_ATTENTION_GROWING
from tests.plugins.cpu_sessions import attention_problem, check, poison, run, runnable, session


def token_problem(past, width, groups, batch=1, dtype=torch.float32, correlation=0.9):
    q, k, y = attention_problem(past + 1, 0, width, groups, correlation, batch, dtype=dtype)
    v_new = y[:, :, past:]
    return q[:, :, past:], k[:, :, past:], v_new, k[:, :, :past], y[:, :, :past]


@pytest.mark.parametrize(("past", "correlation"), [(0, 0.9), (1, 0.99), (63, 1.0), (129, 0.9), (1030, 1.0)])
def test_token_sizes(library, fastest, past, correlation):
    inputs = token_problem(past, 64, 4, correlation=correlation)
    mask = torch.ones(1, past + 1, dtype=torch.bool)
    exact = decode_attention(*(x.double() for x in inputs), implementation="reference")
    dense = decode_attention(*inputs, implementation="reference")
    for name in runnable(library):
        kernels_name(library, name)
        for threads in (1, 2):
            for got, plain, true in zip(
                run(session(DECODE_ATTENTION, library, threads), *inputs, mask), dense, exact, strict=True
            ):
                check(got, plain, true)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(("width", "groups"), [(16, 1), (36, 3), (68, 8), (128, 40), (256, 5)])
def test_token_widths_groups_and_padding(library, fastest, width, groups, dtype):
    past = 1300
    q, k_new, v_new, k, y = token_problem(past, width, groups, batch=3, dtype=getattr(torch, dtype))
    mask = torch.ones(3, past + 1, dtype=torch.bool)
    mask[0, 150:past] = False  # as in a static buffer that is filled up to 150; the next rows have more chunks
    mask[1, :1100] = False  # a whole chunk is padding
    mask[2, [3, 700, past]] = False  # the new token is padding: its Y is its V
    inputs = (q, k_new, v_new, k, y)
    exact = decode_attention(*(x.double() for x in inputs), mask=mask, implementation="reference")
    dense = [
        x.to(q.dtype) for x in decode_attention(*(x.float() for x in inputs), mask=mask, implementation="reference")
    ]
    garbage = (q, k_new, v_new, poison(k, mask[:, :past]), poison(y, mask[:, :past]))
    for name in runnable(library):
        kernels_name(library, name)
        clean = run(session(DECODE_ATTENTION, library, 2, dtype), *inputs, mask)
        for got, plain, true in zip(clean, dense, exact, strict=True):
            check(got, plain, true, dtype)
        assert torch.equal(clean[1][2], v_new[2])
        for got, same in zip(run(session(DECODE_ATTENTION, library, 2, dtype), *garbage, mask), clean, strict=True):
            assert torch.equal(got, same), "the contents of padding must not matter"


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("diagonal", [None, 1.0])
@pytest.mark.parametrize(
    ("n", "past", "width", "groups"),
    [
        *((2, 0, 64, 4), (5, 1300, 36, 3), (16, 65, 12, 1)),
        *((8, 1300, 64, 4), (16, 97, 128, 1)),  # so many rows that keys are turned
    ],
)
def test_several_tokens(library, fastest, n, past, width, groups, diagonal, dtype):
    q, k, y = attention_problem(n, past, width, groups, 0.95, batch=2, dtype=getattr(torch, dtype))
    k = k / 16 if diagonal else k  # small keys, where training's diagonal is not 1
    mask = torch.ones(2, past + n, dtype=torch.bool)
    mask[1, : past // 3] = False
    mask[1, past + n - n // 2] = False  # one of the new tokens is padding: nobody sees it, and its Y is its V
    inputs = (q, k[:, :, past:], y[:, :, past:], k[:, :, :past], y[:, :, :past])
    options = {"mask": mask, "implementation": "reference", "training_diagonal": bool(diagonal)}
    exact = decode_attention(*(x.double() for x in inputs), **options)
    dense = [x.to(q.dtype) for x in decode_attention(*(x.float() for x in inputs), **options)]
    for name in runnable(library):
        kernels_name(library, name)
        got = run(session(DECODE_ATTENTION, library, 2, dtype, diagonal), *inputs, mask)
        for one, plain, true in zip(got, dense, exact, strict=True):
            check(one, plain, true, dtype)
        assert torch.equal(got[1][1, :, n - n // 2], inputs[2][1, :, n - n // 2])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(
    ("n", "past", "width", "groups"),
    [
        (1, 0, 64, 4),
        (1, 1300, 36, 3),
        (5, 1090, 128, 1),
        (16, 97, 68, 1),
    ],
)
def test_a_growing_cache_is_returned_with_its_new_rows(library, fastest, n, past, width, groups, dtype):
    q, k, y = attention_problem(n, past, width, groups, batch=3, dtype=getattr(torch, dtype))
    mask = torch.ones(3, past + n, dtype=torch.bool)
    mask[1, :past] = False  # no chunk holds a token
    mask[2, : past // 2] = False
    inputs = (q, k[:, :, past:], y[:, :, past:], k[:, :, :past], y[:, :, :past])
    inputs = (*inputs[:3], *(poison(x, mask[:, :past]) for x in inputs[3:]))  # what padding holds is copied too
    for name in runnable(library):
        kernels_name(library, name)
        for threads in (1, 3):
            o, y_new = run(session(DECODE_ATTENTION, library, threads, dtype), *inputs, mask)
            got = run(session(DECODE_ATTENTION_GROWING, library, threads, dtype), *inputs, mask)
            wanted = (o, torch.cat([inputs[3], inputs[1]], 2), torch.cat([inputs[4], y_new], 2))
            for one, same in zip(got, wanted, strict=True):
                assert one.dtype == same.dtype and one.numpy().tobytes() == same.contiguous().numpy().tobytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q, kn, vn, k, y, m: (q, kn, vn, k, y[:, :, 1:], m), "K and Y differ"),
        (lambda q, kn, vn, k, y, m: (q, kn[:, :, :0], vn, k, y, m), "K_new or V_new is not"),
        (lambda q, kn, vn, k, y, m: (q[:, :3], kn, vn, k, y, m), "Q and K do not fit"),
        (lambda q, kn, vn, k, y, m: (q, kn, vn, k, y, m[:, 1:]), "mask is not"),
    ],
)
def test_shapes_that_do_not_fit(library, change, message):
    mask = torch.ones(1, 21, dtype=torch.bool)
    with pytest.raises(Exception, match=message):
        run(session(DECODE_ATTENTION, library), *change(*token_problem(20, 64, 4), mask))
