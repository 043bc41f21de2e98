"""The result of a verification: plain data for JSON, a table for people, one line for an error message."""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from lucid_deploy.parity.compare import KINDS, TensorId
from lucid_deploy.parity.gate import FACTOR, FLOOR_UNITS, UNIT, Comparison, first_failure
from lucid_deploy.version import __version__

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

TABLE_LAYERS = 12  # with more layers, a row of the table stands for several


@dataclass(frozen=True)
class ScenarioInfo:
    """Name and size of a scenario, in tokens and decode steps."""

    name: str
    prompt_tokens: int
    decode_steps: int


@dataclass(frozen=True)
class FreeRun:
    """A free-running greedy generation.

    Attributes:
        scenario: Whose prompt was continued.
        tokens: How many tokens the reference generated.
        agreed: How many of them the candidate generated too, before the first other one.
    """

    scenario: str
    tokens: int
    agreed: int


@dataclass(frozen=True)
class Report:
    """What a verification found.

    Attributes:
        runtime: What ran the candidate.
        dtype: Its precision.
        seed: Seed of the scenarios.
        scenarios: What was run.
        comparisons: Every tensor in every scenario and schedule.
        free_runs: Greedy generations.
        unproven: Tensors that no scenario could test in this precision, since PyTorch itself loses them.
        environment: Versions and machine.
    """

    runtime: str
    dtype: str
    seed: int
    scenarios: tuple[ScenarioInfo, ...]
    comparisons: tuple[Comparison, ...]
    free_runs: tuple[FreeRun, ...]
    unproven: tuple[TensorId, ...]
    environment: dict[str, Any]

    @property
    def failure(self) -> Comparison | None:
        """The first failed comparison, in the order layer, tensor, position; None if every gate held."""
        return first_failure(self.comparisons)

    @property
    def passed(self) -> bool:
        """Whether every tensor was within its gate, and every gate meant something."""
        return self.failure is None and not self.unproven

    def verdict(self) -> str:
        """Return the result as one sentence; of a failure, the first layer, tensor and position."""
        failure = self.failure
        if failure is not None:
            return (
                f"{failure.tensor} leaves the gate at position {failure.failed_at} ({failure.scenario}, "
                f"{failure.schedule}): relative error {failure.error:.2g}, allowed {failure.gate.limit:.2g} in "
                f"{self.dtype}."
            )
        if self.unproven:
            names = ", ".join(map(str, self.unproven))
            return f"In {self.dtype} PyTorch itself loses {names}: nothing was proven. Use a wider type."
        worst = max(comparison.severity for comparison in self.comparisons)
        return (
            f"{self.runtime} computes what PyTorch computes: {len(self.comparisons)} comparisons in {self.dtype}, the "
            f"worst error is {worst:.2f} of its gate."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON. Numbers that are not finite become null; such a comparison failed."""
        failure = self.failure
        return {
            "passed": self.passed,
            "verdict": self.verdict(),
            "first_failure": None if failure is None else _comparison_dict(failure),
            "runtime": self.runtime,
            "dtype": self.dtype,
            "seed": self.seed,
            "gate": {"factor": FACTOR, "floor": FLOOR_UNITS * UNIT[self.dtype]},
            "environment": self.environment,
            "scenarios": [asdict(scenario) for scenario in self.scenarios],
            "free_runs": [asdict(run) for run in self.free_runs],
            "unproven": [str(tensor) for tensor in self.unproven],
            "comparisons": [_comparison_dict(comparison) for comparison in self.comparisons],
        }

    def render(self) -> RenderableType:
        """Return the table for people, the worst case of each tensor, and what the logits mean below it."""
        from rich.console import Group
        from rich.text import Text

        lines = [self._logits_line(), *map(_free_run_line, self.free_runs), self._verdict_line()]
        return Group(self._table(), *(Text.from_markup(line) for line in lines))

    def _table(self) -> Table:
        from rich.box import SIMPLE_HEAD
        from rich.table import Table

        title = f"{self.runtime}, {self.dtype}, against PyTorch in float64: worst case of each tensor"
        # Narrow on purpose: it must be whole on a terminal of 80 columns.
        table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        table.add_column("layer", no_wrap=True)
        for heading in ("max abs", "rel L2", "1−cos", "position", "gate", "used"):
            table.add_column(heading, justify="right", no_wrap=True)
        table.add_column("where")
        for label, worst in self._worst_rows():
            metrics = worst.metrics
            colour = "green" if worst.failed_at is None else "red"
            numbers = (metrics.max_abs, metrics.relative_l2, 1 - metrics.cosine, metrics.worst_position_error)
            table.add_row(
                label,
                *(f"{number:.1e}" for number in (*numbers, worst.gate.limit)),
                f"[{colour}]{_percent(worst.severity)}[/]",
                f"{worst.scenario}, {worst.schedule}",
            )
        return table

    def _worst_rows(self) -> Iterator[tuple[str, Comparison]]:
        """Yield label and worst comparison of each row; neighbouring layers share rows when there are many."""
        layers = max(comparison.tensor.layer for comparison in self.comparisons)  # the logits' layer is their number
        band = math.ceil(layers / TABLE_LAYERS)
        rows: dict[tuple[int, int], list[Comparison]] = {}
        for comparison in sorted(self.comparisons, key=lambda item: item.tensor):
            first = layers if comparison.tensor.is_logits else comparison.tensor.layer // band * band
            rows.setdefault((first, comparison.tensor.kind), []).append(comparison)
        for (first, kind), members in rows.items():
            last = min(first + band, layers) - 1
            number = str(first) if last <= first else f"{first}–{last}"
            label = KINDS[kind] if first == layers else f"{number} {KINDS[kind]}"
            yield label, max(members, key=lambda item: item.severity)

    def _logits_line(self) -> str:
        items = [comparison.logits for comparison in self.comparisons if comparison.logits is not None]
        positions, agreed = sum(item.positions for item in items), sum(item.agreed for item in items)
        ties, other = sum(item.near_ties for item in items), sum(item.disagreed for item in items)
        divergence = max((item.kl_max for item in items), key=lambda kl: math.inf if math.isnan(kl) else kl)
        return (
            f"Top-1 token: {agreed} of {positions} positions agree, {ties} differ over a near-tie, {other} differ. "
            f"KL divergence at most {divergence:.1e} nats."
        )

    def _verdict_line(self) -> str:
        return f"[bold green]PASSED[/] {self.verdict()}" if self.passed else f"[bold red]FAILED[/] {self.verdict()}"


def environment(runtime: str) -> dict[str, Any]:
    """Return versions and machine, to write beside results.

    Args:
        runtime: Import name of what ran the candidate; its version is looked up without importing it.
    """
    versions = {"lucid-deploy": __version__, "python": platform.python_version()}
    distributions = importlib.metadata.packages_distributions()
    for package in ("numpy", "torch", runtime):
        for name in distributions.get(package, ()):
            versions[name] = importlib.metadata.version(name)
    machine = {"system": platform.platform(), "processor": platform.machine(), "cpus": os.cpu_count()}
    return {"versions": versions, "machine": machine}


def _percent(share: float) -> str:
    """A share of the gate in a few characters, however far beyond it."""
    return f"{share:.0%}" if share < 10 else f"{share:.0f}×" if share < 1e5 else ">1e5×"


def _free_run_line(run: FreeRun) -> str:
    return f"Free-running greedy ({run.scenario}): {run.agreed} of {run.tokens} tokens before the first other one."


def _comparison_dict(comparison: Comparison) -> dict[str, Any]:
    logits = comparison.logits
    return {
        "scenario": comparison.scenario,
        "schedule": comparison.schedule,
        "tensor": str(comparison.tensor),
        "layer": None if comparison.tensor.is_logits else comparison.tensor.layer,
        "passed": comparison.failed_at is None,
        "failed_at": comparison.failed_at,
        "error": _finite(comparison.error),
        "gate": comparison.gate.limit,
        "baseline_error": comparison.gate.baseline,
        **{key: _finite(value) for key, value in asdict(comparison.metrics).items()},
        "logits": None if logits is None else {key: _finite(value) for key, value in asdict(logits).items()},
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
