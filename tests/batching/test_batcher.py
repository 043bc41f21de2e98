"""A batcher gives each request the tokens that it gets alone, whatever else runs; also ends, cancellations, faults."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lucid_deploy.artifact import Artifact, open_artifact
from lucid_deploy.batching import Batcher, Finished, Request, Token
from lucid_deploy.batching.rows import StaticRows
from lucid_deploy.errors import LucidError
from lucid_deploy.generation.drafting import Drafter, LookupDrafter
from lucid_deploy.generation.generate import Generation
from lucid_deploy.generation.sampling import Sampling
from lucid_deploy.runtimes import Session, open_session
from tests.batching.draining import drain
from tests.batching.lone_runs import CASES, NAMES

Exported = Callable[..., tuple[Path, Artifact]]


@pytest.fixture(params=CASES, ids=NAMES)
def session(request: pytest.FixtureRequest, exported: Exported) -> Session[Any]:
    return open_session(exported(cache=request.param[0])[1], request.param[1])


@pytest.fixture
def static(exported: Exported) -> Session[Any]:
    return open_session(exported(cache="static")[1])


def prompt(length: int, seed: int = 0) -> list[int]:
    ids = np.random.default_rng([length, seed]).integers(2, 97, length)
    ids[length // 3 : 2 * length // 3] = 11
    return [int(token) for token in ids]


def alone(session: Session[Any], request: Request, chunk: int | None = None) -> tuple[list[int], str]:
    generation = Generation(
        session, request.prompt_ids, request.max_new_tokens, request.sampling, chunk, request.stop_at_eos
    )
    return list(generation), generation.finish_reason


@pytest.mark.parametrize("chunk", [None, 13])
def test_tokens_are_those_of_lone_generations(session: Session[Any], chunk: int | None) -> None:
    rng = np.random.default_rng(0)
    requests = [
        Request(
            prompt(int(rng.integers(1, 90)), seed),
            int(rng.integers(1, 30)),
            Sampling(*((0.0,) if seed % 2 else (1.3, 20, 0.9, seed))),
        )
        for seed in range(11)
    ]
    batcher = Batcher(session, rows=4, prefill_chunk=chunk)
    numbers = [batcher.submit(request) for request in requests]
    assert (batcher.waiting, batcher.active, batcher.idle) == (11, 0, False)
    tokens, ends = drain(batcher)
    for number, request in zip(numbers, requests, strict=True):
        assert (tokens.get(number, []), ends[number].reason) == alone(session, request)
    assert batcher.prompt_tokens_computed == sum(len(request.prompt_ids) for request in requests)
    assert batcher.generated_tokens == sum(map(len, tokens.values()))
    assert (batcher.step(), batcher.waiting, batcher.active) == ([], 0, 0)


class Often(Drafter):
    """Drafts whenever it may; every other draft is wrong."""

    def __init__(self, wrong: int = 1) -> None:
        self._ids: list[int] = []
        self._count = 0
        self._wrong = wrong  # 1: wrong at the first, third, … time; 0: at the second, fourth, …

    def add(self, tokens: Sequence[int]) -> None:
        self._ids += tokens

    def propose(self, most: int) -> list[int]:
        lookup, self._count = LookupDrafter(), self._count + 1  # a new drafter does not pause
        lookup.add(self._ids)
        return [(token + (self._count % 2 == self._wrong)) % 90 for token in lookup.propose(most)]

    def learn(self, proposed: int, accepted: int) -> None:
        assert 0 <= accepted <= proposed


@pytest.mark.parametrize("prefix_tokens", [0, 300])
def test_rows_with_different_drafters_give_the_tokens_of_lone_runs(session: Session[Any], prefix_tokens: int) -> None:
    rng = np.random.default_rng(1)
    requests = [
        Request(
            [*prompt(12, seed), *prompt(12, seed)[: int(rng.integers(1, 9))]],
            int(rng.integers(5, 30)),
            Sampling(*((0.0,) if seed % 2 else (1.3, 20, 0.9, seed)), presence_penalty=float(seed == 3)),
            top_logprobs=2 if seed == 4 else None,
        )
        for seed in range(9)
    ]
    kinds: list[Callable[[], Drafter]] = [Often, Often, lambda: Often(wrong=0), LookupDrafter]
    made = itertools.cycle(kinds)
    batcher = Batcher(session, 4, 16, prefix_tokens, drafters=lambda: next(made)())
    numbers = [batcher.submit(request) for request in requests]
    drafted: list[int] = []
    tokens, ends = drain(batcher, drafted)
    for number, request in zip(numbers, requests, strict=True):
        assert (tokens.get(number, []), ends[number].reason) == alone(session, request)
    assert batcher.generated_tokens == sum(map(len, tokens.values()))
    assert 5 < batcher.drafts.accepted < batcher.drafts.proposed
    assert len(drafted) == batcher.drafts.accepted


def test_rows_with_drafts_end_where_the_context_ends(exported: Callable[..., tuple[Path, Artifact]]) -> None:
    for cache in ("growing", "static"):
        session = open_session(exported(cache=cache, max_position_embeddings=64)[1], "onnxruntime")
        requests = [Request(prompt(length), 60, stop_at_eos=False) for length in (50, 20, 35)]
        batcher = Batcher(session, 3, drafters=Often)
        numbers = [batcher.submit(request) for request in requests]
        tokens, ends = drain(batcher)
        for number, request in zip(numbers, requests, strict=True):
            assert (tokens[number], ends[number].reason) == alone(session, request)
        assert batcher.drafts.accepted


def test_events_say_how_many_prompt_tokens_were_reused(static: Session[Any]) -> None:
    batcher = Batcher(static, rows=1, prefill_chunk=16, prefix_tokens=300)
    numbers = [batcher.submit(Request(prompt(200), 2, stop_at_eos=False)) for _ in range(2)]
    found: set[tuple[int, int]] = set()
    while not batcher.idle:
        found |= {(event.request, event.reused) for event in batcher.step()}
    assert found == {(numbers[0], 0), (numbers[1], 192)}


def test_a_long_prompt_does_not_stall_running_rows(static: Session[Any]) -> None:
    batcher = Batcher(static, rows=2, prefill_chunk=16)
    first = batcher.submit(Request(prompt(5), 40, stop_at_eos=False))
    batcher.step()
    second = batcher.submit(Request(prompt(160), 3, stop_at_eos=False))
    steps: list[list[int]] = []
    while second not in (numbers := [event.request for event in batcher.step()]):
        steps.append(numbers)
    assert steps == [[first]] * 9  # ten chunks of 16; a token of the first row beside each
    assert batcher.active == 2


def test_short_prompts_share_a_step(static: Session[Any]) -> None:
    batcher = Batcher(static, rows=5, prefill_chunk=16)
    computed = []
    for count in (1, 4):
        for seed in range(count):
            batcher.submit(Request(prompt(8, seed), 9, stop_at_eos=False))
        batcher.step()
        computed.append(batcher.prompt_tokens_computed)
    assert (batcher.active, batcher.waiting, computed) == (5, 0, [8, 8 + 30])


def test_a_step_runs_more_prompt_tokens_with_more_requests_and_most_while_no_row_decodes(static: Session[Any]) -> None:
    """A step runs up to 6 prompt tokens for each of 8 requests, and 128 while no row waits for a token."""
    batcher = Batcher(static, rows=8, prefill_chunk=8)
    computed = []
    for requests in ([prompt(400)], [], [], [], [prompt(3)] * 6, [prompt(147)], [], [], []):
        for ids in requests:
            batcher.submit(Request(ids, 60, stop_at_eos=False))
        before = batcher.prompt_tokens_computed
        batcher.step()
        computed.append(batcher.prompt_tokens_computed - before)
    assert computed == [128, 128, 128, 16, 18, 48, 48, 48, 3]


def test_a_first_token_waits_for_no_other_row(static: Session[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    batcher, seen = Batcher(static, rows=3, prefill_chunk=64), list[Any]()
    prefill, decode = static.prefill, StaticRows.run

    def noted_prefill(*given: Any) -> Any:
        seen.append("prefill")
        return prefill(*given)

    def noted_decode(*given: Any) -> Any:
        seen.append("decode")
        return decode(*given)

    monkeypatch.setattr(static, "prefill", noted_prefill)
    monkeypatch.setattr(StaticRows, "run", noted_decode)
    first, second = (batcher.submit(Request(prompt(9, seed), 3, stop_at_eos=False)) for seed in range(2))
    for part in batcher.parts():
        seen.append([event.request for event in part])
    assert seen == ["prefill", [first], "prefill", [second], "decode", [first, second]]


def test_log_probabilities_are_of_the_raw_logits(static: Session[Any]) -> None:
    request = Request(prompt(20), 3, Sampling(0.7, 5, seed=1), stop_at_eos=False, top_logprobs=3)
    batcher = Batcher(static)
    batcher.submit(request)
    events = [event for event in [*batcher.step(), *batcher.step()] if isinstance(event, Token)]
    logits = static.prefill(np.array([request.prompt_ids]), static.empty_cache(1))[0, -1].astype(np.float64)
    wanted = np.log(np.exp(logits) / np.exp(logits).sum())
    best = np.argsort(-wanted)[:3]
    assert events[0].logprob == pytest.approx(wanted[events[0].token], abs=1e-5)
    assert [token for token, _ in events[0].top] == best.tolist()
    assert [value for _, value in events[0].top] == pytest.approx(wanted[best].tolist(), abs=1e-5)


def test_cancellation_frees_the_row_in_the_next_step(static: Session[Any]) -> None:
    batcher = Batcher(static, rows=2, prefill_chunk=8)
    running, filling, waiting, next_one = (
        batcher.submit(Request(prompt(n), 50, stop_at_eos=False)) for n in (8, 160, 9, 7)
    )
    batcher.step()
    batcher.step()
    assert (batcher.active, batcher.waiting, batcher.cache_tokens) == (2, 2, 8 + 2 + 120 + 12)
    for number in (waiting, filling, running, running, 77):
        batcher.cancel(number)
    events = batcher.step()
    assert events[:3] == [Finished(number, "cancelled") for number in (waiting, filling, running)]
    assert [event.request for event in events[3:]] == [next_one] * 2  # its first token, and one of decoding
    assert (batcher.active, batcher.waiting, batcher.cache_tokens) == (1, 0, 7 + 1)
    batcher.cancel(running)
    _, ends = drain(batcher)
    assert set(ends) == {next_one}
    assert batcher.submit(Request(prompt(3), 1)) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [({"rows": 0}, "one row"), ({"prefill_chunk": 0}, "one token"), ({"prefix_tokens": -1}, "0 tokens or more")],
)
def test_a_batcher_refuses_invalid_options(options: dict[str, int], message: str, static: Session[Any]) -> None:
    with pytest.raises(LucidError, match=message):
        Batcher(static, **options)


def test_stored_prefixes_are_not_run_again(session: Session[Any]) -> None:
    batcher = Batcher(session, rows=2, prefix_tokens=400)
    system = prompt(70)
    first = Request([*system, *prompt(25, 1)], 10, stop_at_eos=False)
    batcher.submit(first)
    answer = drain(batcher)[0][0]
    second = Request([*first.prompt_ids, *answer, 9, 9], 10, stop_at_eos=False)  # the next turn of a conversation
    third = Request([*system, 50, 51, 52], 10, stop_at_eos=False)
    for number, request in enumerate((second, third, first), start=1):
        assert batcher.submit(request) == number
    tokens, _ = drain(batcher)
    assert batcher.prompt_tokens_reused == 96 + 64 + 64  # whole blocks of 32, one of which ends with the answer
    for number, request in enumerate((second, third, first), start=1):
        assert tokens[number] == alone(session, request)[0]
    assert 0 < batcher.cached_tokens <= 400


@pytest.mark.parametrize("cache", ["growing", "static"])
def test_a_request_whose_logits_are_not_finite_fails_alone(cache: str, exported: Exported, tmp_path: Path) -> None:
    """The request has token 96, whose embedding is NaN."""
    _, artifact = exported(cache=cache)
    directory = Path(shutil.copytree(artifact.directory, tmp_path / "artifact"))
    break_embedding(directory, 96)
    session = open_session(directory)
    batcher = Batcher(session, rows=3, prefix_tokens=300)
    good = [Request([token % 96 for token in prompt(n)], 25, stop_at_eos=False) for n in (30, 12, 44)]
    numbers = [batcher.submit(good[0]), batcher.submit(Request([3, 96, 5], 9)), *map(batcher.submit, good[1:])]
    tokens, ends = drain(batcher)
    assert ends[1].reason == "error" and "not finite" in str(ends[1].error) and 1 not in tokens
    for number, request in zip([0, *numbers[2:]], good, strict=True):
        assert tokens[number] == alone(session, request)[0]
        assert ends[number] == Finished(number, "length")


def break_embedding(directory: Path, token: int) -> None:
    import onnx

    artifact = open_artifact(directory)
    graph = onnx.load(str(artifact.graph_path("decode")), load_external_data=False).graph
    tensor = next(item for item in graph.initializer if "embed" in item.name)
    offset = next(int(entry.value) for entry in tensor.external_data if entry.key == "offset")
    weights = np.memmap(directory / "weights.bin", dtype=np.float32, mode="r+", offset=offset, shape=tuple(tensor.dims))
    weights[token] = np.nan
    weights.flush()
