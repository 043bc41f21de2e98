"""Which engine a prompt goes to."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("ray", reason="the extra ray")

from lucid_deploy.serving.engine import Job
from lucid_deploy.serving.prefix_routing import BLOCK
from lucid_deploy.serving.ray_router import PrefixRouter

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
