"""The evaluations that LUCID's authors report, as named suites over lm_eval's own task definitions.

Settings are those of the published scripts, https://github.com/saisuryadv/LUCID at c8b6bb6 (``lucid/evaluation`` and
``lucid_path/evaluation``), which call lm_eval with ``--seed 0``. RULER leaves out HotpotQA; ``mniah`` is
``niah_multikey_1`` with 2 to 10 needles. Nothing here needs lm_eval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lucid_deploy.errors import LucidError

SEED = 0  # of the published scripts
BABILONG_LENGTHS = ("0k", "1k", "2k", "4k", "8k", "16k", "32k", "64k", "128k")
_LENGTHS = (2048, 4096, 6144, 8192)
_MOST_NEEDLES = 40  # lm_eval puts needles at 40 depths, each at most once
_RULER = (
    *("niah_single_1", "niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multikey_2", "niah_multikey_3"),
    *("niah_multiquery", "niah_multivalue", "ruler_vt", "ruler_cwe", "ruler_fwe", "ruler_qa_squad"),
)
_LONGBENCH = ("longbench_2wikimqa", "longbench_hotpotqa", "longbench_multifieldqa_en", "longbench_qasper")
_BABILONG = tuple(f"babilong_qa{number}" for number in range(1, 11))


@dataclass(frozen=True)
class Suite:
    """The published tasks and settings of one name."""

    tasks: tuple[str, ...]  # as lm_eval names them
    lengths: tuple[int | str, ...] = ()  # tokens of a prompt and its answer, or BABILong's names; empty: as they are
    needles: tuple[int, ...] = ()  # in a text; empty: as each task says
    limit: int | None = None  # documents of each task; None: all


SUITES = {
    "ruler": Suite(_RULER, _LENGTHS),
    "mniah": Suite(("niah_multikey_1",), _LENGTHS, (2, 4, 6, 8, 10)),
    "longbench": Suite(_LONGBENCH),
    "scrolls": Suite(("scrolls_qasper", "scrolls_qmsum")),
    "babilong": Suite(_BABILONG, ("64k",), limit=50),
}


@dataclass(frozen=True)
class SuiteTask:
    """One task at one length."""

    suite: str
    task: str  # as lm_eval names it
    length: int | str | None = None  # tokens of a prompt and its answer together, or BABILong's name
    needles: int | None = None  # in a text; None: as the task says

    @property
    def name(self) -> str:
        """A name that no other task of the suite has, such as ``niah_multikey_1_n8_4096``."""
        parts = [self.task, *([] if self.needles is None else [f"n{self.needles}"])]
        return "_".join([*parts, *([] if self.length is None else [str(self.length)])])


def plan(
    suite: str, lengths: Sequence[int] = (), needles: Sequence[int] = (), only: Sequence[str] = ()
) -> list[SuiteTask]:
    """Return the tasks of a suite, of which ``only`` names some, with lengths in tokens or the published ones."""
    if suite not in SUITES:
        raise LucidError(f"Suite {suite!r} is not known; known are {', '.join(SUITES)}.")
    chosen = SUITES[suite]
    if unknown := sorted(set(only) - set(chosen.tasks)):
        raise LucidError(f"The suite {suite} has no task {unknown[0]!r}; it has {', '.join(chosen.tasks)}.")
    if lengths and not chosen.lengths:
        raise LucidError(f"The texts of {suite} have fixed lengths: leave --lengths out.")
    if needles and not chosen.needles:
        raise LucidError(f"--needles is for the suite mniah, not for {suite}.")
    if wrong := [count for count in needles if not 1 <= count <= _MOST_NEEDLES]:
        raise LucidError(f"--needles takes 1 to {_MOST_NEEDLES}, not {wrong[0]}.")
    sizes: Sequence[int | str | None] = lengths
    if suite == "babilong":
        sizes = [f"{length // 1024}k" for length in lengths]
        if not set(sizes) <= set(BABILONG_LENGTHS) or any(length % 1024 for length in lengths):
            raise LucidError(f"BABILong has the lengths {', '.join(BABILONG_LENGTHS)}.")
    elif 0 in lengths:
        raise LucidError("A length is at least one token.")
    counts: Sequence[int | None] = needles or chosen.needles or [None]
    tasks = [name for name in chosen.tasks if not only or name in only]
    return [
        SuiteTask(suite, task, size, count)
        for task in tasks
        for count in counts
        for size in sizes or chosen.lengths or [None]
    ]
