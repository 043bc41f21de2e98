"""What a verification explains, for a terminal of 80 columns."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

from lucid_deploy.parity.causes.explain import Explanation
from lucid_deploy.parity.causes.localise import OWN_KINDS, Finding, Part, Split
from lucid_deploy.parity.causes.solve_analysis import EXCESS, NORM_BOUND, ErrorShares
from lucid_deploy.parity.measure.compare import KINDS
from lucid_deploy.parity.measure.perplexity import Perplexity

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from lucid_deploy.parity.show.report import Report

TABLE_LAYERS = 12  # with more layers, a row of a table stands for several
DIVERGENCES = 10  # listed one by one; the JSON has all

Item = TypeVar("Item")


def band_label(layer: int, layers: int, kinds: tuple[str, ...], kind: int) -> str:
    """Return the label of the table row that a tensor belongs to; with few layers, each has its own."""
    band = math.ceil(layers / TABLE_LAYERS)
    first = layer // band * band
    last = min(first + band, layers) - 1
    number = str(first) if last <= first else f"{first}–{last}"
    return f"{number} {kinds[kind]}"


def divergence_lines(report: Report) -> Iterator[str]:
    """Name the positions at which another token is preferred."""
    found = list(report.divergences())
    for comparison, item in found[:DIVERGENCES]:
        kind = "a near-tie" if item.near_tie else "[red]real[/]"
        yield (
            f"Position {item.position} ({comparison.scenario}, {comparison.schedule}): token {item.chosen} in place of "
            f"{item.wanted}, {kind}: the reference's margin is {item.margin:.2g}, up to {item.allowed:.2g} may flip."
        )
    if len(found) > DIVERGENCES:
        yield f"… and {len(found) - DIVERGENCES} more positions; --json lists them all."


def growth_lines(report: Report) -> Iterator[str]:
    """Say whether errors grow along the sequence."""
    trends = [(item.growth, item) for item in report.comparisons if KINDS[item.tensor.kind] != "logits"]
    fitted = [(trend, item) for trend, item in trends if trend is not None]
    if not fitted:
        return
    count = sum(trend.grows for trend, _ in fitted)
    trend, worst = max(fitted, key=lambda pair: pair[0].exponent)
    yield (
        f"Error against position: grows in {count} of {len(fitted)} comparisons; most in {worst.tensor} "
        f"({worst.scenario}, {worst.schedule}), as position^{trend.exponent:.2f}, the last quarter "
        f"{trend.ratio:.1f} times the first."
    )


def conditioning_lines(report: Report) -> Iterator[str]:
    """Say how well the solves are conditioned."""
    if not report.heads:
        return
    heads = report.heads
    largest = max(heads, key=lambda head: head.largest_inverse)
    norm, condition = max(head.inverse_norm for head in heads), max(head.condition for head in heads)
    mean, most = max(head.correlation_mean for head in heads), max(head.correlation_max for head in heads)
    yield (
        f"Conditioning: |L⁻¹| off the diagonal at most {largest.largest_inverse:.2f} (layer {largest.layer}, head "
        f"{largest.head}, {largest.scenario}), ‖L⁻¹‖₂ at most {norm:.2f} (bound {NORM_BOUND:g}), condition of L at "
        f"most {condition:.1f}; keys correlate by up to {mean:.2f} on average, {most:.2f} at most (first "
        f"{max(head.tokens for head in heads)} tokens)."
    )


def explanation_blocks(explanation: Explanation) -> Iterator[RenderableType]:
    """Return the tables of a closer look."""
    from rich.text import Text

    if explanation.findings:
        yield _own_table(explanation)
    if explanation.shares:
        yield _share_table(explanation)
    if explanation.unavailable:
        yield Text(explanation.unavailable)
    if explanation.perplexity is not None:
        yield Text(perplexity_line(explanation.perplexity))


def perplexity_line(item: Perplexity) -> str:
    """One sentence about a text."""
    return (
        f"Perplexity of {item.tokens} tokens: {item.candidate:.6g}, PyTorch in float64 {item.reference:.6g}, "
        f"difference {item.difference:+.2g} (PyTorch in the same precision: {item.baseline - item.reference:+.2g})."
    )


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
        colour = "red" if found.failed else "green"
        table.add_row(
            label,
            *(f"{number:.1e}" for number in (split.total, split.inherited, split.own)),
            f"[{colour}]{found.error:.1e}[/]",
            f"{found.gate.limit:.1e}",
            f"{found.scenario}, {found.feeding}",
        )
    return table


def _rows(found: Iterable[Finding], gaps: Iterable[Split]) -> Iterator[tuple[str, Finding, Split]]:
    """Yield label, worst own error and largest split of every row; neighbouring layers share rows if there are many."""
    worst: dict[str, Finding] = {}
    for item in sorted(found, key=lambda item: item.part):
        label = _label(item.part)
        if label not in worst or _used(item) > _used(worst[label]):
            worst[label] = item
    largest: dict[str, Split] = {}
    for gap in gaps:
        label = _label(gap.part)
        if label not in largest or not gap.total <= largest[label].total:
            largest[label] = gap
    for label, item in worst.items():
        yield label, item, largest[label]


def _label(part: Part) -> str:
    if not 0 <= part.layer < part.layers:
        return str(part)
    return band_label(part.layer, part.layers, OWN_KINDS, part.kind)


def _used(item: Finding) -> float:
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
