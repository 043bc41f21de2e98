"""The report as one page: the verdict first, then what it rests on. Needs no network and runs no script."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from lucid_deploy.parity.causes.explain import Explanation
from lucid_deploy.parity.causes.localise import OWN_KINDS, Split
from lucid_deploy.parity.causes.solve_analysis import EXCESS, NORM_BOUND, TOKENS, HeadStats
from lucid_deploy.parity.measure.compare import KINDS
from lucid_deploy.parity.measure.gate import FACTOR, FLOOR_UNITS, UNIT, Comparison
from lucid_deploy.parity.show.html import Cell, box, figure, folded, page, paragraph, table
from lucid_deploy.parity.show.report import Report
from lucid_deploy.parity.show.svg import Line
from lucid_deploy.parity.show.text import perplexity_line

LINES = 5  # layers in one chart
ROWS = 24  # of a table that are shown without asking


def render_page(report: Report, facts: dict[str, Any]) -> str:
    """Return the page.

    Args:
        report: What the verification found.
        facts: About the artifact: ``artifact``, ``checkpoint``, ``device``, ``provider``, ``model`` (its
            configuration), ``cache``, ``files``, ``bytes``, ``exported_with`` (versions).
    """
    explanation = report.explanation
    sections = [
        ("What was compared", _compared(report, facts)),
        ("Every tensor, at its worst", _tensors(report)),
        ("Error against position", _positions(report)),
        ("Error against layer", _layers(report)),
        ("Own and inherited error", "" if explanation is None else _own(explanation, failed=not report.passed)),
        ("Where errors in Y come from", "" if explanation is None else _shares(report, explanation)),
        ("Conditioning of the solves", _heads(report)),
        ("Tokens and text", _tokens(report)),
        ("All comparisons", _all(report)),
    ]
    return page(f"Verification of {facts['artifact']}", _lead(report), sections)


def _lead(report: Report) -> str:
    parts = []
    if report.tolerance is not None:
        parts.append(box("note", "A tolerance was set by hand.", _tolerance(report)))
    if report.passed:
        parts.append(box("passed", "Passed", report.verdict()))
    else:
        parts.append(box("failed", "Failed", report.verdict(), report.cause(), report.advice()))
    if report.passed and report.cause():
        parts.append(box("note", "Worth a look.", report.cause()))
    return "".join(parts)


def _tolerance(report: Report) -> str:
    derived = "They would have held." if report.within_derived else "By them this artifact would have failed."
    return (
        f"Every position may err by {report.tolerance:g} of its norm, in place of the gates that are derived from "
        f"PyTorch in the same precision. {derived}"
    )


def _compared(report: Report, facts: dict[str, Any]) -> str:
    model, versions = facts["model"], report.environment["versions"]
    shape = (
        f"{model['num_hidden_layers']} layers, {model['num_attention_heads']} heads, {model['num_key_value_heads']} "
        f"key/value heads of width {model['head_dim']}, hidden {model['hidden_size']}, vocabulary {model['vocab_size']}"
    )
    machine = report.environment["machine"]
    rows = [
        ("Artifact", f"{facts['artifact']} ({facts['files']} files, {facts['bytes']:,} bytes, sha256 of each checked)"),
        ("Checkpoint", str(facts["checkpoint"])),
        ("Model", f"{model['attention_type']}: {shape}"),
        ("Runs in", f"{report.label}, {report.dtype}, cache {facts['cache']}, device {facts['device']}"),
        ("Held against", "the PyTorch model in float64 on the CPU"),
        ("Exported with", ", ".join(f"{name} {version}" for name, version in facts["exported_with"].items())),
        ("Verified with", ", ".join(f"{name} {version}" for name, version in versions.items())),
        ("Machine", f"{machine['system']}, {machine['processor']}, {machine['cpus']} processors"),
        ("Seed of the tokens", str(report.seed)),
        ("Gates", _gates(report)),
        *(("Quantization", line.strip()) for line in report.quantization_lines()),
    ]
    sequences = [(s.name, str(s.prompt_tokens), str(s.decode_steps)) for s in report.scenarios]
    return table("Facts", [], [(name, Cell(text, "wide")) for name, text in rows], texts=2) + table(
        "Token sequences", ["sequence", "prompt tokens", "decode steps"], sequences
    )


def _gates(report: Report) -> str:
    if report.tolerance is not None:
        return f"set by hand: {report.tolerance:g} at every position of every tensor"
    return (
        f"derived: {FACTOR:g} times the largest error that PyTorch makes in {report.dtype} against float64, per tensor "
        f"and token sequence, but at least {FLOOR_UNITS * UNIT[report.dtype]:.1e} ({FLOOR_UNITS:g} units in the last "
        "place)"
    )


def _tensors(report: Report) -> str:
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
    heads = ["tensor", "where", "max abs", "rel. L2", "worst position", "at", "gate", "of gate", "exponent", "ratio"]
    remark = (
        "Relative L2 error. Exponent: the error grows along the sequence as position^exponent. Ratio: mean of the last "
        "quarter of the positions over the first."
    )
    return table("Worst case of each tensor", heads, rows, remark, texts=2)


def _positions(report: Report) -> str:
    charts, worst = [], report.worst_by_tensor(along_positions=True)
    for kind in KINDS:
        items = [item for tensor, item in worst.items() if KINDS[tensor.kind] == kind]
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
        described = f"Relative L2 error of {kind} at every position, each in the run where it is worst. {_grows(items)}"
        charts.append(
            figure(f"position{kind}", f"{kind} against position", described, "position in the sequence", lines)
        )
    return "".join(charts)


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
    named = {"narrowest of their gates": min(limits, default=math.nan), "widest": max(limits, default=math.nan)}
    if len(set(limits)) == 1:
        named = {"gate": limits[0]}
    return [Line(name, [(min(ends), limit), (max(ends), limit)], 5, reference=True) for name, limit in named.items()]


def _grows(items: Sequence[Comparison]) -> str:
    trends = [(item.growth, item) for item in items]
    fitted = [(trend, item) for trend, item in trends if trend is not None]
    if not fitted:
        return ""
    trend, item = max(fitted, key=lambda pair: pair[0].exponent)
    verb = "It grows" if trend.grows else "It does not grow"
    return (
        f"{verb} along the sequence: at most as position^{trend.exponent:.2f}, the last quarter {trend.ratio:.1f} "
        f"times the first ({item.tensor})."
    )


def _layers(report: Report) -> str:
    lines = []
    for style, kind in enumerate(("K", "Y")):
        items = [item for tensor, item in report.worst_by_tensor().items() if KINDS[tensor.kind] == kind]
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


def _own(explanation: Explanation, failed: bool) -> str:
    if explanation.unavailable is not None:
        return paragraph(explanation.unavailable)
    if not explanation.findings:
        return ""
    about = (
        "Every layer was run on the float64 reference's own inputs. What it gets wrong then is its own error; what "
        "changes when it reads the candidate's earlier layers instead is inherited. "
    )
    return (
        paragraph(about + (explanation.sentence(failed) or "Every part stays within its gate."))
        + "".join(_own_charts(explanation))
        + _own_table(explanation)
    )


def _own_charts(explanation: Explanation) -> Iterator[str]:
    name = explanation.scenarios[0]
    for kind, label in enumerate(OWN_KINDS):
        gaps = [s for s in explanation.splits if s.scenario == name and s.part.kind == kind and s.part.layer >= 0]
        gaps = [s for s in gaps if s.part.layer < s.part.layers]
        lines = [
            Line(what, [(g.part.layer, getattr(g, what)) for g in gaps], style, marks=True, broad=what == "total")
            for style, what in enumerate(("total", "inherited", "own"))
        ]
        described = f"Norm of the error over the reference's norm, all positions of one prefill of “{name}” together."
        yield figure(f"own{label}", f"{label}: own and inherited error", described, "layer", lines)


def _own_table(explanation: Explanation) -> str:
    gaps = {(gap.scenario, gap.part): gap for gap in explanation.splits}
    rows = []
    for item in sorted(explanation.findings, key=lambda item: item.part):
        gap: Split = gaps[item.scenario, item.part]
        rows.append(
            (
                str(item.part),
                item.scenario,
                item.feeding,
                f"{gap.total:.1e}",
                f"{gap.inherited:.1e}",
                f"{gap.own:.1e}",
                Cell(f"{item.error:.1e}" + (" beyond" if item.failed else ""), "bad" if item.failed else "ok"),
                str(item.position),
                f"{item.gate.limit:.1e}",
            )
        )
    heads = ["part", "sequence", "worst when fed by", "total", "inherited", "own", "worst own", "at", "gate"]
    remark = (
        "Total, inherited and own: all positions of one prefill together. Worst own: one position, in any way of "
        "feeding; its gate is derived from PyTorch in the same precision, run on the same inputs."
    )
    whole = table("Own errors of all parts", heads, rows, remark, texts=3)
    return whole if len(rows) <= 2 * ROWS else folded(f"All {len(rows)} own errors", whole)


def _shares(report: Report, explanation: Explanation) -> str:
    if explanation.unavailable is not None or not explanation.findings:
        return ""
    if not explanation.shares:
        return paragraph("Standard attention solves nothing: Y is V.")
    rows = [
        (
            f"layer {item.layer}",
            item.feeding,
            f"{item.total:.1e}",
            f"{item.keys:.1e}",
            f"{item.values:.1e}",
            f"{item.inputs_share:.0%}",
            f"{item.e_share:.0%}",
            f"{item.y_share:.0%}",
            f"{item.unexplained_share:.0%}",
            f"{item.solve:.1e}",
            Cell(f"{item.excess:.1f}", "ok" if item.excess <= EXCESS else "bad"),
        )
        for item in explanation.shares
    ]
    heads = [
        "layer",
        "fed",
        "error in Y",
        "by K alone",
        "by V alone",
        "K and V",
        "E",
        "Y",
        "unexplained",
        "solve adds",
        "of rounding",
    ]
    about = (
        f"Exact solves in float64 (first {TOKENS} tokens of “{explanation.scenarios[0]}”) with one factor at a time "
        "replaced. K and V: what the candidate's rounded or inherited inputs cost. E: scores and exponentials in "
        "float32. Y: storing it rounded and reading it again. The last column holds what the solve adds against what "
        f"rounding of E and Y explains; beyond {EXCESS:g} the solve itself is wrong."
    )
    return paragraph(about) + table("Shares of the error in Y", heads, rows, texts=2)


def _heads(report: Report) -> str:
    if not report.heads:
        return paragraph("Standard attention solves nothing, so there is nothing to condition.")
    tokens = max(head.tokens for head in report.heads)
    about = (
        f"From the float64 reference, first {tokens} tokens. ‖L⁻¹‖₂ is at most {NORM_BOUND:g} for any keys, so errors "
        "grow by no more than that in one solve; keys that resemble each other bring L nearer to that bound."
    )
    ordered = sorted(report.heads, key=lambda head: -head.condition)
    top, rest = ordered[:ROWS], ordered[ROWS:]
    shown = _head_table("Key/value heads, worst conditioned first", top)
    return paragraph(about) + shown + (folded(f"{len(rest)} more", _head_table("The others", rest)) if rest else "")


def _head_table(caption: str, heads: Sequence[HeadStats]) -> str:
    titles = ["head", "sequence", "largest |L⁻¹|", "‖L⁻¹‖₂", "‖L⁻¹‖∞", "cond L", "mean corr.", "max corr."]
    rows = [
        (
            f"layer {head.layer}, head {head.head}",
            head.scenario,
            f"{head.largest_inverse:.3f}",
            Cell(f"{head.inverse_norm:.3f}", "ok" if head.inverse_norm <= NORM_BOUND else "bad"),
            f"{head.inverse_row_sum:.2f}",
            f"{head.condition:.1f}",
            f"{head.correlation_mean:.3f}",
            f"{head.correlation_max:.3f}",
        )
        for head in heads
    ]
    remark = "Largest |L⁻¹|: off the diagonal. Correlation: of normalised keys of different tokens."
    return table(caption, titles, rows, remark, texts=2)


def _tokens(report: Report) -> str:
    items = [item.logits for item in report.comparisons if item.logits is not None]
    positions, agreed = sum(item.positions for item in items), sum(item.agreed for item in items)
    lines = [f"The most likely token is the reference's at {agreed} of {positions} positions."]
    lines += [
        f"Generating freely ({run.scenario}), {run.agreed} of {run.tokens} tokens are the reference's before the first "
        "other one."
        for run in report.free_runs
    ]
    if report.explanation is not None and report.explanation.perplexity is not None:
        lines.append(perplexity_line(report.explanation.perplexity))
    rows = [
        (
            f"{comparison.scenario}, {comparison.schedule}",
            str(item.position),
            str(item.wanted),
            str(item.chosen),
            f"{item.margin:.3g}",
            f"{item.allowed:.3g}",
            Cell("near-tie", "ok") if item.near_tie else Cell("real", "bad"),
        )
        for comparison, item in report.divergences()
    ]
    heads = ["run", "position", "reference's token", "candidate's", "margin", "may flip below", "class"]
    shown = table("Other tokens than the reference's", heads, rows[:ROWS]) if rows else ""
    rest = folded(f"{len(rows) - ROWS} more", table("The others", heads, rows[ROWS:])) if len(rows) > ROWS else ""
    return "".join(map(paragraph, lines)) + shown + rest


def _all(report: Report) -> str:
    rows = [
        (
            str(item.tensor),
            f"{item.scenario}, {item.schedule}",
            f"{item.metrics.relative_l2:.1e}",
            f"{item.metrics.worst_position_error:.1e}",
            f"{item.gate.baseline:.1e}",
            f"{item.gate.limit:.1e}",
            _used(item),
        )
        for item in report.comparisons
    ]
    heads = ["tensor", "run", "rel. L2", "worst position", "PyTorch's worst", "gate", "of gate"]
    return folded(f"All {len(rows)} comparisons", table("All comparisons", heads, rows, texts=2))


def _used(item: Comparison) -> Cell:
    share = f"{item.severity:.0%}" if item.severity < 10 else f"{item.severity:.3g}×"
    return Cell(share, "ok" if item.failed_at is None else "bad")
