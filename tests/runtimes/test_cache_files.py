"""Caches are saved and go on in any runtime of the same model; wrong and damaged files are refused."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lucid_deploy.artifact import Artifact
from lucid_deploy.errors import CheckFailed, LucidError
from lucid_deploy.runtimes import open_session
from lucid_deploy.runtimes.cache_files import load_cache, save_cache
from lucid_deploy.runtimes.cache_rows import merge_caches
from tests.runtimes.cache_cases import CASES, IDS, run, stored

Exported = Callable[..., tuple[Path, Artifact]]


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
