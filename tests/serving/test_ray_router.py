"""Which engine a prompt goes to."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("ray", reason="the extra ray")

from lucid_deploy.serving.jobs import Job
from lucid_deploy.serving.ray_router import BLOCK, PrefixRouter, block_names

PROMPT = list(range(5 * BLOCK))


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


def choose(router: Router, prompt: list[int], present: str = "abc") -> str | None:
    """Return the preferred engine's name."""
    engines: Any = [SimpleNamespace(replica_id=Name(name)) for name in present]
    request: Any = SimpleNamespace(args=[Job((tuple(prompt),))], routing_context=SimpleNamespace(should_backoff=False))
    *preferred, others = asyncio.run(router.choose_replicas(engines, request))
    assert request.routing_context.should_backoff and len(others) == 2
    return str(preferred[0][0].replica_id) if preferred else None


def note(router: Router, prompt: list[int], engine: str) -> None:
    request: Any = SimpleNamespace(args=[Job((tuple(prompt),))])
    name: Any = Name(engine)
    router.on_request_routed(request, name, None)


def test_names_are_of_whole_blocks_and_everything_before_them() -> None:
    for tokens, blocks in ((0, 0), (BLOCK - 1, 0), (BLOCK, 1), (BLOCK + 1, 1), (2 * BLOCK, 2)):
        assert len(block_names(range(tokens))) == blocks
    assert set(block_names(PROMPT)).isdisjoint(block_names([7, *PROMPT[1:]]))
    assert set(block_names(PROMPT)).isdisjoint(block_names(PROMPT, "another owner"))
    assert block_names([1, 23] * BLOCK)[0] != block_names([12, 3] * BLOCK)[0]


def test_a_prompt_goes_where_its_longest_prefix_is() -> None:
    router = Router({"a": 1, "b": 2, "c": 0})
    assert choose(router, PROMPT) is None  # nothing known: two at random, of which Ray takes the idler
    note(router, PROMPT, "b")
    note(router, PROMPT[:BLOCK], "a")
    for prompt, engine in ((PROMPT, "b"), ([*PROMPT, 5], "b"), ([*PROMPT[:BLOCK], *PROMPT], "a"), ([9] * 100, None)):
        assert choose(router, prompt) == engine
    assert choose(router, PROMPT, present="ac") == "a"
    assert choose(router, PROMPT[BLOCK:], present="ac") is None


def test_an_engine_that_is_much_busier_is_passed_over() -> None:
    router = Router({"a": 1, "b": 4, "c": 2})
    note(router, PROMPT, "b")
    assert choose(router, PROMPT) is None
    router.loads[Name("b")] = 3
    assert choose(router, PROMPT) == "b"
    router.loads = {Name("b"): 4}  # only its own load is known
    assert choose(router, PROMPT) == "b"
    router.loads = {Name("a"): 0}
    assert choose(router, PROMPT) == "b"


def test_what_was_used_longest_ago_is_forgotten() -> None:
    router = Router({})
    router.remembered = 5
    note(router, PROMPT, "a")
    note(router, [9] * 2 * BLOCK, "b")
    assert choose(router, PROMPT[: 2 * BLOCK]) is None
    assert choose(router, PROMPT) == "a"
