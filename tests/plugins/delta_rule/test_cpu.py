"""The library's delta rule against the float64 recurrence; gates are errors of transformers' chunks in float32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from lucid_deploy.plugins.delta_rule.torch_operator import delta_rule
from lucid_deploy.plugins.hosts.onnxruntime.build import kernels_name
from lucid_deploy.plugins.table import DELTA_RULE
from tests.plugins.cpu_sessions import run, runnable, session
from tests.plugins.delta_rule.oracles import FACTOR, errors_by_chunks, finite
from tests.plugins.delta_rule.problems import Inputs, doubled, in_type, inputs
from tests.plugins.problems import relative

SCALE = 0.25
EPS = torch.finfo(torch.float32).eps


def reference(given: Inputs) -> tuple[Tensor, Tensor]:
    return delta_rule(*doubled(given), SCALE, "reference")


def check(library: Path, given: Inputs, threads: int = 2) -> None:
    """Hold the errors of output and state, with every set of instructions, against those of transformers' chunks."""
    exact, baseline = reference(given), errors_by_chunks(finite(given), SCALE)
    for name in runnable(library):
        kernels_name(library, name)
        found = run(session(DELTA_RULE, library, threads), *given)
        for ours, theirs, wanted in zip(found, baseline, exact, strict=True):
            assert ours.shape == wanted.shape
            assert relative(ours, wanted) <= FACTOR * max(theirs, EPS), name


@pytest.mark.parametrize(("beta", "decay"), [("open", "slow"), ("two", "none"), ("one", "reset"), ("small", "gone")])
def test_gates(library: Path, fastest: None, beta: str, decay: str) -> None:
    for tokens in (1, 48, 49, 129):
        for correlation in (0.9, 1.0):
            check(library, in_type(inputs(tokens, correlation, beta, decay), torch.float32))


@pytest.mark.parametrize("widths", [(64, 64), (128, 256), (1, 1), (33, 100), (13, 15)])
def test_widths(library: Path, fastest: None, widths: tuple[int, int]) -> None:
    for tokens in (1, 100):
        check(library, in_type(inputs(tokens, 0.9, decay="fast", widths=widths), torch.float32), threads=1)


@pytest.mark.parametrize("correlation", [0.9, 1.0])
def test_many_tokens(library: Path, fastest: None, correlation: float) -> None:
    check(library, in_type(inputs(1000, correlation, "two", shape=(1, 3)), torch.float32))


@pytest.mark.parametrize("tokens", [1, 70])
def test_float16(library: Path, fastest: None, tokens: int) -> None:
    given = in_type(inputs(tokens, decay="fast", widths=(16, 27)), torch.float16)
    exact = reference(given)
    baseline = delta_rule(*given, SCALE)[1]  # our chunks in PyTorch, in float32 too
    for name in runnable(library):
        kernels_name(library, name)
        output, state = run(session(DELTA_RULE, library, 2, "float16"), *given)
        assert (output.dtype, state.dtype) == (torch.float16, torch.float32)
        assert relative(output, exact[0]) < torch.finfo(torch.float16).eps / 2
        assert relative(state, exact[1]) <= 2 * max(relative(baseline, exact[1]), EPS)


def agree(found: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], given: Inputs) -> None:
    """Hold two results of the same numbers together: each may err twice as much as PyTorch by chunks in float32."""
    for one, two, chunks, exact in zip(found, other, delta_rule(*given, SCALE), reference(given), strict=True):
        assert relative(one, two) <= 4 * max(relative(chunks, exact), EPS)


def part(given: Inputs, tokens: slice, state: Tensor) -> tuple[Tensor, ...]:
    return (*(each[:, :, tokens] for each in given[:5]), state)


def test_chunks_and_single_tokens_give_the_result_of_one_call(library: Path) -> None:
    given = in_type(inputs(130, decay="fast"), torch.float32)
    kernel = session(DELTA_RULE, library)
    whole = run(kernel, *given)
    for ends in ([1, 50, 51, 98, 130], list(range(1, 131))):
        held, rows = given[5], []
        for start, end in zip([0, *ends], ends, strict=False):
            row, held = run(kernel, *part(given, slice(start, end), held))
            rows.append(row)
        agree((torch.cat(rows, dim=2), held), whole, given)


def test_padding_changes_nothing(library: Path) -> None:
    """Tokens with β = 0 and no decay before, between and after others."""
    given = in_type(inputs(60, decay="fast"), torch.float32)
    token = torch.ones(60, dtype=torch.bool)
    token[:5] = token[30:47] = token[-3:] = False
    padded = (*given[:3], given[3] * token, given[4] * token, given[5])
    kernel = session(DELTA_RULE, library)
    output, state = run(kernel, *padded)
    alone = part(given, token, given[5])  # type: ignore[arg-type]
    agree((output[:, :, token], state), run(kernel, *alone), alone)


@pytest.mark.parametrize(
    ("place", "change", "message"),
    [
        (0, lambda x: x[..., 1:], "query and key differ in shape"),
        (2, lambda x: x[:, :, 1:], "key and value differ in batch, heads or tokens"),
        (3, lambda x: x[:, :, 1:], "log_decay is not"),
        (4, lambda x: x[:, 1:], "beta is not"),
        (5, lambda x: x.mT, "state is not"),
    ],
)
def test_shapes_that_do_not_fit(library: Path, place: int, change, message: str) -> None:  # type: ignore[no-untyped-def]
    given = list(in_type(inputs(5), torch.float32))
    given[place] = change(given[place])
    with pytest.raises(Exception, match=f"DeltaRule: {message}"):
        run(session(DELTA_RULE, library), *given)
