"""The TensorRT session on a fake device: numbers, bindings, memory, recorded graphs, drafts, batches, errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lucid_deploy.artifact import Artifact
from lucid_deploy.cache.storage import decode_layer, encode_layer
from lucid_deploy.errors import LucidError
from lucid_deploy.model.checkpoint import Checkpoint, load_model
from lucid_deploy.runtimes import open_session
from lucid_deploy.runtimes.cache_rows import take_back
from lucid_deploy.runtimes.session import Session
from lucid_deploy.runtimes.tensorrt.engine_contexts import DecodeStep, StateCopy
from lucid_deploy.runtimes.tensorrt.session import TensorRtSession
from lucid_deploy.runtimes.torch.session import TorchSession
from tests.runtimes.tensorrt.fake_gpu import FakeDevice, fake_engines

Exported = Callable[..., tuple[Path, Artifact]]


LIMITS = {"max_batch": 2, "max_context": 96, "prefill_chunk": 16}


class Fixture:
    """A session on a fake device, and the float64 reference of the same model."""

    def __init__(self, exported: Exported, **changes: Any) -> None:
        checkpoint, self.artifact = exported(**changes)
        self.reference = TorchSession(load_model(checkpoint, torch.float64))
        self.device = FakeDevice()
        self.engines, self.contexts = fake_engines(self.artifact, self.device, **LIMITS)
        self.session = TensorRtSession(self.artifact, self.engines, self.device)


@pytest.fixture(params=["growing", "static"])
def fixture(request: pytest.FixtureRequest, exported: Exported) -> Fixture:
    return Fixture(exported, cache=request.param)


@pytest.fixture
def static(exported: Exported) -> Fixture:
    return Fixture(exported, cache="static")


def tokens(count: int) -> np.ndarray:
    ids = np.random.default_rng(0).integers(0, 97, (2, count))
    ids[1, 5:20] = 5
    return ids


# Between them: growing and static caches, both kinds of attention, all logits, no rotary embedding, half precision.
VARIANTS: list[dict[str, Any]] = [
    {"logits": "all"},
    {"use_rope": False, "tie_word_embeddings": True},
    {"attention_type": "llama", "cache": "static", "dtype": "float16"},
    {"dtype": "float16", "cache_dtype": "fp8"},
]


def run_everything(session: Any, vocabulary: int = 97) -> list[np.ndarray]:
    """Left padding, more tokens than a chunk, decoding, prefill after it, decoding to the end; then the cache."""
    ids = tokens(96) % vocabulary
    mask = np.ones((2, 40), bool)
    mask[0, :6] = False
    cache = session.empty_cache(2)
    results = [session.prefill(ids[:, :40], cache, mask, chunk=LIMITS["prefill_chunk"])]  # rounding depends on chunks
    results += [session.decode(ids[:, i : i + 1], cache) for i in range(40, 70)]
    results.append(session.prefill(ids[:, 70:77], cache, chunk=3))
    results += [session.decode(ids[:, i : i + 1], cache) for i in range(77, 96)]
    return results + [array for pair in session.layer_arrays(cache) for array in pair]


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_everything_agrees_with_the_reference(changes: dict[str, Any], exported: Exported) -> None:
    """The error may be twice what onnxruntime's own session makes with the same graphs."""
    made = Fixture(exported, **changes)
    exact = run_everything(made.reference)
    for got, other, true in zip(
        run_everything(made.session), run_everything(open_session(made.artifact)), exact, strict=True
    ):
        assert np.isfinite(got).all()
        assert np.linalg.norm(got - true) <= 2 * np.linalg.norm(other - true) + 1e-6 * np.linalg.norm(true)


def test_a_hybrids_states_agree_with_the_reference(hybrid: Callable[..., Artifact]) -> None:
    artifact, device = hybrid(cache="static"), FakeDevice()
    engines, _ = fake_engines(artifact, device, **LIMITS)
    session = TensorRtSession(artifact, engines, device)
    exact = run_everything(TorchSession(load_model(Checkpoint(artifact.manifest.source), torch.float64)), 61)
    own = open_session(artifact, kernels="functions")
    for found in zip(run_everything(session, 61), run_everything(own, 61), exact, strict=True):
        # What a delta layer gives at padding, and so the next layer's key there, depends on the chunk.
        got, other, true = (array[:, :, 6:] if array.shape[2:] == (96, 16) else array for array in found)
        assert got.shape == true.shape and np.isfinite(got).all()
        assert np.linalg.norm(got - true) <= 2 * np.linalg.norm(other - true) + 1e-6 * np.linalg.norm(true)
    cache = session.empty_cache()
    session.prefill(tokens(20)[:1] % 61, cache)
    fork = session.fork(cache)
    wanted = [session.decode(np.array([[token]]), cache).copy() for token in (3, 5, 7)]  # the third step is replayed
    found = [session.decode(np.array([[token]]), fork).copy() for token in (3, 5, 7)]
    np.testing.assert_array_equal(found, wanted)  # a fork's states are its own
    with pytest.raises(LucidError, match="conv_state of layer 0 is a state"):
        session.truncate(cache, 5)


def test_caches_of_fp8_keep_their_codes(exported: Exported) -> None:
    made = Fixture(exported, **VARIANTS[-1])
    rows = np.random.default_rng(0).standard_normal((1, 2, 3, 36)).astype(np.float32)
    cache = made.session.cache_from_arrays([(rows, 50 * rows)] * 2, np.ones((1, 3), bool))
    assert [tensor.dtype for tensor in made.session.layout[0]] == ["float8_e4m3fn"] * 2 + ["float32"] * 2
    wanted = decode_layer(encode_layer((rows, 50 * rows), made.session.layout[0]), made.session.layout[0])
    again = made.session.cache_from_arrays(made.session.layer_arrays(cache), cache.mask)
    for layer in (*made.session.layer_arrays(cache), *made.session.layer_arrays(again)):
        np.testing.assert_allclose(layer, wanted, rtol=1e-6)
    with pytest.raises(LucidError, match="tensorrt runs up to 2 rows"):
        made.session.cache_from_arrays([(np.zeros((3, 2, 1, 36)),) * 2] * 2, np.ones((3, 1), bool))


def test_a_static_cache_stays_where_it_is(static: Fixture) -> None:
    cache = static.session.empty_cache(1)
    static.session.prefill(tokens(10)[:1], cache)
    static.session.decode(np.array([[3]]), cache)
    before = [(k.address, y.address) for k, y in cache.layers]
    uploaded = static.device.uploaded
    for _ in range(20):
        static.session.decode(np.array([[4]]), cache)
    assert [(k.address, y.address) for k, y in cache.layers] == before
    [context] = static.contexts["decode"]
    assert all(
        context.addresses[f"past_key_values.{i}.{kind}"] == context.addresses[f"present.{i}.{kind}"]
        for i in range(2)
        for kind in ("key", "value")
    )
    assert static.device.uploaded - uploaded == 20 * 4 * 8, "a token, its position, the length, one mask column"


def test_decoding_is_recorded_once_and_replayed(static: Fixture) -> None:
    cache = static.session.empty_cache(1)
    static.session.prefill(tokens(10)[:1], cache)
    for _ in range(12):
        static.session.decode(np.array([[3]]), cache)
    assert (static.device.recorded, static.device.replayed) == (1, 11)  # the first step runs as it is
    assert static.contexts["decode"][0].runs == 12


def test_more_tokens_than_the_engines_limit_are_refused(fixture: Fixture) -> None:
    cache = fixture.session.empty_cache(1)
    with pytest.raises(LucidError, match=r"to 96 tokens here, not 97.*-rtx --max-batch .*--max-context 97 --pre"):
        fixture.session.prefill(tokens(97)[:1], cache)
    session = TensorRtSession(fixture.artifact, fixture.engines, fixture.device, allow_extrapolation=True)
    with pytest.raises(LucidError, match=r"to 96 tokens here, not 97.*-rtx --max-batch .*--max-context 97 --pre"):
        session.prefill(tokens(97)[:1], session.empty_cache(1))


Hybrid = Callable[..., Artifact]


IDS = np.random.default_rng(0).integers(0, 61, (2, 20))


def opened(artifact: Artifact) -> tuple[TensorRtSession, FakeDevice]:
    device = FakeDevice()
    return TensorRtSession(artifact, fake_engines(artifact, device, **LIMITS)[0], device), device


def states(session: Session[Any], cache: Any) -> list[np.ndarray]:
    layers = zip(session.layout, session.layer_arrays(cache), strict=True)
    return [array for pair in layers for tensor, array in zip(*pair, strict=True) if tensor.sort == "state"]


def waiting(session: Session[Any], steps: list[tuple[bool, bool]]) -> list[np.ndarray]:
    """Decode steps in which some rows wait; return the logits of the others, and the states at the end."""
    cache, results = session.empty_cache(2), []
    session.prefill(IDS[:, :12], cache)
    for index, has_token in enumerate(steps):
        mask = np.array(has_token)
        results.append(session.decode(IDS[:, 12 + index, None], cache, mask[:, None])[mask])
    return results + states(session, cache)


def check(artifact: Artifact, run: Callable[[Session[Any]], list[np.ndarray]]) -> FakeDevice:
    """Check that errors are at most twice those of onnxruntime's own session with the same graphs."""
    session, device = opened(artifact)
    exact = run(TorchSession(load_model(Checkpoint(artifact.manifest.source), torch.float64)))
    own = run(open_session(artifact, kernels="functions"))
    for got, other, true in zip(run(session), own, exact, strict=True):
        assert got.shape == true.shape and np.isfinite(got).all()
        assert np.linalg.norm(got - true) <= 2 * np.linalg.norm(other - true) + 1e-6 * np.linalg.norm(true)
    return device


BOTH, FIRST, SECOND, NONE = (True, True), (True, False), (False, True), (False, False)


@pytest.mark.parametrize(
    "steps",
    [
        [BOTH, BOTH, FIRST, BOTH, NONE, BOTH],
        [FIRST, FIRST, SECOND, BOTH],
    ],
    ids=["steps that would be replayed", "several in turn"],
)
@pytest.mark.parametrize("kind", ["growing", "static"])
def test_a_row_that_waits_keeps_its_states(kind: str, steps: list[tuple[bool, bool]], hybrid: Hybrid) -> None:
    device = check(hybrid(cache=kind), lambda session: waiting(session, steps))
    replays = sum(has_token == BOTH for has_token in steps[1:]) if kind == "static" else 0
    assert (device.recorded, device.replayed) == (min(replays, 1), replays)


def test_states_of_rows_with_a_token_are_copied_and_no_others() -> None:
    device = FakeDevice()
    read, written = device.allocate(12), device.allocate(12)
    step = DecodeStep(device, 3, [StateCopy(read, written, 4)])
    old, new = np.arange(12, dtype=np.uint8), np.arange(100, 112, dtype=np.uint8)
    for tokens in ([True, False, True], [False, True, True], [False, False, False], [True, True, True]):
        device.upload(read, old)
        device.upload(written, new)
        step.run(lambda: None, np.array(tokens))
        wanted = np.where(np.repeat(tokens, 4), new, old)
        np.testing.assert_array_equal(device.at(read, 12), wanted)
    step.drop()
    assert (device.recorded, device.replayed, device.dropped) == (1, 1, 1)


DRAFT_LIMITS = {"max_batch": 2, "max_context": 96, "prefill_chunk": 32}


DRAFT_VARIANTS: list[dict[str, Any]] = [
    {},
    {"cache": "static"},
    {"attention_type": "llama", "cache": "static", "dtype": "float16"},
    {"dtype": "float16", "cache_dtype": "fp8"},
]


def opened_for_drafts(artifact: Artifact, speculate: bool = True) -> tuple[TensorRtSession, FakeDevice]:
    device = FakeDevice()
    return TensorRtSession(artifact, fake_engines(artifact, device, speculate, **DRAFT_LIMITS)[0], device), device


def steps_and_drafts(session: Session[Any]) -> list[np.ndarray]:
    """Verify drafts between single steps, and take back each row's rejected ones; return logits and the cache."""
    ids = np.random.default_rng(0).integers(0, 97, (2, 70))
    ids[1, 5:30] = 5  # a repeated token
    mask = np.ones((2, 20), bool)
    mask[0, :6] = False
    cache, at = session.empty_cache(2), 20
    results = [session.prefill(ids[:, :at], cache, mask)]
    for new, kept in ((2, (1, 2)), (16, (9, 3)), (7, (7, 7)), (5, (0, 1)), (1, (1, 1))):
        drafted = np.ones((2, new), bool)
        drafted[1, new - new // 4 :] = False  # row 1 drafts less
        logits = session.decode_several(ids[:, at : at + new], cache, drafted)
        results.append(logits[drafted])
        take_back(session, cache, new, np.minimum(kept, drafted.sum(1)))
        at += new
        results.append(session.decode(ids[:, at : at + 1], cache))
        results.append(session.decode(ids[:, at + 1 : at + 2], cache))
        at += 2
    # Columns that were taken back may stay as padding or be cut off, so only each row's tokens are returned.
    return results + [
        array[row][:, cache.mask[row]] for pair in session.layer_arrays(cache) for array in pair for row in (0, 1)
    ]


@pytest.mark.parametrize("changes", DRAFT_VARIANTS, ids=str)
def test_drafts_between_steps_agree_with_the_reference(changes: dict[str, Any], exported: Exported) -> None:
    """The error may be twice what onnxruntime's own session makes with the same graphs."""
    checkpoint, artifact = exported(**changes)
    exact = steps_and_drafts(TorchSession(load_model(checkpoint, torch.float64)))
    own = open_session(artifact, kernels="functions")
    rounds = zip(steps_and_drafts(opened_for_drafts(artifact)[0]), steps_and_drafts(own), exact, strict=True)
    for got, other, true in rounds:
        assert got.shape == true.shape and np.isfinite(got).all()
        assert np.linalg.norm(got - true) <= 2 * np.linalg.norm(other - true) + 1e-6 * np.linalg.norm(true)


def test_drafts_leave_a_static_cache_and_its_recorded_step_where_they_are(exported: Exported) -> None:
    session, device = opened_for_drafts(exported(cache="static")[1])
    ids = np.random.default_rng(0).integers(0, 97, (1, 40))
    cache = session.empty_cache(1)
    session.prefill(ids[:, :10], cache)
    for i in range(10, 13):
        session.decode(ids[:, i : i + 1], cache)
    layers, recorded = cache.layers, device.recorded
    session.decode_several(ids[:, 13:20], cache)
    take_back(session, cache, 7, np.array([3]))
    session.decode(ids[:, 16:17], cache)
    assert cache.layers is layers and device.recorded == recorded == 1


def test_without_an_engine_for_drafts_the_error_says_how_to_build_one(exported: Exported) -> None:
    session, _ = opened_for_drafts(exported()[1], speculate=False)
    with pytest.raises(LucidError, match=r"no engine that verifies drafts; .* --max-batch .* --speculate --overwr"):
        session.decode_several(np.ones((1, 3), np.int64), session.empty_cache(1))
