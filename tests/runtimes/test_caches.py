"""Truncating caches, selecting and merging rows: compared with running the same text from the start."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lucid_deploy.errors import LucidError
from lucid_deploy.parity.record import TensorId
from lucid_deploy.runtimes import Session
from lucid_deploy.runtimes.cache_rows import cache_of_rows, select_rows
from tests.runtimes.cache_cases import IDS, merge_caches, run, stored, within_the_gate

IDS[20:45] = 11  # one token repeated


@pytest.mark.parametrize(("decoded", "keep"), [(0, 0), (0, 33), (7, 1), (7, 66)])
def test_truncate_is_exact(session: Session[Any], gates: dict[TensorId, Any], decoded: int, keep: int) -> None:
    cache = run(session, IDS, decode=decoded)
    before = stored(session, cache)
    session.truncate(cache, keep)
    assert cache.length == keep
    for now, then in zip(stored(session, cache), before, strict=True):
        assert np.array_equal(now, then[:, :, :keep])  # the stored rows, bit by bit
    other = np.append(IDS[:keep], [3, 4, 5, 4, 3])  # another continuation
    run(session, other[keep:], cache, decode=2)
    within_the_gate(stored(session, cache), stored(session, run(session, other)), gates)


def test_decoding_after_truncation_gives_the_same_rows_again(session: Session[Any]) -> None:
    """Truncate by a few tokens and decode the same ones again: the cache is equal to the bit."""
    cache = run(session, IDS, decode=9)
    before = stored(session, cache)
    for back in (1, 4, 2):
        session.truncate(cache, len(IDS) - back)
        for token in IDS[len(IDS) - back :]:
            logits = session.decode(np.array([[token]]), cache)
    assert all(np.array_equal(*pair) for pair in zip(stored(session, cache), before, strict=True))
    wanted = session.empty_cache(1)
    np.testing.assert_allclose(logits, session.prefill(IDS[None], wanted), rtol=0, atol=1e-4)


def test_truncating_a_fork_leaves_the_original_unchanged(session: Session[Any]) -> None:
    cache = run(session, IDS, decode=3)
    before = stored(session, cache)
    fork = session.fork(cache)
    session.truncate(fork, 10)
    run(session, np.array([9, 9, 9, 9]), fork, decode=3)
    assert all(np.array_equal(*pair) for pair in zip(stored(session, cache), before, strict=True))
    session.decode(np.array([[1]]), cache)
    assert (cache.length, fork.length) == (71, 14)


@pytest.mark.parametrize("length", [-1, 71])
def test_truncate_refuses_lengths_out_of_range(session: Session[Any], length: int) -> None:
    with pytest.raises(LucidError, match="cannot be truncated"):
        session.truncate(run(session, IDS), length)


def test_rows_are_selected_and_merged_without_change(session: Session[Any], gates: dict[TensorId, Any]) -> None:
    parts = [IDS, IDS[:12], IDS[5:38]]
    caches = [run(session, part, decode=4) for part in parts]
    merged = merge_caches(session, caches)
    assert merged.mask.sum(axis=1).tolist() == [70, 12, 33]
    chosen = select_rows(session, merged, [2, 0, 2])
    assert (chosen.length, chosen.mask.sum(axis=1).tolist()) == (70, [33, 70, 33])
    session.decode(np.array([[7], [8], [9]]), chosen)
    rows = [select_rows(session, chosen, [row]) for row in range(3)]
    for row, (source, token) in zip(rows, [(2, 7), (0, 8), (2, 9)], strict=True):
        session.decode(np.array([[token]]), caches[source])
        within_the_gate(stored(session, row), stored(session, caches[source]), gates)
        before = [x[:, :, :-1] for x in stored(session, caches[source])]
        assert all(np.array_equal(ours[:, :, :-1], old) for ours, old in zip(stored(session, row), before, strict=True))
        session.truncate(caches[source], caches[source].length - 1)
    with pytest.raises(LucidError, match="rows 0 to 2, not 3"):
        select_rows(session, merged, [3])
    with pytest.raises(LucidError, match="at least one row"):
        cache_of_rows(session, [])
