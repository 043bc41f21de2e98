"""CPU kernels that decode over a cache in another type, against float64 on the same stored numbers.

Errors are compared with those of converting the rows to the model's type and running the dense operator.
"""

from __future__ import annotations

import pytest
import torch

from lucid_deploy.plugins.hosts.onnxruntime.build import kernels_name
from lucid_deploy.plugins.table import (
    CACHED_ATTENTION,
    CACHED_ATTENTION_FLOAT16,
    CACHED_ATTENTION_INT8,
    DECODE_ATTENTION_FLOAT16,
    DECODE_ATTENTION_INT8,
)
from tests.plugins.cpu_sessions import check, keys, poison, run, runnable, session
from tests.plugins.stored_caches import padded_mask, paths, problem, read, store

OPERATORS = {"float16": DECODE_ATTENTION_FLOAT16, "int8": DECODE_ATTENTION_INT8}
# Types of model and cache; a float16 model whose cache is float16 too needs no other operator.
TYPES = [("float32", "int8"), ("float32", "float16"), ("float16", "int8")]


def decode(library, new, stored, mask, threads=2):
    dtype, cache_dtype = ("float32" if new[0].dtype == torch.float32 else "float16"), str(stored[0].dtype)[6:]
    return run(session(OPERATORS[cache_dtype], library, threads, dtype), *new, *stored, mask)


def check_all(library, new, stored, mask):
    exact, plain = paths(new, stored, mask)
    dtype = "float32" if new[0].dtype == torch.float32 else "float16"
    for name in runnable(library):
        kernels_name(library, name)
        for got, dense, true in zip(decode(library, new, stored, mask), plain, exact, strict=True):
            check(got, dense, true, dtype)


@pytest.mark.parametrize(("dtype", "cache_dtype"), TYPES)
@pytest.mark.parametrize("correlation", [0.9, 1.0])
def test_sizes_and_correlations(library, fastest, correlation, dtype, cache_dtype):
    for past in (0, 1, 63, 129, 1030):
        # The error of a few rows, or of few distinct keys, is a matter of luck, the dense path's too.
        batch = 12 if past < 20 else 4 if correlation == 1.0 else 1
        new, k, y = problem(past, 64, 4, batch, dtype, correlation)
        check_all(library, new, store(k, y, cache_dtype), torch.ones(batch, past + 1, dtype=torch.bool))


@pytest.mark.parametrize(("dtype", "cache_dtype"), TYPES)
@pytest.mark.parametrize(
    ("width", "groups"),
    [(2, 1), (36, 3), (68, 8), (256, 5), (68, 32)],  # at last 33 rows
)
def test_widths_groups_and_padding(library, fastest, width, groups, dtype, cache_dtype):
    past = 1300
    new, k, y = problem(past, width, groups, 4, dtype)
    mask, stored = padded_mask(past), store(k, y, cache_dtype)
    exact, plain = paths(new, stored, mask)
    hidden = ~mask[:, None, :past, None]
    garbage = [x.masked_fill(hidden, -128) if x.dtype == torch.int8 else poison(x, mask[:, :past]) for x in stored]
    for name in runnable(library):
        kernels_name(library, name)
        clean = decode(library, new, stored, mask)
        for got, dense, true in zip(clean, plain, exact, strict=True):
            check(got, dense, true, dtype)
        assert torch.equal(clean[1][2:], new[2][2:])
        for got, same in zip(decode(library, new, garbage, mask, threads=1), clean, strict=True):
            assert torch.equal(got, same), "the contents of padding must not matter, nor the number of threads"


@pytest.mark.parametrize("cache_dtype", ["int8", "float16"])
@pytest.mark.parametrize(("past", "width", "count"), [(0, 32, 3), (70, 64, 2)])
def test_several_tokens_see_each_other_as_computed(library, fastest, past, width, count, cache_dtype):
    batch = 64  # the error of a few rows is a matter of luck
    generator, mask = torch.Generator().manual_seed(0), torch.ones(batch, past + count, dtype=torch.bool)
    k = torch.cat([keys(generator, 1, 1, past + count, width, 0.99) for _ in range(batch)])
    y = torch.randn(batch, 1, past + count, width, generator=generator)
    q = torch.randn(batch, 3, count, width, generator=generator)
    new, stored = (q, k[:, :, past:], y[:, :, past:]), store(k[:, :, :past], y[:, :, :past], cache_dtype)
    check_all(library, new, stored, mask)


def test_keys_whose_squares_overflow_float32(library, fastest):
    """The new row of Y does not depend on the length of keys. Scores do: one key gets all the weight."""
    past, mask = 500, torch.ones(2, 501, dtype=torch.bool)
    new, k, y = problem(past, 64, 4, 2)
    numbers, values, k_scale, y_scale = store(k, y, "int8")
    _, plain = paths(new, (numbers, values, k_scale, y_scale), mask)
    huge = (numbers, values, k_scale * 2.0**100, y_scale)
    exact, _ = paths(new, huge, mask)
    for name in runnable(library):
        kernels_name(library, name)
        o, y_new = decode(library, new, huge, mask)
        check(y_new, plain[1], exact[1])
        check(o, plain[0], exact[0])


@pytest.mark.parametrize("cache_dtype", ["int8", "float16"])
def test_rows_of_zeros_and_full_scale(library, fastest, cache_dtype):
    """Rows of zeros have the scale 0; rows of ±1 are all ±127 in int8."""
    new, k, y = problem(300, 36, 3, 2)
    k[:, :, ::3], y[:, :, 1::3] = k[:, :, ::3].sign(), y[:, :, 1::3].sign()
    k[:, :, 5::7], y[:, :, 5::11] = 0.0, 0.0
    stored = store(k, y, cache_dtype)
    if cache_dtype == "int8":
        assert (stored[2] == 0).any() and stored[0].abs().float().mean(-1).max() == 127
    check_all(library, new, stored, torch.ones(2, 301, dtype=torch.bool))
    check_all(library, new, store(0 * k, 0 * y, cache_dtype), torch.ones(2, 301, dtype=torch.bool))


STANDARD = {
    ("float32", "float32"): CACHED_ATTENTION,
    ("float16", "float16"): CACHED_ATTENTION,
    ("float32", "float16"): CACHED_ATTENTION_FLOAT16,
    ("float32", "int8"): CACHED_ATTENTION_INT8,
    ("float16", "int8"): CACHED_ATTENTION_INT8,
}


@pytest.mark.parametrize(("dtype", "cache_dtype"), STANDARD)
@pytest.mark.parametrize(
    ("past", "width", "groups"),
    [(0, 64, 3), (63, 12, 1), (1300, 36, 4), (2100, 64, 3), (1300, 128, 40)],  # with 40 heads keys are turned
)
def test_standard_attention_of_one_token(library, fastest, past, width, groups, dtype, cache_dtype):
    """Against PyTorch's own attention over the rows of the cache and the new one."""
    new, k, v = problem(past, width, groups, 4, dtype, 0.95)
    mask = padded_mask(max(past, 1101))[:, -past - 1 :]  # its last row has no token but the new one
    mask[:, past] = True
    stored = store(k, v, cache_dtype) if cache_dtype == "int8" else [x.to(getattr(torch, cache_dtype)) for x in (k, v)]

    def attended(kind):
        rows = [torch.cat(pair, 2) for pair in zip(read(stored, kind), (x.to(kind) for x in new[1:]), strict=True)]
        options = {"attn_mask": mask[:, None, None], "enable_gqa": True}
        return torch.nn.functional.scaled_dot_product_attention(new[0].to(kind), *rows, **options)

    exact, dense = attended(torch.float64), attended(torch.float32).to(new[0].dtype)
    hidden = ~mask[:, None, :past, None]
    garbage = [x.masked_fill(hidden, -128) if x.dtype == torch.int8 else poison(x, mask[:, :past]) for x in stored]
    for name in runnable(library):
        kernels_name(library, name)
        for threads in (1, 2):
            of = session(STANDARD[dtype, cache_dtype], library, threads, dtype)
            (got,) = run(of, *new, *stored, mask)
            check(got, dense, exact, dtype)
            assert torch.equal(run(of, *new, *garbage, mask)[0], got), "the contents of padding must not matter"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda k, y, ks, ys: (k, y[:, :, 1:], ks, ys), "DecodeAttentionInt8: K and Y differ"),
        (lambda k, y, ks, ys: (k, y, ks[:, :, 1:], ys), "K_scale or Y_scale is not one number a row"),
        (lambda k, y, ks, ys: (k, y, ks, ys.expand(-1, -1, -1, 64)), "K_scale or Y_scale is not one number a row"),
    ],
)
def test_shapes_that_do_not_fit(library, change, message):
    new, k, y = problem(20, 64, 4)
    with pytest.raises(Exception, match=message):
        decode(library, new, change(*store(k, y, "int8")), torch.ones(1, 21, dtype=torch.bool))
