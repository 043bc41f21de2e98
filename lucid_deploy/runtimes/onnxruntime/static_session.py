"""onnxruntime with a static cache, each new row written in place by the graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lucid_deploy.runtimes.onnxruntime.session import Layers, OrtSession
from lucid_deploy.runtimes.session import Array
from lucid_deploy.runtimes.static_session import BoundStep, StaticSession

if TYPE_CHECKING:
    import onnxruntime as ort


class StaticOrtSession(StaticSession, OrtSession):
    """As :class:`OrtSession`, for an artifact exported with ``--cache static``."""

    def _run_prefill_all(
        self, input_ids: Array, mask: Array, positions: Array, layers: Layers, keep: int = 1
    ) -> tuple[Array, Layers]:
        make = self._ort.OrtValue.ortvalue_from_numpy
        held = self._held_layers(layers, mask.shape[1] - input_ids.shape[1])
        values = [tuple(map(make, layer)) for layer in held]
        logits, present = super()._run_prefill_all(input_ids, mask, positions, values, keep)
        return logits, [tuple(x.numpy() for x in layer) for layer in present]

    def bind_decode(
        self, layers: Sequence[tuple[Array, ...]], mask: Array, input_ids: Array, positions: Array, length: Array
    ) -> BoundStep:
        """See :meth:`InPlaceDecoding.bind_decode`: inputs of the decode graph, and the buffers of rows its outputs too.

        What is not written in place, a ring or a state, has an output of its own that a step copies back.
        """
        return self._bound_step(self._decode, layers, mask, input_ids, positions, length)

    def bind_several(
        self, layers: Sequence[tuple[Array, ...]], mask: Array, input_ids: Array, positions: Array, length: Array
    ) -> BoundStep:
        """See :meth:`InPlaceDecoding.bind_several`."""
        return self._bound_step(self.several, layers, mask, input_ids, positions, length)

    def _bound_step(
        self,
        graph: ort.InferenceSession,
        layers: Sequence[tuple[Array, ...]],
        mask: Array,
        input_ids: Array,
        positions: Array,
        length: Array,
    ) -> BoundStep:
        binding, make = graph.io_binding(), self._ort.OrtValue.ortvalue_from_numpy
        inputs = {
            "input_ids": input_ids,
            "attention_mask": mask,
            "position_ids": positions,
            "cache_length": length,
        }
        for name, array in inputs.items():
            binding.bind_ortvalue_input(name, make(array))
        binding.bind_output("logits")
        replaced = []
        for index, (layout, layer) in enumerate(zip(self.layout, layers, strict=True)):
            for tensor, buffer in zip(layout, layer, strict=True):
                output = buffer if tensor.sort == "rows" else np.empty_like(buffer)
                binding.bind_ortvalue_input(f"past_key_values.{index}.{tensor.name}", make(buffer))
                binding.bind_ortvalue_output(f"present.{index}.{tensor.name}", make(output))
                if output is not buffer:
                    replaced.append((buffer, output))
        return BoundStep(binding, replaced, graph)

    def run_bound(self, binding: BoundStep) -> Array:
        """See :meth:`InPlaceDecoding.run_bound`."""
        binding.graph.run_with_iobinding(binding.binding)
        logits: Array = binding.binding.get_outputs()[0].numpy().copy()
        binding.binding.bind_output("logits")  # lets go of them: a server has a binding for each size of a step
        for buffer, new in binding.replaced:  # last: where memory is missing for what is before, nothing has changed
            buffer[...] = new
        return logits
