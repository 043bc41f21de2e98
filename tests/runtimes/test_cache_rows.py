"""Rows of caches are taken out and put together without change."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lucid_deploy.errors import LucidError
from lucid_deploy.parity.record import TensorId
from lucid_deploy.runtimes import Session
from lucid_deploy.runtimes.cache_rows import merge_caches, select_rows
from tests.runtimes.cache_cases import IDS, run, stored, within_the_gate


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
        merge_caches(session, [])
