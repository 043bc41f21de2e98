"""Caches on disk: a safetensors file with the stored form of K and Y, and what model and text they belong to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lucid_deploy.cache.storage import decode_layer, encode_layer
from lucid_deploy.errors import CheckFailed, LucidError, in_one_line
from lucid_deploy.files import atomic_write
from lucid_deploy.runtimes.session import Array, Cache, Session

_FORMAT, _VERSION = "lucid-deploy cache", "1"


def save_cache(session: Session[Any], cache: Cache[Any], path: str | Path, ids: Sequence[int] | None = None) -> None:
    """Write a cache to a file, whole or not at all. Any runtime can load it again."""
    from safetensors.numpy import save

    if session.identity is None:
        raise LucidError("This model comes from no artifact, so a cache file could not say what it belongs to.")
    if ids is not None and (cache.batch != 1 or not cache.mask.all() or len(ids) != cache.length):
        raise LucidError(
            f"{len(ids)} token ids do not fit a cache of {cache.batch} rows with {int(cache.mask.sum())} tokens; they "
            "are stored for one row without padding."
        )
    tensors: dict[str, Array] = {"mask": np.ascontiguousarray(cache.mask, dtype=np.uint8)}
    if ids is not None:
        tensors["ids"] = np.asarray(ids, dtype=np.int64)
    for index, (layout, arrays) in enumerate(zip(session.layout, session.layer_arrays(cache), strict=True)):
        for tensor, array in zip(layout, encode_layer(arrays, layout), strict=True):
            bits = _to_bfloat16(array) if tensor.dtype == "bfloat16" else array
            tensors[f"{index}.{tensor.name}"] = np.ascontiguousarray(bits)
    metadata = {
        "format": _FORMAT,
        "version": _VERSION,
        "model": session.identity,
        "cache_dtype": session.cache_dtype,
        "sha256": _digest(tensors),
    }
    if cache.adapter_ids.any():
        hashes = {each.slot: each.sha256 for each in (session.adapters or {}).values()}
        metadata["adapters"] = json.dumps([hashes.get(slot, "") for slot in cache.adapter_ids.tolist()])
    _write(Path(path), save(tensors, metadata))


def load_cache(session: Session[Any], path: str | Path) -> tuple[Cache[Any], list[int] | None]:
    """Read a cache from a file.

    Returns:
        The cache, and the token ids of its text if they were stored.
    """
    path = Path(path)
    metadata, tensors = _read(path)
    if metadata.get("version") != _VERSION:
        raise LucidError(f"{path} has version {metadata.get('version')} of cache files; this one reads {_VERSION}.")
    for key, mine, what in (("model", session.identity, "model"), ("cache_dtype", session.cache_dtype, "cache type")):
        if metadata.get(key) != mine:
            raise LucidError(
                f"{path} is a cache of another {what} ({str(metadata.get(key))[:12]}, this is {str(mine)[:12]}). Run "
                "its text again with this artifact."
            )
    if metadata.get("sha256") != _digest(tensors):
        raise CheckFailed(f"{path} is damaged: its content does not have the sha256 it was written with.")
    try:
        cache, ids = _cache_of(session, tensors)
        hashes = json.loads(metadata.get("adapters", "[]")) or [""] * cache.batch
    except (KeyError, ValueError) as error:
        raise CheckFailed(f"{path} is damaged: {error!r}.") from error
    slots = {"": 0} | {each.sha256: each.slot for each in (session.adapters or {}).values()}
    if not {*hashes} <= slots.keys() or len(hashes) != cache.batch:
        raise LucidError(f"{path} was computed with an adapter that is not there. Run its text again.")
    cache.adapter_ids = np.array([slots[each] for each in hashes], np.int64)
    return cache, ids


def _cache_of(session: Session[Any], tensors: dict[str, Array]) -> tuple[Cache[Any], list[int] | None]:
    mask = tensors["mask"].astype(bool)
    session.check_length(mask.shape[1])
    layers = []
    for index, layout in enumerate(session.layout):
        stored = []
        for tensor in layout:
            array = tensors[f"{index}.{tensor.name}"]
            if array.shape != tensor.batch_shape(*mask.shape):
                raise ValueError(f"{index}.{tensor.name} has shape {array.shape}")
            stored.append(_from_bfloat16(array) if tensor.dtype == "bfloat16" else array)
        layers.append(decode_layer(stored, layout))
    ids = tensors["ids"].tolist() if "ids" in tensors else None
    return session.cache_from_arrays(layers, mask), ids


def _read(path: Path) -> tuple[dict[str, str], dict[str, Array]]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise LucidError(f"There is no cache file {path}.")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise LucidError(f"{path} is not a cache file of lucid-deploy.")
            return metadata, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)
    except SafetensorError as error:
        raise CheckFailed(f"{path} is truncated, damaged, or no cache file: {in_one_line(error)}") from error


def _write(path: Path, content: bytes) -> None:
    try:
        atomic_write(path, content)
    except OSError as error:
        raise LucidError(f"{path} cannot be written: {error.strerror or error}.") from error


def _digest(tensors: dict[str, Array]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        digest.update(json.dumps([name, str(array.dtype), array.shape]).encode())
        digest.update(array.data.cast("B") if array.size else b"")
    return digest.hexdigest()


def _to_bfloat16(array: Array) -> Array:
    """Return the upper halves of float32 numbers that are bfloat16 already: uint16, without rounding."""
    return (np.ascontiguousarray(array, dtype=np.float32).view(np.uint32) >> 16).astype(np.uint16)


def _from_bfloat16(bits: Array) -> Array:
    return (bits.astype(np.uint32) << 16).view(np.float32)
