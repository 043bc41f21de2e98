"""Which GPUs compute with E4M3 and E2M1, and what TensorRT does not do with them."""

from __future__ import annotations

from collections.abc import Iterable

from lucid_deploy.artifact import Artifact
from lucid_deploy.artifact.quantization import GROUP_FP8, TOKEN_FP8
from lucid_deploy.errors import LucidError
from lucid_deploy.runtimes.tensorrt.backend import dotted

# The least compute capability by scheme. TensorRT-RTX 1.7 compiles for no lower one: "HW-specific datatypes".
LEAST_CAPABILITY = {"fp8": 89, "nvfp4": 100}


def check_float_formats(artifact: Artifact, capabilities: Iterable[int]) -> None:
    """Check that an artifact's weights and its cache are of a type that GPUs have.

    Args:
        artifact: The artifact.
        capabilities: Compute capabilities of the GPUs, 86 for 8.6.

    Raises:
        LucidError: A GPU has not the type, or the graphs round inputs in a way that TensorRT has no layer for.
    """
    capabilities = tuple(capabilities)
    if artifact.manifest.cache_dtype == "fp8":
        _check_capabilities(artifact, capabilities, "fp8", "cache", "Export with --cache-dtype auto")
    record = artifact.manifest.quantization
    if record is None or not record.is_float:
        return
    if record.activations in (TOKEN_FP8, GROUP_FP8):
        raise LucidError(
            f"The graphs of {artifact.directory} round inputs to fp8 with scales that follow from the inputs, as the "
            "checkpoint says, and TensorRT has no layer for that. Run them with onnxruntime, or export the checkpoint "
            "with --quantize stored --activations float, which leaves the inputs as they are."
        )
    instead = "Export with --quantize int8 or int4 --quantize-format qdq"
    _check_capabilities(artifact, capabilities, record.scheme, "weights", instead)


def _check_capabilities(artifact: Artifact, capabilities: tuple[int, ...], kind: str, what: str, instead: str) -> None:
    least = LEAST_CAPABILITY[kind]
    if lacking := sorted(number for number in capabilities if number < least):
        raise LucidError(
            f"GPUs of compute capability {', '.join(map(dotted, lacking))} have no {kind}, in which the {what} of "
            f"{artifact.directory} {'is' if what == 'cache' else 'are'}; {dotted(least)} and newer have. {instead} for "
            "them."
        )
