"""Show a verification on an 80-column terminal: verdict, worst case of each tensor, causes, and list of checks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from lucid_deploy.parity import words
from lucid_deploy.parity.causes import Explanation
from lucid_deploy.parity.gate import Comparison
from lucid_deploy.parity.own_errors import WorstOwnError
from lucid_deploy.parity.results import Check, Verification

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

TABLE_LAYERS = 12  # with more layers, each table row shows the worst of several consecutive layers
COLOURS = {"passed": "green", "failed": "red", "not judged": "yellow"}


def render(found: Verification) -> RenderableType:
    """Return a verification as a rich renderable: verdict, sentences, tables, and what was and was not checked."""
    from rich.console import Group
    from rich.text import Text

    verdict = "[bold red]FAILED[/] " if found.failed else "[bold yellow]NOT PROVEN[/] "
    verdict = "[bold green]PASSED[/] " if found.passed else verdict
    first = [Text.from_markup(verdict).append(found.verdict())]
    first += [Text(sentence) for sentence in (found.cause(), words.advice(found)) if sentence]
    checks = map(Text, check_lines(found.checks))
    if not found.comparisons:
        return Group(*first, *checks)
    lines = [
        *words.unjudged_lines(found),
        *words.other_reference_lines(found),
        words.top_token_line(found),
        *map(words.free_run_line, found.free_runs),
        "" if found.text is None else words.text_line(found, found.text),
    ]
    return Group(
        *first,
        Text(words.coverage_line(found)),
        *map(Text, words.legend(found)),
        _worst_table(found),
        *(Text(line) for line in lines if line),
        *([] if found.explanation is None or not found.explanation.findings else [_own_error_table(found.explanation)]),
        *checks,
    )


def check_lines(checks: Sequence[Check]) -> Iterator[str]:
    """Yield a line with the checks that were done and, if any were not, a line with those and the reasons."""
    yield f"Checked: {', '.join(f'{check.name} ({check.outcome})' for check in checks if check.done)}."
    missing: dict[str, list[str]] = {}  # names by reason
    for check in checks:
        if not check.done:
            missing.setdefault(check.detail.rstrip("."), []).append(check.name)
    reasons: dict[str, list[str]] = {}  # reasons by names, so that names with several reasons are listed once
    for reason, names in missing.items():
        reasons.setdefault(", ".join(dict.fromkeys(names)), []).append(reason)
    if reasons:
        parts = (f"{names}: {'. '.join(why)}" for names, why in reasons.items())
        yield f"Not checked: {'; '.join(parts)}."


def _table(title: str, words_first: Sequence[str], numbers: Sequence[str], last: str = "") -> Table:
    """Return an empty table with little padding: text columns, number columns, and a last column that may wrap."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in words_first:
        table.add_column(heading, no_wrap=True)
    for heading in numbers:
        table.add_column(heading, justify="right", no_wrap=True)
    if last:
        table.add_column(last)
    return table


def _worst_table(found: Verification) -> Table:
    title = f"{found.label}, {found.dtype}, against PyTorch in float64: worst case of each tensor"
    table = _table(title, ["layer"], ["max abs", "error", "gate", "of gate", "at"], "token sequence, how it was fed")
    layers = max(item.tensor.layer for item in found.against())  # number of layers, which is the logits' index
    rows: dict[str, Comparison] = {}
    for tensor, item in found.worst_by_tensor().items():
        label = str(tensor) if tensor.is_logits else band_label(tensor.layer, layers, tensor.word)
        if label not in rows or (item.judged, item.severity) > (rows[label].judged, rows[label].severity):
            rows[label] = item
    for label, worst in rows.items():
        metrics = worst.metrics
        numbers = (metrics.max_abs, metrics.worst_position_error, worst.gate.limit)
        table.add_row(
            label,
            *(f"{number:.1e}" for number in numbers),
            f"[{COLOURS[worst.outcome]}]{_percent(worst.severity) if worst.judged else 'unjudged'}[/]",
            str(metrics.worst_position),
            f"{worst.scenario}, {worst.schedule}",
        )
    return table


def band_label(layer: int, layers: int, word: str) -> str:
    """Return a table row's label, such as ``3 K``, or ``4–7 K`` for a range of layers if the model has many."""
    band = math.ceil(layers / TABLE_LAYERS)
    first = layer // band * band
    last = min(first + band, layers) - 1
    number = str(first) if last <= first else f"{first}–{last}"
    return f"{number} {word}"


def _percent(share: float) -> str:
    """Format a share of the gate in at most six characters, such as ``25%``, ``120×`` or ``>1e5×``."""
    return f"{share:.0%}" if share < 10 else f"{share:.0f}×" if share < 1e5 else ">1e5×"


def _own_error_table(explanation: Explanation) -> Table:
    table = _table("Each part on the reference's inputs", ["part"], ["error", "gate"], "token sequence, how it was fed")
    worst: dict[str, WorstOwnError] = {}
    layers = max(item.part.layer for item in explanation.findings)  # number of layers, which is the logits' index
    for item in sorted(explanation.findings, key=lambda item: item.part):
        part = item.part
        label = band_label(part.layer, layers, part.word) if 0 <= part.layer < layers else str(part)
        if label not in worst or _used(item) > _used(worst[label]):
            worst[label] = item
    for label, item in worst.items():
        colour = "red" if item.failed else "green" if item.judged else "yellow"
        numbers = f"[{colour}]{item.error:.1e}[/]", f"{item.gate.limit:.1e}"
        table.add_row(label, *numbers, f"{item.scenario}, {item.feeding}")
    return table


def _used(item: WorstOwnError) -> float:
    return math.inf if math.isnan(item.error) else item.error / item.gate.limit
