"""The interface of quantization methods (with or without calibration data), and their lookup by name."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lucid_deploy.artifact.quantization import LearnedTensor, Quantization, QuantizedTensor
from lucid_deploy.cache.layout import Array
from lucid_deploy.plug import Registry
from lucid_deploy.version import __version__

if TYPE_CHECKING:
    import torch

    from lucid_deploy.export.calibration import CalibrationRows
    from lucid_deploy.model.checkpoint import Checkpoint

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Rounded:
    """Quantized rows of a weight."""

    # bytes (rows, blocks, block_size · bits / 8): integers plus 2^(bits-1); with 4 bits, the first of two integers is
    # in the low half of the byte
    packed: Array
    scales: Any  # (rows, blocks), float32, or in the checkpoint's dtype if they come from a quantized checkpoint
    offsets: Any = None  # float32 (rows, blocks); None: no offsets


@dataclass
class LearnedWeights:
    """Learned weights (integers, scales and offsets), their records for the manifest, and folded scales."""

    parts: dict[str, Rounded] = field(default_factory=dict)  # all rows of each learned weight, by its name
    tensors: dict[str, LearnedTensor] = field(default_factory=dict)  # for the manifest, by the same names
    # input scales that were folded into weights, see lucid_deploy.artifact.quantized_bytes
    folded: dict[str, Array] = field(default_factory=dict)


class QuantizationMethod(ABC):
    """A quantization method: a subclass implements ``round``, or sets ``learns`` and implements ``learn``.

    Attributes:
        name: The value of ``--method`` that selects it; the manifest records it.
        learns: Whether it needs calibration text.
        offsets: The formats in which it stores an offset per block.
    """

    name: str
    learns = False
    offsets: tuple[str, ...] = ()

    def tool(self) -> str:
        """Return the name and version of the program that computes the quantized values; the manifest records it."""
        return f"lucid-deploy {__version__}"

    def round(
        self, weight: torch.Tensor, tensor: QuantizedTensor, bits: int, dtype: str, positive: bool
    ) -> Iterator[Rounded]:
        """Quantize a weight, some rows at a time. Not called for experts, which use HQQ or the nearest values.

        Args:
            weight: ``(out, in)``, any floating dtype; its scales will be stored as ``dtype``.
            positive: Whether all scales must be positive and the integers symmetric (int8 for TensorRT).
        """
        raise NotImplementedError(f"--method {self.name} does not round without learning")

    def learn(
        self,
        checkpoint: Checkpoint,
        quantization: Quantization,
        rows: CalibrationRows,
        dtype: str,
        progress: Progress | None,
    ) -> tuple[LearnedWeights, Quantization]:
        """Learn quantized weights from calibration text; return them, and the record completed with the method.

        Weights that are not returned are rounded without the text.

        Args:
            dtype: Dtype in which scales are stored, unless a weight's record has another.
        """
        raise NotImplementedError(f"--method {self.name} does not learn")


_REGISTRY = Registry(
    "lucid_deploy.quantization",
    QuantizationMethod,
    "quantization method",
    {
        "rtn": f"{__package__}.nearest.METHOD",
        "hqq": f"{__package__}.hqq.METHOD",
        "distill": f"{__package__}.distill.METHOD",
    },
)
method_names, find_method = _REGISTRY.names, _REGISTRY.named
