"""Find out how a checkpoint is quantized, and which of its tensors are the parts of which weight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lucid_deploy.errors import LucidError
from lucid_deploy.model.packed.layouts import FP8, PackedLayout, Shape
from lucid_deploy.model.packed.settings import METHODS
from lucid_deploy.model.packed.weight import FloatWeight, PackedWeight

KEY = "quantization_config"
MODELOPT_FILE = "hf_quant_config.json"  # of NVIDIA's ModelOpt


def split_layout(raw: dict[str, Any], directory: Path) -> tuple[dict[str, Any], PackedLayout | None]:
    """Separate the quantization settings from ``config.json``; LucidError if they are not supported.

    Returns:
        The configuration without them, and the layout of the quantized weights; None if there are no settings.
    """
    if (directory / MODELOPT_FILE).is_file():  # config.json of such a checkpoint may not mention quantization
        raise LucidError(_unsupported(directory, f"modelopt ({MODELOPT_FILE})"))
    settings = raw.get(KEY)
    if not settings:
        return raw, None
    layout = _layout_of(settings, directory)
    return {key: value for key, value in raw.items() if key != KEY}, layout


def _layout_of(settings: Any, directory: Path) -> PackedLayout:
    method = settings.get("quant_method") if isinstance(settings, dict) else None
    if not isinstance(method, str) or method not in METHODS:
        raise LucidError(_unsupported(directory, method or "a tool that its configuration does not name"))
    try:
        return METHODS[method](settings)
    except ValueError as error:
        raise LucidError(f"{directory} is quantized by {method} in an unsupported way: {error}.") from error


def _unsupported(directory: Path, method: Any) -> str:
    return (
        f"{directory} is quantized by {method}, which is not supported; {', '.join(METHODS)} are. Use the checkpoint "
        "that it was quantized from, or one quantized by these."
    )


@dataclass(frozen=True)
class PackedParts:
    """The stored tensors that make up one quantized weight, and how to read them."""

    module: str  # the common prefix of the parts' names
    shape: tuple[int, int]  # (out, in)
    names: dict[str, str]  # the tensors' full names by their last component: qweight, scales, …
    layout: PackedLayout  # how to read them

    def read(self, tensor: Callable[[str], Any], where: Path) -> PackedWeight | FloatWeight:
        """Read the weight; ``tensor`` returns a stored tensor by its name."""
        try:
            return self.layout.read({part: tensor(name) for part, name in self.names.items()})
        except ValueError as error:
            raise LucidError(f"{where}: {self.module} cannot be read: {error}.") from error


def find_parts(
    layout: PackedLayout,
    names: dict[str, Any],
    shape_of: Callable[[str], Shape],
    where: Path,
    type_of: Callable[[str], str],
) -> dict[str, PackedParts]:
    """Return a checkpoint's quantized weights by name; LucidError if there are none, or they do not fit ``layout``.

    ``names`` are those of all stored tensors; ``type_of`` returns a tensor's type as safetensors spells it.
    """
    known, weights = (*layout.required, *layout.optional), {}
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
        weight = f"{module}.weight"
        if "weight" not in parts and weight in names:
            raise LucidError(
                f"{where} has both {weight} and its quantized form, {', '.join(parts.values())}. Remove one of them."
            )
        shapes = {part: tuple(shape_of(name)) for part, name in parts.items()}
        try:
            for part, name in parts.items():
                if type_of(name) not in layout.types[part]:
                    raise ValueError(f"{part} is {type_of(name)}, and must be {' or '.join(layout.types[part])}")
            numbers = layout.required[0]
            if len(shapes[numbers]) != 2 or 0 in shapes[numbers]:
                raise ValueError(f"{numbers} has the shape {list(shapes[numbers])}, and must be a matrix")
            shape = layout.shape(shapes)
        except ValueError as error:
            raise LucidError(f"{where}: {module} does not fit its quantization_config: {error}.") from error
        weights[weight] = PackedParts(module, shape, parts, layout)
    if not weights:
        raise LucidError(f"{where} has a quantization_config of {layout.name}, but no quantized tensors.")
    return weights
