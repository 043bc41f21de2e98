"""One quantized weight of an artifact, as the manifest records it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lucid_deploy.artifact.float_formats import NVFP4_BLOCK
from lucid_deploy.artifact.quantization_names import BLOCK_SIZES, GRANULARITIES, WHOLE_SCHEMES


@dataclass(frozen=True)
class QuantizedTensor:
    """One quantized weight.

    Attributes:
        shape: ``(out, in)``, or for an embedding ``(vocab, hidden)``; the last axis is cut into blocks.
        block_size: Elements of a block; the last block of a row may be shorter.
        zero_points: Whether every block has a whole number z too, and the weight is ``(q − z) · s``; only in the format
            ``matmulnbits``.
        bits: Of an element; None: the record's.
        granularity: What shares a scale, in ``fp8``: ``block``; ``channel``, a whole row, and ``block_size`` is its
            width; ``tensor``, all rows.
        offsets: Whether every block has a number c of the scales' type too, and the weight is ``q · s + c``.
    """

    shape: tuple[int, int]
    block_size: int
    zero_points: bool = False
    bits: int | None = None
    granularity: str = "block"
    offsets: bool = False

    @property
    def blocks(self) -> int:
        """Blocks of a row."""
        return -(-self.shape[1] // self.block_size)

    @classmethod
    def from_dict(cls, name: str, data: dict[str, Any], scheme: str, form: str) -> QuantizedTensor:
        """Read the record of one tensor.

        Args:
            name: The tensor's, for messages.
            data: The record.
            scheme: Of the whole record.
            form: Its format.

        Raises:
            KeyError, TypeError, ValueError: It is damaged.
        """
        rows, width = data["shape"]
        shared = data.get("granularity", "block")
        if shared not in GRANULARITIES or (shared != "block" and scheme != "fp8"):
            raise ValueError(f"quantization of {name}: granularity {shared!r} in {scheme}")
        sizes = BLOCK_SIZES if scheme != "nvfp4" else (NVFP4_BLOCK,)
        if data["block_size"] not in (sizes if shared == "block" else (width,)) or rows < 1 or width < 1:
            raise ValueError(f"quantization of {name}: {data}")
        zeros = data.get("zero_points", False)
        if type(zeros) is not bool or (zeros and form == "qdq"):
            raise ValueError(f"quantization of {name}: zero_points {zeros!r} in the format {form}")
        offsets = data.get("offsets", False)
        if type(offsets) is not bool or (offsets and (zeros or scheme not in WHOLE_SCHEMES)):
            raise ValueError(f"quantization of {name}: offsets {offsets!r} in {scheme}")
        bits = data.get("bits")
        if bits is not None and (
            type(bits) is not int or scheme not in WHOLE_SCHEMES or bits not in WHOLE_SCHEMES.values()
        ):
            raise ValueError(f"quantization of {name}: {bits!r} bits")
        return cls((int(rows), int(width)), int(data["block_size"]), zeros, bits, shared, offsets)
