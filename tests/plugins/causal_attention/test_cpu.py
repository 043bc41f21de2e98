"""The CPU kernel of causal attention against float64."""

from __future__ import annotations

import pytest
import torch

from lucid_deploy.plugins.causal_attention.torch_operator import causal_attention
from lucid_deploy.plugins.hosts.onnxruntime.build import kernels_name
from lucid_deploy.plugins.table import CAUSAL_ATTENTION
from tests.plugins.cpu_sessions import attention_problem as problem
from tests.plugins.cpu_sessions import check, poison, run, runnable, session


@pytest.mark.parametrize(("tokens", "past"), [(1, 0), (1, 100), (63, 1), (129, 100), (1000, 0)])
def test_prompt_sizes(library, fastest, tokens, past):
    q, k, y = problem(tokens, past, 64, 2)
    mask = torch.ones(1, past + tokens, dtype=torch.bool)
    exact, dense = causal_attention(q.double(), k.double(), y.double()), causal_attention(q, k, y)
    for name in runnable(library):
        kernels_name(library, name)
        for threads in (1, 2):
            check(run(session(CAUSAL_ATTENTION, library, threads), q, k, y, mask)[0], dense, exact)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(("width", "groups"), [(16, 1), (36, 3), (68, 8), (256, 1)])
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
        (clean,) = run(session(CAUSAL_ATTENTION, library, 2, dtype), q, k, y, mask)
        check(clean, dense, exact, dtype)  # a padded row sees itself and what is before it
        (o,) = run(session(CAUSAL_ATTENTION, library, 2, dtype), q, poison(k, mask), poison(y, mask), mask)
        assert torch.equal(o.where(token, clean), clean), "the contents of padding must not matter"


@pytest.mark.parametrize(("tokens", "past"), [(97, 0), (1, 96), (1, 192), (193, 0)])
def test_the_last_score_is_the_largest(library, fastest, tokens, past):
    """The largest score is the last one, also where it is the only column of its tile."""
    q, k, y = problem(tokens, past, 64, 2, 0.5)
    q = 2 * k[:, :, past:].repeat_interleave(2, dim=1) + q / 8
    mask = torch.ones(1, past + tokens, dtype=torch.bool)
    exact, dense = causal_attention(q.double(), k.double(), y.double()), causal_attention(q, k, y)
    for name in runnable(library):
        kernels_name(library, name)
        check(run(session(CAUSAL_ATTENTION, library, 2), q, k, y, mask)[0], dense, exact)


def test_large_scores(library):
    q, k, y = problem(300, 0, 64, 1)
    q = 30 * q  # weights that differ by more than float32 can hold
    mask = torch.ones(1, 300, dtype=torch.bool)
    exact, dense = causal_attention(q.double(), k.double(), y.double()), causal_attention(q, k, y)
    check(run(session(CAUSAL_ATTENTION, library), q, k, y, mask)[0], dense, exact)
