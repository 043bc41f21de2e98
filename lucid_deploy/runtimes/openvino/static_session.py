"""OpenVINO with a static cache. It writes buffers of its own, of which the caller's take the new rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lucid_deploy.runtimes.openvino.core import import_openvino
from lucid_deploy.runtimes.openvino.session import OpenVinoSession
from lucid_deploy.runtimes.session import Array, NewTokens
from lucid_deploy.runtimes.static_session import ArrayLayers, BoundStep, StaticSession

if TYPE_CHECKING:
    import openvino


@dataclass(frozen=True)
class _Binding:
    """What one step needs.

    Attributes:
        request: OpenVINO's, whose inputs are the caller's arrays.
        written: Buffer and output of every tensor of rows, ``(B, KV, M, ·)``.
        length: Int64 ``(B,)``: where the new rows are.
    """

    request: openvino.InferRequest
    written: list[tuple[Array, Array]]
    length: Array


class StaticOpenVinoSession(StaticSession, OpenVinoSession):
    """As :class:`OpenVinoSession`, for an artifact exported with ``--cache static --opset 23``."""

    def _run_growing(self, stage: str, tokens: NewTokens, layers: ArrayLayers, keep: int) -> tuple[Array, ArrayLayers]:
        return OpenVinoSession._run(self, stage, tokens, layers, keep)

    def bind(
        self, layers: Sequence[tuple[Array, ...]], mask: Array, input_ids: Array, positions: Array, length: Array
    ) -> BoundStep:
        openvino = import_openvino()
        inputs = {
            "input_ids": input_ids,
            "attention_mask": mask,
            "position_ids": positions,
            "cache_length": length,
        }
        tensors = [
            pair for each in zip(self.layout, layers, strict=True) for pair in zip(*each, strict=True)
        ]  # of the layout, and the buffer
        names = [f"{index}.{tensor.name}" for index, layout in enumerate(self.layout) for tensor in layout]
        inputs |= {f"past_key_values.{name}": buffer for name, (_, buffer) in zip(names, tensors, strict=True)}
        request = self._graphs["decode"].new_request()
        for name, array in inputs.items():
            request.set_tensor(name, openvino.Tensor(array, shared_memory=True))
        written: list[tuple[Array, Array]] = []
        replaced: list[tuple[Array, Array]] = []
        for name, (tensor, buffer) in zip(names, tensors, strict=True):
            output = np.empty_like(buffer)
            request.set_tensor(f"present.{name}", openvino.Tensor(output, shared_memory=True))
            (written if tensor.sort == "rows" else replaced).append((buffer, output))
        return BoundStep(_Binding(request, written, length), replaced)

    def run_bound(self, binding: BoundStep) -> Array:
        bound: _Binding = binding.binding
        try:
            self._graphs["decode"].run_request(bound.request, {})
        except RuntimeError:
            self._bound = None  # to be bound anew, to a graph that is compiled again
            raise
        logits: Array = bound.request.get_tensor("logits").data.copy()
        rows = np.arange(len(bound.length))
        for buffer, output in bound.written:
            buffer[rows, :, bound.length] = output[rows, :, bound.length]
        for buffer, output in binding.replaced:  # last: where memory is missing for what is before, nothing has changed
            buffer[...] = output
        return logits
