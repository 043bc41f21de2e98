"""The library's attention, of a prompt and of one token, against float64."""

from __future__ import annotations

import pytest
import torch

from lucid_deploy.plugins.causal_attention import causal_attention
from lucid_deploy.plugins.decode_attention import decode_attention
from lucid_deploy.plugins.ort_build import kernels_name
from tests.native.native_tools import check, keys, poison, run, runnable, session


def problem(tokens, past, width, groups, correlation=0.9, batch=1, heads=2, dtype=torch.float32):
    generator = torch.Generator().manual_seed(tokens + past + width + groups)
    k = keys(generator, batch, heads, past + tokens, width, correlation).to(dtype)
    y = torch.randn(batch, heads, past + tokens, width, generator=generator).to(dtype)
    q = 2 * torch.randn(batch, heads * groups, tokens, width, generator=generator).to(dtype)
    return q, k, y


@pytest.mark.parametrize("past", [0, 1, 100])
@pytest.mark.parametrize("tokens", [1, 2, 63, 64, 65, 127, 200, 257, 1000])
def test_prompt_sizes(library, fastest, tokens, past):
    q, k, y = problem(tokens, past, 64, 2)
    mask = torch.ones(1, past + tokens, dtype=torch.bool)
    exact, dense = causal_attention(q.double(), k.double(), y.double()), causal_attention(q, k, y)
    for name in runnable(library):
        kernels_name(library, name)
        for threads in (1, 2):
            check(run(session("CausalAttention", library, threads), q, k, y, mask)[0], dense, exact)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(("width", "groups"), [(16, 1), (36, 3), (64, 4), (68, 8), (80, 1), (128, 2), (256, 1)])
def test_prompt_widths_groups_and_padding(library, fastest, width, groups, dtype):
    tokens, past = 150, 110
    q, k, y = problem(tokens, past, width, groups, batch=2, dtype=getattr(torch, dtype))
    mask = torch.ones(2, past + tokens, dtype=torch.bool)
    mask[0, :205] = False  # past a tile, and into the new tokens
    mask[1, -40:] = False
    mask[1, past + 7] = False
    exact = causal_attention(q.double(), k.double(), y.double(), mask)
    dense = causal_attention(q.float(), k.float(), y.float(), mask).to(q.dtype)
    token = mask[:, None, past:, None]
    for name in runnable(library):
        kernels_name(library, name)
        (clean,) = run(session("CausalAttention", library, 2, dtype), q, k, y, mask)
        check(clean, dense, exact, dtype)  # a padded row sees itself and what is before it
        (o,) = run(session("CausalAttention", library, 2, dtype), q, poison(k, mask), poison(y, mask), mask)
        assert torch.equal(o.where(token, clean), clean), "what padding holds must not matter"


def test_large_scores(library):
    q, k, y = problem(300, 0, 64, 1)
    q = 30 * q  # weights that differ by more than float32 can hold
    mask = torch.ones(1, 300, dtype=torch.bool)
    exact, dense = causal_attention(q.double(), k.double(), y.double()), causal_attention(q, k, y)
    check(run(session("CausalAttention", library), q, k, y, mask)[0], dense, exact)


def token_problem(past, width, groups, batch=1, dtype=torch.float32, correlation=0.9):
    q, k, y = problem(past + 1, 0, width, groups, correlation, batch, dtype=dtype)
    v_new = y[:, :, past:]
    return q[:, :, past:], k[:, :, past:], v_new, k[:, :, :past], y[:, :, :past]


@pytest.mark.parametrize("correlation", [0.0, 0.9, 0.99, 1.0])
@pytest.mark.parametrize("past", [0, 1, 63, 64, 65, 127, 200, 257, 1000, 1024, 2500])
def test_token_sizes(library, fastest, past, correlation):
    inputs = token_problem(past, 64, 4, correlation=correlation)
    mask = torch.ones(1, past + 1, dtype=torch.bool)
    exact = decode_attention(*(x.double() for x in inputs), implementation="reference")
    dense = decode_attention(*inputs, implementation="reference")
    for name in runnable(library):
        kernels_name(library, name)
        for threads in (1, 2):
            for got, plain, true in zip(
                run(session("DecodeAttention", library, threads), *inputs, mask), dense, exact, strict=True
            ):
                check(got, plain, true)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(
    ("width", "groups"), [(16, 1), (36, 3), (64, 4), (68, 8), (80, 15), (128, 16), (128, 40), (256, 5)]
)
def test_token_widths_groups_and_padding(library, fastest, width, groups, dtype):
    past = 1300
    q, k_new, v_new, k, y = token_problem(past, width, groups, batch=3, dtype=getattr(torch, dtype))
    mask = torch.ones(3, past + 1, dtype=torch.bool)
    mask[0, :1100] = False  # a whole chunk is padding
    mask[1, 150:past] = False  # as in a static buffer that is filled up to 150
    mask[2, [3, 700, past]] = False  # the new token is padding: its Y is its V
    inputs = (q, k_new, v_new, k, y)
    exact = decode_attention(*(x.double() for x in inputs), mask=mask, implementation="reference")
    dense = [
        x.to(q.dtype) for x in decode_attention(*(x.float() for x in inputs), mask=mask, implementation="reference")
    ]
    garbage = (q, k_new, v_new, poison(k, mask[:, :past]), poison(y, mask[:, :past]))
    for name in runnable(library):
        kernels_name(library, name)
        clean = run(session("DecodeAttention", library, 2, dtype), *inputs, mask)
        for got, plain, true in zip(clean, dense, exact, strict=True):
            check(got, plain, true, dtype)
        assert torch.equal(clean[1][2], v_new[2])
        for got, same in zip(run(session("DecodeAttention", library, 2, dtype), *garbage, mask), clean, strict=True):
            assert torch.equal(got, same), "what padding holds must not matter"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q, kn, vn, k, y, m: (q, kn, vn, k, y[:, :, 1:], m), "K and Y differ"),
        (lambda q, kn, vn, k, y, m: (q, kn[:, :, :0], vn, k, y, m), "not one row"),
        (lambda q, kn, vn, k, y, m: (q[:, :3], kn, vn, k, y, m), "Q and K do not fit"),
        (lambda q, kn, vn, k, y, m: (q, kn, vn, k, y, m[:, 1:]), "mask is not"),
    ],
)
def test_shapes_that_do_not_fit(library, change, message):
    mask = torch.ones(1, 21, dtype=torch.bool)
    with pytest.raises(Exception, match=message):
        run(session("DecodeAttention", library), *change(*token_problem(20, 64, 4), mask))
