"""What a method of quantization is: how whole numbers are chosen, with or without looking at data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from lucid_deploy.artifact.quantization import LearnedTensor, Quantization, QuantizedTensor
from lucid_deploy.export.quantize.inputs import InputMoments, ProductErrors
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
# From a weight, float32 (out, in), and what its outputs lose, to whole numbers int8 (out, in) and scales (out, blocks).
Choose = Callable[["torch.Tensor", "Target", ProductErrors], tuple["torch.Tensor", "torch.Tensor"]]


@dataclass(frozen=True)
class Rounded:
    """Some rows of a weight, rounded.

    Attributes:
        packed: Bytes ``(rows, blocks, block_size · bits / 8)``; two 4-bit numbers in a byte, the first one low, each
            with ``2^(bits-1)`` added.
        scales: Float32 ``(rows, blocks)``.
        zeros: Packed zero points ``(rows, ⌈blocks · bits / 8⌉)``, of methods with ``zero_points``.
        offsets: Float32 ``(rows, blocks)``, of methods with ``offsets``.
    """

    packed: Array
    scales: Any
    zeros: Array | None = None
    offsets: Any = None


@dataclass(frozen=True)
class Target:
    """How a weight is to be rounded.

    Attributes:
        tensor: Its shape and blocks.
        bits: 4 or 8.
        dtype: Type that scales are stored in.
        positive: Whether scales must be positive.
    """

    tensor: QuantizedTensor
    bits: int
    dtype: str
    positive: bool


@dataclass
class LearnedWeights:
    """What was chosen.

    Attributes:
        parts: Packed bytes ``(out, blocks, block_size · bits / 8)`` and scales, float32 ``(out, blocks)``, by the
            checkpoint's names.
        tensors: For the manifest, by the same names.
        folded: Scales of inputs that went into weights, see :mod:`lucid_deploy.artifact.folded_scales`.
    """

    parts: dict[str, tuple[Array, Array]] = field(default_factory=dict)
    tensors: dict[str, LearnedTensor] = field(default_factory=dict)
    folded: dict[str, Array] = field(default_factory=dict)


class QuantizationMethod(ABC):
    """A method that ``--method`` can name: it implements ``round``, or sets ``learns`` and implements ``learn``.

    Attributes:
        name: What ``--method`` takes; the manifest records it.
        learns: Whether it needs the calibration text.
        zero_points: Whether it stores a whole zero point for each block.
        offsets: Whether it stores an offset for each block.
        options: Which options of learning it reads: ``tokens``, ``damping``, ``order``, ``target``.
    """

    name: str
    learns = False
    zero_points = False
    offsets = False
    options: frozenset[str] = frozenset()

    def tool(self) -> str:
        """Return name and version of the program that chooses the numbers, for the manifest."""
        return f"lucid-deploy {__version__}"

    def check(self, options: QuantizeOptions) -> None:
        """Raise LucidError for options that do not fit this method."""
        del options

    def round(
        self, weight: torch.Tensor, tensor: QuantizedTensor, bits: int, dtype: str, positive: bool
    ) -> Iterator[Rounded]:
        """Round a weight, some rows at a time.

        Args:
            weight: ``(out, in)``, any floating type.
            tensor: Its shape and blocks.
            bits: 4 or 8.
            dtype: Type that scales are stored in.
            positive: Whether every scale must be positive and the numbers symmetric (int8 for TensorRT).
        """
        raise NotImplementedError(f"--method {self.name} does not round without learning")

    def tokens_needed(self, row: int, widest: int) -> int:
        """Return how many tokens it learns from at least.

        Args:
            row: Tokens of a row.
            widest: Inputs of the widest quantized weight.
        """
        del row
        return widest

    def check_rows(self, rows: CalibrationRows, widest: int) -> None:
        """Raise LucidError if the text is too short, before anything that takes time."""
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
        """Choose all numbers from calibration text; return them, and the record with the method."""
        raise NotImplementedError(f"--method {self.name} does not learn")


@dataclass(frozen=True)
class LayerInputs:
    """A layer whose weights are to be rounded.

    Attributes:
        layer: Its module, in float32; nothing in it is rounded yet.
        prefix: Of its weights' names in the checkpoint.
        config: The model's configuration.
        index: Which layer.
        groups: Names of its linear parts that read the same tensor, in the order they run.
        targets: How its quantized weights are to be rounded, by the checkpoint's names.
    """

    layer: Layer
    prefix: str
    config: LucidConfig
    index: int
    groups: Sequence[Sequence[str]]
    targets: Mapping[str, Target]


class LearningRule(ABC):
    """How the numbers of one layer after the other are chosen by data.

    Attributes:
        name: As ``--method`` has it.
        settings: For the manifest.
    """

    name: str
    settings: dict[str, Any]

    def fold(self, part: LayerInputs, streams: Streams) -> dict[str, Array]:
        """Scale a layer's inputs, in place; return the scales, see :mod:`lucid_deploy.artifact.folded_scales`.

        Args:
            part: The layer.
            streams: What it is given in the rounded model, and in the exact one.
        """
        del part, streams
        return {}

    def fold_head(self, checkpoint: Checkpoint, target: Target, streams: Streams) -> dict[str, Array]:
        """Return the scales of the head's input, by name as :meth:`fold`."""
        del checkpoint, target, streams
        return {}

    @abstractmethod
    def chooser(self, moments: InputMoments, scale: torch.Tensor | None) -> Choose:
        """Return what chooses numbers of products that read one input.

        Args:
            moments: Of that input, float64, before it was divided by a scale.
            scale: What it was divided by, ``(in,)``; None: nothing.
        """
