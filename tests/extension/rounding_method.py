"""A quantization method of somebody's own: block scales at which 0.8 of the largest element fits, the rest clipped."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from lucid_deploy.artifact.quantization import QuantizedTensor
from lucid_deploy.export.quantize.method import QuantizationMethod, Rounded


class Clipped(QuantizationMethod):
    name = "clipped"

    def tool(self) -> str:
        return "somebody 1.0"

    def round(
        self, weight: torch.Tensor, tensor: QuantizedTensor, bits: int, dtype: str, positive: bool
    ) -> Iterator[Rounded]:
        high = (1 << (bits - 1)) - 1
        blocks = torch.nn.functional.pad(weight.float(), (0, -weight.shape[1] % tensor.block_size))
        blocks = blocks.unflatten(1, (tensor.blocks, -1))  # (out, blocks, block_size)
        scales = (0.8 * blocks.abs().amax(dim=-1) / high).clamp(min=1e-6)
        numbers = (blocks / scales[..., None]).round().clamp(-high - 1, high).to(torch.int16) + high + 1
        codes = numbers.to(torch.uint8).numpy()
        packed = codes if bits == 8 else codes[..., ::2] | (codes[..., 1::2] << 4)
        yield Rounded(np.ascontiguousarray(packed), scales)


METHOD = Clipped()
