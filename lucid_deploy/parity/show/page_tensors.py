"""The page's parts about what was compared: tensors, positions, layers, tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lucid_deploy.parity.measure.compare import KINDS
from lucid_deploy.parity.measure.gate import Comparison
from lucid_deploy.parity.show import words
from lucid_deploy.parity.show.blocks import Block, Cell, FoldedBlocks, Paragraph, Section, figure, table
from lucid_deploy.parity.show.data import divergence_class
from lucid_deploy.parity.show.report import Report
from lucid_deploy.parity.show.svg import Line

LINES = 5  # layers in one chart
ROWS = 24  # of a table that are shown without asking
STYLES = {"passed": "ok", "failed": "bad", "not judged": "unsure"}
CLASSES = {"near-tie": "ok", "real": "bad", "not judged": "unsure"}


def sections(report: Report) -> list[Section]:
    """Return what belongs before the causes."""
    return [
        Section("Every tensor, at its worst", [_tensors(report)]),
        Section("Error against position", _positions(report)),
        Section("Error against layer", _layers(report)),
    ]


def details(report: Report) -> list[Section]:
    """Return what belongs behind them."""
    return [Section("Tokens and text", _tokens(report)), Section("All comparisons", [_all(report)])]


def _tensors(report: Report) -> Block:
    rows = []
    for tensor, item in report.worst_by_tensor().items():
        metrics, trend = item.metrics, item.growth
        rows.append(
            (
                str(tensor),
                f"{item.scenario}, {item.schedule}",
                f"{metrics.max_abs:.1e}",
                f"{metrics.relative_l2:.1e}",
                f"{metrics.worst_position_error:.1e}",
                str(metrics.worst_position),
                f"{item.gate.limit:.1e}",
                _used(item),
                "" if trend is None else f"{trend.exponent:+.2f}",
                "" if trend is None else f"{trend.ratio:.1f}",
            )
        )
    heads = [
        "tensor",
        "sequence, fed how",
        "largest absolute error",
        "relative error, all positions",
        "relative error, worst position",
        "that position",
        "gate",
        "used of the gate",
        "grows as position^…",
        "last quarter over first",
    ]
    remark = (
        "Relative errors are L2 norms. The gate holds at every position. The last two columns say how the error "
        "changes along the sequence: the exponent of a fit, and the mean error over the last quarter of positions "
        "divided by that over the first quarter."
    )
    return table("Worst case of each tensor", heads, rows, remark, texts=2)


def _positions(report: Report) -> list[Block]:
    blocks: list[Block] = []
    worst = report.worst_by_tensor(along_positions=True)
    for kind in dict.fromkeys((*KINDS, *(tensor.word for tensor in worst))):
        items = [item for tensor, item in worst.items() if tensor.word == kind]
        chosen = _chosen(items)
        lines = [
            Line(
                f"{item.tensor} ({item.scenario}, {item.schedule})",
                list(enumerate(item.errors.tolist(), item.start)),
                index,
            )
            for index, item in enumerate(chosen)
        ]
        lines += _limits([item.gate.limit for item in chosen], lines)
        described = (
            f"Relative L2 error of {kind} at every position, each in the run where it is worst; lower is better. "
            f"{words.growth_line(items)}"
        )
        title = f"{kind} against position"
        blocks += figure(f"position{kind}", title, described.rstrip(), "position in the sequence", lines)
    return blocks


def _chosen(items: Sequence[Comparison]) -> list[Comparison]:
    """Return at most ``LINES`` layers: evenly spread, first and last included, and the one nearest to its gate."""
    if len(items) <= LINES:
        return list(items)
    count = LINES - 1
    places = {round(index * (len(items) - 1) / (count - 1)) for index in range(count)}
    places.add(max(range(len(items)), key=lambda index: items[index].severity))
    return [items[index] for index in sorted(places)]


def _limits(limits: Sequence[float], lines: Sequence[Line]) -> list[Line]:
    """Return the gate of all lines, or between which gates theirs lie: each has its own."""
    ends = [x for line in lines for x, _ in line.points] or [0]
    named = {
        "the narrowest of their gates": min(limits, default=math.nan),
        "the widest": max(limits, default=math.nan),
    }
    if len(set(limits)) == 1:
        named = {"gate": limits[0]}
    return [Line(name, [(min(ends), limit), (max(ends), limit)], 5, reference=True) for name, limit in named.items()]


def _layers(report: Report) -> list[Block]:
    lines = []
    for style, kind in enumerate(("K", "Y")):
        items = [item for tensor, item in report.worst_by_tensor().items() if tensor.word == kind]
        errors = [(item.tensor.layer, item.metrics.worst_position_error) for item in items]
        gates = [(item.tensor.layer, item.gate.limit) for item in items]
        lines += [
            Line(f"{kind}, worst position", errors, style, marks=True),
            Line(f"{kind}, gate", gates, style, reference=True),
        ]
    described = (
        "The largest relative L2 error of any position, in the run that comes nearest to its gate, and that gate."
    )
    return figure("layers", "Errors and gates", described, "layer", lines)


def _tokens(report: Report) -> list[Block]:
    lines = [*words.outside_lines(report), words.top_token_line(report), *map(words.free_run_line, report.free_runs)]
    if report.explanation is not None and report.explanation.perplexity is not None:
        lines.append(words.perplexity_line(report.explanation.perplexity))
    rows = []
    for comparison, item in report.divergences():
        name = divergence_class(comparison, item)
        rows.append(
            (
                comparison.where,
                str(item.position),
                str(item.wanted),
                str(item.chosen),
                f"{item.margin:.3g}",
                f"{item.allowed:.3g}",
                Cell(name, CLASSES[name]),
            )
        )
    heads = ["run", "position", "reference's token", "candidate's", "margin", "may flip below", "class"]
    blocks: list[Block] = [Paragraph(line) for line in lines]
    if rows:
        blocks.append(table("Other tokens than the reference's", heads, rows[:ROWS]))
    if len(rows) > ROWS:
        blocks.append(FoldedBlocks(f"{len(rows) - ROWS} more", [table("The others", heads, rows[ROWS:])]))
    return blocks


def _all(report: Report) -> Block:
    rows = [
        (
            str(item.tensor),
            item.where,
            f"{item.metrics.relative_l2:.1e}",
            f"{item.metrics.worst_position_error:.1e}",
            f"{item.gate.baseline:.1e}",
            f"{item.gate.limit:.1e}",
            _used(item),
        )
        for item in report.comparisons
    ]
    heads = [
        "tensor",
        "sequence, fed how",
        "relative error, all positions",
        "relative error, worst position",
        "PyTorch's worst",
        "gate",
        "used of the gate",
    ]
    return FoldedBlocks(f"All {len(rows)} comparisons", [table("All comparisons", heads, rows, texts=2)])


def _used(item: Comparison) -> Cell:
    if item.outcome == "not judged":
        return Cell(item.outcome, STYLES[item.outcome])
    share = f"{item.severity:.0%}" if item.severity < 10 else f"{item.severity:.3g}×"
    return Cell(share, STYLES[item.outcome])
