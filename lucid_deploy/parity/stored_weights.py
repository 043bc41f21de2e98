"""Check that every element of an artifact's weights is the checkpoint's.

Comparing what an artifact computes does not show this: perhaps no token of the verification reads some row of the
embedding, and in half precision the effect of a row of the head may be within the gate of the logits. Moreover, a
quantized artifact is compared with the model on its own dequantized weights.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from lucid_deploy.artifact import STAGES, WEIGHTS
from lucid_deploy.artifact.quantization import (
    LEAST_SCALE,
    NEAREST,
    SCALES,
    STORED,
    Quantization,
    QuantizedTensor,
    relative_distance,
    weight_and_rows,
)
from lucid_deploy.artifact.quantized_bytes import (
    E2M1_MAX,
    E4M3_LEAST,
    E4M3_MAX,
    NVFP4_SPAN,
    Scales,
    dequantize,
    read_scales,
    scaled,
    spacing,
    spread,
    unpack,
)
from lucid_deploy.errors import CheckFailed
from lucid_deploy.parity.progress import CallCounter, Progress, Tick
from lucid_deploy.parity.results import FAILED, PASSED, Check
from lucid_deploy.runtimes.session import Array

if TYPE_CHECKING:
    import torch

    from lucid_deploy.artifact import Artifact
    from lucid_deploy.artifact.external_data import StoredWeight
    from lucid_deploy.model.checkpoint import Checkpoint

# Share of a step: float32 arithmetic in the quantizer may round a value half way between two steps either way.
_SLACK = 1e-3
# Relative: the recorded distance has 7 digits, and its sums may have been computed in another order.
_DISTANCE_SLACK = 1e-5
_FLOAT_SCALE_SLACK = 2.0**-21  # relative: float32 arithmetic rounds the scale of an FP8 or NVFP4 weight once or twice
# Rounding a scale to half precision changes every weight of its block: relatively by this share, and absolutely by half
# the spacing of subnormal numbers (float16 numbers below 2^-14 are multiples of 2^-24).
_SCALE_ROUNDING = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
_SCALE_STEP = {"float16": 2.0**-25}


def plain_names(artifact: Artifact, checkpoint: Checkpoint) -> list[str]:
    """Return the names of the checkpoint's weights that are not quantized in the artifact."""
    record = artifact.manifest.quantization
    return [name for name in checkpoint.stored_shapes() if record is None or not record.pieces(name)]


def check_weights(artifact: Artifact, checkpoint: Checkpoint, progress: Progress | None = None) -> Check:
    """Compare every weight with the checkpoint's, and the weights that the graphs of all forms read."""
    meter = CallCounter(progress, "Weights: every element", len(checkpoint.stored_shapes()))
    try:
        found = compare_weights(artifact, checkpoint, meter.tick)
        _check_shared(artifact)
    except CheckFailed as failure:
        return Check("weights", FAILED, str(failure))
    return Check("weights", PASSED, found)


def _check_shared(artifact: Artifact) -> None:
    """Check that the graphs of all forms (growing, static, inlined) read the same weights."""
    for manifest in artifact.manifest.each_form():
        form = artifact.form(manifest.cache, manifest.inline)
        for stage in set(manifest.graphs) & set(artifact.manifest.graphs):
            if set(form.weights(stage)) != set(artifact.weights(stage)):
                raise CheckFailed(
                    f"{form.graph_path(stage)} reads other weights than {artifact.graph_path(stage)}. Export it again."
                )


def compare_weights(artifact: Artifact, checkpoint: Checkpoint, tick: Tick = lambda: None) -> str:
    """Raise CheckFailed if an artifact's weights are not the checkpoint's; return what was found as a sentence.

    Weights that are not quantized must be the original ones cast to the artifact's dtype. Every element of a quantized
    weight must be within half a step of the original (one or two steps if it was clipped), and scales must be those
    that the scheme prescribes or, if a method fitted them, not too coarse. If the values were chosen with calibration
    data, only their distance from the original is checked, against the recorded one. The method ``stored`` copies the
    checkpoint's numbers, so they must be equal. Scales from equalization are applied to the original, and must cancel.
    """
    record = artifact.manifest.quantization
    if record is None:
        count = check_plain_weights(artifact, checkpoint, tick=tick)
        return f"every element of {count} is the checkpoint's in {artifact.manifest.dtype}"
    from lucid_deploy.runtimes.torch.artifact_weights import stored_parts

    folded = read_scales(artifact.directory)
    if folded:
        check_folding(folded, checkpoint)
    for name, *parts in stored_parts(artifact):
        original, rows = weight_and_rows(name)
        weight = record.tensors[name].matrix(scaled(checkpoint.tensor(original), original, folded)[rows])
        problem = _problem(record, name, parts, weight, artifact.manifest.dtype)
        if problem:
            raise CheckFailed(f"{artifact.directory}: {name} is not the checkpoint's weight quantized: {problem}.")
        tick()
    check_plain_weights(artifact, checkpoint, folded, tick)
    return _quantized_words(record, bool(folded))


def _quantized_words(record: Quantization, folded: bool) -> str:
    if record.method.name == STORED:
        return f"{len(record.tensors)} are the checkpoint's numbers exactly, others equal"
    chosen = len(record.method.tensors)
    nearest = len(record.tensors) - chosen
    found = [f"every element of {nearest} quantized weights is within half a step"] if nearest else []
    if chosen:
        found.append(f"{chosen} whose values {record.method.name} chose are at the recorded distance from the original")
    others = "others are equal but for inputs' scales" if folded else "others are equal"
    return f"{', '.join(found)}, {others}"


# Weights that are not quantized


def check_plain_weights(
    artifact: Artifact, checkpoint: Checkpoint, folded: Scales | None = None, tick: Tick = lambda: None
) -> int:
    """Raise CheckFailed unless all weights that are not quantized are the checkpoint's, rounded; return their number.

    Prefill and decode must read them from the same offset in the weight file. ``folded`` are equalization's scales.
    """
    places = {stage: {weight.name: weight for weight in artifact.weights(stage)} for stage in STAGES}
    for name in places["prefill"].keys() & places["decode"].keys():
        if places["prefill"][name] != places["decode"][name]:
            raise CheckFailed(f"{artifact.directory}: prefill and decode read {name} from different places.")
    names = plain_names(artifact, checkpoint)
    with artifact.path(WEIGHTS).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as buffer:
        for name in names:
            # Tied weights, such as embedding and head, may have either name in the graphs.
            read = {
                stage: [at for at in found if checkpoint.stored_name(at) == name] for stage, found in places.items()
            }
            for stage, found in places.items():
                read[stage] = read[stage] or [at for at in found if checkpoint.is_same(at, name)]
            for stage in STAGES:
                if not read[stage]:
                    raise CheckFailed(f"{artifact.directory}: the {stage} graph does not read {name}.")
            wanted = scaled(checkpoint.tensor(name), name, folded or {})
            for at in read["decode"]:
                problem = _plain_difference(buffer, places["decode"][at], wanted, at in artifact.manifest.transposed)
                if problem:
                    raise CheckFailed(
                        f"{artifact.directory}: {at} is not the checkpoint's weight: {problem}. Export it again, or "
                        "name the checkpoint that it was exported from with --checkpoint."
                    )
            tick()
    return len(names)


def _plain_difference(buffer: mmap.mmap, place: StoredWeight, wanted: torch.Tensor, transposed: bool) -> str | None:
    """Say how a stored weight differs from ``wanted`` cast to the stored dtype; None if it does not."""
    import torch

    types = {1: torch.float32, 10: torch.float16, 16: torch.bfloat16}  # by onnx.TensorProto.DataType
    if place.data_type not in types:
        return f"its ONNX data type is {place.data_type}"
    if tuple(wanted.shape) != ((*place.shape[:-2], *place.shape[:-3:-1]) if transposed else place.shape):
        return f"its shape is {list(place.shape)}{', transposed' if transposed else ''}, not {list(wanted.shape)}"
    kind = types[place.data_type]
    # Copy it, since the mapped file cannot be closed while a tensor refers to its memory.
    found = torch.frombuffer(buffer, dtype=kind, count=wanted.numel(), offset=place.offset).clone().view(*place.shape)
    found, wanted = found.mT if transposed else found, wanted.to(kind)
    if torch.equal(found, wanted):
        return None
    other = found != wanted
    first = tuple(map(int, other.nonzero()[0]))
    return (
        f"{int(other.sum()):,} of {other.numel():,} elements differ, the first at {list(first)}, which is "
        f"{float(found[first]):.6g} and not {float(wanted[first]):.6g}"
    )


# Quantized weights


def _problem(record: Quantization, name: str, parts: list[Array], weight: torch.Tensor, dtype: str) -> str | None:
    """Say how a quantized weight differs from what its method and scheme allow; None if it does not."""
    if record.method.name == STORED:
        wrong = dequantize(record, name, *parts) != weight.double().numpy()
        return f"{wrong.sum()} elements differ" if wrong.any() else None
    original, dtype = weight.float().numpy(), record.part_dtype(name, SCALES, dtype)
    if record.is_float:
        return _float_difference(record, name, parts, original)
    if name in record.method.tensors:
        return _learned_difference(record, name, parts, original)
    is_fitted = record.method.name != NEAREST and not record.method.tensors  # an installed package's method may clip
    is_fitted = is_fitted and not record.tensors[name].experts
    if record.tensors[name].zero_points or record.tensors[name].offsets or is_fitted:
        return _asymmetric_difference(record, name, parts, original, dtype)
    return _nearest_difference(record, name, parts, original, dtype)


def _nearest_difference(record: Quantization, name: str, parts: list[Array], original: Array, dtype: str) -> str | None:
    """Say where a symmetrically quantized value is not nearest to the original or a scale is wrong; None if nowhere."""
    tensor = record.tensors[name]
    numbers, factors = unpack(record, name, *parts)
    numbers = numbers.astype(np.int16)  # the magnitude of -128 does not fit into int8
    high, positive = (1 << (record.bits_of(name) - 1)) - 1, record.has_positive_scales(name)
    top = high if positive else high + 1  # the integer to which a block's largest magnitude is scaled
    relative, least = _SCALE_ROUNDING.get(dtype, 2.0**-22), _SCALE_STEP.get(dtype, 0.0)
    largest = _blocks(np.abs(original), tensor).max(axis=-1)
    if positive:
        largest = np.maximum(largest, top * LEAST_SCALE[dtype])
    misplaced = ~(np.abs(np.abs(factors) * top - largest) <= top * (relative * np.abs(factors) * 1.01 + least) + 1e-30)
    if misplaced.any():
        row, block = np.argwhere(misplaced)[0]
        return (
            f"the scale of row {row}, block {block} is {factors[row, block]:.6g}; with the original's largest element, "
            f"{largest[row, block]:.6g}, it must be ±{largest[row, block] / top:.6g}"
        )
    steps = spread(np.abs(factors), tensor)
    error = np.abs(numbers * spread(factors, tensor) - original)
    clipped = (numbers == high) & (top > high)  # the original may be up to high + 1 steps, which has no code
    rounding = (np.abs(numbers) + clipped) * (relative * steps + least)
    allowed = np.where(clipped, 1.0, 0.5 + _SLACK) * steps + rounding + least
    return _beyond(error, allowed, steps)


def _asymmetric_difference(
    record: Quantization, name: str, parts: list[Array], original: Array, dtype: str
) -> str | None:
    """Say where values with zero points, offsets or fitted ranges have too large errors, or a scale is too coarse.

    None if nowhere. Within its block's range an element may be off by half a step. Elements beyond the range are
    clipped and may be off by two steps. More is allowed where scales were rounded after the values were chosen.
    """
    tensor, half = record.tensors[name], 1 << (record.bits_of(name) - 1)
    numbers, factors = unpack(record, name, *parts)
    stored = unpack(record, name, *parts[:2])[0]
    steps = spread(np.abs(factors), tensor)
    relative, least = _SCALE_ROUNDING.get(dtype, 2.0**-22), _SCALE_STEP.get(dtype, 0.0)
    # Symmetric quantization of a range on one side of zero needs twice the scale that the range's width implies, and a
    # fitted scale may be a quarter larger. Blocks of zeros may have any scale.
    blocks = _blocks(original, tensor)
    span = np.maximum(blocks.max(axis=-1), 0) - np.minimum(blocks.min(axis=-1), 0)
    coarsest = np.where(span > 0, 2.5 * span / (2 * half - 1), np.inf)
    coarse = np.abs(factors) > coarsest + 2 * LEAST_SCALE[dtype]
    if coarse.any():
        row, block = np.argwhere(coarse)[0]
        return f"the scale of row {row}, block {block} is {factors[row, block]:.6g}, too coarse for the block's range"
    error = np.abs(numbers * spread(factors, tensor) - original)
    rounding = np.abs(numbers) * (relative * steps + least)
    clipped = (stored == -half) | (stored == half - 1)
    return _beyond(error, np.where(clipped, 2.0, 0.5 + _SLACK) * steps + rounding + least, steps)


def _learned_difference(record: Quantization, name: str, parts: list[Array], original: Array) -> str | None:
    """Say if values chosen with calibration data are not at the recorded distance from the original; else None."""
    tensor, recorded = record.tensors[name], record.method.tensors[name]
    numbers, factors = unpack(record, name, *parts)
    distance = relative_distance(numbers * spread(factors, tensor), original.astype(float))
    if not abs(distance - recorded.distance) <= _DISTANCE_SLACK * recorded.distance:
        return f"its relative distance from the original is {distance:.6g}, and {recorded.distance:.6g} is recorded"
    return None


def _float_difference(record: Quantization, name: str, parts: list[Array], original: Array) -> str | None:
    """Say where an E4M3 or NVFP4 weight is not rounded to nearest or has a wrong scale; None if nowhere."""
    tensor = record.tensors[name]
    numbers, factors = unpack(record, name, *parts)
    wanted, off = _float_scales(record, name, np.abs(original).astype(np.float64))
    misplaced = ~(np.abs(factors - wanted) <= off * wanted + 1e-37)
    if misplaced.any():
        row, block = np.argwhere(misplaced)[0]
        return f"the scale of row {row}, block {block} is {factors[row, block]:.6g}, not {wanted[row, block]:.6g}"
    quotients = original / spread(factors, tensor)
    most = E4M3_MAX if record.scheme == "fp8" else E2M1_MAX
    # Since scales are rounded, the largest element may exceed the format's largest number, to which it is clipped.
    inside = np.clip(quotients, -most, most)
    beyond = ~(np.abs(numbers - inside) <= (0.5 + _SLACK) * spacing(inside, record.bits))
    if beyond.any():
        row, column = np.argwhere(beyond)[0]
        return (
            f"row {row}, column {column} is {numbers[row, column]:g} times its scale, and the original is "
            f"{quotients[row, column]:.6g} times it"
        )
    return None


def _float_scales(record: Quantization, name: str, magnitudes: Array) -> tuple[Array, Array | float]:
    """Return the scales that the format prescribes, ``(out, blocks)``, and the relative tolerance of stored ones."""
    tensor = record.tensors[name]
    if record.scheme == "fp8":
        return np.full((tensor.shape[0], 1), max(magnitudes.max() / E4M3_MAX, 2.0**-126)), _FLOAT_SCALE_SLACK
    whole = magnitudes.max() / NVFP4_SPAN or 1.0
    largest = magnitudes.reshape(tensor.shape[0], tensor.blocks, -1).max(axis=-1)
    factors = np.where(largest == 0, 1.0, largest / (E2M1_MAX * whole)).clip(E4M3_LEAST, E4M3_MAX)
    half = spacing(factors, 8) / 2 / factors  # a block's scale is rounded to E4M3
    return factors * whole, half + _FLOAT_SCALE_SLACK


def _blocks(weight: Array, tensor: QuantizedTensor) -> Array:
    """Reshape a weight ``(out, in)`` to ``(out, blocks, block size)``, padding the last block with zeros."""
    padded = np.pad(weight, ((0, 0), (0, -weight.shape[1] % tensor.block_size)))
    return padded.reshape(len(weight), tensor.blocks, -1)


def _beyond(error: Array, allowed: Array, steps: Array) -> str | None:
    """Describe the first element whose error is larger than allowed; None if no error is."""
    beyond = ~(error <= allowed)
    if not beyond.any():
        return None
    row, column = np.argwhere(beyond)[0]
    return (
        f"row {row}, column {column} is off by {error[row, column]:.3g}, which is "
        f"{error[row, column] / max(steps[row, column], 1e-300):.2g} steps"
    )


# Scales that equalization multiplied into weights

_TOKENS, _REPEATED = 48, 16  # length of a prompt, and how many last tokens repeat the first, to correlate keys
_ROUNDING = 2.0**-24  # relative rounding error of float32, in which scaled weights are stored


def check_folding(scales: Scales, checkpoint: Checkpoint) -> None:
    """Raise CheckFailed unless scales cancel: with and without them, float64 must give the same logits and keys.

    The reference has these scales in its weights, so comparing with it does not show scales that do not cancel. The
    results may differ by 4 times the effect of rounding every weight to float32. Values may be scaled, but keys may
    not: LUCID's solve must get the keys that it was trained with.
    """
    plain = _logits_and_keys(checkpoint, lambda name: checkpoint.tensor(name))
    rounded = _logits_and_keys(checkpoint, lambda name: _perturbed(checkpoint.tensor(name), name))
    folded = _logits_and_keys(checkpoint, lambda name: scaled(checkpoint.tensor(name), name, scales))
    for what, exact in plain.items():
        allowed = 4 * np.linalg.norm(rounded[what] - exact)
        found = np.linalg.norm(folded[what] - exact)
        if not found <= allowed:
            raise CheckFailed(
                f"The scales that were folded into weights do not cancel: without any rounding they change {what} by "
                f"{found / max(float(np.linalg.norm(exact)), 1e-300):.2g} of their norm. Export the checkpoint again."
            )


def _logits_and_keys(checkpoint: Checkpoint, load: Callable[[str], Any]) -> dict[str, Array]:
    import torch

    from lucid_deploy.parity.on_demand import float64_on_demand
    from lucid_deploy.runtimes.torch.session import TorchSession

    session = TorchSession(float64_on_demand(checkpoint.config, lambda name: load(checkpoint.stored_name(name))))
    length = min(_TOKENS, checkpoint.config.max_position_embeddings)
    ids = np.random.default_rng(0).integers(0, checkpoint.config.vocab_size, length)
    repeated = min(_REPEATED, length // 2)
    ids[-repeated:] = ids[:repeated]
    cache = session.empty_cache(1)
    with torch.inference_mode():
        found = {"the logits": np.asarray(session.prefill_all(ids[None], cache), np.float64)}
    for index, (layer, arrays) in enumerate(zip(session.layout, session.layer_arrays(cache), strict=True)):
        for tensor, array in zip(layer, arrays, strict=True):
            if tensor.name == "key":
                found[f"the keys of layer {index}"] = np.asarray(array, np.float64)
    return found


def _perturbed(weight: torch.Tensor, name: str) -> torch.Tensor:
    """Return a weight with every element changed by a rounding error of float32, up or down at random."""
    import zlib

    import torch

    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    signs = torch.randint(0, 2, weight.shape, generator=generator, dtype=torch.float64) * 2 - 1
    return weight.double() * (1 + _ROUNDING * signs)
