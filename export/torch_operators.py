"""How operators of PyTorch's that its ONNX exporter would decompose become nodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


def plain_operators() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return translations, for the exporter's table, that lead to the nodes which the decomposed operators lead to.

    These are the ones that every model has. What others a model has is decomposed, with all else.
    """
    import torch
    from onnxscript import opset18 as op  # the exporter's own: later ones have attributes that it would write down
    from onnxscript.onnx_types import INT64

    # The tracer reads these signatures.
    def to_dtype(self, dtype: int, non_blocking: bool = False, copy: bool = False, memory_format: str = ""):  # type: ignore[no-untyped-def]
        return op.Cast(self, to=dtype)

    def to_device(  # type: ignore[no-untyped-def]
        self, device: str, dtype: int, non_blocking: bool = False, copy: bool = False, memory_format: str = ""
    ):
        return op.Cast(self, to=dtype)

    def reshape(self, shape: Sequence[INT64]):  # type: ignore[no-untyped-def]
        def sizes() -> Any:
            for size in shape:
                constant = isinstance(size, int)
                yield op.Constant(value_ints=[size]) if constant else op.Reshape(size, op.Constant(value_ints=[-1]))

        # The exporter's own translation has no allowzero: a size of 0 would be taken for "as it was".
        return op.Reshape(self, op.Concat(*sizes(), axis=0), allowzero=True)

    aten = torch.ops.aten
    return {aten.to.dtype: to_dtype, aten.to.device: to_device, aten.reshape.default: reshape}
