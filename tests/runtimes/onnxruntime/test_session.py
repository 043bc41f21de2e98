"""Sessions of every provider compute the same, share what they can, and keep to a provider's profile."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lucid_deploy.artifact import Artifact
from lucid_deploy.errors import CheckFailed, LucidError
from lucid_deploy.export import ExportOptions, export
from lucid_deploy.export.quantize.options import QuantizeOptions
from lucid_deploy.runtimes import open_session
from lucid_deploy.runtimes.onnxruntime.providers import CPU
from lucid_deploy.runtimes.tensorrt.limits import Limits, choose_limits
from tests.runtimes.onnxruntime.fake_onnxruntime import NAMES, FakeOrt

Exported = Callable[..., tuple[Path, Artifact]]


def everything(session: Any) -> list[np.ndarray]:
    ids = np.random.default_rng(0).integers(0, 97, (2, 40))
    cache = session.empty_cache(2)
    results = [session.prefill(ids[:, :30], cache)]
    return results + [session.decode(ids[:, i : i + 1], cache) for i in range(30, 40)]


@pytest.mark.parametrize("provider", NAMES)
def test_sessions_of_gpu_providers_compute_the_same(provider: str, fake: FakeOrt, artifact: Artifact) -> None:
    """They load the weights themselves; TensorRT reads a copy of the graph, of which the plugin's nodes get bodies."""
    session = open_session(artifact, provider=provider)
    assert (session.runtime, session.provider) == ("onnxruntime", provider)
    assert [asked[0][0] for asked in fake.asked] == [NAMES[provider]] * 2
    others = [(NAMES["cuda"], {"device_id": "0", "use_tf32": "0"})] if provider == "tensorrt" else []
    assert [asked[1:] for asked in fake.asked] == [[*others, CPU]] * 2
    assert [(each.initializers, each.entries) for each in fake.options] == [([], [])] * 2
    for ours, other in zip(everything(session), everything(open_session(artifact)), strict=True):
        np.testing.assert_allclose(ours, other, rtol=1e-4, atol=1e-4)


def test_the_cpu_shares_weights_and_asks_for_nothing_else(fake: FakeOrt, exported: Exported) -> None:
    assert open_session(exported()[1]).provider == "cpu"
    assert fake.asked == [[CPU], [CPU]]
    assert all(options.initializers for options in fake.options)
    # A small model keeps packed weights.
    entries = ["session.force_spinning_stop", "session.use_env_allocators"]
    assert all(options.entries == entries for options in fake.options)


def test_the_step_that_verifies_drafts_is_not_made_of_the_files_of_a_newer_export(
    make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    """Weights of 4 bits are read from the file when a graph is loaded: the step would verify with another model's."""
    options = ExportOptions(quantize=QuantizeOptions("int4", format="qdq"), overwrite=True)
    shape = {"hidden_size": 64, "intermediate_size": 64}
    older = export(make_checkpoint("older", 0, **shape), tmp_path / "out", options)
    session = open_session(older)
    export(make_checkpoint("newer", 1, **shape), tmp_path / "out", options)
    assert everything(session)  # what is loaded goes on
    with pytest.raises(CheckFailed, match="changed while it was in use"):
        session.decode_several(np.ones((1, 3), np.int64), session.empty_cache(1))


def test_sessions_keep_to_the_profile(fake: FakeOrt, artifact: Artifact) -> None:
    session = open_session(artifact, provider="tensorrt")
    assert session.limits == choose_limits(artifact)  # type: ignore[attr-defined]
    with pytest.raises(LucidError, match="With --provider tensorrt up to 4 rows can be run, not 5"):
        session.prefill(np.zeros((5, 2), np.int64), session.empty_cache(5))
    session.limits = Limits(4, 512, 7)  # type: ignore[attr-defined]
    assert session.prefill_chunk == 7
    seen: list[int] = []
    session.prefill(np.zeros((1, 20), np.int64), session.empty_cache(1), progress=lambda done, total: seen.append(done))
    assert seen == [7, 14, 20]
    session.prefill(np.zeros((1, 6), np.int64), session.empty_cache(1), None, 5, lambda done, total: seen.append(done))
    assert seen[3:] == [5, 6]


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("cache_dtype", ["auto", "int8"])
def test_what_is_cut_back_lies_in_memory_of_its_own(exported: Exported, heads: int, cache_dtype: str) -> None:
    """The tensor that it was cut from is let go of, with its memory: of one row and one head both are contiguous."""
    session = open_session(exported(num_key_value_heads=heads, cache_dtype=cache_dtype)[1])
    text, cache, short = np.arange(30)[None], session.empty_cache(), session.empty_cache()
    session.prefill(text, cache)
    session.prefill(text[:, :10], short)
    expected = session.layer_arrays(short)
    for length in (20, 10):  # what a run gave, and what was cut back before
        held = cache.layers
        session.truncate(cache, length)
        for old, new in zip(sum(held, ()), sum(cache.layers, ()), strict=True):
            assert not np.shares_memory(old.numpy(), new.numpy())
    for found, wanted in zip(sum(session.layer_arrays(cache), ()), sum(expected, ()), strict=True):
        np.testing.assert_allclose(found, wanted, atol=0.02 * np.abs(wanted).max())
