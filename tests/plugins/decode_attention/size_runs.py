"""What runs inside of an interpreter's process: decoding one token with keys and queries of any size."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lucid_deploy.plugins.hosts.triton import launch
from tests.plugins.kernel_cases import Case, make_keys, relative_error

HEADS, PAST, GROUPS = 4, 70, 5  # in one head alone plain float32 may be exact by luck
SIZES = (1e-18, 1e-9, 1.0, 1e9, 1e18)  # of keys in one tile; a query has the inverse of one of them
MOST_PLAIN = 2.0**60  # size of keys whose squares, and products, are numbers of float32
HUGE = 3  # the column of single numbers that are huge
Inputs = dict[str, Tensor]


def inputs(width: int = 64, keys: float | str = 0.9) -> Inputs:
    """Return queries that look away from what keys have in common: larger keys than theirs then have no weight."""
    generator = torch.Generator().manual_seed(3)
    every = make_keys(Case(new=1, past=PAST, width=width, heads=HEADS, keys=keys), PAST + 1, generator)
    noise = torch.randn((1, HEADS, GROUPS, width), generator=generator, dtype=torch.float64)
    q = (0.1 * noise - 0.25 * every.mean(2, keepdim=True)).view(1, -1, 1, width)
    v_new, y = (torch.randn((1, HEADS, n, width), generator=generator, dtype=torch.float64) for n in (1, PAST))
    found = {"q": q, "k_new": every[:, :, PAST:], "v_new": v_new, "k": every[:, :, :PAST], "y": y}
    return {name: tensor.float() for name, tensor in found.items()}


def all_of_size(size: float, width: int, keys: float | str) -> Inputs:
    """Return keys times ``size``, and queries over it: scores are of the usual size."""
    found = inputs(width, keys)
    return {**found, "q": found["q"] / size, "k_new": found["k_new"] * size, "k": found["k"] * size}


def of_mixed_sizes(width: int, keys: float | str) -> Inputs:
    """Return keys of all SIZES in turn, and a query for each size."""
    found = inputs(width, keys)
    key_sizes = torch.tensor(SIZES)[torch.arange(PAST) % len(SIZES), None]
    return {**found, "q": found["q"] / torch.tensor(SIZES * HEADS)[:, None, None], "k": found["k"] * key_sizes}


def with_huge_numbers(size: float, width: int) -> Inputs:
    """Return keys that have one huge number each, which queries meet with a small one; one query is 0."""
    found = inputs(width)
    for name, factor in (("q", 1 / size), ("k", size), ("k_new", size)):
        found[name][..., HUGE] *= factor
    found["q"][:, ::GROUPS] = 0
    return found


def formulas(given: Inputs, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return O and Y of the new token by the two formulas, the inverse norms being as small as float32's become."""
    q, k_new, v_new, k, y = (given[name].to(dtype) for name in ("q", "k_new", "v_new", "k", "y"))
    every, root_d = torch.cat([k, k_new], 2), math.sqrt(q.shape[-1])
    means = every.square().mean(-1)
    norms = torch.where(means > torch.finfo(torch.float32).max, 0.0, torch.rsqrt(means + eps))[:, :, None]
    e = torch.exp(k_new @ k.mT * norms[..., :PAST] * norms[..., PAST:] / root_d - root_d)
    y_new = v_new - e @ y
    p = torch.softmax(q.view(1, HEADS, GROUPS, -1) @ every.mT / root_d, -1)
    return (p @ torch.cat([y, y_new], 2)).view(q.shape), y_new


def by_output(o: Tensor, y_new: Tensor) -> list[Tensor]:
    """Return Y of the new token, and O of each query of a head, ``(1, H, 1, D)`` each."""
    return [y_new, *o.view(1, HEADS, GROUPS, -1).split(1, 2)]


def plain_errors(given: Inputs, eps: float) -> list[float]:
    """Return the errors of plain float32."""
    pairs = zip(*(by_output(*formulas(given, eps, dtype)) for dtype in (torch.float32, torch.float64)), strict=True)
    return [relative_error(*pair) for pair in pairs]


def run(given: Inputs, eps: float, arch: int) -> dict[str, Any]:
    """Return the errors of Y and of each query's O, those of plain float32, and the kernels' O ``(1, H, G, D)``, Y."""
    launch.INTERPRETER_ARCH = arch
    mask = torch.ones(1, PAST + 1, dtype=torch.bool)
    o, y_new = launch.decode_attention(**given, mask=mask, eps=eps)
    pairs = zip(by_output(o, y_new), by_output(*formulas(given, eps, torch.float64)), strict=True)
    return {
        "errors": [relative_error(*pair) for pair in pairs],
        "plain": plain_errors(given, eps),
        "o": o.view(1, HEADS, GROUPS, -1),
        "y_new": y_new,
    }


def run_one_size(size: float, width: int, keys: float | str, eps: float, arch: int) -> dict[str, Any]:
    """As :func:`run`; where squares are beyond float32, and so plain scores, the errors are those of smaller keys."""
    result = run(all_of_size(size, width, keys), eps, arch)
    return {**result, "plain": plain_errors(all_of_size(min(size, MOST_PLAIN), width, keys), eps)}


def run_mixed(width: int, keys: float | str, eps: float, arch: int) -> dict[str, Any]:
    return run(of_mixed_sizes(width, keys), eps, arch)


def run_huge(size: float, width: int, eps: float, arch: int) -> dict[str, Any]:
    return run(with_huge_numbers(size, width), eps, arch)


def run_no_number(name: str, number: float, width: int, arch: int) -> dict[str, Any]:
    """Put something that is no number into the second row of an input."""
    given = inputs(width)
    rows = given[name][0, :, 0] if name == "q" else given[name][0, 0]  # of the first head
    rows[min(1, len(rows) - 1), 5] = number
    return run(given, 1e-5, arch)


def run_beyond_squares(exponent: int, arch: int, float8: bool) -> tuple[Tensor, Tensor, Inputs]:
    """Return O and Y in bfloat16 for a new key times a power of two, and what was given; three tokens are hidden."""
    launch.INTERPRETER_ARCH = arch
    given = {name: tensor.bfloat16() for name, tensor in inputs().items()}
    given["k_new"] *= 2.0**exponent
    stored = dict(given)
    scales = None
    if float8:
        stored |= {name: given[name].to(torch.float8_e4m3fn) for name in ("k", "y")}
        given |= {name: stored[name].bfloat16() for name in ("k", "y")}
        scales = (torch.ones(1, HEADS, PAST, 1), torch.ones(1, HEADS, PAST, 1))
    mask = torch.ones(1, PAST + 1, dtype=torch.bool)
    mask[:, :3] = False
    return *launch.decode_attention(**stored, mask=mask, eps=1e-5, scales=scales), given


def run_float8(exponent: int) -> tuple[Tensor, Tensor]:
    """Return O and Y in bfloat16 over E4M3: keys times a power of two, by their scales, and queries over it."""
    size, given = 2.0**exponent, {name: tensor.bfloat16() for name, tensor in inputs().items()}
    k, y = (given[name].to(torch.float8_e4m3fn) for name in ("k", "y"))
    scales = (torch.full((1, HEADS, PAST, 1), size), torch.ones(1, HEADS, PAST, 1))
    q, k_new = given["q"] / size, given["k_new"] * size
    return launch.decode_attention(q, k_new, given["v_new"], k, y, eps=0.0, scales=scales)
