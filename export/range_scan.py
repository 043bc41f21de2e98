"""Run a checkpoint over sample prompts before it is exported, and see whether its values fit into float16.

Float16 ends at 65504; beyond it is infinity, which the next norm turns into NaN. The scan computes in float32, layer by
layer: one layer's weights and the prompts' residual streams are in memory at a time, every tensor is read once. What a
float16 graph keeps in float32 (inside of norms, the solve and softmax) is not looked at, since it cannot overflow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lucid_deploy.errors import LucidError
from lucid_deploy.export.calibration import read_lines
from lucid_deploy.export.diagonal import DiagonalEffect
from lucid_deploy.export.quantize.layer_by_layer import embedded, final_norm, load_layer, run_layer
from lucid_deploy.model.layer_plan import LUCID

if TYPE_CHECKING:
    import torch

    from lucid_deploy.model.block import Layer
    from lucid_deploy.model.checkpoint import Checkpoint
    from lucid_deploy.model.config import LucidConfig
    from lucid_deploy.model.mixer import Step

LIMIT = 65504.0  # largest number of float16
MARGIN = 4.0  # other prompts give other values: a value nearer to the limit than this factor is a warning
PROMPT_TOKENS = 512  # of a calibration line are run at most …
CALIBRATION_LINES = 64  # … and so many lines
SHORT_PROMPT = 32  # tokens of a prompt where only the diagonal of L is measured: the model is read, little is computed
RECALL_PROMPTS = 27  # for the demo: one of each length
CACHED = ("key", "y")  # what goes into the cache
ORDER = (  # of a layer's tensors, as they are computed
    "attention input",
    "query",
    "key",
    "value",
    "y",
    "attention output",
    "o_proj output",
    "MLP input",
    "gate_proj output",
    "up_proj output",
    "gate·up product",
    "down_proj output",
    "residual stream",
)
# Parts of a mixer, and which tensor each makes; what a gate or a decay is made of counts as a value.
_PROJECTED = {
    "q_proj": "query",
    "k_proj": "key",
    "v_proj": "value",
    "g_proj": "value",
    "b_proj": "value",
    "a_proj": "value",
    "o_proj": "o_proj output",
}
HEAD = ("normed", "logits")  # of the head; logits are float16 where a quantized head makes them

Progress = Callable[[str, int, int], None]
Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class RangeScan:
    """What a scan found.

    Attributes:
        prompts: How many prompts were run.
        tokens: How many tokens they have.
        calibration: Name of the text file that was run too, or None.
        peaks: Largest magnitude of each tensor, by layer: ``embedding``, ``layer 0`` …, ``head``.
        checked: Names of the tensors that are float16 in the graphs; None: all.
        diagonal: What training's diagonal of L changes.
    """

    prompts: int
    tokens: int
    calibration: str | None
    peaks: dict[str, dict[str, float]] = field(default_factory=dict)
    checked: tuple[str, ...] | None = None
    diagonal: DiagonalEffect = field(default_factory=DiagonalEffect)

    def warnings(self) -> list[str]:
        """Return a sentence for each tensor that comes closer to the limit than the margin."""
        return [
            f"{layer}, {tensor}: {peak:.4g} is within a factor of {MARGIN:g} of float16's largest number {LIMIT:.0f}."
            for layer, tensor, peak in self._checked()
            if LIMIT / MARGIN <= peak <= LIMIT
        ]

    def check(self, checkpoint: Path, remedy: str) -> None:
        """Refuse a model that overflows.

        Args:
            checkpoint: For the message.
            remedy: What to do, for the message.
        """
        for layer, tensor, peak in self._checked():
            if not peak <= LIMIT:  # NaN too
                raise LucidError(
                    f"{checkpoint} does not fit into float16: {layer}, {tensor} reaches {peak:.4g}, and float16 ends "
                    f"at {LIMIT:.0f} (float32 run over {self.prompts} prompts, {self.tokens} tokens). {remedy}"
                )

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for the manifest."""
        return {
            "skipped": False,
            "limit": LIMIT,
            "margin": MARGIN,
            "prompts": self.prompts,
            "tokens": self.tokens,
            "calibration": self.calibration,
            "peaks": {layer: {name: float(f"{x:.6g}") for name, x in row.items()} for layer, row in self.peaks.items()},
            "warnings": self.warnings(),
        }

    def _checked(self) -> Iterator[tuple[str, str, float]]:
        for layer, tensors in self.peaks.items():
            for tensor, peak in tensors.items():
                if self.checked is None or tensor in self.checked:
                    yield layer, tensor, peak


def sample_prompts(checkpoint: Checkpoint, calibration: Path | None, most: int = PROMPT_TOKENS) -> list[Array]:
    """Return the prompts to scan, int64 ``(B, N)`` each, rows of equal length together.

    Random, repeated and correlated tokens as verification uses them, but for those whose embedding is zero, as
    padding's is: masked in use, they would have the smallest keys of all. For the recall model its prompts; and the
    lines of a text file. Each has ``most`` tokens at most.
    """
    from lucid_deploy.model.scenarios import synthetic_scenarios

    embeddings = checkpoint.tensor("model.embed_tokens.weight").float().numpy()
    scenarios = synthetic_scenarios(checkpoint.config, embeddings=embeddings)
    rows = [_without_empty(np.concatenate([item.prompt, item.forced]), embeddings) for item in scenarios]
    rows += _recall_prompts(checkpoint)
    if calibration is not None:
        rows += islice(read_lines(checkpoint, calibration), CALIBRATION_LINES)
    by_length: dict[int, list[Array]] = {}
    for row in rows:
        cut = row[: min(most, checkpoint.config.max_position_embeddings)]
        by_length.setdefault(len(cut), []).append(cut)
    return [np.stack(group) for group in by_length.values()]


def _without_empty(ids: Array, embeddings: Array) -> Array:
    """Put tokens with an embedding into the place of those whose embedding is zero."""
    used = np.flatnonzero(embeddings.any(axis=1))
    return ids if len(used) in (0, len(embeddings)) else np.where(np.isin(ids, used), ids, used[ids % len(used)])


def _recall_prompts(checkpoint: Checkpoint) -> list[Array]:
    from lucid_deploy.artifact.tokenizer import TextTokenizer
    from lucid_deploy.demo.recall import held_out
    from lucid_deploy.model.checkpoint import DEMO, resolve

    if checkpoint.directory.resolve() != resolve(DEMO):
        return []
    tokenizer = TextTokenizer(checkpoint.directory)
    texts = [f"{example.prompt} {example.answer}" for example in held_out(RECALL_PROMPTS)]
    return [np.array(tokenizer.encode(text), dtype=np.int64) for text in texts]


def scan(
    checkpoint: Checkpoint,
    calibration: Path | None = None,
    checked: tuple[str, ...] | None = None,
    progress: Progress | None = None,
) -> RangeScan:
    """Run a checkpoint over sample prompts in float32.

    Args:
        checkpoint: The opened checkpoint.
        calibration: A text file whose lines are prompts too; None: none.
        checked: Names of the tensors that will be float16; None: all.
        progress: Called with (what is being done, layers done, in all).
    """
    import torch

    config, prompts = checkpoint.config, sample_prompts(checkpoint, calibration)
    found = RangeScan(
        sum(len(ids) for ids in prompts),
        sum(ids.size for ids in prompts),
        None if calibration is None else str(calibration),
        {},
        checked,
    )
    with torch.inference_mode():
        streams = embedded(checkpoint, prompts)
        found.peaks["embedding"] = {"residual stream": _largest(streams)}
        for index, layer in _layers(checkpoint, config.num_hidden_layers, "Scanning ranges", progress):
            peaks = _LargestMagnitudes(layer)
            found.diagonal.watch(layer, index)
            streams = [_run_layer(layer, config, index, x, peaks) for x in streams]
            found.peaks[f"layer {index}"] = peaks.named
        found.peaks["head"] = _run_head(checkpoint, streams)
    return found


def measure_diagonal(checkpoint: Checkpoint, progress: Progress | None = None) -> DiagonalEffect:
    """Run a checkpoint over a few short prompts, up to its last layer with a solve, for what its diagonal costs alone.

    Args:
        checkpoint: The opened checkpoint.
        progress: As :func:`scan`.
    """
    import torch

    config, found = checkpoint.config, DiagonalEffect()
    count = max((index + 1 for index, kind in enumerate(config.kinds) if kind == LUCID), default=0)
    prompts = sample_prompts(checkpoint, None, SHORT_PROMPT) if count else []
    with torch.inference_mode():
        streams = embedded(checkpoint, prompts)
        for index, layer in _layers(checkpoint, count, "Measuring the diagonal of L", progress):
            found.watch(layer, index)
            streams = [run_layer(layer, config, index, x)[0] for x in streams]
    return found


def _layers(checkpoint: Checkpoint, count: int, doing: str, progress: Progress | None) -> Iterator[tuple[int, Layer]]:
    """Read one layer after the other, so that one is in memory at a time."""
    for index in range(count):
        if progress is not None:
            progress(doing, index, count)
        yield index, load_layer(checkpoint, index)
    if progress is not None:
        progress(doing, count, count)


def _run_layer(
    layer: Layer, config: LucidConfig, index: int, x: torch.Tensor, peaks: _LargestMagnitudes
) -> torch.Tensor:
    from lucid_deploy.model.layers import layer_kind

    x, present = run_layer(layer, config, index, x)
    for tensor, stored in zip(
        layer_kind(config.kinds[index]).describe(config, index, "float16").cache, present, strict=False
    ):
        if tensor.name != "key" and tensor.dtype == "float16":  # a state stays wide
            peaks.add("y", stored)
    peaks.add("residual stream", x)
    return x


def _run_head(checkpoint: Checkpoint, streams: Sequence[torch.Tensor]) -> dict[str, float]:
    head = checkpoint.tensor(checkpoint.stored_name("lm_head.weight")).float()
    normed = [final_norm(checkpoint, x) for x in streams]
    logits = [(row @ head.mT)[None] for x in normed for row in x]  # a row at a time, and before they are divided
    return dict(zip(HEAD, (_largest(normed), _largest(logits)), strict=True))


class _LargestMagnitudes:
    """Collects the largest magnitude of every tensor that a layer makes."""

    def __init__(self, layer: Layer) -> None:
        self.named = dict.fromkeys(ORDER, 0.0)
        self._watch(layer)

    def add(self, name: str, tensor: torch.Tensor) -> None:
        self.named[name] = float(np.maximum(self.named[name], _largest([tensor])))  # keeps NaN

    def _watch(self, layer: Layer) -> None:
        from lucid_deploy.model.attention.grouped_query import GroupedQueryAttention

        mixer, mlp = layer.mixer, layer.mlp

        def projected(x: torch.Tensor, step: Step) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            """What attention is given: normed, rotated and scaled."""
            q, k, v = type(mixer).project(mixer, x, step)  # type: ignore[attr-defined]
            self.add("query", q)
            self.add("key", k)
            return q, k, v

        def after(name: str) -> Callable[..., None]:
            return lambda _, __, out: self.add(name, out)

        def before(name: str) -> Callable[..., None]:
            return lambda _, args: self.add(name, args[0])

        layer.input_layernorm.register_forward_hook(after("attention input"))
        if isinstance(mixer, GroupedQueryAttention):
            mixer.project = projected  # type: ignore[method-assign]
        for part, name in _PROJECTED.items():
            if hasattr(mixer, part):
                getattr(mixer, part).register_forward_hook(after(name))
        if hasattr(mixer, "o_proj"):
            mixer.o_proj.register_forward_pre_hook(before("attention output"))
        layer.mlp_norm.register_forward_pre_hook(before("residual stream"))
        layer.mlp_norm.register_forward_hook(after("MLP input"))
        mlp.gate_proj.register_forward_hook(after("gate_proj output"))
        mlp.up_proj.register_forward_hook(after("up_proj output"))
        mlp.down_proj.register_forward_pre_hook(before("gate·up product"))
        mlp.down_proj.register_forward_hook(after("down_proj output"))


def _largest(tensors: Sequence[torch.Tensor]) -> float:
    """Return the largest magnitude; NaN if there is one."""
    import torch

    return float(torch.stack([tensor.abs().max() for tensor in tensors]).max())
