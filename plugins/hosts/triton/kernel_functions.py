"""The operators' Triton kernels by name, and their source files."""

from __future__ import annotations

from typing import Any

from lucid_deploy.errors import missing_extra
from lucid_deploy.plugins.decode_attention.plan import FLOAT8_KERNEL

# All files that compiled code depends on, relative to plugins/.
SOURCES = (
    "shared/kernel.py",
    "block_inverse/kernel.py",
    "precondition/int8_part.py",
    "precondition/powers.py",
    "precondition/kernel.py",
    "decode_attention/tile.py",
    "decode_attention/parts.py",
    "decode_attention/parts_float8.py",
    "decode_attention/kernel.py",
    "delta_rule/kernel.py",
)


def kernel_functions(purpose: str = "run the GPU kernels") -> dict[str, Any]:
    """Return the Triton functions by their names in plans.

    ``decode_split_kernel`` has two names, since it is compiled for caches with and without scales.

    Args:
        purpose: Completes "triton is needed to …" in the error message.

    Raises:
        LucidError: Triton is not installed.
    """
    try:
        from lucid_deploy.plugins.decode_attention.kernel import (
            decode_combine_kernel,
            decode_split_kernel,
            verify_combine_kernel,
        )
        from lucid_deploy.plugins.delta_rule.kernel import delta_chunk_kernel, delta_decode_kernel, delta_state_kernel
        from lucid_deploy.plugins.precondition.kernel import key_norms_kernel, key_tiles_kernel, precondition_kernel
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        raise missing_extra("triton", "kernels", purpose) from None
    solve = (key_norms_kernel, key_tiles_kernel, precondition_kernel)
    decode = (decode_split_kernel, decode_combine_kernel, verify_combine_kernel)
    functions = (*solve, *decode, delta_chunk_kernel, delta_state_kernel, delta_decode_kernel)
    return {FLOAT8_KERNEL: decode_split_kernel, **{function.__name__: function for function in functions}}
