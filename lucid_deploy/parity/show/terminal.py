"""The report for a terminal of 80 columns: how much was judged, the worst of every tensor, causes, last the verdict."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from lucid_deploy.parity.causes.explanation import Explanation
from lucid_deploy.parity.causes.localise import ErrorSplit, Part, WorstOwnError
from lucid_deploy.parity.causes.solve_analysis import EXCESS, ErrorShares
from lucid_deploy.parity.measure.gate import Comparison
from lucid_deploy.parity.show import words
from lucid_deploy.parity.show.checks import Check
from lucid_deploy.parity.show.data import divergence_class
from lucid_deploy.parity.show.report import Report

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

TABLE_LAYERS = 12  # with more layers, a row of a table stands for several
DIVERGENCES = 10  # listed one by one; the JSON has all
COLOURS = {(True, False): "green", (True, True): "red", (False, False): "yellow"}  # by judged and failed
CLASSES = {"near-tie": "a near-tie", "real": "[red]real[/]", "not judged": "[yellow]not judged[/]"}


def render(report: Report) -> RenderableType:
    """Return what a person reads: first how much was judged and against what, last the verdict."""
    from rich.console import Group
    from rich.text import Text

    lines = [
        *words.outside_lines(report),
        *words.unjudged_lines(report),
        words.top_token_line(report),
        *map(words.free_run_line, report.free_runs),
        *_divergence_lines(report),
        words.growth_line(words.caches_of(report)),
        words.conditioning_line(report.heads),
        *report.quantization_lines(),
    ]
    closer = [] if report.explanation is None else _explanation_blocks(report.explanation)
    last = [*check_lines(report.checks), _verdict_line(report), report.cause(), report.advice()]
    return Group(
        Text(words.coverage_line(report)),
        _table(report),
        *(Text.from_markup(line) for line in lines if line),
        *closer,
        *(Text.from_markup(line) for line in last if line),
    )


def check_lines(checks: Sequence[Check]) -> Iterator[str]:
    """Name the checks that were made, and those that were not with the reason."""
    from rich.markup import escape

    made = ", ".join(f"{check.name} ({check.outcome})" for check in checks if check.done)
    yield f"Checked: {made}."
    missing: dict[str, list[str]] = {}  # names by reason
    for check in checks:
        if not check.done:
            missing.setdefault(check.detail.rstrip("."), []).append(check.name)
    reasons: dict[str, list[str]] = {}  # by the names that have them: none is said again before each
    for reason, names in missing.items():
        reasons.setdefault(", ".join(dict.fromkeys(names)), []).append(reason)
    if reasons:
        parts = "; ".join(f"{names}: {'. '.join(said)}" for names, said in reasons.items())
        yield escape(f"Not checked: {parts}.")


def _verdict_line(report: Report) -> str:
    return f"[bold green]PASSED[/] {report.verdict()}" if report.passed else f"[bold red]FAILED[/] {report.verdict()}"


def _table(report: Report) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    title = f"{report.label}, {report.dtype}, against PyTorch in float64: worst case of each tensor"
    # Narrow on purpose: it must be whole on a terminal of 80 columns.
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("layer", no_wrap=True)
    for heading in ("max abs", "rel L2", "position", "gate", "used"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("where")
    for label, worst in _worst_rows(report):
        metrics = worst.metrics
        colour = COLOURS[worst.judged, worst.failed_at is not None]
        numbers = (metrics.max_abs, metrics.relative_l2, metrics.worst_position_error)
        table.add_row(
            label,
            *(f"{number:.1e}" for number in (*numbers, worst.gate.limit)),
            f"[{colour}]{_percent(worst.severity) if worst.judged else 'unjudged'}[/]",
            f"{worst.scenario}, {worst.schedule}",
        )
    return table


def _worst_rows(report: Report) -> Iterator[tuple[str, Comparison]]:
    """Yield label and worst comparison of each row; neighbouring layers share rows when there are many."""
    layers = max(comparison.tensor.layer for comparison in report.against())  # the logits' layer is their number
    rows: dict[str, Comparison] = {}
    for tensor, item in report.worst_by_tensor().items():
        label = str(tensor) if tensor.is_logits else band_label(tensor.layer, layers, tensor.word)
        if label not in rows or (item.judged, item.severity) > (rows[label].judged, rows[label].severity):
            rows[label] = item
    yield from rows.items()


def band_label(layer: int, layers: int, word: str) -> str:
    """Return the label of the table row that a tensor belongs to; with few layers, each has its own."""
    band = math.ceil(layers / TABLE_LAYERS)
    first = layer // band * band
    last = min(first + band, layers) - 1
    number = str(first) if last <= first else f"{first}–{last}"
    return f"{number} {word}"


def _divergence_lines(report: Report) -> Iterator[str]:
    """Name the positions at which another token is preferred."""
    found = list(report.divergences())
    for comparison, item in found[:DIVERGENCES]:
        yield (
            f"Position {item.position} ({comparison.where}): token {item.chosen} in place of "
            f"{item.wanted}, {CLASSES[divergence_class(comparison, item)]}: the reference's margin is "
            f"{item.margin:.2g}, up to {item.allowed:.2g} may flip."
        )
    if len(found) > DIVERGENCES:
        yield f"… and {len(found) - DIVERGENCES} more positions; --json lists them all."


def _explanation_blocks(explanation: Explanation) -> Iterator[RenderableType]:
    """Yield the tables of a closer look."""
    from rich.text import Text

    if explanation.findings:
        yield _own_table(explanation)
    if explanation.shares:
        yield _share_table(explanation)
    if explanation.unavailable:
        yield Text(explanation.unavailable)
    if explanation.perplexity is not None:
        yield Text(words.perplexity_line(explanation.perplexity))


def _own_table(explanation: Explanation) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title="Own and inherited errors", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("part", no_wrap=True)
    for heading in ("total", "inherited", "own", "worst own", "gate"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("where")
    gaps = [item for item in explanation.splits if item.scenario == explanation.scenarios[0]]
    for label, found, split in _rows(explanation.findings, gaps):
        colour = COLOURS[found.judged, found.failed]
        table.add_row(
            label,
            *(f"{number:.1e}" for number in (split.total, split.inherited, split.own)),
            f"[{colour}]{found.error:.1e}[/]",
            f"{found.gate.limit:.1e}",
            f"{found.scenario}, {found.feeding}",
        )
    return table


def _rows(
    found: Iterable[WorstOwnError], gaps: Iterable[ErrorSplit]
) -> Iterator[tuple[str, WorstOwnError, ErrorSplit]]:
    """Yield label, worst own error and largest split of every row; neighbouring layers share rows if there are many."""
    worst: dict[str, WorstOwnError] = {}
    for item in sorted(found, key=lambda item: item.part):
        label = _label(item.part)
        if label not in worst or _used(item) > _used(worst[label]):
            worst[label] = item
    largest: dict[str, ErrorSplit] = {}
    for gap in gaps:
        label = _label(gap.part)
        if label not in largest or not gap.total <= largest[label].total:
            largest[label] = gap
    for label, item in worst.items():
        yield label, item, largest[label]


def _label(part: Part) -> str:
    if not 0 <= part.layer < part.layers:
        return str(part)
    return band_label(part.layer, part.layers, part.word)


def _used(item: WorstOwnError) -> float:
    return math.inf if math.isnan(item.error) else item.error / item.gate.limit


def _share_table(explanation: Explanation) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    title = f"Where errors in Y come from ({explanation.scenarios[0]})"
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("layer", no_wrap=True)
    table.add_column("fed", no_wrap=True)
    for heading in ("error", "K and V", "E", "Y", "unexplained", "solve/rounding"):
        table.add_column(heading, justify="right", no_wrap=True)
    for item in _worst_shares(explanation.shares):
        colour = "red" if not item.excess <= EXCESS else "green"
        table.add_row(
            str(item.layer),
            item.feeding,
            f"{item.total:.1e}",
            *(f"{share:.0%}" for share in _shares_of(item)),
            f"[{colour}]{item.excess:.1f}×[/]",
        )
    return table


def _worst_shares(shares: Iterable[ErrorShares]) -> list[ErrorShares]:
    """Return one of each layer and feeding, or, of many layers, those whose solve explains itself worst."""
    items = list(shares)
    if len({item.layer for item in items}) > TABLE_LAYERS:
        items = sorted(items, key=lambda item: -item.excess)[:TABLE_LAYERS]
    return sorted(items, key=lambda item: (item.layer, item.feeding))


def _shares_of(item: ErrorShares) -> tuple[float, ...]:
    return item.inputs_share, item.e_share, item.y_share, item.unexplained_share


def _percent(share: float) -> str:
    """A share of the gate in a few characters, however far beyond it."""
    return f"{share:.0%}" if share < 10 else f"{share:.0f}×" if share < 1e5 else ">1e5×"
