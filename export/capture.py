"""Capture a PyTorch module as an ONNX graph."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lucid_deploy.export.exporter_shortcuts import shortcuts
from lucid_deploy.export.operators import OPSET, translation_table
from lucid_deploy.export.torch_operators import plain_operators

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch


def capture(
    module: torch.nn.Module,
    arguments: tuple[Any, ...],
    axes: tuple[Any, ...],
    inputs: Sequence[str],
    outputs: Sequence[str],
) -> ir.Model:
    """Return the graph of a module.

    Args:
        module: What to capture.
        arguments: Its example arguments, on the meta device.
        axes: Their dynamic axes, as ``torch.onnx.export`` takes them.
        inputs: Names for the graph's inputs.
        outputs: Names for the graph's outputs.
    """
    import torch

    with warnings.catch_warnings(), _quiet_logging(), shortcuts():
        warnings.simplefilter("ignore", FutureWarning)  # torch.export's own, about pytree
        warnings.simplefilter("ignore", DeprecationWarning)
        program = torch.onnx.export(
            module,
            arguments,
            dynamo=True,
            optimize=False,
            verbose=False,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=axes,
            custom_translation_table={**translation_table(), **plain_operators()},
        )
    assert program is not None
    return program.model


class _quiet_logging:
    """Silences the exporter's remark that torchvision is not installed; warnings of a real fault are errors there."""

    def __enter__(self) -> None:
        self._logger = logging.getLogger("torch.onnx")
        self._level = self._logger.level
        self._logger.setLevel(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        self._logger.setLevel(self._level)
