"""onnxruntime with a static cache, each new row written in place by the graph."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lucid_deploy.artifact import VERIFY
from lucid_deploy.runtimes.onnxruntime.session import OrtSession
from lucid_deploy.runtimes.session import Array, NewTokens
from lucid_deploy.runtimes.static_session import ArrayLayers, BoundStep, StaticSession


class StaticOrtSession(StaticSession, OrtSession):
    """As :class:`OrtSession`, for an artifact exported with ``--cache static``."""

    def _run_growing(self, stage: str, tokens: NewTokens, layers: ArrayLayers, keep: int) -> tuple[Array, ArrayLayers]:
        values = [tuple(map(self._ort.OrtValue.ortvalue_from_numpy, layer)) for layer in layers]
        logits, present = OrtSession._run(self, stage, tokens, values, keep)
        return logits, [tuple(x.numpy() for x in layer) for layer in present]

    def bind(
        self, layers: Sequence[tuple[Array, ...]], mask: Array, input_ids: Array, positions: Array, length: Array
    ) -> BoundStep:
        """Bind buffers of rows as inputs and outputs; rings and states have outputs that a step copies back."""
        graph = self._graphs["decode" if input_ids.shape[1] == 1 else VERIFY]
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
        binding.graph.run_with_iobinding(binding.binding)
        logits: Array = binding.binding.get_outputs()[0].numpy().copy()
        binding.binding.bind_output("logits")  # lets go of them: a server has a binding for each size of a step
        for buffer, new in binding.replaced:  # last: where memory is missing for what is before, nothing has changed
            buffer[...] = new
        return logits
