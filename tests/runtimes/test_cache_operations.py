"""Truncate, select, merge, keep prefixes, save and load: always against running the same text from the start."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lucid_deploy.artifact import Artifact
from lucid_deploy.errors import CheckFailed, LucidError
from lucid_deploy.generation.prefix_store import PrefixStore
from lucid_deploy.model.checkpoint import load_model
from lucid_deploy.model.scenarios import Scenario
from lucid_deploy.parity.measure.compare import TensorId, record
from lucid_deploy.parity.measure.gate import derive_gates
from lucid_deploy.parity.measure.metrics import position_errors
from lucid_deploy.runtimes import Session, open_session
from lucid_deploy.runtimes.cache_files import load_cache, save_cache
from lucid_deploy.runtimes.cache_rows import merge_caches, select_rows
from lucid_deploy.runtimes.session import Cache
from lucid_deploy.runtimes.torch.session import TorchSession

Exported = Callable[..., tuple[Path, Artifact]]
CASES = [("growing", "onnxruntime"), ("static", "onnxruntime"), ("growing", "torch")]
IDS = np.random.default_rng(5).integers(0, 97, 70)
IDS[20:45] = 11  # one token repeated


@pytest.fixture(params=CASES, ids=lambda case: "-".join(case))
def session(request: pytest.FixtureRequest, exported: Exported) -> Session[Any]:
    cache, runtime = request.param
    return open_session(exported(cache=cache)[1], runtime)


def stored(session: Session[Any], cache: Cache[Any]) -> list[np.ndarray]:
    return [array.copy() for layer in session.layer_arrays(cache) for array in layer]


def run(session: Session[Any], ids: np.ndarray, cache: Cache[Any] | None = None, decode: int = 0) -> Cache[Any]:
    """Prefill, the last ``decode`` tokens one by one."""
    cache = session.empty_cache(1) if cache is None else cache
    session.prefill(ids[None, : len(ids) - decode], cache)
    for token in ids[len(ids) - decode :]:
        session.decode(np.array([[token]]), cache)
    return cache


@pytest.fixture(scope="module")
def gates(exported: Exported) -> dict[TensorId, Any]:
    """The parity gate of these tokens: four times what PyTorch in float32 gets wrong against float64."""
    import torch

    checkpoint, _ = exported()
    scenario = Scenario("tokens", IDS, IDS[:1])
    sessions = [
        TorchSession(load_model(checkpoint, dtype, implementation=kind))
        for dtype, kind in ((torch.float64, "reference"), (torch.float32, "blocked"))
    ]
    reference, baseline = (record(each, scenario) for each in sessions)
    return derive_gates(reference, baseline, "float32")


def within_the_gate(got: list[np.ndarray], exact: list[np.ndarray], gates: dict[TensorId, Any]) -> None:
    for index, (ours, wanted) in enumerate(zip(got, exact, strict=True)):
        tensor = TensorId(index // 2, index % 2)
        rows = [x.transpose(0, 2, 1, 3).reshape(1, x.shape[2], -1) for x in (ours, wanted)]
        # Both round, each as much as the gate allows.
        assert (position_errors(*rows, tensor.accumulated) <= 2 * gates[tensor].limit).all()


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
    with pytest.raises(LucidError, match="live on inside Y"):
        session.evict(cache, 10)
    assert cache.length == 70
    standard = open_session(exported(attention_type="llama")[1])
    with pytest.raises(LucidError, match="computed from them"):
        standard.evict(standard.empty_cache(1), 10)


def test_rows_are_selected_and_merged_without_change(session: Session[Any], gates: dict[TensorId, Any]) -> None:
    parts = [IDS, IDS[:12], IDS[5:38]]
    caches = [run(session, part, decode=4) for part in parts]
    merged = merge_caches(session, caches)
    assert merged.mask.sum(axis=1).tolist() == [70, 12, 33]
    chosen = select_rows(session, merged, [2, 0, 2])
    assert (chosen.length, chosen.mask.sum(axis=1).tolist()) == (70, [33, 70, 33])
    session.decode(np.array([[7], [8], [9]]), chosen)
    rows = [select_rows(session, chosen, [row]) for row in range(3)]
    for row, (source, token) in zip(rows, [(2, 7), (0, 8), (2, 9)], strict=True):
        session.decode(np.array([[token]]), caches[source])
        within_the_gate(stored(session, row), stored(session, caches[source]), gates)
        before = [x[:, :, :-1] for x in stored(session, caches[source])]
        assert all(np.array_equal(ours[:, :, :-1], old) for ours, old in zip(stored(session, row), before, strict=True))
        session.truncate(caches[source], caches[source].length - 1)
    with pytest.raises(LucidError, match="rows 0 to 2, not 3"):
        select_rows(session, merged, [3])
    with pytest.raises(LucidError, match="at least one row"):
        merge_caches(session, [])


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


@pytest.mark.parametrize("source", range(3))
def test_a_saved_cache_goes_on_in_every_runtime(source: int, exported: Exported, tmp_path: Path) -> None:
    sessions = [open_session(exported(cache=cache)[1], runtime) for cache, runtime in CASES]
    cache = run(sessions[source], IDS, decode=3)
    save_cache(sessions[source], cache, tmp_path / "file", IDS.tolist())
    wanted = sessions[source].decode(np.array([[5]]), sessions[source].fork(cache))
    for session in sessions:
        loaded, ids = load_cache(session, tmp_path / "file")
        assert ids == IDS.tolist()
        for ours, saved in zip(stored(session, loaded), stored(sessions[source], cache), strict=True):
            assert np.array_equal(ours, saved)
        np.testing.assert_allclose(session.decode(np.array([[5]]), loaded), wanted, rtol=0, atol=1e-4)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_types_are_saved_as_they_are(dtype: str, exported: Exported, tmp_path: Path) -> None:
    session = open_session(exported(dtype=dtype)[1], "torch")
    batch = merge_caches(session, [run(session, IDS[:9]), run(session, IDS[:4])])
    save_cache(session, batch, tmp_path / "file")
    assert (tmp_path / "file").stat().st_size < 2 * sum(x.nbytes // 2 for x in stored(session, batch))
    loaded, ids = load_cache(session, tmp_path / "file")
    assert ids is None and np.array_equal(loaded.mask, batch.mask)
    assert all(np.array_equal(*pair) for pair in zip(stored(session, loaded), stored(session, batch), strict=True))


def test_an_empty_cache_can_be_saved(session: Session[Any], tmp_path: Path) -> None:
    save_cache(session, session.empty_cache(2), tmp_path / "file")
    assert load_cache(session, tmp_path / "file")[0].mask.shape == (2, 0)


def test_wrong_and_damaged_files_are_refused(exported: Exported, tmp_path: Path) -> None:
    session, path = open_session(exported()[1]), tmp_path / "file"
    save_cache(session, run(session, IDS), path, IDS.tolist())
    good = path.read_bytes()
    other = open_session(exported(use_rope=False, tie_word_embeddings=True)[1])
    with pytest.raises(LucidError, match="another model") as caught:
        load_cache(other, path)
    assert caught.value.exit_code == 2
    with pytest.raises(LucidError, match="no cache file"):
        load_cache(session, tmp_path / "nothing")
    for damaged in (
        b"",
        good[:7],
        good[:100],
        good[:-1],
        good[:-400] + bytes([good[-400] ^ 1]) + good[-399:],
        b"text" * 50,
    ):
        path.write_bytes(damaged)
        with pytest.raises(CheckFailed, match=r"cut|damaged"):
            load_cache(session, path)
    size = struct.unpack("<Q", good[:8])[0]
    header = json.loads(good[8 : 8 + size])
    changes = [("version", "2", "version 2"), ("cache_dtype", "int8", "cache type"), ("format", "x", "not a cache")]
    for key, value, message in changes:
        changed = {**header, "__metadata__": {**header["__metadata__"], key: value}}
        text = json.dumps(changed).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + good[8 + size :])
        with pytest.raises(LucidError, match=message):
            load_cache(session, path)
    with pytest.raises(LucidError, match="do not fit"):
        save_cache(session, run(session, IDS), path, [1, 2])
    with pytest.raises(LucidError, match="cannot be written"):
        save_cache(session, run(session, IDS), tmp_path / "none" / "file")


def test_a_model_without_an_artifact_has_no_cache_files(exported: Exported, tmp_path: Path) -> None:
    import torch

    session = TorchSession(load_model(exported()[0], torch.float32))
    with pytest.raises(LucidError, match="no artifact"):
        save_cache(session, session.empty_cache(1), tmp_path / "file")
