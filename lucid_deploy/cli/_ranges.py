"""What a range scan found, for people."""

from __future__ import annotations

from typing import Any

_COLUMNS = 8  # layers beside each other at most; with more, one row each


def show_ranges(ranges: dict[str, Any], table: bool) -> None:
    """Print the largest magnitude and the warnings of a manifest's ``ranges``; with ``table``, every layer's."""
    from rich.table import Table

    from lucid_deploy.cli._console import console_out

    if ranges["skipped"]:
        console_out.print("Range scan: skipped; values may overflow float16.", soft_wrap=True)
        return
    peaks = ranges["peaks"]
    if table and len(peaks) <= _COLUMNS:
        shown = Table("tensor", *peaks, title="Largest magnitudes")
        for name in dict.fromkeys(name for row in peaks.values() for name in row):
            shown.add_row(name, *(f"{row[name]:.4g}" if name in row else "" for row in peaks.values()))
        console_out.print(shown)
    elif table:
        shown = Table("", "largest", "tensor", "residual stream", title="Largest magnitudes; all are in lucid.json")
        for layer, row in peaks.items():
            name = max(row, key=lambda key: row[key])
            stream = row.get("residual stream")
            shown.add_row(layer, f"{row[name]:.4g}", name, "" if stream is None else f"{stream:.4g}")
        console_out.print(shown)
    peak, tensor, layer = max((peak, tensor, layer) for layer, row in peaks.items() for tensor, peak in row.items())
    console_out.print(
        f"Range scan over {ranges['prompts']} prompts, {ranges['tokens']} tokens: the largest magnitude is {peak:.4g} "
        f"({layer}, {tensor}); float16 ends at {ranges['limit']:.0f}.",
        soft_wrap=True,
        markup=False,
    )
    for warning in ranges["warnings"]:
        console_out.print(f"Warning: {warning}", soft_wrap=True, markup=False)
