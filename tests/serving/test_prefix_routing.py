"""The rule of routing by prefix."""

from __future__ import annotations

import pytest

from lucid_deploy.serving.prefix_routing import (
    BLOCK,
    REMEMBERED,
    PrefixTable,
    block_names,
    preferred,
)

PROMPT = list(range(5 * BLOCK))


@pytest.mark.parametrize(("tokens", "blocks"), [(0, 0), (BLOCK - 1, 0), (BLOCK, 1), (BLOCK + 1, 1), (2 * BLOCK, 2)])
def test_only_whole_blocks_count(tokens: int, blocks: int) -> None:
    assert len(block_names(range(tokens))) == blocks


def test_a_name_stands_for_everything_before_it() -> None:
    other = [7, *PROMPT[1:]]
    assert set(block_names(PROMPT)).isdisjoint(block_names(other))
    assert set(block_names(PROMPT)).isdisjoint(block_names(PROMPT, "another owner"))
    assert block_names([1, 23] * BLOCK)[0] != block_names([12, 3] * BLOCK)[0]


def test_the_longest_prefix_wins_and_engines_that_are_gone_do_not() -> None:
    table: PrefixTable[bytes] = PrefixTable()
    table.note(block_names(PROMPT), "long")
    table.note(block_names(PROMPT[:BLOCK]), "short")
    both = {"long", "short"}
    assert table.find(block_names([*PROMPT, 1, 2, 3]), both) == "long"
    assert table.find(block_names([*PROMPT[:BLOCK], *PROMPT]), both) == "short"
    assert table.find(block_names(PROMPT), {"short"}) == "short"
    assert table.find(block_names(PROMPT), {"new"}) is None
    assert table.find(block_names([5] * 100), both) is None


def test_what_was_used_longest_ago_is_forgotten() -> None:
    table: PrefixTable[bytes] = PrefixTable()
    table.note([b"first", b"second"], "a")
    table.note([i.to_bytes(4, "big") for i in range(REMEMBERED - 1)], "b")
    assert table.find([b"first"], {"a"}) is None
    assert table.find([b"second"], {"a"}) == "a"


def test_an_engine_that_is_much_busier_is_not_preferred() -> None:
    table: PrefixTable[bytes] = PrefixTable()
    names = block_names(PROMPT)
    assert preferred(table, names, {"a": 0, "b": 0}, 2) is None
    table.note(names, "b")
    assert preferred(table, names, {"a": 1, "b": 3}, 2) == "b"
    assert preferred(table, names, {"a": 1, "b": 4}, 2) is None
    assert preferred(table, names, {"a": None, "b": 4}, 2) == "b"  # only its own load is known
    assert preferred(table, names, {"a": 0, "b": None}, 2) == "b"
    assert preferred(table, names, {"a": 0}, 2) is None  # b is gone
