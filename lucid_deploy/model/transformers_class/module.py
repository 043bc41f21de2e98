"""Run model classes of transformers with our attention, which reads and extends the cache.

transformers' classes look up attention by name in a registry. :func:`attention` is registered there; it finds the
running call of the model, and in it the cache of the layer that calls attention.

The model has the class's modules under our names (``model.embed_tokens``, ``model.layers``, ``lm_head``), wherever the
class has them, so that weights, graphs and quantization have the same names as in other models.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lucid_deploy.plugins.hosts.triton.torch_kernels  # noqa: F401 (CUDA tensors take the Triton kernels)
from lucid_deploy.errors import LucidError, missing_extra
from lucid_deploy.model.config import LucidConfig
from lucid_deploy.model.families import StoredParameter
from lucid_deploy.model.float64 import all_in_float64
from lucid_deploy.model.layers import layer_kind
from lucid_deploy.model.lucid import CausalModel, last_token
from lucid_deploy.model.mixer import LayerCache, Mixer, Step
from lucid_deploy.model.parts import Head, RMSNorm
from lucid_deploy.model.transformers_class.delta_layers import DeltaLayer, put_delta_layers
from lucid_deploy.model.transformers_class.positions import first_position, given_positions, put_positions, put_rotary
from lucid_deploy.plugins.expert_matmul.torch_operator import expert_matmul

try:
    from transformers import (
        CONFIG_MAPPING,
        AttentionInterface,
        AttentionMaskInterface,
        AutoConfig,
        AutoModelForCausalLM,
    )
    from transformers.integrations.moe import ExpertsInterface
    from transformers.utils import logging

    from lucid_deploy.model.transformers_class.stored import stored_parameters
except ImportError as error:
    raise missing_extra("transformers", "transformers", "use a model of transformers' classes") from error

NAME = "lucid"  # our functions' name in transformers' registries
# Keyword arguments of attention without effect here: they are for training or other code, or repeat the mask.
_IGNORED = frozenset(
    (
        "cache_position",
        "dropout",
        "is_causal",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "position_embeddings",
        "position_ids",
        "return_dict",
        "sliding_window",
        "use_cache",
    )
)


class Running(Protocol):
    """The interface of a running forward pass for the functions registered with transformers."""

    def attend(self, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Any, options: dict[str, Any]) -> Tensor:
        """Attend with queries ``(B, H, N, D)``, keys and values ``(B, KV, N, D or E)``; return ``(B, N, H, E)``."""

    def mask(self, sees: Callable[..., Tensor]) -> Any:
        """Return the mask to pass to attention; ``sees`` is transformers' mask function: which token sees which."""

    def choose(self, module: nn.Module, experts: int, choices: int) -> None:
        """Record that each token uses ``choices`` of a module's ``experts``; only the run on the meta device does."""

    def mix(self, layer: DeltaLayer, x: Tensor) -> Tensor:
        """Mix new tokens ``(B, N, C)`` with a gated DeltaNet layer."""


_RUNNING: ContextVar[Running | None] = ContextVar("running", default=None)


@contextlib.contextmanager
def running(call: Running) -> Iterator[None]:
    """Make the functions registered with transformers use this call within the block."""
    before = _RUNNING.set(call)
    try:
        yield
    finally:
        _RUNNING.reset(before)


def _running() -> Running:
    call = _RUNNING.get()
    assert call is not None, "attention of lucid-deploy was called outside of its models"
    return call


def attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **options: Any
) -> tuple[Tensor, None]:
    """Compute the attention of a layer of a class; the signature is that of transformers' registry."""
    return _running().attend(module, query, key, value, attention_mask, options), None


def attention_mask(*_: Any, mask_function: Callable[..., Tensor], **__: Any) -> Any:
    """Return the mask of a class's layers; the signature is that of transformers' registry."""
    return _running().mask(mask_function)


def experts(module: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """Compute the experts that each token chose; the signature is that of transformers' registry.

    Hidden states are ``(T, H)``, the chosen experts and their weights ``(T, k)``. The experts' matrices are
    ``(E, out, in)``, or ``(E, in, out)`` where ``module.is_transposed``.
    """
    (tokens, width), choices = hidden_states.shape, top_k_index.shape[1]
    _running().choose(module, module.down_proj.shape[0], choices)
    expert = top_k_index.reshape(-1)  # (T·k,)

    def linear(x: Tensor, name: str) -> Tensor:
        weight = getattr(module, name)
        product = expert_matmul(x, expert, weight.transpose(-1, -2) if module.is_transposed else weight)
        if module.has_bias:
            product = product + getattr(module, f"{name}_bias")[expert]
        return product

    x = hidden_states[:, None].expand(tokens, choices, width).reshape(-1, width)  # (T·k, H)
    x = module._apply_gate(linear(x, "gate_up_proj")) if module.has_gate else module.act_fn(linear(x, "up_proj"))
    x = linear(x, "down_proj")
    if module.has_post_expert_norm:
        x = module.post_expert_norm(x)
    x = x * top_k_weights.reshape(-1, 1)
    return x.reshape(tokens, choices, width).sum(1).to(hidden_states.dtype)


def mix(layer: DeltaLayer, x: Tensor) -> Tensor:
    """Mix new tokens ``(B, N, C)`` with a gated DeltaNet layer."""
    return _running().mix(layer, x)


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, attention_mask)
ExpertsInterface.register(NAME, experts)


def attention_options(options: dict[str, Any], width: int) -> tuple[float, float | None]:
    """Return the scale and the soft cap that a model passes to its attention; LucidError for unknown arguments."""
    known = {**options}
    scale, softcap = known.pop("scaling", None), known.pop("softcap", None)
    known.pop("s_aux", None)  # sinks
    other = sorted(key for key, value in known.items() if value is not None and key not in _IGNORED)
    if other:
        raise LucidError(f"it gives attention the argument {other[0]}, which is not known")
    return width**-0.5 if scale is None else float(scale), None if softcap is None else float(softcap)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress transformers' progress bars and warnings."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def make_class(class_config: dict[str, Any], layers: tuple[int, ...] = (), implementation: str = NAME) -> Any:
    """Build a model of a transformers class, on the current default device, in evaluation mode.

    Only ``layers`` are kept; empty: all. ``implementation`` selects attention and experts: ours or ``eager``.
    """
    kind = {key: value for key, value in class_config.items() if key != "model_type"}
    if class_config["model_type"] not in CONFIG_MAPPING:
        raise LucidError(
            f"transformers has no class for {class_config['model_type']}, whose code came with the checkpoint. Run the "
            "artifact in onnxruntime; verify it with --trust-remote-code."
        )
    with quiet():
        config = AutoConfig.for_model(class_config["model_type"], **kind)
        net: Any = AutoModelForCausalLM.from_config(
            config, attn_implementation=implementation, experts_implementation=implementation
        )
    if layers:
        keep_layers(net, layers)
    return net.eval()


def keep_layers(net: Any, layers: tuple[int, ...]) -> None:
    """Keep only some layers, and only their entries in the configuration's per-layer lists."""
    path, count = layers_path(net), len(net.get_submodule(layers_path(net)))
    kept = nn.ModuleList(copy.deepcopy(net.get_submodule(path)[index]) for index in layers)  # indices may repeat
    parent, _, name = path.rpartition(".")
    setattr(net.get_submodule(parent), name, kept)
    for place, layer in enumerate(kept):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                vars(module)["layer_idx"] = place
    configs = {id(module.config): module.config for module in net.modules() if hasattr(module, "config")}
    for config in configs.values():
        for key, value in vars(config).items():
            if isinstance(value, list | tuple) and len(value) == count:
                setattr(config, key, [value[index] for index in layers])
        config.num_hidden_layers = len(layers)


def number_layers(layers: Iterable[nn.Module]) -> None:
    """Store the layer's index in each of its modules, because a call of attention passes only the calling module."""
    for place, layer in enumerate(layers):
        for module in layer.modules():
            module.lucid_layer = place  # type: ignore[assignment]


def layers_path(net: Any) -> str:
    """Return the path of the module in which a class lists its layers."""
    count = net.config.get_text_config().num_hidden_layers
    for path, module in net.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return str(path)
    raise LucidError(f"it has no list of {count} layers")


class ClassParameter(NamedTuple):
    """The source of one of our parameters: the parameter of transformers' class, and the tensor of a checkpoint."""

    place: StoredParameter
    stored: StoredParameter


class ClassModel(CausalModel):
    """A transformers class with our attention; ``sources`` has the source of each parameter, by our name."""

    def __init__(self, config: LucidConfig, implementation: str = "blocked") -> None:
        super().__init__(config)
        net = make_class(config.class_config, config.class_layers)
        restore_buffers(net)
        self.first_position = first_position(net)
        put_positions(net)
        put_rotary(net)
        self.unused_tensors = tuple(net._keys_to_ignore_on_load_unexpected or ())
        stored = stored_parameters(net)
        places = put_delta_layers(net, mix, implementation, config.state_dtype)
        offsets = put_norms(net)
        self.sources = {
            ours: ClassParameter(place, replace(stored[place.name], rows=place.rows, groups=place.groups, plus=offset))
            for name, ours in self._take_parts(net).items()
            for place, offset in [(places.get(name, StoredParameter(name)), offsets.get(name, 0.0))]
        }
        number_layers(self.layers())
        layers: dict[Any, DeltaLayer] = {
            module.lucid_layer: module for module in self.modules() if isinstance(module, DeltaLayer)
        }
        # Not submodules: the class's parts are submodules under our names already, and mixers own no further weights.
        self.__dict__["_net"] = net
        self.__dict__["_mixers"] = [
            layers[index] if index in layers else layer_kind(kind).mixer(config, index, implementation)
            for index, kind in enumerate(config.kinds)
        ]
        self.tie_weights()

    def _take_parts(self, net: Any) -> dict[str, str]:
        """Register the class's parts as submodules under our names; return our name of each of its parameters."""
        embedding, head = ends(net)
        paths = {module: path for path, module in net.named_modules()}
        moved = {layers_path(net): "model.layers", paths[embedding]: "model.embed_tokens", paths[head]: "lm_head"}
        # In some classes lm_head has several parts; the projection is one of them or separate.
        several = {"lm_head": "head_parts"} if paths[head] != "lm_head" and "lm_head" in net._modules else {}
        names = {name: _renamed(name, {**moved, **several}) for name in net.state_dict(keep_vars=True)}
        parts = {path: net.get_submodule(path) for path in moved}
        parts[paths[head]] = Head(head.in_features, head.out_features, head.bias is not None)
        for path, ours in moved.items():
            parent, _, name = path.rpartition(".")
            if path != ours or ours == "lm_head":  # leave the layers, or a stand-in, as a plain attribute of the class
                del net.get_submodule(parent)._modules[name]
                layers = isinstance(parts[path], nn.ModuleList)
                net.get_submodule(parent).__dict__[name] = parts[path] if layers else _Part(self, ours)
        for name, child in net.named_children():
            self.add_module(several.get(name, name), child)
        if not isinstance(self._modules.get("model"), nn.Module):
            self.model = nn.Module()
        for path, ours in moved.items():
            parent, _, name = ours.rpartition(".")
            self.get_submodule(parent).add_module(name, parts[path])
        return names

    def mixers(self) -> list[Mixer]:
        return list(self.__dict__["_mixers"])

    def run(
        self, input_ids: Tensor, position_ids: Tensor | None, past: list[LayerCache], step: Step, last_only: bool
    ) -> tuple[Tensor, list[LayerCache]]:
        call = ClassCall(self, past, step, last_only)
        exact = self.embedding.dtype == torch.float64
        found = self.call(call, position_ids, exact, input_ids=input_ids)
        missing = [index for index, layer in enumerate(call.present) if layer is None]
        if missing:
            raise LucidError(f"layer {missing[0]} did not call attention, so there is nothing to cache for it")
        return found.logits if exact else found.logits.float(), call.present  # type: ignore[return-value]

    def call(self, call: ClassCall, position_ids: Tensor | None, exact: bool, **inputs: Tensor) -> Any:
        """Run the class on ``input_ids`` or ``inputs_embeds``; with ``exact``, entirely in float64."""
        (given,) = inputs.values()
        if position_ids is not None and self.first_position:
            position_ids = position_ids + self.first_position
        exactly = all_in_float64() if exact else contextlib.nullcontext()
        with running(call), given_positions(position_ids), exactly, whole_numbers_on(self, given.device):
            return self.__dict__["_net"](
                **inputs,
                position_ids=position_ids,
                # Without a mask, the class would look for packed sequences in the position ids.
                attention_mask=torch.ones(given.shape[:2], dtype=torch.int64, device=given.device),
                use_cache=False,
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ClassModel:
        """Convert parameters and stored buffers; other buffers, such as rotary frequencies, keep type and device."""
        kept = {id(module): _tables(module) for module in self.modules()}
        super()._apply(fn, recurse)
        for module in self.modules():
            module._buffers.update(kept[id(module)])
        return self


class ClassCall:
    """One forward pass of the model, with the past cache of each layer; ``present`` collects the updated cache."""

    def __init__(self, model: ClassModel, past: list[LayerCache], step: Step, last_only: bool) -> None:
        self._model, self._past, self._step, self._last_only = model, past, step, last_only
        self.present: list[LayerCache | None] = [None] * len(past)

    def attend(self, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Any, options: dict[str, Any]) -> Tensor:
        place = int(module.lucid_layer)  # type: ignore[arg-type]
        shape, width = self._model.config.attention[place], q.shape[3]
        if self.present[place] is not None:
            raise LucidError(f"layer {place} calls attention twice")
        scale, softcap = attention_options(options, width)
        own = v.shape[3]  # E ≤ D; the cache holds keys and values of one width, D
        v = F.pad(v, (0, width - own))
        if (scale, softcap) != (shape.scale, shape.softcap):
            before = f"the scale {shape.scale} and the soft cap {shape.softcap}"
            raise LucidError(f"layer {place} gave attention {before}, but now gives {scale} and {softcap}")
        if scale != width**-0.5:  # our operators always scale by 1/√D
            q = q * (scale * math.sqrt(width))
        mixer: Any = self._model.mixers()[place]
        vars(mixer)["sinks"] = options.get("s_aux")
        attended, self.present[place] = mixer.mix(q, k, v, self._step, self._past[place])
        return attended[..., :own].transpose(1, 2).contiguous()  # (B, N, H, E)

    def mask(self, sees: Callable[..., Tensor]) -> None:
        return None  # our attention builds its own mask

    def choose(self, module: nn.Module, experts: int, choices: int) -> None:
        pass

    def mix(self, layer: DeltaLayer, x: Tensor) -> Tensor:
        place = int(layer.lucid_layer)  # type: ignore[arg-type]
        mixed, self.present[place] = layer.mix_tokens(x, self._step, self._past[place])
        return mixed

    def rows(self, x: Tensor) -> Tensor:
        """Select the tokens to compute logits for: all, ``(B, N, C)``, or the last, ``(B, 1, C)``."""
        return last_token(x, self._step.mask) if self._last_only and x.shape[1] > 1 else x


class _Part:
    """A stand-in for a class's embedding or head that calls the model's current module."""

    def __init__(self, model: ClassModel, path: str) -> None:
        self._model, self._path = model, path

    def __call__(self, x: Tensor) -> Tensor:
        call = _running()
        part = self._model.get_submodule(self._path)
        return part(call.rows(x) if self._path == "lm_head" and isinstance(call, ClassCall) else x)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # copy looks up such names before _model is set
            raise AttributeError(name)
        return getattr(self._model.get_submodule(self._path), name)


def _renamed(name: str, moved: dict[str, str]) -> str:
    for path, ours in moved.items():
        if name.startswith(f"{path}."):
            return ours + name.removeprefix(path)
    return name


def ends(net: Any) -> tuple[nn.Embedding, nn.Linear]:
    """Return a class's embedding and head; LucidError unless they are an nn.Embedding or subclass, and an nn.Linear."""
    embedding, head = net.get_input_embeddings(), net.get_output_embeddings()
    if not isinstance(embedding, nn.Embedding):
        raise LucidError("its token embedding is not an nn.Embedding")
    if type(head) is not nn.Linear:
        raise LucidError("its head is not an nn.Linear")
    return embedding, head


def _tables(module: nn.Module) -> dict[str, Tensor | None]:
    """Return the buffers of a module that are not stored in checkpoints."""
    return {name: module._buffers[name] for name in module._non_persistent_buffers_set if name in module._buffers}


@contextlib.contextmanager
def whole_numbers_on(net: nn.Module, device: torch.device) -> Iterator[None]:
    """Within the block, use copies on ``device`` of integer and bool buffers that checkpoints do not store."""
    moved = []
    for module in net.modules():
        for name, table in _tables(module).items():
            if table is not None and table.device != device and not table.is_floating_point():
                moved.append((module, name, table))
                module._buffers[name] = table.to(device)
    try:
        yield
    finally:
        for module, name, table in moved:
            module._buffers[name] = table


def restore_buffers(net: Any) -> None:
    """Compute the buffers that checkpoints do not store, on the CPU, because on the meta device they have no values.

    The class's own initialization computes them, here in float64, so that rotary frequencies are rounded only once.
    """
    for path, module in net.named_modules():
        tables = {name: table for name, table in _tables(module).items() if table is not None}
        if not tables:
            continue
        found = []
        for filler in (0, 1):  # a buffer that depends on the filler was not restored
            for name, table in tables.items():
                module._buffers[name] = torch.full_like(table, filler, device="cpu")
            with torch.device("cpu"), torch.no_grad(), all_in_float64():
                net._init_weights(module)
            found.append([module._buffers[name] for name in tables])
        for name, one, other in zip(tables, *found, strict=True):
            if one is None or other is None or not torch.equal(one, other):
                raise LucidError(f"its buffer {path}.{name} is not restored by its own initialization")


def put_norms(net: Any) -> dict[str, float]:
    """Replace each module that computes an RMS norm by ours.

    Returns:
        By the class's name of each norm's weight, the offset to add to the stored weight w: 1 where the norm scales
        by 1 + w, otherwise 0.
    """
    offsets: dict[str, float] = {}
    kinds: dict[Any, float | None] = {}
    for path, module in list(net.named_modules()):
        weight: Any = getattr(module, "weight", None)
        eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
        named = [name for name, _ in module.named_parameters()]
        if named != ["weight"] or weight.dim() != 1 or not isinstance(eps, float) or list(module.buffers()):
            continue
        key = (type(module), eps, len(weight))
        if key not in kinds:
            kinds[key] = _offset_of_norm(module, eps)
        if kinds[key] is not None:
            own = RMSNorm(len(weight), eps)
            parent, _, name = path.rpartition(".")
            setattr(net.get_submodule(parent), name, own)
            offsets[f"{path}.weight"] = kinds[key] or 0.0
    return offsets


def _offset_of_norm(module: nn.Module, eps: float) -> float | None:
    """Return what an RMS norm adds to its weight w: 0 if its scale is w, 1 if it is 1 + w; None for other modules."""
    width = module.weight.shape[0]  # type: ignore[index]
    draw = torch.Generator().manual_seed(0)
    with torch.device("cpu"), torch.no_grad(), all_in_float64():
        w, x = (torch.randn(*size, generator=draw, dtype=torch.float64) for size in ((width,), (2, 3, width)))
        x[0] *= 10 * math.sqrt(eps)
        try:
            found = torch.func.functional_call(module, {"weight": w}, (x,))
        except (RuntimeError, TypeError):  # another signature: not a norm
            return None
        normed = x * (x.square().mean(-1, keepdim=True) + eps).rsqrt()
        for offset in (0.0, 1.0):
            if isinstance(found, Tensor) and torch.allclose(found, normed * (w + offset), rtol=1e-12, atol=1e-13):
                return offset
    return None
