"""The result of a verification: plain data for JSON, a table for people, one line for an error message."""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from lucid_deploy.artifact.quantization import Quantization
from lucid_deploy.parity.causes.explain import Explanation, plain
from lucid_deploy.parity.causes.solve_analysis import HeadStats
from lucid_deploy.parity.measure.compare import KINDS, TensorId
from lucid_deploy.parity.measure.gate import FACTOR, FLOOR_UNITS, UNIT, Comparison, first_failure
from lucid_deploy.parity.measure.metrics import Divergence
from lucid_deploy.parity.measure.quantization import QuantizationCost
from lucid_deploy.parity.show import text
from lucid_deploy.version import __version__

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table


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
        label: What ran the candidate, for people, such as ``onnxruntime (cuda)``.
        heads: The conditioning of every head's preconditioner; empty with standard attention.
        tolerance: The gate that was set by hand in place of the derived ones, if one was.
        explanation: What a closer look found, if one was taken.
        quantization: How the artifact's weights are quantized, if they are; then the reference is the model on the
            dequantized weights.
        cost: What quantization cost against the original checkpoint.
        runs_graphs: Whether the candidate ran the artifact's graphs, not its weights alone.
        plainer: How the candidate is run with less code of ours, if it can be, as the end of a sentence.
    """

    runtime: str
    dtype: str
    seed: int
    scenarios: tuple[ScenarioInfo, ...]
    comparisons: tuple[Comparison, ...]
    free_runs: tuple[FreeRun, ...]
    unproven: tuple[TensorId, ...]
    environment: dict[str, Any]
    label: str
    heads: tuple[HeadStats, ...] = ()
    tolerance: float | None = None
    explanation: Explanation | None = None
    quantization: Quantization | None = None
    cost: QuantizationCost | None = None
    runs_graphs: bool = True
    plainer: str | None = None

    @property
    def failure(self) -> Comparison | None:
        """The first failed comparison, in the order layer, tensor, position; None if every gate held."""
        return first_failure(self.comparisons)

    @property
    def passed(self) -> bool:
        """Whether every tensor was within its gate, and every gate meant something."""
        return self.failure is None and not self.unproven

    @property
    def within_derived(self) -> bool:
        """Whether the gates derived from PyTorch hold, also where one set by hand counts."""
        return all(comparison.within_derived for comparison in self.comparisons)

    def verdict(self) -> str:
        """Return the result as a sentence or two; of a failure, the first layer, tensor and position."""
        return self._tolerance_note() + self._finding()

    def cause(self) -> str:
        """Say where errors start, as far as it was looked into; may be empty."""
        return "" if self.explanation is None else self.explanation.sentence(failed=not self.passed)

    def advice(self) -> str:
        """Say what to do about a failure; empty if no gate failed."""
        if self.failure is None:
            return ""
        weights = "export again, or name the checkpoint it came from with --checkpoint"
        if not self.runs_graphs:
            return (
                f"What to do: {self.runtime} ran the artifact's weights without its graphs, so they are not the "
                f"checkpoint's; {weights}."
            )
        plainer = "" if self.plainer is None else f"; {self.plainer}"
        return (
            "What to do: verify with --runtime torch, which runs the artifact's weights without its graphs. If that "
            f"fails too, the weights are not the checkpoint's: {weights}. If it passes, the graphs or what runs them "
            f"are wrong{plainer}."
        )

    def _tolerance_note(self) -> str:
        if self.tolerance is None:
            return ""
        derived = "they would have held" if self.within_derived else "by them it would have failed"
        return (
            f"The tolerance of {self.tolerance:g} was set by hand; the gates derived from PyTorch did not count "
            f"({derived}). "
        )

    def _finding(self) -> str:
        failure = self.failure
        if failure is not None:
            return (
                f"{failure.tensor} leaves the gate at position {failure.failed_at} ({failure.scenario}, "
                f"{failure.schedule}): relative error {failure.error:.2g}, allowed {failure.gate.limit:.2g} in "
                f"{self.dtype}{_times(failure)}."
            )
        if self.unproven:
            names = ", ".join(map(str, self.unproven))
            return f"In {self.dtype} PyTorch itself loses {names}: nothing was proven. Use a wider type."
        worst = max(comparison.severity for comparison in self.comparisons)
        same = "stays within the tolerance of" if self.tolerance is not None else "computes"
        return (
            f"{self.label} {same} what PyTorch computes: {len(self.comparisons)} comparisons in {self.dtype}, the "
            f"worst error is {worst:.2f} of its gate."
        )

    def worst_by_tensor(self, along_positions: bool = False) -> dict[TensorId, Comparison]:
        """Return every tensor's worst comparison, in the order of computation.

        Args:
            along_positions: Only comparisons of more than one position count.
        """
        worst: dict[TensorId, Comparison] = {}
        for item in self.comparisons:
            if along_positions and len(item.errors) < 2:
                continue
            if item.tensor not in worst or item.severity > worst[item.tensor].severity:
                worst[item.tensor] = item
        return {tensor: worst[tensor] for tensor in sorted(worst)}

    def divergences(self) -> Iterator[tuple[Comparison, Divergence]]:
        """Yield every position at which another token is preferred than the reference's, real ones first."""
        found = [(c, item) for c in self.comparisons if c.logits is not None for item in c.logits.divergences]
        yield from sorted(found, key=lambda pair: pair[1].near_tie)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON. Numbers that are not finite become null; such a comparison failed."""
        failure = self.failure
        return {
            "passed": self.passed,
            "verdict": self.verdict(),
            "advice": self.advice(),
            "first_failure": None if failure is None else _comparison_dict(failure),
            "runtime": self.runtime,
            "dtype": self.dtype,
            "seed": self.seed,
            "gate": {
                "factor": FACTOR,
                "floor": FLOOR_UNITS * UNIT[self.dtype],
                "tolerance": self.tolerance,
                "within_derived": self.within_derived,
            },
            "environment": self.environment,
            "scenarios": [asdict(scenario) for scenario in self.scenarios],
            "free_runs": [asdict(run) for run in self.free_runs],
            "unproven": [str(tensor) for tensor in self.unproven],
            "divergences": [_divergence_dict(*pair) for pair in self.divergences()],
            "heads": plain([asdict(head) for head in self.heads]),
            "error_against_position": [_curve_dict(c) for c in self.worst_by_tensor(along_positions=True).values()],
            "quantization": None if self.cost is None else self._quantization_dict(),
            "explanation": None if self.explanation is None else self.explanation.to_dict(),
            "comparisons": [_comparison_dict(comparison) for comparison in self.comparisons],
        }

    def _quantization_dict(self) -> dict[str, Any]:
        assert self.quantization is not None and self.cost is not None
        record = {key: value for key, value in self.quantization.to_dict().items() if key != "tensors"}
        return {
            "reference": "the model on the artifact's dequantized weights",
            **record,
            "weights_checked": True,
            "cost": plain(self.cost.to_dict()),
        }

    def quantization_lines(self) -> list[str]:
        """Say what the reference is and what quantization cost; nothing if nothing is quantized."""
        if self.quantization is None or self.cost is None:
            return []
        about = "The reference above is the model on the artifact's dequantized weights"
        checked = "which are the checkpoint's to within half a step."
        return [f"{about}, {checked}", *self.cost.lines(self.quantization)]

    def render(self) -> RenderableType:
        """Return the table for people, the worst case of each tensor, and what the logits mean below it."""
        from rich.console import Group
        from rich.text import Text

        details = [*text.divergence_lines(self), *text.growth_lines(self), *text.conditioning_lines(self)]
        lines = [self._logits_line(), *map(_free_run_line, self.free_runs), *details]
        closer = [] if self.explanation is None else text.explanation_blocks(self.explanation)
        lines += self.quantization_lines()
        verdict = [line for line in (self._verdict_line(), self.cause(), self.advice()) if line]
        return Group(self._table(), *map(Text.from_markup, lines), *closer, *map(Text.from_markup, verdict))

    def _table(self) -> Table:
        from rich.box import SIMPLE_HEAD
        from rich.table import Table

        title = f"{self.label}, {self.dtype}, against PyTorch in float64: worst case of each tensor"
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
        rows: dict[str, Comparison] = {}
        for tensor, item in self.worst_by_tensor().items():
            label = str(tensor) if tensor.is_logits else text.band_label(tensor.layer, layers, KINDS, tensor.kind)
            if label not in rows or item.severity > rows[label].severity:
                rows[label] = item
        yield from rows.items()

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


def environment(packages: Sequence[str]) -> dict[str, Any]:
    """Return versions and machine, to write beside results.

    Args:
        packages: Import names of what ran the candidate; versions are looked up without importing them.
    """
    versions = {"lucid-deploy": __version__, "python": platform.python_version()}
    distributions = importlib.metadata.packages_distributions()
    for package in dict.fromkeys(("numpy", "torch", *packages)):
        for name in distributions.get(package, ()):
            versions[name] = importlib.metadata.version(name)
    machine = {"system": platform.platform(), "processor": platform.machine(), "cpus": os.cpu_count()}
    return {"versions": versions, "machine": machine}


def _percent(share: float) -> str:
    """A share of the gate in a few characters, however far beyond it."""
    return f"{share:.0%}" if share < 10 else f"{share:.0f}×" if share < 1e5 else ">1e5×"


def _times(failure: Comparison) -> str:
    """How far beyond its gate, in words; nothing where the error is no number."""
    times = failure.error / failure.gate.limit
    if not math.isfinite(times):
        return ""
    shown = f"{times:.2f}" if times < 10 else f"{times:,.0f}" if times < 1e6 else f"{times:.0e}"
    return f", {shown} times that"


def _free_run_line(run: FreeRun) -> str:
    return f"Free-running greedy ({run.scenario}): {run.agreed} of {run.tokens} tokens before the first other one."


def _comparison_dict(comparison: Comparison) -> dict[str, Any]:
    trend, logits = comparison.growth, comparison.logits
    numbers = {} if logits is None else {key: value for key, value in asdict(logits).items() if key != "divergences"}
    return {
        "scenario": comparison.scenario,
        "schedule": comparison.schedule,
        "tensor": str(comparison.tensor),
        "layer": None if comparison.tensor.is_logits else comparison.tensor.layer,
        "passed": comparison.failed_at is None,
        "failed_at": comparison.failed_at,
        "error": plain(comparison.error),
        "gate": comparison.gate.limit,
        "gate_derived": comparison.gate.limit if comparison.gate.derived is None else comparison.gate.derived,
        "baseline_error": comparison.gate.baseline,
        **plain(asdict(comparison.metrics)),
        "growth": None if trend is None else plain(asdict(trend)),
        "logits": None if logits is None else plain(numbers),
    }


def _divergence_dict(comparison: Comparison, item: Divergence) -> dict[str, Any]:
    where = {"scenario": comparison.scenario, "schedule": comparison.schedule}
    return {**where, "class": "near-tie" if item.near_tie else "real", **plain(asdict(item))}


def _curve_dict(item: Comparison) -> dict[str, Any]:
    return {
        "tensor": str(item.tensor),
        "scenario": item.scenario,
        "schedule": item.schedule,
        "start": item.start,
        "errors": plain(item.errors.tolist()),
    }
