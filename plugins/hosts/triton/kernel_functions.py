"""The operators' Triton functions by name."""

from __future__ import annotations

from typing import Any

from lucid_deploy.errors import missing_extra
from lucid_deploy.plugins.decode_attention.plan import FLOAT8_KERNEL

# Everything that compiled code is made of, as paths below the folder of the plugins.
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
    """Return the Triton functions by the names that plans call them by.

    A function has two names where it is compiled in two ways: with and without the scales of a cache.

    Args:
        purpose: What they are for, as the end of "… is needed to …".

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
    of_solve = (key_norms_kernel, key_tiles_kernel, precondition_kernel)
    of_decoding = (decode_split_kernel, decode_combine_kernel, verify_combine_kernel)
    functions = (*of_solve, *of_decoding, delta_chunk_kernel, delta_state_kernel, delta_decode_kernel)
    return {FLOAT8_KERNEL: decode_split_kernel, **{function.__name__: function for function in functions}}
