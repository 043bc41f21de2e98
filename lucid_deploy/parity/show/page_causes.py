"""The page's parts about where errors come from: own and inherited, the solve, its conditioning."""

from __future__ import annotations

from collections.abc import Sequence

from lucid_deploy.parity.causes.conditioning import NORM_BOUND, HeadStats
from lucid_deploy.parity.causes.explanation import Explanation
from lucid_deploy.parity.causes.localise import OWN_KINDS, WorstOwnError
from lucid_deploy.parity.causes.solve_analysis import EXCESS, TOKENS
from lucid_deploy.parity.show.blocks import Block, Cell, FoldedBlocks, Paragraph, Section, figure, table
from lucid_deploy.parity.show.report import Report
from lucid_deploy.parity.show.svg import Line

ROWS = 24  # of a table that are shown without asking
STANDARD = "Standard attention has no preconditioner; the cached values are V."


def sections(report: Report) -> list[Section]:
    """Return the sections; without an explanation, the conditioning alone."""
    found = report.explanation
    return [
        Section("Own and inherited error", [] if found is None else _own(found, failed=not report.passed)),
        Section("Where errors in Y come from", [] if found is None else _shares(found)),
        Section("Conditioning of the solves", _heads(report)),
    ]


def _own(explanation: Explanation, failed: bool) -> list[Block]:
    if explanation.unavailable is not None:
        return [Paragraph(explanation.unavailable)]
    if not explanation.findings:
        return []
    about = (
        "Every layer was run on the float64 reference's own inputs. What it gets wrong then is its own error; what "
        "changes when it reads the candidate's earlier layers instead is inherited. "
    )
    sentence = explanation.sentence(failed) or "Every part stays within its gate."
    return [Paragraph(about + sentence), *_own_charts(explanation), _own_table(explanation)]


def _own_charts(explanation: Explanation) -> list[Block]:
    blocks: list[Block] = []
    name = explanation.scenarios[0]
    for kind, label in enumerate(OWN_KINDS):
        gaps = [s for s in explanation.splits if s.scenario == name and s.part.kind == kind and s.part.layer >= 0]
        gaps = [s for s in gaps if s.part.layer < s.part.layers]
        lines = [
            Line(what, [(g.part.layer, getattr(g, what)) for g in gaps], style, marks=True, broad=what == "total")
            for style, what in enumerate(("total", "inherited", "own"))
        ]
        described = f"Norm of the error over the reference's norm, all positions of one prefill of “{name}” together."
        blocks += figure(f"own{label}", f"{label}: own and inherited error", described, "layer", lines)
    return blocks


def _own_table(explanation: Explanation) -> Block:
    gaps = {(gap.scenario, gap.part): gap for gap in explanation.splits}
    rows = []
    for item in sorted(explanation.findings, key=lambda item: item.part):
        gap = gaps[item.scenario, item.part]
        rows.append(
            (
                str(item.part),
                item.scenario,
                item.feeding,
                f"{gap.total:.1e}",
                f"{gap.inherited:.1e}",
                f"{gap.own:.1e}",
                _worst(item),
                str(item.position),
                f"{item.gate.limit:.1e}",
            )
        )
    heads = [
        "part",
        "sequence",
        "worst when fed by",
        "total error",
        "inherited",
        "own",
        "own, worst position",
        "that position",
        "gate",
    ]
    remark = (
        "Total, inherited and own: all positions of one prefill together. Worst position: one position, in any way of "
        "feeding; its gate is derived from PyTorch in the same precision, run on the same inputs."
    )
    whole = table("Own errors of all parts", heads, rows, remark, texts=3)
    return whole if len(rows) <= 2 * ROWS else FoldedBlocks(f"All {len(rows)} own errors", [whole])


def _worst(item: WorstOwnError) -> Cell:
    number = f"{item.error:.1e}"
    if item.failed:
        return Cell(f"{number} beyond", "bad")
    return Cell(number, "ok") if item.judged else Cell(f"{number} not judged", "unsure")


def _shares(explanation: Explanation) -> list[Block]:
    if explanation.unavailable is not None or not explanation.findings:
        return []
    if not explanation.shares:
        return [Paragraph(STANDARD)]
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
        "share of K and V",
        "of E",
        "of Y",
        "unexplained",
        "solve adds",
        "times its rounding",
    ]
    about = (
        f"Exact solves in float64 (first {TOKENS} tokens of “{explanation.scenarios[0]}”) with one factor at a time "
        "replaced. K and V: what the candidate's rounded or inherited inputs cost. E: scores and exponentials in "
        "float32. Y: storing it rounded and reading it again. The last column holds what the solve adds against what "
        f"rounding of E and Y explains; beyond {EXCESS:g} the solve itself is wrong."
    )
    return [Paragraph(about), table("Shares of the error in Y", heads, rows, texts=2)]


def _heads(report: Report) -> list[Block]:
    if not report.heads:
        return [Paragraph(STANDARD)]
    tokens = max(head.tokens for head in report.heads)
    about = (
        f"From the float64 reference, first {tokens} tokens. ‖L⁻¹‖₂ is at most {NORM_BOUND:g} for any keys, so errors "
        "grow by no more than that in one solve; keys that resemble each other bring L nearer to that bound."
    )
    ordered = sorted(report.heads, key=lambda head: -head.condition)
    top, rest = ordered[:ROWS], ordered[ROWS:]
    blocks: list[Block] = [Paragraph(about), _head_table("Key/value heads, worst conditioned first", top)]
    return [*blocks, FoldedBlocks(f"{len(rest)} more", [_head_table("The others", rest)])] if rest else blocks


def _head_table(caption: str, heads: Sequence[HeadStats]) -> Block:
    titles = [
        "head",
        "sequence",
        "largest |L⁻¹|",
        "‖L⁻¹‖₂",
        "‖L⁻¹‖∞",
        "condition of L",
        "mean correlation",
        "largest correlation",
    ]
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
