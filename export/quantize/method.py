"""The interface of quantization methods (with or without calibration data), and their lookup by name."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from lucid_deploy.artifact.quantization import LearnedTensor, Quantization, QuantizedTensor
from lucid_deploy.errors import LucidError
from lucid_deploy.export.quantize.inputs import InputMoments, ProductErrors
from lucid_deploy.plug import entry_points, load_plugin
from lucid_deploy.version import __version__

if TYPE_CHECKING:
    import torch

    from lucid_deploy.export.calibration import CalibrationRows
    from lucid_deploy.export.quantize.options import QuantizeOptions
    from lucid_deploy.model.block import Layer
    from lucid_deploy.model.checkpoint import Checkpoint
    from lucid_deploy.model.config import LucidConfig

Array = np.ndarray[Any, np.dtype[Any]]
Progress = Callable[[str, int, int], None]
Streams = list[tuple["torch.Tensor", "torch.Tensor"]]  # residual streams of the rounded model, and of the exact one
# From a weight, float32 (out, in), and the errors of its outputs to whole numbers int8 (out, in), scales (out, blocks).
Choose = Callable[["torch.Tensor", "Target", ProductErrors], tuple["torch.Tensor", "torch.Tensor"]]


@dataclass(frozen=True)
class Rounded:
    """Quantized rows of a weight."""

    # bytes (rows, blocks, block_size · bits / 8); two 4-bit numbers in a byte, the first one low, each with
    # 2^(bits-1) added
    packed: Array
    scales: Any  # float32 (rows, blocks)
    zeros: Array | None = None  # packed zero points (rows, ⌈blocks · bits / 8⌉), of methods with zero_points
    offsets: Any = None  # float32 (rows, blocks), of methods with offsets


@dataclass(frozen=True)
class Target:
    """How to quantize a weight."""

    tensor: QuantizedTensor
    bits: int  # 4 or 8
    dtype: str  # type that scales are stored in
    positive: bool  # whether scales must be positive


@dataclass
class LearnedWeights:
    """The numbers that were learned."""

    # packed bytes (out, blocks, block_size · bits / 8) and scales, float32 (out, blocks), by the checkpoint's
    # names
    parts: dict[str, tuple[Array, Array]] = field(default_factory=dict)
    tensors: dict[str, LearnedTensor] = field(default_factory=dict)  # for the manifest, by the same names
    # scales of inputs that were folded into weights, see lucid_deploy.artifact.quantized_bytes
    folded: dict[str, Array] = field(default_factory=dict)


class QuantizationMethod(ABC):
    """A quantization method: it implements ``round``, or sets ``learns`` and implements ``learn``.

    Attributes:
        name: What ``--method`` takes; the manifest records it.
        learns: Whether it needs the calibration text.
        zero_points: Whether it stores a whole zero point for each block.
        offsets: Whether it stores an offset for each block.
        options: The learning options that it reads: ``tokens``, ``damping``, ``order``, ``target``.
    """

    name: str
    learns = False
    zero_points = False
    offsets = False
    options: frozenset[str] = frozenset()

    def tool(self) -> str:
        """Return name and version of the program that chooses the numbers; the manifest records it."""
        return f"lucid-deploy {__version__}"

    def check(self, options: QuantizeOptions) -> None:
        """Raise LucidError for options that this method does not support."""
        del options

    def round(
        self, weight: torch.Tensor, tensor: QuantizedTensor, bits: int, dtype: str, positive: bool
    ) -> Iterator[Rounded]:
        """Quantize a weight, some rows at a time.

        Args:
            weight: ``(out, in)``, any floating type.
            positive: Whether every scale must be positive and the numbers symmetric (int8 for TensorRT).
        """
        raise NotImplementedError(f"--method {self.name} does not round without learning")

    def tokens_needed(self, row: int, widest: int) -> int:
        """Return the least number of tokens that it learns from.

        Args:
            row: Tokens of a row.
            widest: Inputs of the widest quantized weight.
        """
        del row
        return widest

    def check_rows(self, rows: CalibrationRows, widest: int) -> None:
        """Raise LucidError if the text is too short; called before anything that takes time."""
        del rows, widest

    def learn(
        self,
        checkpoint: Checkpoint,
        quantization: Quantization,
        rows: CalibrationRows,
        options: QuantizeOptions,
        dtype: str,
        progress: Progress | None,
    ) -> tuple[LearnedWeights, Quantization]:
        """Learn all numbers from calibration text; return them, and the record completed with the method."""
        raise NotImplementedError(f"--method {self.name} does not learn")


@dataclass(frozen=True)
class LayerInputs:
    """A layer whose weights are about to be quantized."""

    layer: Layer  # its module, in float32; nothing in it is rounded yet
    prefix: str  # of its weights' names in the checkpoint
    config: LucidConfig
    index: int
    groups: Sequence[Sequence[str]]  # names of its linear parts that read the same tensor, in the order they run
    targets: Mapping[str, Target]  # how its quantized weights are to be rounded, by the checkpoint's names


class LearningRule(ABC):
    """How a method learns the numbers of one layer after the other.

    Attributes:
        name: As ``--method`` has it.
        settings: For the manifest.
    """

    name: str
    settings: dict[str, Any]

    def fold(self, part: LayerInputs, streams: Streams) -> dict[str, Array]:
        """Scale a layer's inputs in place; return the scales as ``lucid_deploy.artifact.quantized_bytes`` names them.

        Args:
            part: The layer.
            streams: Its inputs in the rounded model and in the exact one.
        """
        del part, streams
        return {}

    def fold_head(self, checkpoint: Checkpoint, target: Target, streams: Streams) -> dict[str, Array]:
        """Return the scales of the head's input, named as in ``fold``."""
        del checkpoint, target, streams
        return {}

    @abstractmethod
    def chooser(self, moments: InputMoments, scale: torch.Tensor | None) -> Choose:
        """Return the function that chooses the numbers of the weights that read one input.

        Args:
            moments: Of that input, float64, before it was divided by ``scale``.
            scale: ``(in,)``; None if it was not divided.
        """


GROUP = "lucid_deploy.quantization"  # entry points of installed packages: NAME = "package.module:OBJECT"
# Modules of this package, each with an object METHOD. They are imported when a method is used: some need torch.
BUILT_IN = {
    "rtn": "nearest",
    "k_quant": "k_quant",
    "hqq": "hqq",
    "awq": "awq",
    "gptq": "gptq",
    "auto": "automatic",
}


def method_names() -> tuple[str, ...]:
    """Return the names that ``--method`` takes."""
    return tuple(dict.fromkeys((*BUILT_IN, *sorted(entry_points(GROUP)))))


def find_method(name: str) -> QuantizationMethod:
    """Return a method by its name."""
    from lucid_deploy.export.quantize.method import QuantizationMethod

    if name in BUILT_IN:
        built_in: QuantizationMethod = importlib.import_module(f"lucid_deploy.export.quantize.{BUILT_IN[name]}").METHOD
        return built_in
    found = load_plugin(GROUP, name, QuantizationMethod, "quantization method")
    if found is None:
        raise LucidError(f"--method must be one of {', '.join(method_names())}, not {name!r}.")
    return found
