"""Recorded tensors in the files that Polygraphy reads: ``--load-inputs`` and ``--load-outputs``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lucid_deploy.errors import LucidError, missing_package
from lucid_deploy.packaging.tensorrt.recorded import RUNNER, Recorded

if TYPE_CHECKING:
    import torch

LEAST = "0.53.6"  # the first that was tried


def check_polygraphy() -> None:
    """Check that Polygraphy is there, which writes its own formats.

    Raises:
        LucidError: It is not installed, or older than what was tried.
    """
    from packaging.version import Version

    try:
        import polygraphy
    except ImportError as error:
        raise missing_package("polygraphy", f"polygraphy>={LEAST},<1", "package for TensorRT") from error
    if Version(polygraphy.__version__) < Version(LEAST):
        raise LucidError(
            f"Polygraphy {polygraphy.__version__} is older than {LEAST}, the first that writes what the package holds. "
            f'Run: pip install "polygraphy>={LEAST}"'
        )


def write_recorded(recorded: Recorded, inputs: Path, outputs: Path) -> None:
    """Write the inputs and the golden outputs of a case.

    Args:
        recorded: The case.
        inputs: A file, for ``--load-inputs``.
        outputs: A file, for ``--load-outputs``.
    """
    from polygraphy.comparator import RunResults
    from polygraphy.json import save_json
    from polygraphy.logger import G_LOGGER

    with G_LOGGER.verbosity(G_LOGGER.ERROR):
        save_json([_arrays(recorded.inputs)], str(inputs), "recorded inputs")
        results = RunResults()
        results.add([_arrays(recorded.outputs)], runtime=0.0, runner_name=RUNNER)
        results.save(str(outputs))


def _arrays(call: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Return numpy arrays; what numpy has no type for, bfloat16, stays as it is, and Polygraphy takes that too."""
    import torch

    return {name: x if x.dtype == torch.bfloat16 else x.numpy() for name, x in call.items()}
