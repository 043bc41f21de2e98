"""Learn a checkpoint's quantized numbers layer by layer, each layer on the outputs of the quantized layers before it.

A layer should give the outputs of the exact model although its inputs are those of the quantized one. The method
(``lucid_deploy.export.quantize.method``) decides how to choose numbers for that.

Memory holds one layer in float32, the residual streams of the calibration rows in both models, the inputs of the exact
layer's linear layers over these rows, the moments of one input, and the numbers learned so far.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lucid_deploy.artifact.quantization import (
    LEAST_SCALE,
    LearnedTensor,
    Method,
    Quantization,
    QuantizedTensor,
    relative_distance,
    short_name,
)
from lucid_deploy.artifact.quantized_bytes import INPUTS, scaled, unpack_nibbles
from lucid_deploy.errors import LucidError
from lucid_deploy.export.quantize.inputs import (
    InputMoments,
    ProductErrors,
    embedded,
    final_norm,
    input_moments,
    input_of,
    inputs_of,
    load_layer,
    run_layer,
    shared_inputs,
)
from lucid_deploy.export.quantize.method import Choose, LayerInputs, LearnedWeights, LearningRule, Streams, Target
from lucid_deploy.export.quantize.nearest import pack_numbers, quantize_matrix
from lucid_deploy.export.quantize.plan import EMBEDDING, HEAD

if TYPE_CHECKING:
    import torch

    from lucid_deploy.export.calibration import CalibrationRows
    from lucid_deploy.model.checkpoint import Checkpoint

BATCH = 8  # rows that are run together
Progress = Callable[[str, int, int], None]
Array = np.ndarray[Any, np.dtype[Any]]


def learn_weights(
    checkpoint: Checkpoint,
    quantization: Quantization,
    rows: CalibrationRows,
    method: LearningRule,
    dtype: str,
    progress: Progress | None = None,
) -> tuple[LearnedWeights, Quantization]:
    """Learn the numbers of all quantized weights; an embedding is rounded to nearest, since its rows are only read."""
    import torch

    learner, layers = _Learner(checkpoint, quantization, method, dtype), checkpoint.config.num_hidden_layers
    progress = progress or (lambda *_: None)
    with torch.inference_mode():
        progress("Calibrating", 0, layers + 1)
        streams = learner.first_streams(rows)
        for index in range(layers):
            streams = learner.layer(index, streams)
            progress("Calibrating", index + 1, layers + 1)
        learner.head(streams)
    progress("Calibrating", layers + 1, layers + 1)
    found = Method(method.name, method.settings, rows.facts, learner.learned.tensors)
    return learner.learned, replace(quantization, method=found)


class _Learner:
    def __init__(self, checkpoint: Checkpoint, quantization: Quantization, method: LearningRule, dtype: str) -> None:
        self.learned = LearnedWeights()
        self._checkpoint, self._quantization = checkpoint, quantization
        self._method, self._dtype = method, dtype

    def first_streams(self, rows: CalibrationRows) -> Streams:
        """Return the first layer's inputs, some rows together: with the quantized embedding, and with the exact one."""
        table = self._nearest(EMBEDDING) if EMBEDDING in self._quantization.tensors else None
        batches = [part for ids in rows.rows for part in np.array_split(ids, -(-len(ids) // BATCH))]
        rounded, exact = (embedded(self._checkpoint, batches, each) for each in (table, None))
        return list(zip(rounded, exact, strict=True))

    def layer(self, index: int, streams: Streams) -> Streams:
        """Quantize a layer; return the outputs of the quantized layer and of the exact one."""
        config, prefix = self._checkpoint.config, f"model.layers.{index}."
        layer = load_layer(self._checkpoint, index)

        def run(x: torch.Tensor) -> torch.Tensor:
            return run_layer(layer, config, index, x)[0]

        own = {name: t for name, t in self._quantization.tensors.items() if name.startswith(prefix)}
        wanted = {name for name, tensor in own.items() if not tensor.experts}
        every = shared_inputs(layer, run, streams[0][0])
        groups = [names for group in every if (names := [part for part in group if f"{prefix}{part}.weight" in wanted])]
        first_parts = [layer.get_submodule(names[0]) for names in groups]
        exact = [inputs_of(first_parts, run, y) for _, y in streams]  # nothing is rounded yet
        for name in own.keys() - wanted:  # experts are rounded to nearest: some of them no row may have chosen
            layer.get_parameter(name.removeprefix(prefix)).data = own[name].as_stored(self._nearest(name))
        targets = {name: self._target(name) for name in wanted}
        self.learned.folded |= self._method.fold(LayerInputs(layer, prefix, config, index, every, targets), streams)
        for module, names in zip(first_parts, groups, strict=True):
            reader = f"{prefix}{names[0]}.weight"
            pairs = (
                (self._unscaled(input_of(module, run, x), reader), given.pop(0))
                for (x, _), (given, _) in zip(streams, exact, strict=True)
            )
            choose, moments = self._chooser(reader, input_moments(pairs))
            for part in names:
                name = f"{prefix}{part}.weight"
                layer.get_submodule(part).weight.data = self._round(name, moments, choose)
                wanted.discard(name)
        if wanted:
            names = [short_name(name) for name in sorted(wanted)]
            raise LucidError(
                f"--method {self._method.name} sees no inputs of {', '.join(names)}. Keep it with --keep-float, or use "
                "--method rtn."
            )
        return [(run(x), after) for (x, _), (_, after) in zip(streams, exact, strict=True)]

    def head(self, streams: Streams) -> None:
        """Quantize the head, if it is a weight of its own."""
        if HEAD in self._quantization.tensors:
            source = self._checkpoint
            self.learned.folded |= self._method.fold_head(source, self._target(HEAD), streams)
            moments = input_moments((final_norm(source, x), final_norm(source, y)) for x, y in streams)
            choose, moments = self._chooser(HEAD, moments)
            self._round(HEAD, moments, choose)

    def _chooser(self, reader: str, moments: InputMoments) -> tuple[Choose, InputMoments]:
        """Return the function that chooses numbers for an input's weights, and the input's moments in float32."""
        import torch

        scale = self.learned.folded.get(reader + INPUTS)
        choose = self._method.chooser(moments, None if scale is None else torch.from_numpy(scale))
        return choose, moments.to(torch.float32)

    def _target(self, name: str) -> Target:
        record = self._quantization
        return Target(record.tensors[name], record.bits_of(name), self._dtype, record.has_positive_scales(name))

    def _unscaled(self, x: torch.Tensor, reader: str) -> torch.Tensor:
        """Return an input ``(…, in)`` as it was before it was divided by a scale."""
        import torch

        scale = self.learned.folded.get(reader + INPUTS)
        return x if scale is None else x * torch.from_numpy(scale)

    def _round(self, name: str, moments: InputMoments, choose: Choose) -> torch.Tensor:
        """Learn a weight's numbers; return the dequantized weight, float32 ``(out, in)``."""
        target, folded = self._target(name), self.learned.folded
        weight = self._checkpoint.tensor(name).float()
        if not weight.isfinite().all():
            raise LucidError(f"{self._checkpoint.directory}: {name} has values that are not finite: it is damaged.")
        errors, changed = ProductErrors(moments, weight), scaled(weight, name, folded)
        numbers, scales = choose(changed, target, errors)
        self.learned.parts[name] = pack_numbers(numbers.numpy(), target.tensor, target.bits), scales.numpy()
        rounded = numbers * scales.repeat_interleave(target.tensor.block_size, dim=1)[:, : weight.shape[1]]
        self.learned.tensors[name] = LearnedTensor(
            distance=_digits(relative_distance(rounded.double().numpy(), changed.double().numpy())),
            output_error=_digits(errors.of(scaled(rounded, name, folded, back=True))),
            nearest_error=_digits(errors.of(self._nearest(name))),
        )
        return rounded

    def _nearest(self, name: str) -> torch.Tensor:
        """Return a weight rounded to nearest, float32 ``(out, in)``."""
        return rounded_weight(self._checkpoint, self._quantization, name, None, self._dtype)


def rounded_weight(
    checkpoint: Checkpoint, quantization: Quantization, name: str, parts: tuple[Array, Array] | None, dtype: str
) -> torch.Tensor:
    """Return a weight as the artifact will store it, dequantized to float32 ``(out, in)``.

    Args:
        parts: Its packed numbers and scales; None: it is rounded to nearest.
    """
    import torch

    tensor, bits = quantization.tensors[name], quantization.bits_of(name)
    if parts is None:
        least = LEAST_SCALE[dtype] if quantization.has_positive_scales(name) else None
        found = quantize_matrix(tensor.matrix(checkpoint.tensor(name)), tensor, bits, least)
        rows = [_dequantized(packed, scales, tensor, bits) for packed, scales in found]
    else:
        rows = [_dequantized(*parts, tensor, bits)]
    return torch.from_numpy(np.concatenate(rows))


def _dequantized(packed: Array, scales: Array, tensor: QuantizedTensor, bits: int) -> Array:
    codes = unpack_nibbles(packed) if bits == 4 else packed  # (rows, blocks, block_size)
    numbers = codes.astype(np.float32) - (1 << (bits - 1))
    return (numbers * scales[..., None]).reshape(len(packed), -1)[:, : tensor.shape[1]]


def _digits(value: float) -> float:
    return float(f"{value:.7g}")
