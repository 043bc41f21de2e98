"""Choose an operator's tiles, warps and stages by the models of its loop, with no GPU.

The solve and the delta rule compute: their candidates are compared by the issue model alone. That knows no latency and
cannot say what a deeper pipeline hides, so the candidates of a tile hold the depths that are likely. Decoding waits for
memory: its candidates are compared by the memory model. ``tune_kernels.py`` measures, where there is a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lucid_deploy.errors import LucidError
from lucid_deploy.plugins.decode_attention import plan as decode_attention
from lucid_deploy.plugins.delta_rule import plan as delta_rule
from lucid_deploy.plugins.hosts.triton import aot
from lucid_deploy.plugins.hosts.triton.compiled_kernel import default_cache, load, save
from lucid_deploy.plugins.precondition import plan as precondition
from lucid_deploy.plugins.shared.plan import Choice, Variant, compiled_units
from tools.gpu.memory_model import CARDS, Tile, tile_cycles
from tools.gpu.static_report import KernelReport, describe, tile_bytes

TIE = 1.05  # cycles that differ by less are taken for equal: the models are not that exact
Candidates = dict[int, tuple[Choice, ...]]  # by padded width

# Tiles are 64 rows at most: a head's block rows are solved one after another, and longer ones keep fewer programs busy.
# Where registers allow it they are 64 rows: with 32, keys and Y are read twice as often, which the model does not know.
_SOLVE_HALF: Candidates = {
    32: (Choice(64, 64, 4, 3), Choice(64, 32, 4, 3)),
    64: (Choice(64, 64, 4, 3), Choice(64, 32, 4, 3)),
    128: (Choice(64, 64, 8, 2), Choice(64, 32, 4, 3), Choice(64, 32, 8, 2)),
    256: (Choice(64, 32, 8, 2), Choice(32, 32, 8, 2), Choice(64, 16, 4, 2)),
}
# With E in bfloat16 and int8, and a block row a tile: where tensor cores multiply bytes by instructions of a warp.
_SOLVE_INT8: Candidates = {
    32: (Choice(64, 64, 4, 2, int8=1),),
    64: (Choice(64, 64, 4, 2, int8=1),),
    128: (Choice(64, 64, 8, 2, int8=1), Choice(64, 64, 8, 3, int8=1)),
    256: (Choice(32, 32, 8, 2, int8=1),),
}
_SOLVE_FLOAT32: Candidates = {
    32: (Choice(64, 32, 4, 2), Choice(64, 64, 4, 2)),
    64: (Choice(64, 32, 4, 1), Choice(64, 32, 4, 2), Choice(64, 64, 4, 1)),
    128: (Choice(64, 32, 4, 1, 32), Choice(64, 32, 4, 1, 64), Choice(64, 32, 4, 2, 64), Choice(64, 16, 4, 1, 32)),
    256: (
        Choice(64, 16, 4, 1, 32),
        Choice(32, 16, 4, 1, 32),
        Choice(32, 16, 4, 1, 64),
        Choice(32, 16, 2, 1, 32),
        Choice(32, 32, 4, 1, 64),
    ),
}
# Tiles of decoding have 8192 numbers of K at most: of 64 tokens of 8 heads that are 128 wide, a cache of 2048 tokens
# makes as many as there are programs, and larger ones would keep fewer busy. Two warps read queries and weights from
# shared memory half as often as four.
_DECODE_HALF: Candidates = {
    32: (Choice(0, 128, 2, 3), Choice(0, 128, 4, 3), Choice(0, 64, 2, 3)),
    64: (Choice(0, 128, 2, 3), Choice(0, 128, 4, 3), Choice(0, 64, 2, 3)),
    128: (Choice(0, 64, 2, 3), Choice(0, 64, 2, 2), Choice(0, 64, 4, 3)),
    256: (Choice(0, 32, 2, 3), Choice(0, 32, 2, 2), Choice(0, 32, 4, 2)),
}
# Where each warp has a part of a tile: tiles that are written and read with no conflicts of banks. In heads 32 wide one
# of 256 tokens has as many numbers as those of wider heads.
_DECODE_PARTS: Candidates = {
    32: (Choice(0, 128, 2, 3), Choice(0, 64, 2, 3), Choice(0, 256, 4, 3)),
    64: (Choice(0, 64, 2, 3), Choice(0, 128, 2, 3)),
    128: (Choice(0, 64, 4, 3), Choice(0, 64, 2, 3)),
}
_DECODE_FLOAT32_PARTS: Candidates = {
    32: (Choice(0, 64, 2, 3), Choice(0, 128, 4, 2), Choice(0, 128, 4, 3), Choice(0, 256, 4, 2), Choice(0, 256, 4, 3)),
    64: (Choice(0, 64, 4, 2), Choice(0, 64, 4, 3), Choice(0, 64, 2, 2), Choice(0, 64, 2, 3), Choice(0, 128, 4, 2)),
}
_DECODE_FLOAT32: Candidates = {
    32: (Choice(0, 64, 2, 3), Choice(0, 64, 4, 3), Choice(0, 32, 2, 3)),
    64: (Choice(0, 32, 2, 3), Choice(0, 64, 4, 2), Choice(0, 64, 2, 2)),
    128: (Choice(0, 32, 2, 3), Choice(0, 32, 2, 2), Choice(0, 32, 4, 2), Choice(0, 64, 4, 2)),
    256: (Choice(0, 16, 2, 2), Choice(0, 16, 4, 1)),
}

# Chunks of the delta rule are of 32 tokens: with 64 its factors spill. In heads 256 wide, whose state takes most
# registers, so do 32; 16 make twice as many steps, one after another, of which the model knows nothing.
_DELTA: Candidates = {
    32: (Choice(32, 64, 4, 2, 32), Choice(32, 64, 4, 1, 32)),
    64: (Choice(32, 64, 4, 2, 32), Choice(32, 64, 4, 1, 32), Choice(32, 64, 4, 1, 16), Choice(16, 64, 4, 1, 32)),
    128: (Choice(32, 64, 4, 1, 32), Choice(32, 64, 4, 1, 16), Choice(16, 64, 4, 1, 32)),
    256: (Choice(16, 64, 4, 1, 32), Choice(16, 32, 2, 1, 16), Choice(16, 16, 2, 1, 32)),
}


@dataclass(frozen=True)
class Operator:
    """What is chosen for an operator, and by what.

    Attributes:
        tuned: Its file.
        candidates: By type, padded width and compute capability.
        forms: What is compiled of a type, padded width, constants and compute capability; the first is compared.
        cycles: How long a multiprocessor takes for the same work with each candidate, so that tiles can be compared.
    """

    tuned: Path
    candidates: Callable[[str, int, int], tuple[Choice, ...]]
    forms: Callable[[str, int, Choice, int], list[Variant]]
    cycles: Callable[[Choice, KernelReport], float | None]


def _solve_cycles(choice: Choice, report: KernelReport) -> float | None:
    """Return cycles for 1024 elements of E, by the issue model."""
    return None if report.cycles is None else 1024 * report.cycles / (choice.block_m * choice.block_n)


def _delta_cycles(choice: Choice, report: KernelReport) -> float | None:
    """Return cycles for one column of the state and 1024 tokens, by the issue model."""
    return None if report.cycles is None else 1024 * report.cycles / (choice.block_m * choice.block_n)


def _decode_cycles(choice: Choice, report: KernelReport) -> float | None:
    """Return cycles for 1024 tokens of the cache, by the memory model, of the card that leaves least time."""
    n_bytes = tile_bytes(report)
    if report.cycles is None or n_bytes is None:
        return None
    resident = report.resident_warps // report.num_warps
    tile = Tile(n_bytes, report.cycles, report.loop, choice.num_stages, resident)
    return 1024 * tile_cycles(tile, CARDS[report.arch][0]) / choice.block_n


def _solve_candidates(dtype: str, padded: int, arch: int) -> tuple[Choice, ...]:
    if dtype == "float32":
        return _SOLVE_FLOAT32[padded]
    return (*_SOLVE_HALF[padded], *(_SOLVE_INT8[padded] if dtype == precondition.INT8_TYPE else ()))


def _decode_candidates(dtype: str, padded: int, arch: int) -> tuple[Choice, ...]:
    has_parts = padded <= decode_attention.parts_width(arch, dtype)
    if dtype == "float32":
        return (_DECODE_FLOAT32_PARTS if has_parts else _DECODE_FLOAT32)[padded]
    return (_DECODE_PARTS if has_parts else _DECODE_HALF)[padded]


def _decode_forms(dtype: str, padded: int, choice: Choice, arch: int) -> list[Variant]:
    """Return those of heads as wide as the tile, that of 16 rows first, then those of others, with the widest loads."""
    units = (padded, compiled_units(dtype)[0])
    own, others = (decode_attention.split_variants(dtype, padded, choice, unit, arch) for unit in units)
    return [*reversed(own), *others]


OPERATORS = {
    "precondition": Operator(
        precondition.TUNED,
        _solve_candidates,
        lambda dtype, padded, choice, arch: precondition.solve_variants(dtype, padded, choice),
        _solve_cycles,
    ),
    "decode_attention": Operator(
        decode_attention.TUNED,
        _decode_candidates,
        _decode_forms,
        _decode_cycles,
    ),
    "delta_rule": Operator(
        delta_rule.TUNED,
        lambda dtype, padded, arch: _DELTA[padded],
        lambda dtype, padded, choice, arch: delta_rule.chunk_variants(dtype, padded, choice),
        _delta_cycles,
    ),
}


@dataclass(frozen=True)
class Modelled:
    """A candidate and what the models say of it.

    Attributes:
        choice: The constants.
        report: Of the form that is compared; None: it cannot be compiled for this GPU.
        cycles: For the same work; None if the models do not know.
        reason: Why it cannot be compiled.
    """

    choice: Choice
    report: KernelReport | None
    cycles: float | None
    reason: str = ""


def best(
    modelled: Iterable[Modelled], others_spill: Callable[[Choice], bool | None] = lambda choice: False
) -> Modelled:
    """Return the one of least cycles among those whose hot loop does not spill, or among all if each spills.

    Among those that take at most TIE times as many, the order is that of their own loop's cycles for the same work, and
    the first is returned of which no other form spills in its loop; if each has one that does, the first whose forms
    can all be compiled.

    Args:
        modelled: The candidates.
        others_spill: Whether one of the forms with these constants that are not compared spills in its loop; None if
            one cannot be compiled.

    Raises:
        LucidError: None can be compiled with all its forms, or the models know none.
    """
    known = [each for each in modelled if each.report is not None and each.cycles is not None]
    if not known:
        raise LucidError("The model knows none of the candidates, so that there is nothing to choose from.")
    clean = [each for each in known if not each.report.loop_spills] or known
    least = min(each.cycles or 0.0 for each in clean)
    equal = sorted((each for each in clean if (each.cycles or 0.0) <= TIE * least), key=_own_cycles)
    found = []
    for each in equal:
        spills = others_spill(each.choice)
        if spills is False:
            return each
        found.extend([each] * (spills is not None))
    if not found:
        raise LucidError("None of the candidates can be compiled in all of its forms.")
    return found[0]


def _own_cycles(modelled: Modelled) -> float:
    choice, report = modelled.choice, modelled.report
    assert report is not None and report.cycles is not None
    return report.cycles / (max(choice.block_m, 1) * choice.block_n)


def model(
    operator: str,
    arch: int,
    dtype: str,
    padded: int,
    choices: Iterable[Choice] | None = None,
    cache: Path | None = None,
    progress: Callable[[Modelled], None] = lambda modelled: None,
) -> list[Modelled]:
    """Compile candidates, or take them from the cache, and ask the models.

    Args:
        operator: A key of :data:`OPERATORS`.
        arch: Compute capability, 90 for 9.0.
        dtype: ``float32``, ``float16`` or ``bfloat16``.
        padded: Padded head width.
        choices: The constants to compare; None: the operator's candidates.
        cache: Folder of compiled kernels; None is the user's cache folder.
        progress: Called with each as it is known.
    """
    chosen = OPERATORS[operator]
    found = []
    with _compiler(arch, cache) as described:
        for choice in chosen.candidates(dtype, padded, arch) if choices is None else choices:
            try:
                report = described(chosen.forms(dtype, padded, choice, arch)[0])
                found.append(Modelled(choice, report, chosen.cycles(choice, report)))
            except LucidError as error:
                found.append(Modelled(choice, None, None, str(error)))
            progress(found[-1])
    return found


def others_spill(
    operator: str, arch: int, dtype: str, padded: int, choice: Choice, cache: Path | None = None
) -> bool | None:
    """Return whether a form that is not compared spills in its hot loop; None if one cannot be compiled.

    Arguments as of :func:`model`.
    """
    with _compiler(arch, cache) as described:
        try:
            forms = OPERATORS[operator].forms(dtype, padded, choice, arch)
            found = [described(form).loop_spills for form in forms[1:]]
        except LucidError:
            return None
    return any(found)


@contextmanager
def _compiler(arch: int, cache: Path | None) -> Iterator[Callable[[Variant], KernelReport]]:
    """Yield what describes a variant; what compiles it is a process of its own, which starts when it is used."""
    folder = default_cache() if cache is None else cache
    with aot.compilers(1) as pool:

        def described(variant: Variant) -> KernelReport:
            path = folder / aot.cache_key(variant, arch)
            kernels = load(path)
            if kernels is None:
                kernels = pool.submit(aot.compile_variant, variant, arch).result()
                save(path, kernels)
            return describe(kernels[0])

        yield described
