"""Derive our configuration from the ``config.json`` of a transformers model class by running the class itself.

A model of the class, without weights, runs once on the meta device. What each layer passes to attention, including its
mask, shows its heads, widths, scale, window, soft cap and sinks, so no model family needs code of its own here.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import msgspec
import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CLASSES

from lucid_deploy.errors import LucidError
from lucid_deploy.model.config import (
    LARGEST_WINDOW,
    LUCID,
    LUCID_TYPES,
    STANDARD,
    WINDOW,
    AttentionShape,
    LucidConfig,
    Positive,
    check_shape,
)
from lucid_deploy.model.config_file import Tokens, checked, token_ids
from lucid_deploy.model.config_keys import CHANGES, LUCID_KEYS, NO_EFFECT, ROPE_BLOCKS, check_lucid_keys
from lucid_deploy.model.transformers_class.delta_layers import KIND, DeltaLayer, put_delta_layers
from lucid_deploy.model.transformers_class.module import (
    NAME,
    attention_options,
    ends,
    layers_path,
    make_class,
    mix,
    number_layers,
    quiet,
    restore_buffers,
    running,
)
from lucid_deploy.model.transformers_class.positions import first_position
from lucid_deploy.model.transformers_class.published_keys import ALSO_NAMED, is_computed

OURS = frozenset((*LUCID_KEYS, "attention_type", "lucid_layers", "layer_kinds"))  # keys that only this package reads
_TOKENS = 5  # in the run on the meta device
# Keys that do not affect what the class computes, and are not kept.
_DROPPED = OURS | frozenset(
    (
        "architectures",
        "auto_map",
        "dtype",
        "output_attentions",
        "output_hidden_states",
        "quantization_config",
        "return_dict",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    )
)
# Keys for the number of experts, and for the number of experts per token.
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts")
# LUCID's keys with the only value that is supported in a transformers class.
_COMPUTED = {
    "which_rmsnorm": "exp_k_norm",
    "use_rope": True,
    "use_qknorm": False,
    "use_forget_gate": False,
    "key_scaling_exp": 0,
}
_STANDARD_ROPE = ("default", "linear", "llama3", "yarn", "proportional")


class _LucidKeys(msgspec.Struct, kw_only=True, frozen=True):
    """Keys that are read directly from ``config.json``: LUCID's, and the tokens that begin and end a text."""

    attention_type: str = "llama"
    use_beta: bool = False
    lucid_layers: list[int] | None = None
    layer_kinds: list[str] = []
    rms_norm_eps: Positive = 1e-6
    bos_token_id: Tokens = []
    eos_token_id: Tokens = []


def parse_class_config(
    raw: dict[str, Any], where: str, assume_unused: Collection[str] = (), layers: tuple[int, ...] = ()
) -> LucidConfig:
    """Convert ``config.json`` of a transformers class to a configuration; LucidError if it is not supported.

    ``layers`` are the indices of the layers to keep; empty: all. Keys in ``assume_unused`` are ignored.
    """
    keys = checked(raw, _LucidKeys, where)
    _check_names(raw, where)
    _check_lucid_keys(raw, where)
    kept = {key: value for key, value in raw.items() if key not in _DROPPED and not key.startswith("_")}
    kept = {key: _without_dynamic(value) for key, value in kept.items() if key not in assume_unused}
    class_name = class_of(raw["model_type"])[0]
    try:
        with torch.device("meta"):
            net = make_class(kept, layers)
        _check_keys({**raw, **kept}, net, assume_unused)
        _check_experts(net)
        restore_buffers(net)
        with torch.device("meta"):
            put_delta_layers(net, mix, "blocked", "float32")
        shapes, first = attention_shapes(net), first_position(net)
        embedding, _ = ends(net)
    except LucidError as error:
        raise LucidError(f"{where}: {class_name} is not supported: {error}.") from error
    except Exception as error:
        if isinstance(error, KeyError) and error.args == (NAME,):  # the class has its own table of attention functions
            raise LucidError(
                f"{where}: {class_name} is not supported: it does not call attention by transformers' registry."
            ) from error
        reason = " ".join(str(error).split())[:200]
        raise LucidError(f"{where}: {class_name} cannot be made from it: {type(error).__name__}: {reason}") from error
    config = net.config.get_text_config()
    length = getattr(config, "max_position_embeddings", None)
    if not isinstance(length, int):
        raise LucidError(f"{where}: {class_name} is not supported: its configuration has no max_position_embeddings.")
    windows = [shape.window for shape in shapes if shape.window]
    attends = next((shape for shape in shapes if not shape.is_delta), shapes[0])
    deltas = {msgspec.json.encode(part.settings) for part in net.modules() if isinstance(part, DeltaLayer)}
    if len(deltas) > 1:
        raise LucidError(f"{where}: {class_name} is not supported: its layers of the delta rule differ.")
    found = LucidConfig(
        vocab_size=embedding.weight.shape[0],
        hidden_size=embedding.weight.shape[1],
        intermediate_size=int(getattr(config, "intermediate_size", None) or 4 * embedding.weight.shape[1]),
        num_hidden_layers=len(shapes),
        num_attention_heads=attends.heads,
        num_key_value_heads=attends.kv_heads,
        head_dim=attends.head_dim,
        rms_norm_eps=keys.rms_norm_eps,
        max_position_embeddings=length - first,
        attention_type=keys.attention_type,
        tie_word_embeddings=bool(getattr(config, "tie_word_embeddings", False)),
        bos_token_id=next(iter(token_ids(keys.bos_token_id)), None),
        eos_token_ids=token_ids(keys.eos_token_id),
        layer_kinds=_kinds(keys, shapes, where),
        layer_settings={KIND: msgspec.json.decode(deltas.pop())} if deltas else {},
        family=raw["model_type"],
        sliding_window=max(windows, default=None),
        class_config=kept,
        attention=shapes,
        class_layers=layers,
    )
    check_shape(found, where)
    return found


def class_of(model_type: str) -> tuple[str, ...]:
    """Return the names of transformers' causal model classes for ``model_type``, registered ones too; may be empty."""
    names = CLASSES.get(model_type, ())
    if not names and model_type in CONFIG_MAPPING and CONFIG_MAPPING[model_type] in MODEL_FOR_CAUSAL_LM_MAPPING:
        registered: Any = MODEL_FOR_CAUSAL_LM_MAPPING[CONFIG_MAPPING[model_type]]
        return (registered.__name__,)
    return (names,) if isinstance(names, str) else tuple(names)


def _check_names(raw: dict[str, Any], where: str) -> None:
    named = raw.get("architectures") or []
    allowed = class_of(raw["model_type"])
    if not isinstance(named, list) or set(named) - {*allowed, ALSO_NAMED.get(raw["model_type"])}:
        raise LucidError(
            f"{where}: architectures {named!r} is not supported with model_type {raw['model_type']!r}; supported is "
            f"{' or '.join(allowed)}. Another class computes something else from the same tensors."
        )


def _check_lucid_keys(raw: dict[str, Any], where: str) -> None:
    check_lucid_keys(raw, where)
    for key, computed in _COMPUTED.items():
        if raw.get(key) not in (None, computed):
            raise LucidError(f"{where}: {key} is {raw[key]!r}, which is not supported in a class of transformers.")


def _kinds(keys: _LucidKeys, shapes: tuple[AttentionShape, ...], where: str) -> tuple[str, ...]:
    """Return the kind of each layer: sliding-window and DeltaNet as in the class, the others LUCID or standard."""
    lucid = keys.attention_type in LUCID_TYPES
    full = [index for index, shape in enumerate(shapes) if shape.window is None and not shape.is_delta]
    chosen = [index for index, kind in enumerate(keys.layer_kinds) if kind == LUCID] if keys.layer_kinds else full
    if keys.lucid_layers is not None:
        chosen = keys.lucid_layers
        if not lucid:
            raise LucidError(f"{where}: lucid_layers needs attention_type lucid. Set that, or remove lucid_layers.")
    elif not lucid and not keys.layer_kinds:
        chosen = []
    if keys.layer_kinds and keys.lucid_layers is not None:
        raise LucidError(f"{where}: layer_kinds and lucid_layers exclude each other. Remove one of them.")
    if keys.layer_kinds and len(keys.layer_kinds) != len(shapes):
        raise LucidError(f"{where}: layer_kinds has {len(keys.layer_kinds)} entries for {len(shapes)} layers.")
    for index, kind in enumerate(keys.layer_kinds):
        fits = (KIND,) if shapes[index].is_delta else (WINDOW,) if shapes[index].window else (LUCID, STANDARD)
        if kind not in fits:
            raise LucidError(f"{where}: layer_kinds calls layer {index} {kind}; it can be {' or '.join(fits)}.")
    if lucid and not chosen:
        raise LucidError(
            f"{where}: attention_type is {keys.attention_type}, and no layer is LUCID: lucid_layers or layer_kinds "
            "names none, or layer_types and sliding_window give every layer a window."
        )
    for index in chosen:
        if index not in full:
            why = "which does not attend to all tokens" if 0 <= index < len(shapes) else f"but there are {len(shapes)}"
            raise LucidError(f"{where}: lucid_layers names layer {index}, {why}.")
        if shapes[index].softcap is not None:
            raise LucidError(f"{where}: layer {index} caps its scores, which LUCID attention does not compute.")
        if shapes[index].sinks:
            raise LucidError(f"{where}: layer {index} has sinks, which LUCID attention does not compute.")
    other = [KIND if shape.is_delta else WINDOW if shape.window else STANDARD for shape in shapes]
    return tuple(LUCID if index in chosen else kind for index, kind in enumerate(other))


def _unread_keys(raw: dict[str, Any], config: Any, assume_unused: Collection[str]) -> dict[str, Any]:
    """Return the keys of ``config.json`` that a class does not read, although they may affect results."""
    form = type(config)
    try:
        defaults = form()
        known = {*defaults.to_dict(), *vars(defaults)}
    except (TypeError, ValueError):  # it has no defaults
        known = set()
    known |= {*form.attribute_map, *inspect.signature(form.__init__).parameters}
    # The configuration's code also reads keys of older files by name, and the model's code reads a few more.
    code = inspect.getsource(inspect.getmodule(form) or form)
    model: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(form, form)
    of_model = inspect.getsource(inspect.getmodule(model) or model)
    return {
        key: value
        for key, value in raw.items()
        if not (key in known or f'"{key}"' in code or f'config, "{key}"' in of_model)
        and not (key in NO_EFFECT or key in OURS or key in assume_unused)
        and not (computed if (computed := is_computed(key, value, config)) is not None else _harmless(key, value))
    }


def _harmless(key: str, value: Any) -> bool:
    return key in CHANGES and CHANGES[key](value)


def _check_keys(raw: dict[str, Any], net: Any, assume_unused: Collection[str]) -> None:
    config = net.config
    text = config.get_text_config()
    if text is not config:
        raise LucidError(f"it computes more than text; its text part is of model_type {text.model_type!r}")
    lucid = raw.get("attention_type") in LUCID_TYPES
    for key, value in _unread_keys(raw, config, assume_unused).items():
        if key == "rms_norm_eps" and lucid:  # LUCID's solve reads it
            continue
        raise LucidError(
            f"it does not know the key {key} of config.json, which is {value!r}. If its own code leaves it unused, "
            f"export with --assume-unused {key}"
        )
    rope = getattr(config, "rope_parameters", None) or {}
    read = _inner(rope) or [rope]
    for block in read:
        kind = block.get("rope_type", "default")
        changes = any("dynamic" in str(getattr(module, "rope_type", "")) for module in net.modules())
        if kind not in _STANDARD_ROPE and (kind != "dynamic" or changes):
            raise LucidError(f"its rotary positions are scaled by {kind!r}, which changes with the length of the text")
    for name in ROPE_BLOCKS:
        for block in (raw.get(name) or {}, *_inner(raw.get(name))):
            for key in ("rope_type", "type", "factor", "rope_theta"):
                if block.get(key) not in (None, *(other.get("rope_type" if key == "type" else key) for other in read)):
                    raise LucidError(f"it does not read {key} of {name} in config.json, which is {block[key]!r}")


def _without_dynamic(value: Any) -> Any:
    """Replace rope type ``dynamic`` by ``default`` in a block: both are equal up to max_position_embeddings tokens."""
    if not isinstance(value, dict) or "dynamic" not in (value.get("rope_type"), value.get("type")) or "alpha" in value:
        return value  # a block with alpha is Hunyuan's, which does not depend on the length
    rest = {key: item for key, item in value.items() if key not in ("rope_type", "type", "factor")}
    return {**rest, "rope_type": "default"}


def _check_experts(net: Any) -> None:
    """Raise a LucidError for experts called without transformers' registry, or more experts per token than exist."""
    for path, module in net.named_modules():
        stacked = any(value.dim() == 3 for value in module.parameters(recurse=False))
        if "Experts" in type(module).__name__ and stacked and not hasattr(module, "is_transposed"):
            raise LucidError(f"it does not call its experts ({path}) by transformers' registry")
    config = net.config.get_text_config()
    count, chosen = (
        next((getattr(config, key) for key in keys if hasattr(config, key)), None) for keys in (EXPERTS, _CHOSEN)
    )
    if isinstance(count, int) and isinstance(chosen, int) and 0 < count < chosen:
        raise LucidError(f"each token would choose {chosen} experts, and there are {count}")


def _inner(block: Any) -> list[Any]:
    return [value for value in block.values() if isinstance(value, dict)] if isinstance(block, dict) else []


@dataclass
class _MetaRun:
    """A run of a class on the meta device that records what each layer passes to attention."""

    layers: Any
    length: int  # the maximum context length, in tokens
    found: dict[int, AttentionShape] = field(default_factory=dict)  # by layer
    # Each created mask and its window. None: causal without window; 0: unsupported, refused if a layer uses it.
    masks: list[tuple[Tensor, int | None]] = field(default_factory=list)
    experts: dict[int, tuple[int, int]] = field(default_factory=dict)  # by layer, as AttentionShape.experts

    def attend(self, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Any, options: dict[str, Any]) -> Tensor:
        place = getattr(module, "lucid_layer", None)
        if place is None:
            raise LucidError("a module outside of its layers calls attention")
        if place in self.found:
            raise LucidError(f"layer {place} calls attention twice")
        (batch, heads, n, width), (_, kv_heads, rows, _) = q.shape, k.shape
        if rows != n or v.shape[:3] != k.shape[:3] or k.shape[3] != width or heads % kv_heads:
            shapes = f"{tuple(q.shape)}, {tuple(k.shape)} and {tuple(v.shape)}"
            raise LucidError(f"layer {place} gives attention queries, keys and values of unsupported shapes: {shapes}")
        if v.shape[3] > width:
            raise LucidError(f"layer {place} has values that are wider ({v.shape[3]}) than its keys ({width})")
        scale, softcap = attention_options(options, width)
        path = next(path for path, part in self.layers[place].named_modules() if part is module)
        weights = tuple(f"{path}.{name}" for name, _ in module.named_parameters())
        window, sinks = self._window(place, mask), options.get("s_aux")
        if sinks is not None and sinks.shape != (heads,):
            raise LucidError(f"layer {place} has sinks of the shape {tuple(sinks.shape)} for {heads} heads")
        self.found[place] = AttentionShape(
            heads, kv_heads, width, scale, window, softcap, weights, sinks=sinks is not None
        )
        return q.new_zeros(batch, n, heads, v.shape[3])

    def mix(self, layer: DeltaLayer, x: Tensor) -> Tensor:
        place, settings = int(layer.lucid_layer), layer.settings  # type: ignore[arg-type]
        path = next(path for path, part in self.layers[place].named_modules() if part is layer)
        weights = tuple(f"{path}.{name}" for name, _ in layer.named_parameters())
        heads, width = settings.value_heads, settings.key_width
        self.found[place] = AttentionShape(heads, heads, width, width**-0.5, weights=weights, is_delta=True)
        return torch.zeros_like(x)

    def choose(self, module: nn.Module, experts: int, choices: int) -> None:
        place = getattr(module, "lucid_layer", None)
        if place is None or place in self.experts:
            raise LucidError("it calls experts outside of its layers, or twice in one layer")
        self.experts[place] = (experts, choices)

    def _window(self, place: int, mask: Any) -> int | None:
        for made, window in self.masks:
            if mask is made or (isinstance(mask, Tensor) and mask._base is made):
                if window == 0:
                    raise LucidError("its attention mask is neither causal nor a sliding window")
                return window
        raise LucidError(f"layer {place} does not get its mask from transformers' registry")

    def mask(self, sees: Callable[..., Tensor]) -> Tensor:
        """Return a mask without values, and record the window of the layers that use it."""
        made = torch.empty((1, 1, _TOKENS, _TOKENS), device="meta")
        with torch.device("cpu"):
            self.masks.append((made, self._sees_last(sees)))
        return made

    def _sees_last(self, sees: Callable[..., Tensor]) -> int | None:
        """Return the window of a mask, in tokens including the token itself; None: causal; 0: any other mask."""
        last, zero = min(self.length, LARGEST_WINDOW) - 1, torch.tensor(0)
        window = last + 1
        for token in (last, max(last - 1, 0), last // 2, last // 3):  # chunked masks differ in the last two
            columns = torch.arange(token + 2)
            try:
                seen = torch.as_tensor(sees(zero, zero, torch.tensor(token), columns), dtype=torch.bool)
            except RuntimeError:  # it depends on padding, which is unknown on the meta device
                return 0
            window = int(seen.expand(token + 2).sum()) if token == last else window
            if not bool((seen == ((columns <= token) & (columns > token - window))).all()):
                return 0
        return None if window == last + 1 else window


def attention_shapes(net: Any) -> tuple[AttentionShape, ...]:
    """Return the attention and experts of each layer of a class, from one run on the meta device."""
    layers = net.get_submodule(layers_path(net))
    number_layers(layers)
    length = getattr(net.config.get_text_config(), "max_position_embeddings", None) or 2048
    run = _MetaRun(layers, length)
    given: list[list[Any]] = [[] for _ in layers]
    hooks = [
        layer.register_forward_pre_hook(
            lambda _, args, kwargs, place=place: given[place].append((args[1:], kwargs)), with_kwargs=True
        )
        for place, layer in enumerate(layers)
    ]
    ids = torch.zeros((1, _TOKENS), dtype=torch.int64, device="meta")
    try:
        mask = torch.ones(ids.shape, dtype=torch.int64, device="cpu")  # some classes check whether it has padding
        with running(run), torch.no_grad(), quiet():
            net(input_ids=ids, position_ids=ids, attention_mask=mask, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    silent = [place for place in range(len(layers)) if place not in run.found]
    if silent:
        raise LucidError(f"layer {silent[0]} does not call attention by transformers' registry")
    shapes = [dataclasses.replace(run.found[place], experts=run.experts.get(place)) for place in range(len(layers))]
    return _numbered(layers, given, shapes)


def _numbered(layers: Any, given: list[Any], shapes: list[AttentionShape]) -> tuple[AttentionShape, ...]:
    """Return the shapes with ``like`` set: the index of the first layer that differs only in the values of weights."""
    first: dict[str, int] = {}
    seen: dict[int, int] = {}  # tensors passed to layers, numbered in the order of first use, by id
    found = []
    for place, (layer, calls, shape) in enumerate(zip(layers, given, shapes, strict=True)):
        like = first.setdefault(f"{shape} {_signature(layer)} {_given(calls, seen)}", place)
        found.append(dataclasses.replace(shape, like=like))
    return tuple(found)


def _signature(layer: nn.Module) -> str:
    """Return a description of a layer's modules, equal for layers that differ only in the values of their weights."""
    parts = []
    for name, module in layer.named_modules():
        plain = {
            key: value
            for key, value in vars(module).items()
            if isinstance(value, int | float | str | bool | None | tuple)
            and key not in ("layer_idx", "lucid_layer", "training")
        }
        shapes = {key: tuple(value.shape) for key, value in module.named_parameters(recurse=False)}
        tables = {key: value.tolist() for key, value in module.named_buffers(recurse=False) if not value.is_meta}
        parts.append(f"{name} {type(module)} {plain} {shapes} {tables}")
    return "\n".join(parts)


def _given(value: Any, seen: dict[int, int]) -> str:
    """Return a description of a layer's arguments, with a number for each tensor; LucidError for complex tensors."""
    if isinstance(value, Tensor):
        if value.is_complex():
            raise LucidError("its layers are given complex numbers, such as rotary positions, which ONNX does not have")
        return f"tensor {seen.setdefault(id(value), len(seen))}"
    if isinstance(value, dict):
        return str({key: _given(item, seen) for key, item in value.items() if key != "hidden_states"})
    if isinstance(value, list | tuple):
        return str([_given(item, seen) for item in value])
    return str(value) if isinstance(value, int | float | str | bool | None) else str(type(value))
