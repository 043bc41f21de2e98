"""Whether the models rank the solve's and decoding's candidates as a GPU does: what ``gpu_check.py`` measures of that.

Both numbers of a candidate are for the same work: modelled cycles, of the solve for 1024 elements of E and of decoding
for 1024 tokens, and milliseconds of one solve or of one token. Their order is compared, not their size.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

# What the model says of a kernel's candidates for an architecture, type and padded width: constants and cycles, None:
# unknown.
Model = Callable[[str, int, str, int], Iterable[tuple[Any, float | None]]]
SHAPES = ({"kernel": "solve", "heads": 16, "tokens": 8192}, {"kernel": "decode", "heads": 8, "tokens": 32768})
OPERATORS = {"solve": "precondition", "decode": "decode_attention"}


def modelled(kernel: str, capability: int, dtype: str, width: int) -> list[tuple[Any, float | None]]:
    """Return what the model says, of the newest architecture it knows up to the GPU's."""
    from lucid_deploy.plugins.hosts.triton.aot import ARCHITECTURES
    from tools.gpu.model_choice import model

    arch = max(each for each in ARCHITECTURES if each <= capability)
    return [(each.choice, each.cycles) for each in model(OPERATORS[kernel], arch, dtype, width)]


def problems(quick: bool) -> list[dict[str, Any]]:
    """Return the shapes whose candidates are ranked."""
    pairs = [("bfloat16", 128)] if quick else itertools.product(("float32", "float16", "bfloat16"), (64, 128))
    return [{**shape, "dtype": dtype, "width": width} for shape, (dtype, width) in itertools.product(SHAPES, pairs)]


def rank(
    model: Sequence[tuple[Any, float | None]], measure: Callable[[Any], float]
) -> tuple[list[dict[str, Any]], float | None]:
    """Measure every candidate that the model knows.

    Args:
        model: Constants and cycles.
        measure: Milliseconds with given constants; raises RuntimeError where they do not fit the device.

    Returns:
        One row for each candidate, the best by the model first, and Spearman's rank correlation of cycles and times;
        None where fewer than three were measured or all of one kind are equal.
    """
    rows = []
    for choice, cycles in sorted(model, key=lambda each: (each[1] is None, each[1] or 0.0)):
        row: dict[str, Any] = {"constants": vars(choice), "cycles": cycles}
        try:
            row["milliseconds"] = measure(choice)
        except RuntimeError as error:  # Triton's "out of resources" is one
            row["error"] = str(error)
        rows.append(row)
    both = [(row["cycles"], row["milliseconds"]) for row in rows if row["cycles"] is not None and "milliseconds" in row]
    return rows, correlation(*map(list, zip(*both, strict=True))) if len(both) > 2 else None


def correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Return Spearman's rank correlation: 1 for the same order, -1 for the opposite; None if all of one are equal."""
    if len(set(first)) < 2 or len(set(second)) < 2:
        return None
    return statistics.correlation(_ranks(first), _ranks(second))


def _ranks(values: Sequence[float]) -> list[float]:
    """Return the place of each value in ascending order, equal ones sharing the mean of theirs."""
    return [sum(other < value for other in values) + (values.count(value) - 1) / 2 for value in values]


def render(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return lines of Markdown: the model's order beside the measured one."""
    if not rows:
        return []
    titles = ("kernel", "dtype", "width", "tile", "warps", "stages", "chunk", "modelled cycles", "ms", "place measured")
    lines = ["", "## The model's ranking", "", "| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    for row in rows:
        times = [each["milliseconds"] for each in row["candidates"] if "milliseconds" in each]
        for each in row["candidates"]:
            constants, time = each["constants"], each.get("milliseconds")
            cycles = "unknown" if each["cycles"] is None else f"{each['cycles']:.0f}"
            place = 0 if time is None else 1 + sum(other < time for other in times)
            measured = (each.get("error", ""), "") if time is None else (f"{time:.3f}", place)
            size = (constants["block_m"], constants["block_n"]) if constants["block_m"] else (constants["block_n"],)
            tile = " × ".join(map(str, size)) + (", int8" if constants["int8"] else "")
            rest = (constants["num_warps"], constants["num_stages"], constants["chunk"] or "all", cycles, *measured)
            lines.append("| " + " | ".join(map(str, (row["kernel"], row["dtype"], row["width"], tile, *rest))) + " |")
    lines += ["", "Rank correlation of modelled cycles and measured times, 1 for the same order:", ""]
    for row in rows:
        value = "unknown" if row["correlation"] is None else f"{row['correlation']:.2f}"
        lines.append(f"- {row['kernel']}, {row['dtype']}, width {row['width']}: {value}")
    return lines
