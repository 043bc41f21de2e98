"""How wrong logits become along a text when K and Y are cached in 4 bits, by how scales are shared, or in FP8.

Y of every token is computed from the rounded K and Y of the tokens before it, so errors could pile up. The bundled
model reads its task's lists one after the other, whose keys resemble each other. Every way of storing is a row of one
batch, the first of which stores float32; after each chunk the new rows of K and Y are rounded as the way says. Tokens
of one chunk see each other as computed, as in a session. Whole numbers are −7 to 7 (int8: −127 to 127; fp8: numbers of
E4M3 to 448), and a scale is the largest magnitude over 7 of

* ``row``: a token and head,
* ``16``: 16 neighbouring channels of it,
* ``channel``: a channel of a head, over the tokens of the chunk.

The error at a position is ‖difference‖ / ‖float32's logits‖. Results are written after every part of the text, each of
which is twice as long as the last; contexts beyond those of training show how numbers behave, not how good answers are.

    python benchmarks/int4_cache.py --length 32768
"""

from __future__ import annotations

import time
from typing import Any

import click
import numpy as np
import torch
from common import write_result
from position_error import text_of

from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.cache.codecs import Float8Codec
from lucid_deploy.model.checkpoint import DEMO, Checkpoint, load_model, resolve
from lucid_deploy.parity.metrics import kl_divergence, position_errors

# name: (bits and scales of K, those of Y); None: float32
Way = tuple[int | str, str] | None
WAYS: dict[str, tuple[Way, Way]] = {
    "float32": (None, None),
    "int8, row": ((8, "row"), (8, "row")),
    "fp8 K, row": (("e4m3", "row"), None),
    "fp8 Y, row": (None, ("e4m3", "row")),
    "fp8, row": (("e4m3", "row"), ("e4m3", "row")),
    "int4 K, row": ((4, "row"), None),
    "int4 Y, row": (None, (4, "row")),
    "int4, row": ((4, "row"), (4, "row")),
    "int4 K, 16": ((4, "16"), None),
    "int4 Y, 16": (None, (4, "16")),
    "int4, 16": ((4, "16"), (4, "16")),
    "int4 K, channel": ((4, "channel"), None),
    "int4 K channel, Y 16": ((4, "channel"), (4, "16")),
}


def stored(rows: torch.Tensor, way: Way) -> torch.Tensor:
    """Return what is read back of new rows ``(KV, N, D)``."""
    if way is None:
        return rows
    bits, shared = way
    if not isinstance(bits, int):
        codec = Float8Codec()
        return codec.decode(codec.encode(rows, rows), rows.dtype)[0]
    most = (1 << (bits - 1)) - 1
    grouped = rows.unflatten(-1, (-1, 16)) if shared == "16" else rows
    largest = grouped.abs().amax(dim=-2 if shared == "channel" else -1, keepdim=True)
    scale = (largest / most).clamp(min=1e-30)
    return ((grouped / scale).round() * scale).reshape(rows.shape)


class Parts:
    """Collects errors, and sums them up for parts of the text that double in length."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.facts: list[dict[str, Any]] = []
        self._begin = 0
        self._found: list[tuple[np.ndarray, ...]] = []

    def add(self, logits: torch.Tensor) -> None:
        """Take the logits of a chunk, ``(ways, N, vocab)``."""
        right = logits[:1].double().numpy()
        other = logits[1:].double().numpy()
        errors = np.stack([position_errors(each[None], right) for each in other])  # (ways − 1, N)
        same = other.argmax(-1) == right.argmax(-1)
        self._found.append((errors, kl_divergence(other, right), same))

    def close(self, end: int) -> None:
        """End a part before position ``end``."""
        errors, divergence, same = (np.concatenate(each, axis=1) for each in zip(*self._found, strict=True))
        facts = {
            name: {
                "error_median": float(np.median(errors[index])),
                "error_p99": float(np.quantile(errors[index], 0.99)),
                "kl_mean": float(divergence[index].mean()),
                "top1": float(same[index].mean()),
            }
            for index, name in enumerate(self.names)
        }
        self.facts.append({"from": self._begin, "to": end, "ways": facts})
        self._begin, self._found = end, []


@click.command(help=__doc__)
@click.option("--length", default=32768, show_default=True, help="Tokens of the text.")
@click.option("--chunk", default=256, show_default=True, help="Tokens that run at once; they see each other unrounded.")
@click.option("--way", "chosen", multiple=True, type=click.Choice(list(WAYS)[1:]), help="Only these; may be repeated.")
@click.option("--result", default="int4_cache", show_default=True, help="Name of the file in benchmarks/results.")
def main(length: int, chunk: int, chosen: tuple[str, ...], result: str) -> None:
    """Run all ways over the text, and compare."""
    ways = {name: WAYS[name] for name in ("float32", *(chosen or list(WAYS)[1:]))}
    ids = torch.tensor(text_of(TextTokenizer(resolve(DEMO)), length))
    model = load_model(Checkpoint(DEMO))
    cache, parts = model.empty_cache(len(ways)), Parts(list(ways)[1:])
    begun, boundary = time.monotonic(), 512
    with torch.inference_mode():
        for start in range(0, length, chunk):
            end = min(start + chunk, length)
            logits, present = model(ids[start:end].expand(len(ways), -1), cache)
            for layer in present:
                for tensor, place in zip(layer, (0, 1), strict=True):  # K, Y
                    for row, way in zip(tensor, ways.values(), strict=True):
                        row[:, start:] = stored(row[:, start:], way[place])
            cache = present
            parts.add(logits)
            if end >= boundary or end == length:
                parts.close(end)
                boundary *= 2
                facts = parts.facts[-1]
                click.echo(
                    f"{end} tokens, {time.monotonic() - begun:.0f} s: "
                    + ", ".join(f"{name} {each['error_median']:.3f}" for name, each in facts["ways"].items())
                )
                write_result(result, {"checkpoint": DEMO, "chunk": chunk, "parts": parts.facts})


if __name__ == "__main__":
    main()
