"""Truncate and keep prefixes: always against running the same text from the start."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lucid_deploy.artifact import Artifact
from lucid_deploy.errors import LucidError
from lucid_deploy.generation.prefix_store import PrefixStore
from lucid_deploy.parity.record import TensorId
from lucid_deploy.runtimes import Session, open_session
from tests.runtimes.cache_cases import IDS, run, stored, within_the_gate

Exported = Callable[..., tuple[Path, Artifact]]
IDS[20:45] = 11  # one token repeated


@pytest.mark.parametrize("decoded", [0, 7])
@pytest.mark.parametrize("keep", [0, 1, 33, 66, 69])
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


def test_truncate_then_decode_at_once(session: Session[Any]) -> None:
    """Back by one and on with the same token gives the same row again."""
    cache = run(session, IDS, decode=9)
    before = stored(session, cache)
    for back in (1, 4, 2):
        session.truncate(cache, len(IDS) - back)
        for token in IDS[len(IDS) - back :]:
            logits = session.decode(np.array([[token]]), cache)
    assert all(np.array_equal(*pair) for pair in zip(stored(session, cache), before, strict=True))
    wanted = session.empty_cache(1)
    np.testing.assert_allclose(logits, session.prefill(IDS[None], wanted), rtol=0, atol=1e-4)


def test_truncating_a_fork_leaves_the_original(session: Session[Any]) -> None:
    cache = run(session, IDS, decode=3)
    before = stored(session, cache)
    fork = session.fork(cache)
    session.truncate(fork, 10)
    run(session, np.array([9, 9, 9, 9]), fork, decode=3)
    assert all(np.array_equal(*pair) for pair in zip(stored(session, cache), before, strict=True))
    session.decode(np.array([[1]]), cache)
    assert (cache.length, fork.length) == (71, 14)


@pytest.mark.parametrize("length", [-1, 71])
def test_truncate_refuses(session: Session[Any], length: int) -> None:
    with pytest.raises(LucidError, match="cannot be truncated"):
        session.truncate(run(session, IDS), length)


def test_eviction_is_refused_with_the_reason(session: Session[Any], exported: Exported) -> None:
    cache = run(session, IDS)
    with pytest.raises(LucidError, match="Y of every later token was computed from"):
        session.evict(cache, 10)
    assert cache.length == 70
    standard = open_session(exported(attention_type="llama")[1])
    with pytest.raises(LucidError, match="computed from them"):
        standard.evict(standard.empty_cache(1), 10)


def test_the_store_finds_the_longest_beginning(session: Session[Any], gates: dict[TensorId, Any]) -> None:
    store = PrefixStore(session, 200)
    assert store.find([1, 2]) is None
    for part in (IDS[:40], np.append(IDS[:20], [1, 2, 3])):
        store.add(part.tolist(), run(session, part, decode=2))
    assert (len(store), store.tokens) == (2, 63)
    text = [*IDS[:20].tolist(), 1, 2, 50, 51]
    cache = store.find(text)
    assert cache is not None and cache.length == 22
    run(session, np.array(text[22:]), cache, decode=1)
    within_the_gate(stored(session, cache), stored(session, run(session, np.array(text))), gates)
    again = store.find(text, most=5)  # what was found and changed is not what is kept
    assert again is not None and again.length == 5
    within_the_gate(stored(session, again), stored(session, run(session, IDS[:5])), gates)
    assert store.find([96, *text]) is None and store.find([]) is None


def test_the_store_stays_within_its_budget(session: Session[Any]) -> None:
    store = PrefixStore(session, 50)
    parts = [IDS[:20], np.append(11, IDS[:19]), np.append(96, IDS[:19])]
    for part in parts[:2]:
        store.add(part.tolist(), run(session, part))
    store.find(parts[0].tolist())  # now the other one is the oldest
    store.add(parts[2].tolist(), run(session, parts[2]))
    assert store.tokens == 40
    assert [store.find(part.tolist()) is not None for part in parts] == [True, False, True]
    longer = np.append(parts[0], [1, 2])
    store.add(longer.tolist(), run(session, longer))  # takes the place of its own beginning
    store.add(parts[0].tolist(), run(session, parts[0]))  # known already
    store.add(IDS[:51].tolist(), run(session, IDS[:51]))  # never fits
    assert (len(store), store.tokens) == (2, 42)
    with pytest.raises(LucidError, match="one row without padding"):
        store.add([1, 2, 3], run(session, IDS[:2]))
    with pytest.raises(LucidError, match="0 tokens or more"):
        PrefixStore(session, -1)
    nothing = PrefixStore(session, 0)
    nothing.add(parts[0].tolist(), run(session, parts[0]))
    assert nothing.find(parts[0].tolist()) is None
