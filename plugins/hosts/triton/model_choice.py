"""Choose the solve's tiles, warps and stages by the issue-cycle model, with no GPU.

The model knows no latency: it cannot say what a deeper pipeline hides. So of several depths the candidates of a tile
hold those that are likely, and what the model says of them is only what they cost. ``benchmarks/tune_kernels.py``
measures, where there is a GPU.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from lucid_deploy.errors import LucidError
from lucid_deploy.plugins.hosts.triton import aot
from lucid_deploy.plugins.hosts.triton.compiled_kernel import CompiledKernel, default_cache, load, save
from lucid_deploy.plugins.hosts.triton.static_report import KernelReport, describe
from lucid_deploy.plugins.precondition.plan import solve_variants
from lucid_deploy.plugins.shared.plan import Choice, Variant

# Tiles are 64 rows at most: a head's block rows are solved one after another, and longer ones keep fewer programs busy.
_HALF = {
    32: (Choice(64, 64, 4, 3), Choice(64, 32, 4, 3)),
    64: (Choice(64, 64, 4, 3), Choice(64, 32, 4, 3)),
    128: (Choice(64, 64, 8, 2), Choice(64, 32, 4, 3), Choice(64, 32, 8, 2)),
    256: (Choice(64, 32, 8, 2), Choice(32, 32, 8, 2), Choice(64, 16, 4, 2)),
}
_FLOAT32 = {
    32: (Choice(64, 32, 4, 2), Choice(32, 32, 4, 2)),
    64: (Choice(64, 32, 4, 1), Choice(32, 32, 4, 2), Choice(32, 32, 4, 1)),
    128: (Choice(64, 32, 4, 1, 32), Choice(64, 16, 4, 1, 32), Choice(32, 32, 4, 3, 64), Choice(32, 32, 4, 1, 32)),
    256: (
        Choice(64, 16, 4, 1, 32),
        Choice(64, 16, 8, 1, 32),
        Choice(32, 16, 4, 1, 32),
        Choice(32, 16, 4, 1, 64),
        Choice(32, 16, 2, 1, 32),
    ),
}


@dataclass(frozen=True)
class Modelled:
    """A candidate and what the model says of it.

    Attributes:
        choice: The constants.
        report: Of its form with the widest loads; None: it cannot be compiled for this GPU.
        reason: Why not.
    """

    choice: Choice
    report: KernelReport | None
    reason: str = ""

    @property
    def cycles(self) -> float | None:
        """Cycles for 1024 elements of E, so that tiles can be compared; None if the model does not know."""
        if self.report is None or self.report.cycles is None:
            return None
        return 1024 * self.report.cycles / (self.choice.block_m * self.choice.block_n)


def candidates(dtype: str, padded: int) -> tuple[Choice, ...]:
    """Return the constants among which those of a type and padded width are chosen."""
    return (_FLOAT32 if dtype == "float32" else _HALF)[padded]


def best(modelled: Iterable[Modelled]) -> Modelled:
    """Return the one of least cycles among those whose hot loop does not spill, or among all if each spills.

    Raises:
        LucidError: None can be compiled, or the model knows none.
    """
    known = [each for each in modelled if each.report is not None and each.cycles is not None]
    if not known:
        raise LucidError("The model knows none of the candidates, so that there is nothing to choose from.")
    return min(known, key=lambda each: (each.report.loop_spills > 0, each.cycles))  # type: ignore[union-attr]


def model(
    arch: int,
    dtype: str,
    padded: int,
    choices: Iterable[Choice] | None = None,
    cache: Path | None = None,
    progress: Callable[[Modelled], None] = lambda modelled: None,
) -> list[Modelled]:
    """Compile candidates, or take them from the cache, and ask the model.

    Args:
        arch: Compute capability, 90 for 9.0.
        dtype: ``float32``, ``float16`` or ``bfloat16``.
        padded: Padded head width.
        choices: The candidates; None: :func:`candidates`.
        cache: Folder of compiled kernels; None is the user's cache folder.
        progress: Called with each as it is known.
    """
    cache = default_cache() if cache is None else cache
    found = []
    with (
        tempfile.TemporaryDirectory(prefix="lucid-triton-") as scratch,
        ProcessPoolExecutor(1, get_context("spawn"), aot.start_compiler, (scratch,)) as pool,  # starts when it is used
    ):
        for choice in candidates(dtype, padded) if choices is None else choices:
            variant = solve_variants(dtype, padded, choice)[0]
            try:
                found.append(Modelled(choice, describe(_compiled(variant, arch, cache, pool))))
            except LucidError as error:
                found.append(Modelled(choice, None, str(error)))
            progress(found[-1])
    return found


def _compiled(variant: Variant, arch: int, cache: Path, pool: ProcessPoolExecutor) -> CompiledKernel:
    path = cache / aot.cache_key(variant, arch)
    kernels = load(path)
    if kernels is None:
        kernels = pool.submit(aot.compile_variant, variant, arch).result()
        save(path, kernels)
    return kernels[0]
