"""Read LoRA adapters saved by PEFT, to merge them into a checkpoint's weights or to export them separately.

A module with the weight W gets ``W + scale·B·A``, where scale is ``lora_alpha / r``, or ``lora_alpha / √r`` with rsLoRA
(arXiv 2106.09685, 2312.03732). Biases and the weights of ``modules_to_save`` replace the base model's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from lucid_deploy.errors import LucidError
from lucid_deploy.model.config_file import Size, checked, read_object
from lucid_deploy.model.tensor_files import ADAPTER, open_safetensors
from lucid_deploy.model.variants import listed

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_PARTS = re.compile(r"(.+)\.(?:lora_(A|B)\.weight|lora_embedding_(A|B))")


class _AdapterFile(msgspec.Struct, kw_only=True, frozen=True):
    """The keys of ``adapter_config.json`` that this package reads, with PEFT's defaults."""

    peft_type: str
    r: Size = 8
    lora_alpha: float = 8
    use_rslora: bool = False
    fan_in_fan_out: bool = False
    rank_pattern: dict[str, Size] = {}
    alpha_pattern: dict[str, float] = {}
    init_lora_weights: bool | str = True
    base_model_name_or_path: str = ""


# Keys that change no result: they matter only in training, record versions, or repeat what the adapter's tensors show.
_WITHOUT_EFFECT = frozenset(
    (
        *("auto_mapping", "bias", "ensure_weight_tying", "eva_config", "exclude_modules", "inference_mode"),
        *("layers_pattern", "layers_to_transform", "loftq_config", "lora_dropout", "megatron_core", "modules_to_save"),
        *("peft_version", "qalora_group_size", "revision", "runtime_config", "target_modules", "task_type"),
    )
)
# Values of init_lora_weights that keep the base model's weights; pissa, olora, loftq and others change them.
_INITS_KEEPING_BASE = (True, False, "gaussian", "orthogonal", "eva")


@dataclass
class _Update:
    """The low-rank update of one module's weight: scale · B · A."""

    scale: float
    transposed: bool  # whether the weight is stored as (in, out), as in GPT-2's Conv1D
    a: Tensor | None = None  # (r, in)
    b: Tensor | None = None  # (out, r)


class Adapter:
    """An opened LoRA adapter, as PEFT's ``save_pretrained`` wrote it; opening an unsupported one raises a LucidError.

    ``base`` is the path or Hub name of the model that it was trained on, or empty if the adapter does not say.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self._settings = self._read_settings()
        self.base = self._settings.base_model_name_or_path
        if not (self.directory / WEIGHTS).is_file():
            raise LucidError(
                f"{self.directory} has no {WEIGHTS}. Save the adapter as safetensors: save_pretrained(..., "
                "safe_serialization=True)."
            )
        self._file = open_safetensors(self.directory / WEIGHTS)
        self._updates: dict[str, _Update] = {}  # by the name of the weight
        self._replaced: dict[str, str] = {}  # the tensor in the adapter's file, by the name of the weight
        for key in sorted(self._file.keys()):
            self._add(key)
        for name, update in self._updates.items():
            self._check_ranks(name, update)

    @property
    def weights(self) -> frozenset[str]:
        """Names of the weights and biases that the adapter changes, as the base model's class names them."""
        return frozenset((*self._updates, *self._replaced))

    @property
    def replaced(self) -> frozenset[str]:
        """Names of the weights and biases that the adapter stores in full, to replace the base model's."""
        return frozenset(self._replaced)

    @property
    def rank(self) -> int:
        """The largest rank of the adapter's matrices; 1 if it has none."""
        return max((update.a.shape[0] for update in self._updates.values() if update.a is not None), default=1)

    def matrices(self, name: str) -> tuple[Tensor, Tensor]:
        """Return A ``(r, in)`` and B ``(out, r)`` for the weight ``name``, in float32, with the scale in B."""
        update = self._updates[name]
        assert update.a is not None and update.b is not None
        return update.a.float(), update.scale * update.b.float()

    def check(self, shape_of: Callable[[str], tuple[int, ...] | None], base: Path) -> tuple[str, ...]:
        """Raise a LucidError unless the adapter fits ``base``; return notes. ``shape_of``: None for missing weights."""
        shapes = {name: shape_of(name) for name in sorted(self.weights)}
        absent = [name for name, shape in shapes.items() if shape is None]
        if absent:
            raise LucidError(f"{self.directory} changes weights that {base} does not have: {listed(absent)}.")
        wrong = [
            f"{name} is {list(shape)} in the model and {list(found)} in the adapter"
            for name, shape in shapes.items()
            for found in self._shapes(name)
            if shape is not None and found != shape
        ]
        if wrong:
            raise LucidError(f"{self.directory} was not trained on {base}: {listed(wrong)}.")
        return tuple(self._notes(base))

    def merged(self, name: str, weight: Tensor) -> Tensor:
        """Return ``weight`` with the adapter merged; updates are added in float32, or float64 for float64 weights."""
        import torch

        if name in self._replaced:
            weight = self._tensor(self._replaced[name])
        if name not in self._updates:
            return weight
        update = self._updates[name]
        assert update.a is not None and update.b is not None
        kind = torch.float64 if weight.dtype == torch.float64 else torch.float32
        change = update.scale * (update.b.to(kind) @ update.a.to(kind))
        return weight.to(kind) + (change.mT if update.transposed else change)

    def _read_settings(self) -> _AdapterFile:
        path = self.directory / ADAPTER
        raw = read_object(path)
        settings = checked(raw, _AdapterFile, str(path))
        if settings.peft_type != "LORA":
            raise LucidError(f"{path}: peft_type {settings.peft_type} is not supported; only LORA is.")
        given = [key for key, value in raw.items() if value]
        unknown = [key for key in given if key not in (*_AdapterFile.__struct_fields__, *_WITHOUT_EFFECT)]
        if unknown:
            raise LucidError(
                f"{path} sets {listed(unknown)}, which is not supported. If PEFT can merge the adapter, call its "
                "merge_and_unload, and export the result."
            )
        if settings.init_lora_weights not in _INITS_KEEPING_BASE:
            raise LucidError(
                f"{path}: init_lora_weights {settings.init_lora_weights!r} changed the base's weights before training, "
                "so the adapter does not fit the published ones. Save it with path_initial_model_for_weight_conversion."
            )
        return settings

    def _add(self, key: str) -> None:
        """Register one tensor of the file: a matrix of an update, or a weight that replaces the base model's."""
        where = self.directory / WEIGHTS
        if not key.startswith(_PREFIX):
            raise LucidError(f"{where}: the tensor name {key} does not start with {_PREFIX}, as PEFT's do.")
        name = key.removeprefix(_PREFIX)
        parts = _PARTS.fullmatch(name)
        if parts is None:
            if "lora_" in name or not name.endswith((".weight", ".bias")):
                raise LucidError(f"{where}: the tensor {key} is not of a supported kind.")
            self._replaced[name.replace(".base_layer.", ".")] = key
            return
        value = self._tensor(key)
        if value.dim() != 2:
            raise LucidError(f"{where}: {key} has the shape {list(value.shape)}, but LoRA weights are matrices.")
        transposed = self._settings.fan_in_fan_out and parts[2] is not None
        update = self._updates.setdefault(f"{parts[1]}.weight", _Update(self._scale(parts[1]), transposed))
        if parts[2] is not None:
            setattr(update, parts[2].lower(), value)
        else:  # an embedding's weight is the transpose of a linear layer's
            setattr(update, "b" if parts[3] == "A" else "a", value.mT)

    def _scale(self, module: str) -> float:
        rank = _by_pattern(self._settings.rank_pattern, module, self._settings.r)
        alpha = _by_pattern(self._settings.alpha_pattern, module, self._settings.lora_alpha)
        return float(alpha / (math.sqrt(rank) if self._settings.use_rslora else rank))

    def _check_ranks(self, name: str, update: _Update) -> None:
        module = name.removesuffix(".weight")
        where = f"{self.directory / WEIGHTS}: {module}"
        if update.a is None or update.b is None:
            raise LucidError(f"{where} has only one of the two matrices A and B.")
        rank = _by_pattern(self._settings.rank_pattern, module, self._settings.r)
        if (update.b.shape[1], update.a.shape[0]) != (rank, rank):
            raise LucidError(
                f"{where}: A is {list(update.a.shape)} and B {list(update.b.shape)}, but {ADAPTER} says rank {rank}."
            )

    def _shapes(self, name: str) -> list[tuple[int, ...]]:
        """Return the shapes of a weight's replacement and of its update, if the adapter has them."""
        shapes = []
        if name in self._replaced:
            shapes.append(tuple(self._file.get_slice(self._replaced[name]).get_shape()))
        if name in self._updates:
            update = self._updates[name]
            assert update.a is not None and update.b is not None
            shape = (update.b.shape[0], update.a.shape[1])
            shapes.append(shape[::-1] if update.transposed else shape)
        return shapes

    def _tensor(self, key: str) -> Tensor:
        import safetensors

        path = self.directory / WEIGHTS
        try:
            value: Tensor = self._file.get_tensor(key)
        except safetensors.SafetensorError as error:
            raise LucidError(f"{path}: tensor {key} cannot be read: {error}") from error
        if not value.is_floating_point() or not value.isfinite().all():
            raise LucidError(f"{path}: {key} is not floating-point, or has values that are not finite.")
        return value

    def _notes(self, base: Path) -> Iterable[str]:
        named = (
            self.base.rstrip("/").rpartition("/")[2],
            f"models--{self.base.replace('/', '--')}",  # in the Hub's cache
        )
        if self.base and not {*named} & {*base.resolve().parts}:
            yield f"The adapter {self.directory} says that it was trained on {self.base}, but it was added to {base}."
        for name in ("tokenizer.json", "chat_template.jinja"):
            own, other = self.directory / name, base / name
            if own.is_file() and (not other.is_file() or own.read_bytes() != other.read_bytes()):
                yield f"{own} differs from the checkpoint's, which is used. Copy it there if it is the right one."


def _by_pattern(pattern: dict[str, Any], module: str, default: Any) -> Any:
    """Return the value of the first regular expression that matches a name's end, as in PEFT, or the default."""
    for key, value in pattern.items():
        try:
            if re.match(rf"(.*\.)?({key})$", module):
                return value
        except re.error as error:
            raise LucidError(f"{ADAPTER}: {key!r} is not a regular expression: {error}") from error
    return default
