"""What rounding the cache costs a pretrained model: for K and Y, by layer, with LUCID and without.

The model reads a text in chunks, so that each chunk sees the rows before it as the cache stores them; logits are
compared with those of the same model in float64 without rounding.

    python examples/smollm2.py smollm2
    python examples/convert/convert.py smollm2 converted
    python benchmarks/real_keys.py smollm2 converted --text FILE
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click
import torch
from common import write_result
from torch import Tensor

from lucid_deploy.cache.codecs import CacheCodec, Int8Codec
from lucid_deploy.export.companions import read_tokenizer
from lucid_deploy.model.checkpoint import Checkpoint, load_model
from lucid_deploy.model.lucid import CausalModel

CHUNK = 16  # tokens that see each other unrounded
Rounding = Callable[[Tensor], Tensor]


class RoundedCodec(CacheCodec):
    """Round K and Y by one function each; store the rounded values in the model's type."""

    exact = False

    def __init__(self, keys: Rounding, values: Rounding) -> None:
        self._keys, self._values = keys, values

    def encode(self, k: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        return self._keys(k), self._values(y)


def same(rows: Tensor) -> Tensor:
    """Round nothing."""
    return rows


def half(rows: Tensor) -> Tensor:
    """Round to float16."""
    return rows.half().to(rows.dtype)


def half_with_norm(rows: Tensor) -> Tensor:
    """Round to float16, then scale each row to the norm that it had."""
    rounded = half(rows)
    return rounded * (rows.norm(dim=-1, keepdim=True) / rounded.norm(dim=-1, keepdim=True))


def eight_bits(rows: Tensor) -> Tensor:
    """Round to whole numbers with a scale for each row."""
    numbers, scale = Int8Codec()._scaled(rows)
    return (numbers.float() * scale).to(rows.dtype)


WAYS: dict[str, tuple[Rounding, Rounding]] = {
    "float16": (half, half),
    "float16, K alone": (half, same),
    "float16, K alone, norms exact": (half_with_norm, same),
    "float16, Y alone": (same, half),
    "int8": (eight_bits, eight_bits),
    "int8, K alone": (eight_bits, same),
    "int8, Y alone": (same, eight_bits),
}


def read(model: CausalModel, ids: Tensor) -> Tensor:
    """Run a text in chunks; return its logits, ``(tokens, vocab)`` in float64."""
    past, logits = None, []
    for start in range(0, len(ids), CHUNK):
        found, past = model(ids[None, start : start + CHUNK], past)
        logits.append(found[0].double())
    return torch.cat(logits)


def compare(logits: Tensor, exact: Tensor) -> dict[str, float]:
    """Return the relative L2 error over positions, and how often the best token is the same."""
    error = (logits - exact).norm(dim=-1) / exact.norm(dim=-1)
    return {
        "median_error": float(error.median()),
        "largest_error": float(error.max()),
        "same_best_token": float((logits.argmax(-1) == exact.argmax(-1)).double().mean()),
    }


@torch.inference_mode()
def measure(source: Checkpoint, ids: Tensor) -> dict[str, dict[str, float]]:
    """Compare every way of rounding with the same model in float64."""
    exact = read(load_model(source, torch.float64), ids)
    found = {"float16 model": compare(read(load_model(source, torch.float16), ids), exact)}
    model = load_model(source)
    mixers = model.mixers()
    found["float32"] = compare(read(model, ids), exact)
    third = len(mixers) // 3
    parts = {"all": mixers, "first": mixers[:third], "middle": mixers[third:-third], "last": mixers[-third:]}
    for part, chosen in parts.items():
        for name in WAYS if part == "all" else ("float16", "int8"):
            for mixer in mixers:
                mixer.codec = CacheCodec()
            for mixer in chosen:
                mixer.codec = RoundedCodec(*WAYS[name])
            label = name if part == "all" else f"{name}, {part} third of the layers"
            found[label] = compare(read(model, ids), exact)
    return found


@click.command()
@click.argument("checkpoint", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("converted", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--text", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=True)
@click.option("--tokens", default=512, show_default=True)
def main(checkpoint: Path, converted: Path, text: Path, tokens: int) -> None:
    """Measure CHECKPOINT, a model with standard attention, and CONVERTED, that model with LUCID and its adapter."""
    ids = torch.tensor(read_tokenizer(checkpoint).encode(text.read_text(encoding="utf-8"))[:tokens])
    lucid = Checkpoint(converted / "checkpoint", adapter=converted / "adapter")
    results = {}
    for kind, source in (("standard", Checkpoint(checkpoint)), ("lucid", lucid)):
        results[kind] = measure(source, ids)
        for name, item in results[kind].items():
            click.echo(
                f"{kind:9}{name:42}{item['median_error']:.1e}  {item['largest_error']:.1e}  "
                f"{item['same_best_token']:.1%}"
            )
    write_result("real_keys", {"model": checkpoint.name, "tokens": len(ids), "chunk": CHUNK, "results": results})


if __name__ == "__main__":
    main()
