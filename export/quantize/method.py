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

    # bytes (rows, blocks, block_size · bits / 8); 2^(bits-1) is added to each number; of two 4-bit numbers in a byte,
    # the first is in the lower half
    packed: Array
    scales: Any  # (rows, blocks), float32, or in the checkpoint's type if they are taken over from it
    offsets: Any = None  # float32 (rows, blocks); None: the method has none


@dataclass
class LearnedWeights:
    """What a method learned (values, scales and offsets), what the manifest records of it, and folded scales."""

    parts: dict[str, Rounded] = field(default_factory=dict)  # all rows of each learned weight, by its name
    tensors: dict[str, LearnedTensor] = field(default_factory=dict)  # for the manifest, by the same names
    # scales of inputs that were folded into weights, see lucid_deploy.artifact.quantized_bytes
    folded: dict[str, Array] = field(default_factory=dict)


class QuantizationMethod(ABC):
    """A quantization method: it implements ``round``, or sets ``learns`` and implements ``learn``.

    Attributes:
        name: The value of ``--method`` that chooses it; the manifest records it.
        learns: Whether it needs the calibration text.
        offsets: The formats in which it stores an offset for each block.
    """

    name: str
    learns = False
    offsets: tuple[str, ...] = ()

    def tool(self) -> str:
        """Return name and version of the program that chooses quantized values; the manifest records it."""
        return f"lucid-deploy {__version__}"

    def round(
        self, weight: torch.Tensor, tensor: QuantizedTensor, bits: int, dtype: str, positive: bool
    ) -> Iterator[Rounded]:
        """Quantize a weight, some rows at a time; experts' matrices are rounded by HQQ or to the nearest instead.

        Args:
            weight: ``(out, in)``, any floating type; its scales are stored as ``dtype``.
            positive: Whether every scale must be positive and quantized values symmetric (int8 for TensorRT).
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
        """Learn quantized values from calibration text; return them, and the record completed with the method.

        Weights for which the method returns nothing are rounded without the text.

        Args:
            dtype: Type that scales are stored in, unless the record of a weight has another.
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
