"""Read ``quantization_config``: get the layout of a checkpoint's quantized weights.

Each method has a struct of the keys that are read, and a set of keys that do not change how weights are decoded. Any
other key might, and is refused.

- ``gptq`` (AutoGPTQ, gptqmodel): ``qweight`` int32 ``(in·bits/32, out)``; ``scales`` ``(groups, out)``; ``qzeros``
  int32 ``(groups, out·bits/32)``; ``g_idx`` int32 ``(in)``. The format ``gptq`` (the older one, the default) stores
  zero points minus one, ``gptq_v2`` unchanged. Published in AutoGPTQ's ``qlinear_cuda_old.py`` and gptqmodel's
  ``convert_gptq_v1_to_v2_format_module``.
- ``awq`` (AutoAWQ, version gemm): ``qweight`` int32 ``(in, out/8)`` and ``qzeros`` int32 ``(groups, out/8)``: a
  word holds the values of eight outputs, from the lowest bits up those of outputs 0, 2, 4, 6, 1, 3, 5, 7; ``scales``
  ``(groups, out)``. Published in AutoAWQ's ``packing_utils.py``. The weights contain AWQ's scaling of inputs.
- ``compressed-tensors``: ``pack-quantized`` has ``weight_packed`` int32 ``(out, in·bits/32)``, ``weight_scale``
  ``(out, groups)``, ``weight_shape`` and, where weights are not symmetric, ``weight_zero_point`` int32
  ``(out·bits/32, groups)``. ``float-quantized`` has ``weight`` E4M3 ``(out, in)``; ``weight_scale`` one number,
  ``(out, 1)``, or ``(⌈out/rows⌉, ⌈in/inputs⌉)``; ``input_scale``, one number, where inputs are rounded with it.
  Published in its ``compressors/``.
- ``fp8`` with the key ``weight_block_size`` (DeepSeek, Qwen, transformers' ``FineGrainedFP8Config``):
  ``weight_scale_inv`` ``(⌈out/rows⌉, ⌈in/inputs⌉)``, or one number where the key is null; in spite of the name, values
  are multiplied by it. ``activation_scale``, one number, where inputs are rounded with it. Without the key
  (AutoFP8, vLLM's ``fp8``): ``weight_scale`` and, where inputs are rounded with it, ``input_scale``, one number each.

All functions raise ValueError where the settings are not supported.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from lucid_deploy.json_fields import FieldError, decode
from lucid_deploy.model.packed.layouts import AWQ_PLACES, FloatLayout, IntegerLayout, PackedLayout
from lucid_deploy.model.packed.weight import InputRounding

_Settings = TypeVar("_Settings", bound=msgspec.Struct)
_Side = Annotated[int, msgspec.Meta(gt=0)]
_Block = Annotated[list[_Side], msgspec.Meta(min_length=2, max_length=2)]


def read_settings(
    settings: dict[str, Any], form: type[_Settings], ignored: Collection[str], where: str = "quantization_config"
) -> _Settings:
    """Convert settings to a struct. None counts as absent; unknown keys raise ValueError."""
    given = {key: value for key, value in settings.items() if value is not None and key not in ignored}
    unknown = sorted(given.keys() - set(form.__struct_fields__))
    if unknown:
        raise ValueError(f"{where} has the unknown key {unknown[0]!r}, which may change what the numbers mean")
    try:
        return decode(json.dumps(given).encode(), form, where)
    except FieldError as error:
        raise ValueError(f"in {where}: {str(error).rstrip('.')}") from error


def _group_size(size: int) -> int:
    if size < 1 and size != -1:
        raise ValueError(f"group_size is {size}, and must be positive, or -1 for whole rows")
    return size


# Keys of AutoGPTQ, gptqmodel and transformers that say how or which weights were quantized, or select kernels.
_GPTQ_IGNORED = frozenset(
    """
    act_group_aware backend batch_size block_name_to_quantize cache_block_outputs damp_auto_increment damp_percent
    dataset disable_exllama exllama_config lm_head max_input_length meta model_file_base_name model_name_or_path
    model_seqlen module_name_preceding_first_block modules_in_block_to_quantize modules_to_not_convert mse pad_token_id
    quant_method tokenizer true_sequential use_cuda_fp16 use_exllama version
    """.split()  # noqa: SIM905 (a table)
)


class _Gptq(msgspec.Struct, kw_only=True, frozen=True):
    bits: Literal[4, 8]
    group_size: int = -1
    format: Literal["gptq", "gptq_v2"] | None = None  # transformers' spelling of checkpoint_format
    checkpoint_format: Literal["gptq", "gptq_v2"] | None = None
    method: Literal["gptq"] = "gptq"  # gptqmodel's second spelling of quant_method
    sym: bool = False
    desc_act: bool = False
    static_groups: bool = False
    is_marlin_format: bool = False
    dynamic: dict[str, Any] = {}
    pack_dtype: Literal["int32"] = "int32"


def gptq_layout(settings: dict[str, Any]) -> IntegerLayout:
    """Read the settings of AutoGPTQ and gptqmodel."""
    given = read_settings(settings, _Gptq, _GPTQ_IGNORED)
    if given.format and given.checkpoint_format and given.format != given.checkpoint_format:
        raise ValueError(f"format {given.format} and checkpoint_format {given.checkpoint_format} contradict each other")
    if given.is_marlin_format:
        raise ValueError("is_marlin_format is true, and the Marlin layout is not supported")
    if given.dynamic:
        raise ValueError("dynamic, which overrides the settings of some layers, is not supported")
    group = _group_size(given.group_size)
    return IntegerLayout(
        name="gptq",
        bits=given.bits,
        group_size=group,
        numbers="qweight",
        scale="scales",
        zero="qzeros",
        index="g_idx",
        remedy="desc_act=False or static_groups=True",
        ordered=given.desc_act and not given.static_groups and group != -1,
        transposed=True,
        zeros_less_one="gptq_v2" not in (given.format, given.checkpoint_format),
        middle=given.sym,
    )


# gptqmodel writes its GPTQ keys for AWQ too. AutoAWQ's keys are added, and keys that change only GPTQ's layout.
_AWQ_IGNORED = (_GPTQ_IGNORED - {"backend", "version"}) | {
    *("do_fuse", "fuse_max_seq_len", "ignore", "modules_to_fuse"),
    *("desc_act", "pack_dtype", "static_groups", "sym"),
}


class _Awq(msgspec.Struct, kw_only=True, frozen=True):
    bits: Literal[4]
    group_size: int
    version: str = "gemm"
    format: str = "gemm"
    checkpoint_format: str = "gemm"
    backend: str = ""
    method: Literal["awq"] = "awq"
    zero_point: bool = True
    dynamic: dict[str, Any] = {}


def awq_layout(settings: dict[str, Any]) -> IntegerLayout:
    """Read the settings of AutoAWQ."""
    given = read_settings(settings, _Awq, _AWQ_IGNORED)
    if given.backend == "llm-awq":  # then transformers reads another layout, whatever the version
        raise ValueError("backend llm-awq is not supported; AutoAWQ's gemm is")
    for version in (given.version, given.format, given.checkpoint_format):
        if version.lower() != "gemm":
            raise ValueError(f"version {version!r} is not supported; gemm is")
    if given.dynamic:
        raise ValueError("dynamic, which overrides the settings of some layers, is not supported")
    if not given.zero_point:
        raise ValueError("zero_point is false, for which the layout gemm has no tensors")
    return IntegerLayout(
        name="awq",
        bits=given.bits,
        group_size=_group_size(given.group_size),
        numbers="qweight",
        scale="scales",
        zero="qzeros",
        transposed=True,
        along_outputs=True,
        places=AWQ_PLACES,
    )


_COMPRESSED_IGNORED = frozenset(
    ("global_compression_ratio", "ignore", "quant_method", "quantization_status", "use_optimized_inference", "version")
)


class _Compressed(msgspec.Struct, kw_only=True, frozen=True):
    format: Literal["pack-quantized", "float-quantized"]
    config_groups: dict[str, dict[str, Any]]
    kv_cache_scheme: Any = None
    transform_config: dict[str, Any] = {}
    sparsity_config: dict[str, Any] = {}
    dequantize: bool = False
    run_compressed: bool = True


class _Group(msgspec.Struct, kw_only=True, frozen=True):
    weights: dict[str, Any]
    input_activations: dict[str, Any] = {}
    output_activations: dict[str, Any] = {}
    format: str | None = None


class _Numbers(msgspec.Struct, kw_only=True, frozen=True):
    """How weights or inputs are quantized: ``weights`` or ``input_activations`` of a group."""

    type: Literal["int", "float"]
    num_bits: Literal[4, 8]
    strategy: Literal["group", "channel", "tensor", "block", "token"]
    symmetric: bool = True
    dynamic: bool = False
    group_size: int | None = None
    block_structure: _Block | None = None
    actorder: Literal["group", "dynamic", "weight", "static"] | bool | None = None
    scale_dtype: Literal["torch.float32", "torch.bfloat16", "torch.float16"] | None = None


def compressed_layout(settings: dict[str, Any]) -> PackedLayout:
    """Read the settings of compressed-tensors."""
    given = read_settings(settings, _Compressed, _COMPRESSED_IGNORED)
    if given.kv_cache_scheme:
        raise ValueError("kv_cache_scheme, which quantizes the cache, is not supported")
    if given.transform_config.get("config_groups", given.transform_config):
        raise ValueError("transform_config, which rotates weights and inputs, is not supported")
    if given.sparsity_config.get("format", "dense") != "dense":
        raise ValueError("sparsity_config, which stores weights without zeros, is not supported")
    if len(given.config_groups) != 1:
        raise ValueError(f"it has {len(given.config_groups)} config_groups (ways to quantize a layer); 1 is supported")
    group = read_settings(next(iter(given.config_groups.values())), _Group, ("targets",), "config_groups")
    if group.format not in (None, given.format):
        raise ValueError(f"format {given.format!r} and that of config_groups, {group.format!r}, contradict each other")
    if group.output_activations:
        raise ValueError("output_activations, which quantizes the outputs of layers, is not supported")
    weights = _numbers(group.weights, "weights")
    if weights.dynamic:
        raise ValueError("dynamic is true for the weights (scales at run time); only stored scales are supported")
    if given.format == "float-quantized":
        return _compressed_floats(settings, weights, group.input_activations)
    if group.input_activations:
        raise ValueError(
            "input_activations, which quantizes the inputs of integer layers, is not supported. Checkpoints that "
            "quantize only weights (W4A16, W8A16) are"
        )
    return _compressed_integers(weights)


def _numbers(settings: dict[str, Any], where: str) -> _Numbers:
    return read_settings(settings, _Numbers, ("observer", "observer_kwargs", "zp_dtype"), where)


def _compressed_integers(weights: _Numbers) -> IntegerLayout:
    if weights.type != "int":
        raise ValueError(f"packed weights of type {weights.type} are not supported")
    if weights.strategy not in ("group", "channel"):
        raise ValueError(f"the strategy {weights.strategy!r} is not supported; group and channel are")
    size = (weights.group_size or 0) if weights.strategy == "group" else -1
    if weights.strategy == "group" and size < 1:
        raise ValueError(f"group_size is {weights.group_size}, and must be positive")
    return IntegerLayout(
        name="compressed-tensors",
        bits=weights.num_bits,
        group_size=size,
        numbers="weight_packed",
        scale="weight_scale",
        zero="" if weights.symmetric else "weight_zero_point",
        index="weight_g_idx",
        remedy="actorder static or none",
        # "group", also spelled "dynamic" and true: weight_g_idx maps inputs to groups; otherwise they are consecutive.
        ordered=weights.strategy == "group" and weights.actorder in ("group", "dynamic", True),
        size="weight_shape",
    )


def _compressed_floats(settings: dict[str, Any], weights: _Numbers, activations: dict[str, Any]) -> FloatLayout:
    size = weights.block_structure
    blocks: dict[str, tuple[int | None, int | None]] = {"tensor": (None, None), "channel": (1, None)}
    if size is not None:
        blocks["block"] = size[0], size[1]
    block = blocks.get(weights.strategy)
    if block is None:
        raise ValueError(f"the strategy {weights.strategy!r} with block_structure {weights.block_structure}")
    inputs = None
    if activations:
        rounding = _numbers(activations, "input_activations")
        _check_float(rounding, "input_activations")
        group = rounding.group_size
        ways = {("tensor", False): InputRounding("static"), ("token", True): InputRounding("token")}
        if group is not None and group > 0:
            ways["group", True] = InputRounding("group", group)
        inputs = ways.get((rounding.strategy, rounding.dynamic))
        if inputs is None:
            raise ValueError(
                f"input_activations with strategy {rounding.strategy!r}, dynamic {rounding.dynamic} and group_size "
                f"{group} are not supported; static per tensor, and dynamic per token and per group, are"
            )
    _check_float(weights, "weights")
    _refuse_dequantize(settings, inputs)
    static = inputs is not None and inputs.kind == "static"
    return FloatLayout("compressed-tensors", block, "weight_scale", "input_scale" if static else None, inputs)


def _check_float(numbers: _Numbers, where: str) -> None:
    if (numbers.type, numbers.num_bits, numbers.symmetric) != ("float", 8, True):
        points = "" if numbers.symmetric else " and zero points"
        raise ValueError(f"{where} of type {numbers.type} with {numbers.num_bits} bits{points}; only E4M3 is supported")


# The method's name, and keys for which layers are quantized, which the tensors' types show too.
_FP8_IGNORED = frozenset(("ignored_layers", "modules_to_convert", "modules_to_not_convert", "quant_method"))
_BLOCK_KEY = "weight_block_size"


class _Fp8(msgspec.Struct, kw_only=True, frozen=True):
    activation_scheme: Literal["dynamic", "static"] = "dynamic"
    weight_block_size: _Block | None = None
    fmt: Literal["e4m3"] = "e4m3"
    scale_fmt: Literal["float"] = "float"
    expert_dtype: Literal["fp8"] = "fp8"
    kv_cache_scheme: Any = None
    dequantize: bool = False


def fp8_layout(settings: dict[str, Any]) -> FloatLayout:
    """Read the settings of the method ``fp8``."""
    given = read_settings(settings, _Fp8, _FP8_IGNORED)
    if given.kv_cache_scheme:
        raise ValueError("kv_cache_scheme, which quantizes the cache, is not supported")
    size = given.weight_block_size
    fine_grained = _BLOCK_KEY in settings
    scale = "weight_scale_inv" if fine_grained else "weight_scale"
    input_scale = "activation_scale" if fine_grained else "input_scale"
    if given.activation_scheme == "static":
        inputs = InputRounding("static")
    else:
        inputs = InputRounding("token") if size is None else InputRounding("group", size[1])
    _refuse_dequantize(settings, inputs)
    block = (None, None) if size is None else (size[0], size[1])
    return FloatLayout("fp8", block, scale, input_scale if inputs.kind == "static" else None, inputs)


def _refuse_dequantize(settings: dict[str, Any], inputs: InputRounding | None) -> None:
    """Raise ValueError for a key that makes transformers skip rounding of inputs, because other programs ignore it."""
    key = "dequantize is true" if settings.get("dequantize") else "run_compressed is false"
    if inputs is not None and (settings.get("dequantize") or settings.get("run_compressed") is False):
        raise ValueError(
            f"{key}: transformers then does not quantize the inputs of layers, but other programs do. Remove the key; "
            "export with --quantize stored --activations float for unquantized inputs"
        )


METHODS: dict[str, Callable[[dict[str, Any]], PackedLayout]] = {
    "gptq": gptq_layout,
    "awq": awq_layout,
    "compressed-tensors": compressed_layout,
    "fp8": fp8_layout,
}
