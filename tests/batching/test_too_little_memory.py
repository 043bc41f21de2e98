"""Memory that is missing in a step: requests end with the reason, the others' answers are those they get alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from lucid_deploy.artifact import Artifact
from lucid_deploy.batching import Batcher, Finished, Request
from lucid_deploy.batching import rows as rows_module
from lucid_deploy.generation.constraint import Constraint, from_regex
from lucid_deploy.generation.drafting import Drafter, LookupDrafter
from lucid_deploy.generation.generate import Generation
from lucid_deploy.generation.guide import Guide
from lucid_deploy.generation.sampling import Sampling
from lucid_deploy.runtimes import Session, open_session
from lucid_deploy.shortages import TOO_LITTLE_MEMORY
from tests.batching.draining import drain

Exported = Callable[..., tuple[Path, Artifact]]
SAID = "bfc_arena.cc:360 Failed to allocate memory for requested buffer of size 1073741824"
NEW = 12


class Shortage:
    """Lets runs of onnxruntime's sessions fail once they have computed and written everything: the worst moment.

    Attributes:
        failing: Numbers of the runs that fail, counted from 0 where ``begin`` was called.
        runs: How many there were since.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.failing: set[int] = set()
        self.runs = 0
        inference, binding = onnxruntime.InferenceSession, onnxruntime.IOBinding
        for kind, name in (
            (inference, "run_with_ort_values"),
            (inference, "run_with_iobinding"),
            (binding, "get_outputs"),
        ):
            patch.setattr(kind, name, self._failing(getattr(kind, name)))

    def begin(self, *failing: int) -> None:
        self.failing, self.runs = set(failing), 0

    def _failing(self, run: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            found = run(*arguments, **options)
            self.runs += 1
            if self.runs - 1 in self.failing:
                raise onnxruntime.capi.onnxruntime_pybind11_state.RuntimeException(SAID)
            return found

        return wrapped


@pytest.fixture
def shortage(monkeypatch: pytest.MonkeyPatch) -> Shortage:
    return Shortage(monkeypatch)


@pytest.fixture(params=["growing", "static", "hybrid growing", "hybrid static"])
def session(request: pytest.FixtureRequest, exported: Exported, hybrid: Callable[..., Artifact]) -> Session[Any]:
    *first, cache = request.param.split()
    return open_session(hybrid(cache=cache) if first else exported(cache=cache)[1])


def prompt(session: Session[Any], length: int) -> list[int]:
    ids = np.random.default_rng(length).integers(2, session.config.vocab_size, length)
    ids[length // 3 : 2 * length // 3] = 11  # a repeated token
    return [int(token) for token in ids]


def requests(session: Session[Any]) -> list[Request]:
    sampled = Sampling(1.3, 20, 0.9, 5)
    lengths = (9, 40, 23, 5)
    return [Request(prompt(session, n), NEW, sampled if n == 23 else Sampling(), stop_at_eos=False) for n in lengths]


def alone(session: Session[Any], request: Request) -> list[int]:
    return list(Generation(session, request.prompt_ids, NEW, request.sampling, stop_at_eos=False))


def check(batcher: Batcher, wanted: list[list[int]], failed: int) -> None:
    """Answer the requests; so many fail, whose tokens until then are right, and all are right the next time."""
    session = batcher.session
    for expected in (failed, 0):
        numbers = [batcher.submit(request) for request in requests(session)]
        tokens, ends = drain(batcher)
        ended = [number for number in numbers if ends[number] == Finished(number, "memory", TOO_LITTLE_MEMORY)]
        assert len(ended) == expected
        for number, right in zip(numbers, wanted, strict=True):
            got = tokens.get(number, [])
            assert got == (right[: len(got)] if number in ended else right)
            assert number in ended or ends[number] == Finished(number, "length")


@pytest.mark.parametrize("fails", [*range(0, 30, 3)])
def test_a_run_that_finds_no_memory_ends_one_request(session: Session[Any], shortage: Shortage, fails: int) -> None:
    wanted = [alone(session, request) for request in requests(session)]
    batcher = Batcher(session, rows=3, prefill_chunk=16, prefix_tokens=500 * (fails % 2))
    shortage.begin(fails)
    check(batcher, wanted, failed=1)
    assert shortage.runs > 30


@pytest.mark.parametrize("cache", ["growing", "static"])
@pytest.mark.parametrize("fails", [0, 4, 8, 12, 16])
def test_a_cache_that_rounds(exported: Exported, shortage: Shortage, cache: str, fails: int) -> None:
    session = open_session(exported(cache=cache, cache_dtype="int8")[1])
    wanted = [alone(session, request) for request in requests(session)]
    shortage.begin(fails)
    check(Batcher(session, rows=3, prefill_chunk=None), wanted, failed=1)


def test_no_run_finds_memory_for_a_while(session: Session[Any], shortage: Shortage) -> None:
    wanted = [alone(session, request) for request in requests(session)]
    batcher = Batcher(session, rows=3, prefill_chunk=16, prefix_tokens=500)
    shortage.begin(*range(6, 200))
    numbers = [batcher.submit(request) for request in requests(session)]
    _, ends = drain(batcher)
    assert {ends[number].reason for number in numbers} == {"memory"}
    assert (batcher.active, batcher.waiting, batcher.cached_tokens) == (0, 0, 0)
    shortage.begin()
    check(batcher, wanted, failed=0)


@pytest.mark.parametrize("cache", ["growing", "static"])
@pytest.mark.parametrize("fails", [*range(0, 20, 2)])
def test_a_run_that_verifies_drafts(exported: Exported, shortage: Shortage, cache: str, fails: int) -> None:
    session = open_session(exported(cache=cache)[1])
    wanted = [alone(session, request) for request in requests(session)]
    batcher = Batcher(session, rows=3, prefill_chunk=16, drafters=LookupDrafter)
    shortage.begin(fails)
    check(batcher, wanted, failed=1)
    assert batcher.drafts.proposed


@pytest.mark.parametrize("cache", ["plain", "hybrid"])
@pytest.mark.parametrize("fails", range(12))
def test_buffers_that_cannot_be_made_longer(
    exported: Exported, hybrid: Callable[..., Artifact], monkeypatch: pytest.MonkeyPatch, cache: str, fails: int
) -> None:
    """Rows move layer by layer: what has moved and what has not is put together again by the next step."""
    session = open_session(hybrid(cache="static") if cache == "hybrid" else exported(cache="static")[1])
    wanted = [alone(session, request) for request in requests(session)]
    monkeypatch.setattr(rows_module, "GRAIN", 8)
    make, made = rows_module.new_buffer, iter(range(1_000_000))

    def failing(*arguments: Any) -> np.ndarray:
        if next(made) == fails:
            raise MemoryError
        return make(*arguments)

    monkeypatch.setattr(rows_module, "new_buffer", failing)
    check(Batcher(session, rows=3, prefill_chunk=16), wanted, failed=1)


@pytest.mark.parametrize("name", ["take", "join"])
def test_a_copy_of_a_row_that_finds_no_memory(
    session: Session[Any], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Where it is for the store of prefixes, no request ends for it."""
    wanted = [alone(session, request) for request in requests(session)]
    batcher = Batcher(session, rows=3, prefill_chunk=16, prefix_tokens=500)
    failures: Iterator[bool] = iter([False, True])
    pool = rows_module.StaticRows if session.in_place else rows_module.MergedRows
    do = getattr(pool, name)

    def failing(*arguments: Any) -> Any:
        if next(failures, False):
            raise MemoryError
        return do(*arguments)

    monkeypatch.setattr(pool, name, failing)
    check(batcher, wanted, failed=int(name == "join"))
    assert next(failures, None) is None


def test_numbers_that_a_failed_step_has_written_reach_no_other_row(
    exported: Exported, monkeypatch: pytest.MonkeyPatch, shortage: Shortage
) -> None:
    """A step that computed something infinite, and then found no memory, left it behind its row's length."""
    session: Any = open_session(exported(cache="static")[1])
    wanted = [alone(session, request) for request in requests(session)]
    batcher = Batcher(session, rows=3, prefill_chunk=None)
    run, bind, bound = session.run_bound, session.bind_decode, {}

    def noting(layers: Any, mask: np.ndarray, ids: np.ndarray, positions: np.ndarray, length: np.ndarray) -> Any:
        binding = bind(layers, mask, ids, positions, length)
        bound[id(binding)] = binding, [buffer for layer in layers for buffer in layer], length
        return binding

    def spoiling(binding: Any) -> np.ndarray:
        try:
            return run(binding)
        except Exception:
            _, buffers, lengths = bound[id(binding)]
            longest = lengths.argmax()  # which ends
            for buffer in buffers:
                buffer[longest, :, lengths[longest]] = np.inf
            raise

    monkeypatch.setattr(session, "bind_decode", noting)
    monkeypatch.setattr(session, "run_bound", spoiling)
    shortage.begin(11)
    check(batcher, wanted, failed=1)


@pytest.mark.parametrize("fails", [0, 9])
def test_memory_that_cannot_be_given_back(
    session: Session[Any], monkeypatch: pytest.MonkeyPatch, shortage: Shortage, fails: int
) -> None:
    """Giving it back takes a run of a small graph."""
    wanted = [alone(session, request) for request in requests(session)]

    def failing(*arguments: Any) -> None:
        raise onnxruntime.capi.onnxruntime_pybind11_state.RuntimeException(SAID)

    monkeypatch.setattr(onnxruntime.InferenceSession, "run", failing)
    shortage.begin(fails)
    check(Batcher(session, rows=3, prefill_chunk=16), wanted, failed=1)


class Knowing(Drafter):
    """Has the answer's first tokens run with its prompt."""

    reads_at_once = True

    def __init__(self, answer: list[int]) -> None:
        self._drafts = answer

    def add(self, tokens: Sequence[int]) -> None:
        pass

    def propose(self, most: int) -> list[int]:
        drafts, self._drafts = self._drafts[:most], []
        return drafts

    def learn(self, proposed: int, accepted: int) -> None:
        assert proposed == accepted


@pytest.mark.parametrize("drafted", [0, 3])
def test_a_row_that_has_just_joined_ends_and_not_a_longer_one(
    exported: Exported, shortage: Shortage, drafted: int
) -> None:
    """Also where drafts that ran with its prompt were right, so that it has several tokens."""
    session = open_session(exported()[1])
    asked = [Request(prompt(session, n), NEW, stop_at_eos=False) for n in (40, 9)]
    wanted = [alone(session, request) for request in asked]
    drafts = iter([[], wanted[1][:drafted]])
    batcher = Batcher(session, rows=2, drafters=lambda: Knowing(next(drafts)))
    numbers = [batcher.submit(asked[0])]
    batcher.step()
    numbers.append(batcher.submit(asked[1]))
    shortage.begin(1)  # behind the run of its prompt
    tokens, ends = drain(batcher)
    assert {number: ends[number].reason for number in numbers} == {numbers[0]: "length", numbers[1]: "memory"}
    assert tokens[numbers[1]] == wanted[1][: drafted + 1]
    assert tokens[numbers[0]] == wanted[0][2:]


class CrampedGuides:
    """Finds no memory to compile a constraint."""

    def open(self, constraint: Constraint, may_end: bool) -> Future[Guide]:
        future: Future[Guide] = Future()
        future.set_exception(MemoryError())
        return future


def test_a_constraint_that_finds_no_memory_ends_its_request(exported: Exported) -> None:
    session = open_session(exported()[1])
    wanted = [alone(session, request) for request in requests(session)]
    batcher = Batcher(session, rows=3, guides=CrampedGuides())  # type: ignore[arg-type]
    held = replace(requests(session)[0], constraint=from_regex("a*"))
    number = batcher.submit(held)
    others = [batcher.submit(request) for request in requests(session)]
    tokens, ends = drain(batcher)
    assert ends[number] == Finished(number, "memory", TOO_LITTLE_MEMORY)
    assert [tokens[other] for other in others] == wanted


class Scarce(np.ndarray):
    """Logits of which no copy can be made."""

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, np.ndarray):
            raise MemoryError
        return super().__getitem__(key)


@pytest.mark.parametrize("fails", range(4))
def test_logits_of_drafts_that_cannot_be_copied(
    exported: Exported, monkeypatch: pytest.MonkeyPatch, fails: int
) -> None:
    """The step has run by then, and none of its tokens may stay in the cache."""
    session = open_session(exported(cache="growing")[1])
    wanted = [alone(session, request) for request in requests(session)]
    batcher = Batcher(session, rows=3, prefill_chunk=16, drafters=LookupDrafter)
    run, runs = session.decode_several, iter(range(1_000_000))

    def scarce(*arguments: Any) -> np.ndarray:
        logits = run(*arguments)
        return logits.view(Scarce) if next(runs) == fails else logits

    monkeypatch.setattr(session, "decode_several", scarce)
    check(batcher, wanted, failed=1)
