"""Run a checkpoint over sample prompts before the export: does it fit into float16, and does the diagonal of L matter?

Float16 ends at 65504; beyond it is infinity, which the next norm turns into NaN. The scan computes in float32, layer by
layer: one layer's weights and the prompts' residual streams are in memory at a time, and every tensor is read once.
What a float16 graph keeps in float32 (inside of norms, the solve and softmax) cannot overflow, so it is not checked.

The authors' training code divides row i of the solve by L_ii = exp(√d(m/(m + eps) − 1)), m the mean square of key i;
with small keys that is noticeably below 1. Nothing in a checkpoint says whether it was trained with that or with 1 on
the diagonal. So the scan also measures how much Y would change, on the checkpoint's own keys and values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lucid_deploy.errors import LucidError
from lucid_deploy.export.calibration import read_lines
from lucid_deploy.export.quantize.inputs import embedded, final_norm, load_layer, mixer_of, run_layer
from lucid_deploy.model.attention.lucid import LucidAttention
from lucid_deploy.model.config import LUCID
from lucid_deploy.model.synthetic_tokens import synthetic_tokens
from lucid_deploy.plugins.precondition.reference import precondition_reference
from lucid_deploy.plugins.shared.keys import log_row_factors

if TYPE_CHECKING:
    import torch
    from torch import nn

    from lucid_deploy.model.checkpoint import Checkpoint
    from lucid_deploy.model.config import LucidConfig

TOKENS = 64  # of each prompt: L is triangular, so its leading block is the L of the leading tokens
ROUNDING = 2.0**-23  # of float32, relative: a smaller difference cannot be told from it


@dataclass
class DiagonalEffect:
    """What training's diagonal of L would change, at most in any layer."""

    smallest: float = 1.0  # the smallest L_ii of training's diagonal
    layer: int = 0
    difference: float = 0.0  # largest relative difference of a layer's Y, L2 over the tokens of a prompt

    def watch(self, layer: nn.Module, index: int) -> None:
        """Measure the keys and values of a layer when it runs; nothing if the layer has no solve."""
        attention = mixer_of(layer)
        if not isinstance(attention, LucidAttention):
            return
        eps = attention.config.rms_norm_eps
        attention.watchers.append(
            lambda q, k, v: self._add(k[:, :, :TOKENS].double(), v[:, :, :TOKENS].double(), eps, index)
        )

    def _add(self, k: torch.Tensor, v: torch.Tensor, eps: float, index: int) -> None:
        smallest = math.exp(-float(log_row_factors(k, eps).max()))
        if smallest < self.smallest:
            self.smallest, self.layer = smallest, index
        none = k[:, :, :0]
        one, other = (precondition_reference(k, v, none, none, None, eps, training) for training in (False, True))
        change = (other - one).norm() / one.norm().clamp_min(1e-300)
        self.difference = max(self.difference, float(change))

    @property
    def sentence(self) -> str:
        """The warning for artifacts with 1 on the diagonal; empty if it makes no difference in float32."""
        if not self.difference > ROUNDING:
            return ""
        return (
            f"The diagonal of L is 1 in this artifact. The authors' training code divides by as little as "
            f"{self.smallest:.6g} (layer {self.layer}), which changes Y by up to {self.difference:.2g} of its size on "
            "sample prompts: if the checkpoint was trained with it, export with --diagonal training."
        )


LIMIT = 65504.0  # largest number of float16
MARGIN = 4.0  # other prompts give other values: a value nearer to the limit than this factor is a warning
PROMPT_TOKENS = 512  # at most, of a prompt
SYNTHETIC_TOKENS = 282  # of a synthetic sequence, as in verification
CALIBRATION_LINES = 64  # at most
SHORT_PROMPT = 32  # tokens of a prompt when only the diagonal of L is measured: reading the model dominates
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
# Parts of a mixer and the tensors they compute; inputs of gates and decays count as values.
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
    """The result of a scan."""

    prompts: int
    tokens: int
    calibration: str | None  # name of the text file that was run too, or None
    # largest magnitude of each tensor, by layer: embedding, layer 0 …, head
    peaks: dict[str, dict[str, float]] = field(default_factory=dict)
    checked: tuple[str, ...] | None = None  # names of the tensors that are float16 in the graphs; None: all
    diagonal: DiagonalEffect = field(default_factory=DiagonalEffect)  # what training's diagonal of L changes

    def warnings(self) -> list[str]:
        """Return a warning for each tensor that comes closer to the limit than the margin."""
        return [
            f"{layer}, {tensor}: {peak:.4g} is within a factor of {MARGIN:g} of float16's largest number {LIMIT:.0f}."
            for layer, tensor, peak in self._checked()
            if LIMIT / MARGIN <= peak <= LIMIT
        ]

    def check(self, checkpoint: Path, remedy: str) -> None:
        """Raise LucidError if a tensor overflows; ``remedy`` ends the message."""
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

    Random, repeated and correlated tokens as in verification, prompts of the bundled model's task, and the lines of a
    text file; at most ``most`` tokens each. Tokens whose embedding is zero, such as padding, are replaced: they are
    masked in use, and would have the smallest keys of all.
    """
    embeddings = checkpoint.tensor("model.embed_tokens.weight").float().numpy()
    limit = min(most, checkpoint.config.max_position_embeddings)
    length = min(SYNTHETIC_TOKENS, limit)
    sequences = synthetic_tokens(checkpoint.config.vocab_size, length, length, embeddings=embeddings)
    rows = [_without_empty(ids, embeddings) for ids in sequences.values()]
    rows += _recall_prompts(checkpoint)
    if calibration is not None:
        rows += islice(read_lines(checkpoint, calibration), CALIBRATION_LINES)
    by_length: dict[int, list[Array]] = {}
    for row in rows:
        cut = row[:limit]
        by_length.setdefault(len(cut), []).append(cut)
    return [np.stack(group) for group in by_length.values()]


def _without_empty(ids: Array, embeddings: Array) -> Array:
    """Replace tokens whose embedding is zero by others."""
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
    """Measure the effect of the diagonal alone: run a few short prompts up to the last layer with a solve."""
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


def _layers(
    checkpoint: Checkpoint, count: int, doing: str, progress: Progress | None
) -> Iterator[tuple[int, nn.Module]]:
    """Read one layer after the other, so that only one is in memory."""
    for index in range(count):
        if progress is not None:
            progress(doing, index, count)
        yield index, load_layer(checkpoint, index)
    if progress is not None:
        progress(doing, count, count)


def _run_layer(
    layer: nn.Module, config: LucidConfig, index: int, x: torch.Tensor, peaks: _LargestMagnitudes
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
    """Record the largest magnitude of each tensor that a layer computes."""

    def __init__(self, layer: nn.Module) -> None:
        self.named = dict.fromkeys(ORDER if "lucid_model" not in vars(layer) else ORDER[1:2], 0.0)
        self._watch(layer)

    def add(self, name: str, tensor: torch.Tensor) -> None:
        self.named[name] = float(np.maximum(self.named.get(name, 0.0), _largest([tensor])))  # keeps NaN

    def _watch(self, layer: nn.Module) -> None:
        from lucid_deploy.model.attention.grouped_query import GroupedQueryAttention

        mixer: Any = mixer_of(layer)

        def attended(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
            self.add("query", q)  # normed, rotated and scaled, as attention gets it
            self.add("key", k)

        def after(name: str) -> Callable[..., None]:
            return lambda _, __, out: self.add(name, out[0] if isinstance(out, tuple) else out)  # routers give several

        def before(name: str) -> Callable[..., None]:
            return lambda _, args: self.add(name, args[0])

        if isinstance(mixer, GroupedQueryAttention):
            mixer.watchers.append(attended)

        def of_experts(part: str, x: torch.Tensor, _: torch.Tensor, product: torch.Tensor) -> None:
            self.add(f"experts' {part} input", x)
            self.add(f"experts' {part} output", product)

        if "lucid_model" in vars(layer):  # of a class of transformers: whatever a part reads and gives
            for name, part in _parts(layer):
                vars(part)["lucid_watchers"] = [of_experts]  # which experts alone call
                part.register_forward_pre_hook(before(f"{name} input"))
                part.register_forward_hook(after(f"{name} output"))
            return
        mlp: Any = layer.mlp
        layer.input_layernorm.register_forward_hook(after("attention input"))
        for part, name in _PROJECTED.items():
            if hasattr(mixer, part):
                getattr(mixer, part).register_forward_hook(after(name))
        if hasattr(mixer, "o_proj"):
            mixer.get_submodule("o_proj").register_forward_pre_hook(before("attention output"))
        layer.mlp_norm.register_forward_pre_hook(before("residual stream"))
        layer.mlp_norm.register_forward_hook(after("MLP input"))
        mlp.gate_proj.register_forward_hook(after("gate_proj output"))
        mlp.up_proj.register_forward_hook(after("up_proj output"))
        mlp.down_proj.register_forward_pre_hook(before("gate·up product"))
        mlp.down_proj.register_forward_hook(after("down_proj output"))


def _parts(layer: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the parts of a layer that have weights of their own, by name; of a layer of the delta rule, its parts."""
    from lucid_deploy.model.mixer import Mixer

    for name, part in layer.named_modules():
        if name and not isinstance(part, Mixer) and next(part.parameters(recurse=False), None) is not None:
            yield name, part


def _largest(tensors: Sequence[torch.Tensor]) -> float:
    """Return the largest magnitude; NaN if there is one."""
    import torch

    return float(torch.stack([tensor.abs().max() for tensor in tensors]).max())
