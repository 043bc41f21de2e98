"""The report as one page: the verdict first, then what it rests on. Needs no network and runs no script."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from lucid_deploy.parity.measure.gate import FACTOR, FLOOR_UNITS, UNIT
from lucid_deploy.parity.show import page_causes, page_tensors, words
from lucid_deploy.parity.show.blocks import Block, Callout, Cell, Paragraph, Section, table
from lucid_deploy.parity.show.checks import FAILED, PASSED, Check
from lucid_deploy.parity.show.report import Report

TEMPLATES = Path(__file__).parent / "templates"
KINDS = {PASSED: "ok", FAILED: "bad"}  # the style of an outcome; others are neither


def render_page(report: Report, facts: dict[str, Any]) -> str:
    """Return the page.

    Args:
        report: What the verification found.
        facts: About the artifact, as in :class:`~lucid_deploy.parity.verification.Verification`.
    """
    sections = [
        Section("What was checked", [_checks(report.checks)]),
        Section("What was compared", _compared(report, facts)),
        *page_tensors.sections(report),
        *page_causes.sections(report),
        *page_tensors.details(report),
    ]
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            title=f"Verification of {facts['artifact']}",
            coverage=words.coverage_line(report),
            boxes=list(_boxes(report)),
            sections=[section for section in sections if section.blocks],
        )
    )


def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _boxes(report: Report) -> Iterator[Callout]:
    if report.tolerance is not None:
        yield Callout("note", "A tolerance was set by hand.", [_tolerance(report)])
    if report.passed:
        yield Callout("passed", "Passed", [report.verdict()])
    else:
        yield Callout("failed", "Failed", [report.verdict(), report.cause(), report.advice()])
    if report.passed and report.cause():
        yield Callout("note", "Worth a look.", [report.cause()])
    unjudged = list(words.unjudged_lines(report)) if report.coverage.unjudged else []
    if unjudged:
        yield Callout("note", "Not everything could be judged.", unjudged)
    if report.left_out:
        yield Callout("note", "Parts of a whole verification were left out.", report.left_out)


def _tolerance(report: Report) -> str:
    derived = (
        "With those gates it would have passed." if report.within_derived else "With those gates it would have failed."
    )
    return (
        f"Every position may err by {report.tolerance:g} of its norm, in place of the gates that are derived from "
        f"PyTorch in the same precision. {derived}"
    )


def _checks(checks: Sequence[Check]) -> Block:
    rows = [(item.name, Cell(item.outcome, KINDS.get(item.outcome, "")), Cell(item.detail, "wide")) for item in checks]
    remark = "Reported: measured, and left to the reader to judge. Not done: the last column says why."
    return table("Every check, made or not", ["check", "outcome", "what was found"], rows, remark, texts=3)


def _compared(report: Report, facts: dict[str, Any]) -> list[Block]:
    model, versions = facts["model"], report.environment["versions"]
    shape = (
        f"{model['num_attention_heads']} heads, {model['num_key_value_heads']} "
        f"key/value heads of width {model['head_dim']}, hidden {model['hidden_size']}, vocabulary {model['vocab_size']}"
    )
    machine = report.environment["machine"]
    rows = [
        ("Artifact", f"{facts['artifact']} ({facts['files']} files, {facts['bytes']:,} bytes)"),
        ("Checkpoint", str(facts["checkpoint"])),
        ("Model", f"{facts['summary']}; {shape}"),
        ("Runs in", f"{report.label}, {report.dtype}, cache {facts['cache']}, device {facts['device']}"),
        ("Held against", f"{report.reference.words}, on the CPU"),
        *(("And against", reference.words) for reference in report.outside),
        ("Exported with", ", ".join(f"{name} {version}" for name, version in facts["exported_with"].items())),
        ("Verified with", ", ".join(f"{name} {version}" for name, version in versions.items())),
        ("Machine", f"{machine['system']}, {machine['processor']}, {machine['cpus']} processors"),
        ("Seed of the tokens", str(report.seed)),
        ("Gates", _gates(report)),
    ]
    sequences = [(s.name, str(s.prompt_tokens), str(s.decode_steps)) for s in report.scenarios]
    return [
        table("Facts", [], [(name, Cell(text, "wide")) for name, text in rows], texts=2),
        table("Token sequences", ["sequence", "prompt tokens", "decode steps"], sequences),
        *map(Paragraph, report.quantization_lines()),
    ]


def _gates(report: Report) -> str:
    if report.tolerance is not None:
        return f"set by hand: {report.tolerance:g} at every position of every tensor"
    return (
        f"derived: {FACTOR:g} times the largest error that PyTorch makes in {report.dtype} against float64, per tensor "
        f"and token sequence, but at least {FLOOR_UNITS * UNIT[report.dtype]:.1e} ({FLOOR_UNITS:g} units in the last "
        "place)"
    )
