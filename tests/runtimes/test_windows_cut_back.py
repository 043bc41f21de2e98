"""Rings against a full-length cache with a window mask: truncation, waiting rows, forks, rows of unequal length.

The reference is transformers' own model (its window is a mask) on each row's tokens alone, in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lucid_deploy.export import ExportOptions, export
from lucid_deploy.model.checkpoint import Checkpoint, load_model
from lucid_deploy.runtimes import open_session
from lucid_deploy.runtimes.cache_rows import select_rows
from lucid_deploy.runtimes.session import Array, Cache, Session
from lucid_deploy.runtimes.torch.session import TorchSession
from tests.export.test_diagonal import WINDOW, make_mixed
from tests.model.sequence_runs import relative_error
from tests.model.test_families import GATE, logits_of
from tests.runtimes.cache_cases import merge_caches

pytestmark = pytest.mark.slow  # exports


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A checkpoint with a LUCID layer and one over a window, and transformers' model with a solve added."""
    path = tmp_path_factory.mktemp("model")
    return path, make_mixed(path)


@pytest.fixture(scope="module", params=["torch", "growing"])
def session(request: pytest.FixtureRequest, model: tuple[Path, Any], tmp_path_factory: Any) -> Session[Any]:
    if request.param == "torch":
        return TorchSession(load_model(Checkpoint(model[0], (), "training")))
    options = ExportOptions(cache="growing", diagonal="training")
    return open_session(export(model[0], tmp_path_factory.mktemp("made") / "artifact", options), kernels="functions")


class Rows:
    """A cache and each row's tokens; logits are compared with the reference's after every step."""

    def __init__(self, session: Session[Any], exact: Any, batch: int) -> None:
        self.session, self.exact = session, exact
        self.cache: Cache[Any] = session.empty_cache(batch)
        self.columns: list[list[int | None]] = [[] for _ in range(batch)]  # None: padding
        self.rng = np.random.default_rng(batch)

    def prefill(self, mask: list[str]) -> Rows:
        """Run columns; a row of the mask has ``x`` for a token and ``-`` for padding."""
        tokens = np.array([[letter == "x" for letter in row] for row in mask])
        ids = self.rng.integers(1, 61, tokens.shape)
        self.check(self.session.prefill(ids, self.cache, tokens), ids, tokens)
        return self

    def decode(self, mask: str) -> Rows:
        """Run one token of every row that has an ``x``; the others wait."""
        tokens = np.array([[letter == "x"] for letter in mask])
        ids = self.rng.integers(1, 61, tokens.shape)
        self.check(self.session.decode(ids, self.cache, tokens), ids, tokens)
        return self

    def truncate(self, length: int) -> Rows:
        self.session.truncate(self.cache, length)
        self.columns = [row[:length] for row in self.columns]
        return self

    def fork(self) -> Rows:
        other = Rows(self.session, self.exact, len(self.columns))
        other.cache, other.columns = self.session.fork(self.cache), [list(row) for row in self.columns]
        return other

    def check(self, logits: Array, ids: Array, tokens: Array) -> None:
        for row, columns in enumerate(self.columns):
            columns += [int(token) if there else None for token, there in zip(ids[row], tokens[row], strict=True)]
            if tokens[row].any():
                text = np.array([[token for token in columns if token is not None]])
                wanted = logits_of(self.exact, text)[0, -1]
                assert relative_error(logits[row, -1], wanted) <= GATE, f"row {row} after {len(columns)} columns"


@pytest.fixture
def rows(session: Session[Any], model: tuple[Path, Any]) -> Callable[[int], Rows]:
    return lambda batch: Rows(session, model[1], batch)


def steps(rows: Rows, mask: str, count: int) -> Rows:
    for _ in range(count):
        rows.decode(mask)
    return rows


def test_decoding_continues_after_a_truncated_prompt(rows: Any) -> None:
    steps(rows(1).prefill(["xxxxxxx"]).truncate(3), "x", WINDOW + 3)


def test_truncated_decoded_tokens_leave_no_trace(rows: Any) -> None:
    """As in speculation: some tokens are tried, and some of them kept."""
    made = rows(1).prefill(["xx"])
    for keep in (4, 5, 7):
        steps(made, "x", 8 - len(made.columns[0])).truncate(keep)
    steps(made, "x", WINDOW + 2)


def test_a_truncated_fork_continues_with_another_prompt(rows: Any) -> None:
    """As with a shared prefix: the truncated tokens must not show, and the original cache must not change."""
    first = steps(rows(1).prefill(["xxxxxx"]), "x", 1)
    second = first.fork().truncate(4).prefill(["xxxxx"])
    steps(first, "x", WINDOW), steps(second, "x", WINDOW)


@pytest.mark.parametrize("waits", ["x-", "-x"])
def test_a_row_that_waits_gets_nothing_pushed_into_its_ring(rows: Any, waits: str) -> None:
    made = steps(rows(2).prefill(["xxxxxx", "--xxxx"]), "xx", 2)
    steps(steps(made, waits, 3), "xx", 2)
    steps(steps(made, waits, WINDOW + 1), "xx", 3)


def test_rows_may_wait_before_their_ring_is_full(rows: Any) -> None:
    steps(steps(steps(rows(3).prefill(["x--", "xxx", "--x"]), "x-x", 2), "-x-", 2), "xxx", WINDOW)


def test_rows_that_waited_can_be_truncated(rows: Any) -> None:
    made = rows(2).prefill(["xxx", "-xx"])
    made.decode("x-").decode("-x").decode("xx")
    steps(made.truncate(5).decode("xx").truncate(4), "xx", WINDOW)


def test_rows_can_be_merged_and_reordered(rows: Any, session: Session[Any]) -> None:
    """As in the batcher, with rings that are full, partly full and truncated."""
    long, short = steps(rows(1).prefill(["xxxxx"]), "x", WINDOW), rows(1).prefill(["xxxxxx"]).truncate(2)
    both = rows(2)
    both.cache, both.columns = merge_caches(session, [long.cache, short.cache]), long.columns + short.columns
    steps(steps(both, "xx", 2), "-x", 4)
    swapped = rows(2)
    swapped.cache, swapped.columns = select_rows(session, both.cache, [1, 0]), both.columns[::-1]
    steps(swapped, "xx", 3)
