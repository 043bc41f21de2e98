"""Which engine a prompt goes to."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("ray", reason="the extra ray")

from lucid_deploy.serving.jobs import Job
from lucid_deploy.serving.ray_router import BLOCK, MOST_BLOCKS, REMEMBERED, PrefixRouter, PrefixTable, block_names

PROMPT = list(range(5 * BLOCK))


@pytest.mark.parametrize(("tokens", "blocks"), [(0, 0), (BLOCK - 1, 0), (BLOCK, 1), (BLOCK + 1, 1), (2 * BLOCK, 2)])
def test_only_whole_blocks_count(tokens: int, blocks: int) -> None:
    assert len(block_names(range(tokens))) == blocks


def test_a_very_long_prompt_is_looked_at_in_part() -> None:
    assert len(block_names(range(BLOCK * (MOST_BLOCKS + 10)))) == MOST_BLOCKS


def test_a_name_stands_for_everything_before_it() -> None:
    other = [7, *PROMPT[1:]]
    assert set(block_names(PROMPT)).isdisjoint(block_names(other))
    assert set(block_names(PROMPT)).isdisjoint(block_names(PROMPT, "another owner"))
    assert block_names([1, 23] * BLOCK)[0] != block_names([12, 3] * BLOCK)[0]


def test_the_longest_prefix_wins_and_engines_that_are_gone_do_not() -> None:
    table = PrefixTable()
    table.note(block_names(PROMPT), "long")
    table.note(block_names(PROMPT[:BLOCK]), "short")
    both = {"long", "short"}
    assert table.find(block_names([*PROMPT, 1, 2, 3]), both) == "long"
    assert table.find(block_names([*PROMPT[:BLOCK], *PROMPT]), both) == "short"
    assert table.find(block_names(PROMPT), {"short"}) == "short"
    assert table.find(block_names(PROMPT), {"new"}) is None
    assert table.find(block_names([5] * 100), both) is None


def test_what_was_used_longest_ago_is_forgotten() -> None:
    table = PrefixTable()
    table.note([b"first", b"second"], "a")
    table.note([i.to_bytes(4, "big") for i in range(REMEMBERED - 1)], "b")
    assert table.find([b"first"], {"a"}) is None
    assert table.find([b"second"], {"a"}) == "a"


class Router(PrefixRouter):
    """The router without Ray's part of it; ``loads`` are what engines are known to run."""

    def __init__(self, loads: dict[str, int]) -> None:
        self.loads = {Name(name): load for name, load in loads.items()}
        self.initialize_state(imbalance=2)

    @property
    def replica_queue_len_cache(self) -> Any:
        return self.loads


class Name(str):
    """An engine's id."""

    __slots__ = ()

    def to_full_id_str(self) -> str:
        return str(self)


def choose(router: Router, prompt: list[int], present: str = "abc") -> list[list[str]]:
    """Return the engines' names by rank."""
    engines: Any = [SimpleNamespace(replica_id=Name(name)) for name in present]
    request: Any = SimpleNamespace(args=[Job((tuple(prompt),))], routing_context=SimpleNamespace(should_backoff=False))
    ranks = asyncio.run(router.choose_replicas(engines, request))
    assert request.routing_context.should_backoff
    return [[str(engine.replica_id) for engine in rank] for rank in ranks]


def note(router: Router, prompt: list[int], engine: str) -> None:
    request: Any = SimpleNamespace(args=[Job((tuple(prompt),))])
    name: Any = Name(engine)
    router.on_request_routed(request, name, None)


def test_a_prompt_goes_where_its_beginning_is() -> None:
    router = Router({"a": 1, "b": 2, "c": 0})
    assert len(choose(router, PROMPT)) == 1  # nothing known: two at random, of which Ray takes the idler
    note(router, PROMPT, "b")
    for prompt in (PROMPT, [*PROMPT, 5], PROMPT[: 2 * BLOCK]):
        preferred, others = choose(router, prompt)
        assert (preferred, len(others)) == (["b"], 2)
    assert len(choose(router, [9] * 100)) == 1
    assert len(choose(router, PROMPT, present="ac")) == 1  # b has died


def test_an_engine_that_is_much_busier_is_passed_over() -> None:
    router = Router({"a": 1, "b": 4, "c": 2})
    note(router, PROMPT, "b")
    assert len(choose(router, PROMPT)) == 1
    router.loads[Name("b")] = 3
    assert choose(router, PROMPT)[0] == ["b"]
