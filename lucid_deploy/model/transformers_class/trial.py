"""Check at each export that a transformers class computes the same with our attention as with its own.

A float64 model with random weights and at most four distinct layers runs twice: with transformers' eager attention in
one pass, and with ours in two chunks and three single tokens, with one row padded. Both use standard attention in place
of LUCID; LUCID itself, run on the same chunks, is compared with its dense formulas in one pass.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from lucid_deploy.errors import LucidError
from lucid_deploy.model.config import LUCID, STANDARD, WINDOW, LucidConfig
from lucid_deploy.model.float64 import all_in_float64
from lucid_deploy.model.transformers_class.configuration import EXPERTS, class_of, parse_class_config
from lucid_deploy.model.transformers_class.module import ClassModel, layers_path, make_class, quiet, restore_buffers
from lucid_deploy.model.transformers_class.positions import given_positions, put_positions

TOLERANCE = 1e-9  # relative; float64 gives 1e-15
LAYERS = 4
# Sizes that are reduced for the trial; they do not change how the model computes.
_SMALLER = {
    "vocab_size": 64,
    "intermediate_size": 128,
    "sliding_window": 5,
    "moe_intermediate_size": 64,
    "shared_expert_intermediate_size": 64,
}
_CHUNKS, _SINGLE = (6, 5), 3
_PADDED = 2  # padding columns before the second row's first token


def prove(config: LucidConfig, where: str) -> str:
    """Compare a class with its own attention and with ours; return a note with the error, or raise a LucidError."""
    name = class_of(config.family)[0]
    small = _small(config)
    plain = dataclasses.replace(small, layer_kinds=tuple(STANDARD if kind == LUCID else kind for kind in small.kinds))
    ids = torch.randint(small.vocab_size, (2, sum(_CHUNKS) + _SINGLE), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, :_PADDED] = 0
    try:
        with torch.no_grad(), quiet():
            model = _random(plain)
            if model.first_position:  # such a class skips padding tokens when it counts positions, so avoid them
                ids[ids == model.first_position - 1] += 1
            wanted = _eager(model, ids, mask)
            if not torch.allclose(_eager(model, ids[:1])[-1], wanted[-1][:1], rtol=0, atol=TOLERANCE):
                raise LucidError(f"{where}: {name} is not supported: it does not count positions from 0.")
            worst = _compare(wanted, _ours(model, ids, mask), mask, plain, where, name)
            if LUCID in small.kinds:
                dense, model = _random(small, "reference"), _random(small)
                wanted = _outputs(dense, lambda: dense(ids, None, mask, _positions(mask))[0])
                worst = max(worst, _compare(wanted, _ours(model, ids, mask), mask, small, where, name))
    except LucidError:
        raise
    except Exception as error:
        reason = str(error).strip().split("\n")[0][:200]
        kind = type(error).__name__
        raise LucidError(f"{where}: {name} does not run with our attention: {kind}: {reason}") from error
    return f"transformers' {name} computes the layers; with our attention it agrees within {worst:.1g} in float64."


def _small(config: LucidConfig) -> LucidConfig:
    """Return a configuration of at most ``LAYERS`` distinct layers, one LUCID if there is any, and of reduced sizes."""
    keys = config.class_config
    smaller: dict[str, Any] = {
        key: min(keys[key], size) for key, size in _SMALLER.items() if isinstance(keys.get(key), int)
    }
    if experts := max((shape.experts for shape in config.attention if shape.experts), default=None):
        smaller |= {key: min(keys[key], 2 * experts[1]) for key in EXPERTS if isinstance(keys.get(key), int)}
    if WINDOW not in config.kinds:
        smaller.pop("sliding_window", None)
    picked = sorted({shape.like for shape in config.attention})[:LAYERS]
    if LUCID in config.kinds and LUCID not in [config.kinds[index] for index in picked]:
        picked[-1] = config.kinds.index(LUCID)
    kinds, layers = [config.kinds[index] for index in picked], tuple(picked)
    raw = {**keys, "attention_type": config.attention_type, "layer_kinds": kinds}
    padding = keys.get("pad_token_id")
    if not isinstance(padding, int) or padding >= smaller.get("vocab_size", 0):  # outside the reduced vocabulary
        smaller["pad_token_id"] = None
    try:
        found = parse_class_config({**raw, **smaller}, "the trial's model", layers=layers)
    except LucidError:  # the reduced sizes are inconsistent: keep the original ones
        found = parse_class_config(raw, "the trial's model", layers=layers)
    return dataclasses.replace(found, rms_norm_eps=config.rms_norm_eps)


def _random(config: LucidConfig, implementation: str = "blocked") -> ClassModel:
    """Return a float64 model with random weights, the same each time."""
    with torch.device("meta"):
        model = ClassModel(config, implementation).to(torch.float64)
    model.to_empty(device="cpu")
    draw = torch.Generator().manual_seed(0)
    for name, value in model.state_dict(keep_vars=True).items():
        noise = torch.randn(value.shape, generator=draw, dtype=torch.float64)
        if value.dim() > 1:
            value.copy_(noise / math.sqrt(value.shape[-1]))
        else:
            value.copy_(0.1 * noise + (1.0 if name.endswith("weight") else 0.0))
    embedding = model.embedding  # add a common direction, so that keys are correlated as in trained models
    embedding.mul_(0.5).add_(torch.randn(embedding.shape[1], generator=draw, dtype=torch.float64) / 4)
    model.tie_weights()
    return model.eval().requires_grad_(False)


def _positions(mask: Tensor) -> Tensor:
    return (mask.cumsum(1) - 1).clamp_min(0)


def _outputs(model: Any, run: Any) -> list[Tensor]:
    """Call ``run``; return the output of each layer, followed by the result of ``run``."""
    found: list[Tensor] = []
    layers = model.layers() if isinstance(model, ClassModel) else model
    hooks = [
        layer.register_forward_hook(lambda _, __, out: found.append(out[0] if isinstance(out, tuple) else out))
        for layer in layers
    ]
    try:
        last = run()
    finally:
        for hook in hooks:
            hook.remove()
    return [*found, last]


def _eager(model: ClassModel, ids: Tensor, mask: Tensor | None = None) -> list[Tensor]:
    """Return the layers' outputs and the logits of the class with its own attention and the same weights.

    Without a mask, the class counts positions itself.
    """
    positions = None if mask is None else _positions(mask) + model.first_position
    given = {} if mask is None else {"attention_mask": mask, "position_ids": positions}
    config = model.config
    with torch.device("meta"):
        net = make_class(config.class_config, config.class_layers, "eager")
    restore_buffers(net)
    if mask is not None:
        put_positions(net)
    net.to(torch.float64)
    state = {name: torch.empty(value.shape, dtype=torch.float64) for name, value in net.state_dict().items()}
    for ours, value in model.state_dict().items():
        place, stored = model.sources[ours]
        part = state[place.name]
        if place.rows is not None:
            part = part.unflatten(0, (place.groups, -1))[:, slice(*place.rows)]
        part.copy_((value - stored.plus).reshape(part.shape))
    net.load_state_dict(state, assign=True)
    with given_positions(positions), all_in_float64():
        return _outputs(
            net.get_submodule(layers_path(net)),
            lambda: net(input_ids=ids, use_cache=False, **given).logits,
        )


def _ours(model: ClassModel, ids: Tensor, mask: Tensor) -> list[Tensor]:
    """Return the layers' outputs and the logits of our model, run on two chunks and single tokens."""
    positions, past, start = _positions(mask), None, 0
    pieces: list[list[Tensor]] = []

    def call(stop: int, decode: bool) -> Tensor:
        nonlocal past
        new = slice(start, stop)
        logits, past = model(ids[:, new], past, mask[:, :stop], positions[:, new], decode=decode)
        return logits

    for size in (*_CHUNKS, *[1] * _SINGLE):
        pieces.append(_outputs(model, lambda stop=start + size, one=size == 1: call(stop, one)))
        start += size
    return [torch.cat(parts, dim=1) for parts in zip(*pieces, strict=True)]


def _compare(
    wanted: list[Tensor], found: list[Tensor], mask: Tensor, config: LucidConfig, where: str, name: str
) -> float:
    """Return the relative error of the logits; LucidError if that or a layer's error is above ``TOLERANCE``."""
    valid = mask.bool()
    errors = [
        float((ours[valid] - theirs[valid]).norm() / theirs[valid].norm().clamp_min(1e-300))
        for ours, theirs in zip(found, wanted, strict=True)
    ]
    bad = [place for place, error in enumerate(errors) if not error <= TOLERANCE]
    if not bad:
        return errors[-1]
    place = bad[0]
    what = "the logits"
    if place < config.num_hidden_layers:
        what = f"layer {config.class_layers[place]} ({config.kinds[place]})"
    other = "the dense formulas" if LUCID in config.kinds else "transformers"
    raise LucidError(
        f"{where}: {name} is not supported: with our attention, {what} differs by {errors[place]:.2g} from {other} in "
        f"float64; {TOLERANCE:g} is allowed."
    )
