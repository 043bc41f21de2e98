"""Capture a PyTorch module as an ONNX graph."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lucid_deploy.export.operators import OPSET, translation_table

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch

_QUIET = {"torch.onnx": logging.ERROR, "torch._dynamo.metrics_context": logging.CRITICAL}  # names of loggers
_ONE_CAPTURE = threading.Lock()  # PyTorch's tracer works on state of the process, and so does all that is done for it


def capture(
    module: torch.nn.Module,
    arguments: tuple[Any, ...],
    axes: tuple[Any, ...],
    inputs: Sequence[str],
    outputs: Sequence[str],
) -> ir.Model:
    """Return the graph of a module. Another thread's capture waits for this one.

    Args:
        module: What to capture.
        arguments: Its example arguments, on the meta device.
        axes: Their dynamic axes, as ``torch.onnx.export`` takes them.
        inputs: Names for the graph's inputs.
        outputs: Names for the graph's outputs.
    """
    import torch

    with _ONE_CAPTURE, warnings.catch_warnings(), _quiet_logging():
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
            custom_translation_table=translation_table(),
        )
    assert program is not None
    return program.model


@contextmanager
def _quiet_logging() -> Iterator[None]:
    """Silence what PyTorch says beside its errors: that torchvision is not installed, and why it keeps no statistics.

    The latter comes with the whole traceback where memory runs out, which is an error of its own that ends the export.
    """
    loggers = {logging.getLogger(name): level for name, level in _QUIET.items()}
    before = [logger.level for logger in loggers]
    for logger, level in loggers.items():
        logger.setLevel(level)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
