"""Rows join, leave and are replaced while others run; each gives what it gives alone, within the parity gate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lucid_deploy.artifact import Artifact
from lucid_deploy.batching import rows as rows_module
from lucid_deploy.batching.rows import MergedRows, Rows, StaticRows, make_rows
from lucid_deploy.runtimes import Session, open_session
from lucid_deploy.runtimes.session import Cache
from tests.batching.lone_runs import CASES, FORCED, NAMES, TEXTS, Lone, run_alone

Exported = Callable[..., tuple[Path, Artifact]]


@pytest.fixture(scope="module")
def lone(exported: Exported) -> Lone:
    return run_alone(exported()[0])


@pytest.fixture(params=CASES, ids=NAMES)
def session(request: pytest.FixtureRequest, exported: Exported) -> Session[Any]:
    return open_session(exported(cache=request.param[0])[1], request.param[1])


class Driver:
    """Feeds TEXTS into rows; a key is a text's index plus a multiple of ten."""

    def __init__(self, session: Session[Any], rows: Rows) -> None:
        self.session, self.rows = session, rows
        self.logits: dict[int, list[np.ndarray]] = {}

    def join(self, key: int) -> None:
        cache = self.session.empty_cache(1)
        first = self.session.prefill(TEXTS[key % 10][None, :-FORCED], cache)
        self.rows.join(key, cache)
        self.logits[key] = [first[0, -1]]

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            tokens = {key: [int(TEXTS[key % 10][-FORCED + len(done) - 1])] for key, done in self.logits.items()}
            for key, logits in self.rows.run(tokens).items():
                self.logits[key].append(logits[0])

    def finish(self, lone: Lone, key: int) -> None:
        lone.check(key % 10, self.session, self.rows.view(key), 0, self.logits.pop(key))
        self.rows.leave(key)


def test_rows_that_join_and_leave_give_what_they_give_alone(session: Session[Any], lone: Lone) -> None:
    driver = Driver(session, make_rows(session, 4))
    driver.join(2)
    driver.step(3)
    driver.join(0)
    driver.join(1)
    driver.step(5)
    driver.finish(lone, 2)  # the first of three rows: the last row moves into its slot
    driver.step()
    driver.join(3)
    driver.join(12)
    driver.step(2)
    driver.finish(lone, 0)
    driver.finish(lone, 1)
    driver.join(10)  # into a free slot, while another slot is free, too
    driver.step(5)
    driver.rows.leave(3)  # before its end
    del driver.logits[3]
    driver.step(1)
    driver.finish(lone, 12)
    driver.step(2)
    driver.finish(lone, 10)
    driver.join(11)  # after all rows have left
    driver.step(FORCED)
    driver.finish(lone, 11)


def test_buffers_grow_and_shrink_with_the_longest_row(
    exported: Exported, lone: Lone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows_module, "GRAIN", 8)
    session = open_session(exported(cache="static")[1])
    driver = Driver(session, rows := make_rows(session, 3))
    assert isinstance(rows, StaticRows)
    sizes = []
    for key in (2, 1, 0):  # 3, 39, 76 tokens
        driver.join(key)
        sizes.append(rows.room)
    driver.step(FORCED)
    sizes.append(rows.room)
    for key in (0, 1, 2):
        driver.finish(lone, key)
    driver.join(12)
    sizes.append(rows.room)
    assert sizes == [8, 48, 88, 88, 8]
    driver.step(FORCED)
    driver.finish(lone, 12)
    assert rows.room == 16


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_nan_in_a_row_reaches_no_other_row(case: tuple[str, str], exported: Exported, lone: Lone) -> None:
    session = open_session(exported(cache=case[0])[1], case[1])
    driver = Driver(session, make_rows(session, 2))
    assert isinstance(driver.rows, StaticRows if case[0] == "static" else MergedRows)
    driver.join(2)
    broken = session.empty_cache(1)
    session.prefill(TEXTS[0][None], broken)
    poisoned = [tuple(np.full_like(x, np.nan) for x in layer) for layer in session.layer_arrays(broken)]
    driver.rows.join(99, session.cache_from_arrays(poisoned, broken.mask))
    logits = driver.rows.run({2: [int(TEXTS[2][-FORCED])], 99: [1]})
    assert np.isnan(logits[99]).all()
    driver.logits[2].append(logits[2][0])
    driver.rows.leave(99)
    driver.join(11)  # shorter than the row that was there before
    driver.step(FORCED - 1)
    driver.finish(lone, 2)
    driver.step()
    driver.finish(lone, 11)


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_nan_in_drafts_reaches_no_other_row(case: tuple[str, str], exported: Exported, lone: Lone) -> None:
    """A step of several tokens writes beyond a row's length, where the next row in that slot must find no NaN."""
    session = open_session(exported(cache=case[0])[1], case[1])
    session.prepare_several()
    driver = Driver(session, make_rows(session, 2))
    driver.join(1)
    broken = session.empty_cache(1)
    session.prefill(TEXTS[2][None, :3], broken)
    poisoned = [tuple(np.full_like(x, np.nan) for x in layer) for layer in session.layer_arrays(broken)]
    driver.rows.join(99, session.cache_from_arrays(poisoned, broken.mask))
    logits = driver.rows.run({1: [int(TEXTS[1][-FORCED])], 99: [1, 2, 3, 4, 5, 6, 7, 8]})
    assert np.isnan(logits[99]).all()
    driver.logits[1].append(logits[1][0])
    driver.rows.keep({1: 1, 99: 1})
    driver.rows.leave(99)
    driver.join(2)
    driver.step(FORCED - 1)
    driver.finish(lone, 1)
    driver.step()
    driver.finish(lone, 2)


@pytest.mark.parametrize("runtime", ["onnxruntime", "torch"])
def test_nan_in_a_rejected_draft_stays_out_of_its_own_row(
    runtime: str, exported: Exported, lone: Lone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A growing cache masks the draft if another row keeps all tokens; but a weight of 0 times NaN is NaN."""
    session = open_session(exported()[1], runtime)
    driver, run = Driver(session, make_rows(session, 2)), session.decode_several
    driver.join(0)
    driver.join(1)

    def broken(ids: np.ndarray, cache: Cache[Any], mask: np.ndarray) -> np.ndarray:
        logits = run(ids, cache, mask)
        arrays = [tuple(x.copy() for x in layer) for layer in session.layer_arrays(cache)]
        for x in (x for layer in arrays for x in layer):
            x[1, :, -1] = np.nan
        cache.layers = session.cache_from_arrays(arrays, cache.mask).layers
        logits[1, -1] = np.nan
        return logits

    monkeypatch.setattr(session, "decode_several", broken)
    tokens = {key: TEXTS[key][-FORCED : -FORCED + 2].tolist() for key in (0, 1)}
    logits = driver.rows.run(tokens)
    driver.rows.keep({0: 2, 1: 1})
    for key, count in ((0, 2), (1, 1)):
        driver.logits[key] += list(logits[key][:count])
    driver.step(FORCED - 2)
    driver.finish(lone, 0)
    driver.step()
    driver.finish(lone, 1)
