"""The TensorRT session's own work, on a fake device: bindings, shapes, memory, recorded graphs, errors."""

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


def close(got: np.ndarray, exact: np.ndarray, tolerance: float = 1e-4) -> None:
    assert np.isfinite(got).all()
    assert np.linalg.norm(got - exact) <= tolerance * np.linalg.norm(exact)


# Between them: growing and static caches, both kinds of attention, all logits, no rotary embedding, half precision.
VARIANTS: list[dict[str, Any]] = [
    {},
    {"cache": "static"},
    {"attention_type": "llama", "logits": "all", "use_rope": False},
    {"attention_type": "llama", "cache": "static", "dtype": "float16"},
    {"dtype": "float16", "cache_dtype": "fp8"},
]


def run_everything(session: Any, vocabulary: int = 97) -> list[np.ndarray]:
    """Left padding, more tokens than a chunk, decoding, prefill after it, decoding to the end; then the cache."""
    ids = tokens(96) % vocabulary
    mask = np.ones((2, 40), bool)
    mask[0, :6] = False
    cache = session.empty_cache(2)
    results = [session.prefill(ids[:, :40], cache, mask, chunk=LIMITS["prefill_chunk"])]  # a cache may round between
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


@pytest.mark.parametrize("kind", ["growing", "static"])
def test_a_hybrids_states_go_from_call_to_call_beside_its_rows(kind: str, hybrid: Callable[..., Artifact]) -> None:
    artifact, device = hybrid(cache=kind), FakeDevice()
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


def test_half_precision_caches_keep_their_bytes(exported: Exported) -> None:
    made = Fixture(exported, **VARIANTS[3])
    layers = [(np.full((1, 2, 3, 36), 0.25 + i), np.full((1, 2, 3, 36), -1.5)) for i in range(2)]
    cache = made.session.cache_from_arrays(layers, np.ones((1, 3), bool))
    for (k, y), (k_given, y_given) in zip(made.session.layer_arrays(cache), layers, strict=True):
        assert k.dtype == np.float32 and (k == k_given).all() and (y == y_given).all()
    assert np.isfinite(made.session.decode(np.array([[3]]), cache)).all()


def test_caches_of_fp8_keep_their_codes(exported: Exported) -> None:
    made = Fixture(exported, **VARIANTS[4])
    rows = np.random.default_rng(0).standard_normal((1, 2, 3, 36)).astype(np.float32)
    cache = made.session.cache_from_arrays([(rows, 50 * rows)] * 2, np.ones((1, 3), bool))
    assert [tensor.dtype for tensor in made.session.layout[0]] == ["float8_e4m3fn"] * 2 + ["float32"] * 2
    wanted = decode_layer(encode_layer((rows, 50 * rows), made.session.layout[0]), made.session.layout[0])
    again = made.session.cache_from_arrays(made.session.layer_arrays(cache), cache.mask)
    for layer in (*made.session.layer_arrays(cache), *made.session.layer_arrays(again)):
        np.testing.assert_allclose(layer, wanted, rtol=1e-6)
    with pytest.raises(LucidError, match="built for up to 2 rows"):
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


def test_a_fork_goes_on_alone(fixture: Fixture) -> None:
    session, reference = fixture.session, fixture.reference
    cache, exact = session.empty_cache(1), reference.empty_cache(1)
    for each, own in ((session, cache), (reference, exact)):
        each.prefill(tokens(9)[:1], own)
        each.decode(np.array([[1]]), own)
    fork, exact_fork = session.fork(cache), reference.fork(exact)
    for token in (7, 8):
        close(session.decode(np.array([[token]]), cache), reference.decode(np.array([[token]]), exact))
    close(session.decode(np.array([[9]]), fork), reference.decode(np.array([[9]]), exact_fork))
    close(session.decode(np.array([[3]]), cache), reference.decode(np.array([[3]]), exact))


def test_more_rows_than_the_engines_take(fixture: Fixture) -> None:
    with pytest.raises(LucidError, match=r"built for up to 2 rows, not 3.*--max-batch 3 --overwrite"):
        fixture.session.prefill(np.zeros((3, 2), np.int64), fixture.session.empty_cache(3))


def test_more_tokens_than_the_engines_take(fixture: Fixture) -> None:
    cache = fixture.session.empty_cache(1)
    with pytest.raises(LucidError, match="context would be 97 tokens"):
        fixture.session.prefill(tokens(97)[:1], cache)
    session = TensorRtSession(fixture.artifact, fixture.engines, fixture.device, allow_extrapolation=True)
    with pytest.raises(LucidError, match=r"built for up to 96 tokens, not 97.*--max-context 97"):
        session.prefill(tokens(97)[:1], session.empty_cache(1))


@pytest.mark.parametrize("stage", ["prefill", "decode"])
def test_an_engine_that_fails_says_why(stage: str, fixture: Fixture) -> None:
    cache = fixture.session.empty_cache(1)
    fixture.session.prefill(tokens(4)[:1], cache)
    fixture.contexts[stage][0].fails = True
    fixture.engines.errors.append("lucid plugin: no kernel for compute capability 7.5")
    run = fixture.session.prefill if stage == "prefill" else fixture.session.decode
    with pytest.raises(LucidError, match=f"The {stage} engine fails: lucid plugin: no kernel"):
        run(np.array([[3]]), cache)
