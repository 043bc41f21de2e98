"""Distillation: learn scales and offsets of quantized weights, so that the model's predictions match the exact model's.

The quantized integers are HQQ's (or the nearest, where blocks have no offsets) and stay fixed. The exact and the
quantized model run on the same text, and Adam trains the scales and offsets of the layers' weights to minimize the KL
divergence between their predictions. Training only the scales, end to end, is the second phase of EfficientQAT (Chen
et al., arXiv 2407.11062, section 3.3), whose loss is the cross-entropy of text.

Methods that process one linear layer at a time, such as GPTQ, minimize each layer's error. Here the errors of all
layers can compensate each other, so that the predictions lose less confidence: on SmolLM2, converted as in
benchmarks/quantization_cost.py, distilled int4 raised perplexity by 4 %, GPTQ on the same text by 11 %.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lucid_deploy.artifact.quantization import LearnedTensor, Method, Quantization, QuantizedTensor, relative_distance
from lucid_deploy.artifact.quantized_bytes import unpack_nibbles
from lucid_deploy.errors import LucidError
from lucid_deploy.export.calibration import SEED
from lucid_deploy.export.quantize.hqq import METHOD as HQQ
from lucid_deploy.export.quantize.method import LearnedWeights, QuantizationMethod, Rounded
from lucid_deploy.model.checkpoint import load_model

if TYPE_CHECKING:
    from lucid_deploy.export.calibration import CalibrationRows
    from lucid_deploy.export.quantize.method import Progress
    from lucid_deploy.model.checkpoint import Checkpoint

RATE = 1e-3  # peak learning rate, relative to a scale; decays linearly to zero after the warmup
RISE = 5  # warmup steps
MOMENTS = (0.9, 0.98)  # Adam's betas
EVERY = 2  # compare every second prediction of a row: the head takes a fifth of a small model's arithmetic


class _Dequantize(torch.autograd.Function):
    """Dequantize int8 ``(out, blocks, block)`` with scales and offsets; save only the int8 for the backward pass."""

    @staticmethod
    def forward(ctx: Any, numbers: Tensor, scales: Tensor, offsets: Tensor) -> Tensor:
        ctx.save_for_backward(numbers)
        return torch.addcmul(offsets[..., None], numbers.to(scales.dtype), scales[..., None])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, Tensor]:
        (numbers,), (gradient,) = ctx.saved_tensors, gradients
        return None, (gradient * numbers).sum(-1), gradient.sum(-1)


class RoundedWeight(nn.Module):
    """A parametrization that returns the exact weight or, while ``rounds`` is set, the quantized one."""

    def __init__(self, rounded: Rounded, tensor: QuantizedTensor, bits: int) -> None:
        super().__init__()
        codes = unpack_nibbles(rounded.packed) if bits == 4 else rounded.packed
        self.numbers = torch.from_numpy((codes.astype(np.int16) - (1 << (bits - 1))).astype(np.int8))
        self.tensor, self.packed, self.rounds = tensor, rounded.packed, False
        self.first_scales, self.has_offsets = rounded.scales, rounded.offsets is not None
        self.first_offsets = rounded.offsets if self.has_offsets else torch.zeros_like(rounded.scales)
        self.scale_changes = nn.Parameter(torch.zeros_like(rounded.scales))  # changes are relative to scales
        self.offset_changes = nn.Parameter(torch.zeros_like(rounded.scales), requires_grad=self.has_offsets)

    def learned(self, dtype: torch.dtype) -> Rounded:
        """Return the quantized weight to store, with scales and offsets rounded to ``dtype``."""
        scales, offsets = (each.detach().to(dtype).float() for each in self._factors())
        return Rounded(self.packed, scales, offsets if self.has_offsets else None)

    def matrix(self, scales: Tensor, offsets: Tensor) -> Tensor:
        """Return the weight dequantized with these scales and offsets, ``(out, in)``."""
        return _Dequantize.apply(self.numbers, scales, offsets).flatten(1)[:, : self.tensor.shape[1]]

    def forward(self, exact: Tensor) -> Tensor:
        if not self.rounds:
            return exact
        found: Tensor = self.tensor.as_stored(self.matrix(*self._factors()))
        return found

    def _factors(self) -> tuple[Tensor, Tensor]:
        scales = self.first_scales * (1 + self.scale_changes)
        return scales, self.first_offsets + self.first_scales * self.offset_changes


def round_weights(
    model: nn.Module, checkpoint: Checkpoint, quantization: Quantization, dtype: str
) -> dict[str, RoundedWeight]:
    """Parametrize the layers' weights with :class:`RoundedWeight`; return these parametrizations by weight name."""
    found = {}
    for name, tensor in quantization.tensors.items():
        if not name.startswith("model.layers."):
            continue  # embedding and head are not learned: a text has too few tokens for most of their rows
        path, _, own = name.rpartition(".")
        module = model.get_submodule(path)
        weight = getattr(module, own).detach()
        if not weight.isfinite().all():
            raise LucidError(f"{checkpoint.directory}: {name} has values that are not finite: the file is damaged.")
        bits, positive = quantization.bits_of(name), quantization.has_positive_scales(name)
        rounded = _joined([*HQQ.round(tensor.matrix(weight), tensor, bits, tensor.scale_dtype or dtype, positive)])
        found[name] = RoundedWeight(rounded, tensor, bits)
        parametrize.register_parametrization(module, own, found[name], unsafe=True)  # unsafe: skip PyTorch's checks
    return found


def _joined(parts: list[Rounded]) -> Rounded:
    scales = torch.cat([torch.as_tensor(each.scales) for each in parts])
    offsets = None if parts[0].offsets is None else torch.cat([torch.as_tensor(each.offsets) for each in parts])
    return Rounded(np.concatenate([each.packed for each in parts]), scales, offsets)


def distill(model: nn.Module, weights: list[RoundedWeight], rows: CalibrationRows, progress: Progress) -> None:
    """Learn the scales and offsets of a model's quantized weights; each step runs one row of tokens."""
    texts = [torch.from_numpy(ids[None]) for group in rows.rows for ids in group]
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(SEED))  # mixes the file's topics
    parameters = [each for weight in weights for each in weight.parameters() if each.requires_grad]
    adam = torch.optim.Adam(parameters, RATE, MOMENTS)
    schedule = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: min(1, (step + 1) / RISE) * (1 - step / len(texts)))
    first = 0  # position of the first prediction to compare
    hook = model.lm_head.register_forward_pre_hook(lambda _, inputs: (inputs[0][:, first::EVERY],))  # type: ignore[union-attr]
    for step, ids in enumerate(texts[index] for index in order):
        progress("Distilling", step, len(texts))
        first = step % min(EVERY, ids.shape[1])
        with torch.no_grad():
            wanted = _logits(model, weights, ids, rounds=False).softmax(-1)
        loss = F.cross_entropy(_logits(model, weights, ids, rounds=True), wanted)  # KL divergence plus a constant
        if not loss.isfinite():
            raise LucidError("The model gives values that are not finite for the calibration text.")
        adam.zero_grad()
        loss.backward()
        adam.step()
        schedule.step()
    hook.remove()
    progress("Distilling", len(texts), len(texts))


def _logits(model: nn.Module, weights: list[RoundedWeight], ids: Tensor, rounds: bool) -> Tensor:
    """Return the logits of the exact or the quantized model, ``(N, vocab)``, for the positions to compare."""
    for weight in weights:
        weight.rounds = rounds
    found: Tensor = model(ids)[0][0]
    return found


class Distillation(QuantizationMethod):
    """The method ``--method distill``; see the module's docstring."""

    name = "distill"
    learns = True
    offsets = HQQ.offsets

    def learn(
        self,
        checkpoint: Checkpoint,
        quantization: Quantization,
        rows: CalibrationRows,
        dtype: str,
        progress: Progress | None,
    ) -> tuple[LearnedWeights, Quantization]:
        model, learned, settings = load_model(checkpoint), LearnedWeights(), {"rate": RATE}
        weights = round_weights(model, checkpoint, quantization, dtype)
        distill(model, [*weights.values()], rows, progress or (lambda *_: None))
        experts = [used for weight in weights.values() for used in _experts(weight)]
        if experts:
            settings |= {"experts": len(experts), "experts_without_text": experts.count(False)}
        for name, weight in weights.items():
            parts = weight.learned(getattr(torch, weight.tensor.scale_dtype or dtype))
            found = weight.matrix(parts.scales, weight.first_offsets if parts.offsets is None else parts.offsets)
            exact = weight.tensor.matrix(checkpoint.tensor(name)).double().numpy()
            learned.parts[name] = parts
            learned.tensors[name] = LearnedTensor(float(f"{relative_distance(found.double().numpy(), exact):.7g}"))
        return learned, replace(quantization, method=Method(self.name, settings, rows.facts, learned.tensors))


def _experts(weight: RoundedWeight) -> list[bool]:
    """Return for each of a weight's experts whether any token was routed to it."""
    changes = weight.scale_changes.detach()
    return [bool(each.any()) for each in changes.chunk(weight.tensor.experts)] if weight.tensor.experts else []


METHOD = Distillation()
