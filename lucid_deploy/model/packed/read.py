"""Find out how a checkpoint is quantized, and which tensors of its files make up which weight."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lucid_deploy.errors import LucidError
from lucid_deploy.model.packed.awq import AwqLayout
from lucid_deploy.model.packed.compressed import CompressedLayout
from lucid_deploy.model.packed.compressed_float import FORMAT, CompressedFloatLayout
from lucid_deploy.model.packed.float_weight import FP8, FloatWeight
from lucid_deploy.model.packed.fp8 import Fp8Layout
from lucid_deploy.model.packed.gptq import GptqLayout
from lucid_deploy.model.packed.weight import PackedLayout, PackedWeight, Shape, check_numbers, check_part

KEY = "quantization_config"
OLDER_FILE = "quantize_config.json"  # of AutoGPTQ before it wrote into config.json
MODELOPT_FILE = "hf_quant_config.json"  # of NVIDIA's ModelOpt: {"quantization": {"quant_algo": "NVFP4", …}, …}
_PLAIN_KEYS = ("ignore", "ignored_layers", "modules_to_not_convert")  # of compressed-tensors; AutoFP8; transformers
_LOOSE = ("sym", "desc_act", "static_groups")  # without them nothing is said of zero points and groups


def _compressed(settings: dict[str, Any]) -> PackedLayout:
    """Read settings of compressed-tensors; of formats of floating-point numbers one is read."""
    is_float = settings.get("format") == FORMAT
    return CompressedFloatLayout.from_settings(settings) if is_float else CompressedLayout.from_settings(settings)


_LAYOUTS: dict[str, Callable[[dict[str, Any]], PackedLayout]] = {
    "gptq": GptqLayout.from_settings,
    "awq": AwqLayout.from_settings,
    "compressed-tensors": _compressed,
    "fp8": Fp8Layout.from_settings,
}


def split_layout(raw: dict[str, Any], directory: Path) -> tuple[dict[str, Any], PackedLayout | None]:
    """Take what ``config.json`` says about quantized weights out of it.

    Args:
        raw: The configuration.
        directory: Of the checkpoint.

    Returns:
        The configuration of the model alone, and how its weights are stored; None: as they are.

    Raises:
        LucidError: They are quantized in a way that is not read.
    """
    older = _older_settings(directory)
    settings = raw.get(KEY) or older
    if not settings:
        _refuse_modelopt(directory)
        return raw, None
    layout = _layout_of(settings, directory)
    _refuse_modelopt(directory, beside=layout.name)
    if older and settings is not older:
        _compare_settings(settings, older, directory)
    return {key: value for key, value in raw.items() if key != KEY}, layout


def plain_modules(raw: dict[str, Any]) -> frozenset[str]:
    """Return the names that ``config.json`` lists as not quantized; patterns among them name no module.

    Args:
        raw: The configuration, with what it says about quantized weights.
    """
    settings = raw.get(KEY)
    listed = [settings.get(key) for key in _PLAIN_KEYS] if isinstance(settings, dict) else []
    return frozenset(name for names in listed if isinstance(names, list) for name in names if isinstance(name, str))


def _layout_of(settings: Any, directory: Path) -> PackedLayout:
    """Return the layout that settings name.

    Raises:
        LucidError: It is not read.
    """
    method = settings.get("quant_method") if isinstance(settings, dict) else None
    if not isinstance(method, str) or method not in _LAYOUTS:
        raise LucidError(
            f"{directory} is quantized by {method or 'a tool that its configuration does not name'}, whose numbers are "
            f"not read: {', '.join(_LAYOUTS)} are. Take the checkpoint that it was made from, or one of these."
        )
    try:
        return _LAYOUTS[method](settings)
    except ValueError as error:
        raise LucidError(f"{directory} is quantized by {method}, and cannot be read: {error}.") from error


def _older_settings(directory: Path) -> dict[str, Any] | None:
    """Return what the file of AutoGPTQ and gptqmodel says; None where there is none.

    Raises:
        LucidError: It cannot be read.
    """
    path = directory / OLDER_FILE
    if not path.is_file():
        return None
    try:
        return {"quant_method": "gptq", **json.loads(path.read_text(encoding="utf-8"))}
    except (ValueError, TypeError, OSError, RecursionError) as error:
        raise LucidError(f"{path} cannot be read: {error}") from error


def _compare_settings(settings: dict[str, Any], older: dict[str, Any], directory: Path) -> None:
    """Compare ``config.json`` with the older file, which gptqmodel reads in its place.

    Raises:
        LucidError: They mean different numbers.
    """
    loose = {key for key in _LOOSE if settings.get(key) is None or older.get(key) is None}  # said by one alone
    here, there = ({key: said[key] for key in said if key not in loose} for said in (settings, older))
    try:
        same = _layout_of(here, directory) == _layout_of(there, directory)
    except LucidError as error:
        raise LucidError(f"{directory / OLDER_FILE} cannot be taken: {error}") from error
    if not same:
        raise LucidError(
            f"{directory} has {KEY} in config.json and another one in {OLDER_FILE}. transformers reads the first and "
            "gptqmodel the second, which are other weights. Remove the one that is wrong."
        )


def _refuse_modelopt(directory: Path, beside: str | None = None) -> None:
    """Refuse what ModelOpt has quantized, and a file that says so beside another tool's settings.

    Raises:
        LucidError: There is ModelOpt's file.
    """
    path = directory / MODELOPT_FILE
    if not path.is_file():
        return
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["quantization"]["quant_algo"]
    except (ValueError, TypeError, KeyError, OSError, RecursionError):
        found = None
    if beside is not None:
        raise LucidError(
            f"{directory} is quantized by {beside}, as config.json says, and by modelopt "
            f"({found or 'how is not said'}), as {MODELOPT_FILE} says. TensorRT's programs read the second, which may "
            "round caches too. Remove the one that is wrong."
        )
    raise LucidError(
        f"{directory} is quantized by modelopt ({found or 'how is not said'}, {MODELOPT_FILE}), whose numbers "
        f"are not read: {', '.join(_LAYOUTS)} are. Take the checkpoint that it was made from, or one of these."
    )


@dataclass(frozen=True)
class PackedParts:
    """One weight of a quantized checkpoint.

    Attributes:
        module: What the names of its parts start with.
        shape: ``(out, in)``.
        names: Of its parts, by the last part of the name.
        layout: How to read them.
    """

    module: str
    shape: tuple[int, int]
    names: dict[str, str]
    layout: PackedLayout

    def read(self, tensor: Callable[[str], Any], where: Path) -> PackedWeight | FloatWeight:
        """Read the weight.

        Args:
            tensor: Gives a stored tensor by its name.
            where: The checkpoint, for messages.

        Raises:
            LucidError: What is stored is not computed here.
        """
        try:
            weight = self.layout.read({part: tensor(name) for part, name in self.names.items()})
        except ValueError as error:
            raise LucidError(f"{where}: {self.module} cannot be taken over: {error}.") from error
        if tuple(weight.codes.shape) != self.shape:
            raise LucidError(f"{where}: {self.module} holds {list(weight.codes.shape)}, not {list(self.shape)}.")
        return weight


def find_parts(
    layout: PackedLayout,
    names: dict[str, Any],
    shape_of: Callable[[str], Shape],
    where: Path,
    type_of: Callable[[str], str],
    plain: Collection[str] = (),
) -> dict[str, PackedParts]:
    """Group the tensors of a checkpoint to quantized weights, by the weights' names.

    Args:
        layout: How weights are stored.
        names: All tensors.
        shape_of: Gives a tensor's shape.
        where: The checkpoint, for messages.
        type_of: Gives a tensor's type, as safetensors spells it.
        plain: Modules that the settings list as not quantized.

    Raises:
        LucidError: Parts are missing, of types or shapes that are not read, or do not fit each other or the settings;
            or they are of a weight that is there in floats too, or that the settings list as not quantized.
    """
    known, found = (*layout.required, *layout.optional), {}
    marks = {part for part in known if part not in ("weight", "g_idx")}
    modules = dict.fromkeys(
        name.rpartition(".")[0]
        for name in names
        if name.rpartition(".")[2] in marks or (name.endswith(".weight") and type_of(name) == FP8)
    )
    for module in modules:
        parts = {part: f"{module}.{part}" for part in known if f"{module}.{part}" in names}
        missing = [part for part in layout.required if part not in parts]
        if missing:
            raise LucidError(f"{where}: {module} is quantized by {layout.name}, and has no {', '.join(missing)}.")
        whole = f"{module}.weight"
        if "weight" not in parts and whole in names:
            raise LucidError(
                f"{where} has {whole} and {', '.join(parts.values())}, which {layout.name} makes of it. Programs "
                "differ in which of them they read, and they may be other weights. Remove one of them."
            )
        if module in plain:
            raise LucidError(
                f"{where}: its quantization_config lists {module} as not quantized ({', '.join(_PLAIN_KEYS)}), and "
                f"{', '.join(parts.values())} are stored, which programs read without their scales or not at all. "
                "Correct the list, or take the checkpoint that it was made from."
            )
        shapes = {part: shape_of(name) for part, name in parts.items()}
        try:
            for part, name in parts.items():
                check_part(part, type_of(name), layout.types[part])
            check_numbers(layout.required[0], shapes[layout.required[0]])
            shape = layout.shape(shapes)
        except ValueError as error:
            raise LucidError(f"{where}: {module} does not fit its quantization_config: {error}.") from error
        found[f"{module}.weight"] = PackedParts(module, shape, parts, layout)
    if not found:
        raise LucidError(f"{where} says that {layout.name} has quantized it, and no tensor is.")
    return found
