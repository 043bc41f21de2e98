"""Run single layers of a transformers class, for functions that read a checkpoint layer by layer.

The class's own forward runs with only that layer; hooks replace the layer's input, or record its input or output and
stop the forward pass there.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lucid_deploy.model.mixer import Step
from lucid_deploy.model.transformers_class.module import ClassCall, ClassModel

if TYPE_CHECKING:
    from lucid_deploy.model.checkpoint import Checkpoint

_LAYER = "model.layers.0."


class _Stop(Exception):
    """Raised by hooks to end a forward pass early."""


def one_layer(source: Checkpoint, index: int, around: bool = False) -> ClassModel:
    """Load one layer as a float32 model, without the head's weights; with the embedding's weights if ``around``."""
    config = source.config
    alone = dataclasses.replace(
        config,
        num_hidden_layers=1,
        layer_kinds=(config.kinds[index],),
        attention=(config.attention[index],),
        class_layers=(config.class_layers[index] if config.class_layers else index,),
    )
    with torch.device("meta"):
        model = ClassModel(alone)
    state = {}
    for name in model.state_dict():
        if name.startswith(_LAYER):
            state[name] = source.tensor(f"model.layers.{index}.{name.removeprefix(_LAYER)}").float()
        elif not name.startswith("lm_head.") and (around or name != "model.embed_tokens.weight"):
            state[name] = source.tensor(name).float()
    model.load_state_dict(state, strict=False, assign=True)
    return model.eval().requires_grad_(False)


def load_layer(source: Checkpoint, index: int) -> nn.Module:
    """Load one layer of a checkpoint in float32: the class's module, for :func:`run_layer`."""
    model = one_layer(source, index)
    (layer,) = model.layers()
    layer.__dict__["lucid_model"] = model  # not a submodule
    return layer


def run_layer(layer: nn.Module, x: Tensor) -> Tensor:
    """Run a layer from :func:`load_layer` on whole sequences ``(B, N, C)``; return its output."""
    model = layer.__dict__["lucid_model"]
    found: list[Tensor] = []

    def behind(_: nn.Module, __: Any, output: Any) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)
        raise _Stop

    _run(model, [_put(layer, x), layer.register_forward_hook(behind)], inputs_embeds=x)
    return found[0]


def first_stream(source: Checkpoint, ids: Tensor) -> Tensor:
    """Return the first layer's input, float32 ``(B, N, C)``, for tokens int64 ``(B, N)``."""
    model = one_layer(source, 0, around=True)
    (layer,) = model.layers()
    found: list[Tensor] = []

    def before(_: nn.Module, args: Any, kwargs: Any) -> None:
        found.append(args[0] if args else kwargs["hidden_states"])
        raise _Stop

    _run(model, [layer.register_forward_pre_hook(before, with_kwargs=True)], input_ids=ids)
    return found[0]


def _put(layer: nn.Module, x: Tensor) -> Any:
    def before(_: nn.Module, args: Any, kwargs: Any) -> Any:
        return ((x, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": x})

    return layer.register_forward_pre_hook(before, with_kwargs=True)


def _run(model: ClassModel, hooks: list[Any], **inputs: Tensor) -> None:
    """Run a model of one layer until a hook stops it."""
    (given,) = inputs.values()
    batch, n = given.shape[:2]
    like = given if given.is_floating_point() else torch.empty(0)
    past = [mixer.empty_cache(batch, like) for mixer in model.mixers()]
    call = ClassCall(model, past, Step(), False)
    exact = like.dtype == torch.float64
    try:
        model.call(call, torch.arange(n).expand(batch, n), exact, **inputs)
    except _Stop:
        pass
    finally:
        for hook in hooks:
            hook.remove()
