"""Load an artifact's weights into the PyTorch model."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from lucid_deploy.artifact import ADAPTERS, WEIGHTS, Artifact
from lucid_deploy.artifact.adapters import read_matrices
from lucid_deploy.artifact.external_data import StoredWeight
from lucid_deploy.artifact.quantization import (
    INPUT_SCALE,
    OFFSETS,
    PACKED,
    ROWS,
    SCALES,
    WHOLE_SCALE,
    ZEROS,
    Quantization,
    weight_and_rows,
)
from lucid_deploy.artifact.quantized_bytes import dequantize
from lucid_deploy.errors import CheckFailed
from lucid_deploy.model.adapter_slots import AdapterRows, Slots
from lucid_deploy.model.build import make_model
from lucid_deploy.model.config import LucidConfig
from lucid_deploy.model.lucid import CausalModel
from lucid_deploy.runtimes.torch.quantized_activations import round_inputs


def load_artifact_model(
    artifact: Artifact,
    device: str = "cpu",
    implementation: str = "blocked",
    dtype: str | None = None,
    config: LucidConfig | None = None,
) -> CausalModel:
    """Build the PyTorch model with an artifact's weights, dequantized; ``dtype``, ``config``: None for the artifact's.

    If the graphs round inputs to E4M3, the model does too, except in float64, which serves as the exact reference.
    """
    stored = getattr(torch, artifact.manifest.dtype)
    wanted_type = stored if dtype is None else getattr(torch, dtype)
    with torch.device("meta"):
        model = make_model(config or artifact.config, implementation)
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    with artifact.path(WEIGHTS).open("rb") as file:
        buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    state = {
        name: torch.from_numpy(weight).to(device=device, dtype=wanted_type)
        for name, weight in _dequantized(artifact, buffer)
    }
    transposed = set(artifact.manifest.transposed)
    for weight in artifact.weights("decode"):
        if weight.name not in wanted:
            continue
        count = weight.size // stored.itemsize
        data = torch.frombuffer(buffer, dtype=stored, count=count, offset=weight.offset).view(*weight.shape)
        if weight.name in transposed:
            data = data.mT
        if tuple(data.shape) != wanted[weight.name]:
            raise CheckFailed(
                f"{artifact.directory}: weight {weight.name} is {tuple(data.shape)}, not {wanted[weight.name]}."
            )
        state[weight.name] = data.to(device=device, dtype=wanted_type)
    if artifact.config.tie_word_embeddings:
        tied = state.get("model.embed_tokens.weight", state.get("lm_head.weight"))
        if tied is not None:
            state["model.embed_tokens.weight"] = state["lm_head.weight"] = tied
    missing = sorted(wanted.keys() - state.keys())
    if missing:
        raise CheckFailed(f"{artifact.directory}: the decode graph lacks the weights {', '.join(missing)}.")
    model.load_state_dict(state, assign=True)
    model.tie_weights()
    model.store_cache_as(artifact.manifest.cache_dtype)
    model.lm_head.in_float32 = artifact.manifest.float32_head
    record = artifact.manifest.quantization
    if record is not None and record.rounds_inputs and wanted_type != torch.float64:
        round_inputs(model, record.tensors, record.input_block, _input_scales(artifact, buffer))
    return model.eval().requires_grad_(False)


def load_adapters(artifact: Artifact, model: CausalModel) -> AdapterRows | None:
    """Load an artifact's adapters into its model; return the selector of each row's adapter, or None without slots."""
    slots = artifact.manifest.adapters
    if slots is None:
        return None
    rows = AdapterRows(model, Slots(slots.targets, slots.count, slots.rank))
    data = read_matrices(artifact.directory, slots)
    stored = getattr(torch, artifact.manifest.dtype)
    for weight in artifact.weights("decode"):
        if weight.file == ADAPTERS:
            count = weight.size // stored.itemsize
            found = torch.frombuffer(data, dtype=stored, count=count, offset=weight.offset).view(*weight.shape)
            model.get_parameter(weight.name).data.copy_(found)
    return rows


def stored_parts(artifact: Artifact) -> Iterator[tuple[Any, ...]]:
    """Yield the name of each quantized weight and, as flat arrays, its packed bytes (uint8) and scales (float32).

    If the weight has zero points (packed bytes) or offsets (float32), they come last. Scales of NVFP4 are already
    multiplied by the scale of the whole weight.
    """
    with artifact.path(WEIGHTS).open("rb") as file:
        buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    yield from _parts(artifact, buffer)


def dequantized(record: Quantization, weight: str, parts: Mapping[str, Sequence[Any]]) -> np.ndarray[Any, Any]:
    """Return a weight, float64 in the checkpoint's shape; ``parts``: what :func:`stored_parts` yields, by name."""
    pieces = (record.tensors[name].as_stored(dequantize(record, name, *parts[name])) for name in record.pieces(weight))
    return np.concatenate(list(pieces))


def _parts(artifact: Artifact, buffer: mmap.mmap) -> Iterator[tuple[Any, ...]]:
    record = artifact.manifest.quantization
    places = {weight.name: weight for weight in artifact.weights("decode")}
    for name in record.tensors if record is not None else ():
        assert record is not None
        place, factors = places.get(name + PACKED) or places[name + ROWS], places[name + SCALES]
        packed = np.frombuffer(buffer, np.uint8, place.size, place.offset)
        scales = np.frombuffer(buffer, np.uint8, factors.size, factors.offset).copy()
        kind = record.part_dtype(name, SCALES, artifact.manifest.dtype).replace("float8e4m3fn", "float8_e4m3fn")
        values = torch.from_numpy(scales).view(getattr(torch, kind)).float().numpy()
        if name + WHOLE_SCALE in places:
            values = values * _scalar(buffer, places[name + WHOLE_SCALE])
        yield name, packed, values, *_shift(buffer, places, name, kind)


def _shift(buffer: mmap.mmap, places: dict[str, StoredWeight], name: str, dtype: str) -> list[np.ndarray[Any, Any]]:
    """Return the bytes of a weight's zero points, or its offsets; an empty list if it has neither."""
    points, offsets = places.get(name + ZEROS), places.get(name + OFFSETS)
    if points is not None:
        return [np.frombuffer(buffer, np.uint8, points.size, points.offset)]
    if offsets is None:
        return []
    stored = np.frombuffer(buffer, np.uint8, offsets.size, offsets.offset).copy()
    return [torch.from_numpy(stored).view(getattr(torch, dtype)).float().numpy()]


def _scalar(buffer: mmap.mmap, place: StoredWeight) -> np.float32:
    value: np.float32 = np.frombuffer(buffer, np.float32, 1, place.offset)[0]
    return value


def _input_scales(artifact: Artifact, buffer: mmap.mmap) -> dict[str, float]:
    """Return the scales by which layers divide their inputs before rounding, by weight name."""
    return {
        place.name.removesuffix(INPUT_SCALE): float(_scalar(buffer, place))
        for place in artifact.weights("decode")
        if place.name.endswith(INPUT_SCALE)
    }


def _dequantized(artifact: Artifact, buffer: mmap.mmap) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    record = artifact.manifest.quantization
    parts = {name: stored for name, *stored in _parts(artifact, buffer)}
    for name in dict.fromkeys(weight_and_rows(name)[0] for name in parts):
        assert record is not None
        yield name, dequantized(record, name, parts)
