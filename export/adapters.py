"""LoRA adapters kept apart from the weights: which layers they change, and their matrices, stacked in one file."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

from lucid_deploy.artifact import ADAPTERS, whole_pages
from lucid_deploy.artifact.adapters import StoredAdapter, check_name, read_matrices, write_adapters
from lucid_deploy.artifact.manifest import AdapterSlots
from lucid_deploy.artifact.quantized_bytes import INPUTS, OUTPUTS, Scales, read_scales
from lucid_deploy.cache.layout import ITEM_SIZES
from lucid_deploy.errors import LucidError
from lucid_deploy.export.weights import StoredTensor
from lucid_deploy.model.adapter import Adapter
from lucid_deploy.model.adapter_slots import A, B, Slots, linear_layers, target_of
from lucid_deploy.model.build import family_for, make_model
from lucid_deploy.model.checkpoint import file_shapes, select_rows
from lucid_deploy.model.variants import listed

if TYPE_CHECKING:
    import torch

    from lucid_deploy.artifact import Artifact
    from lucid_deploy.export.options import ExportOptions
    from lucid_deploy.model.checkpoint import Checkpoint
    from lucid_deploy.model.config import LucidConfig

_DEFAULT_RANK = 16
Matrices: TypeAlias = "dict[str, tuple[torch.Tensor, torch.Tensor]]"


class LinearLayers:
    """The linear layers of a model that may have adapters, and where a checkpoint stores their weights.

    Attributes:
        sizes: Input and output width of each such layer, by its name.
    """

    def __init__(self, config: LucidConfig) -> None:
        import torch

        with torch.device("meta"):
            linears = linear_layers(make_model(config))
        family = family_for(config)
        self.sizes = {name: (linear.in_features, linear.out_features) for name, linear in linears.items()}
        self._stored = {name: family.stored(f"{name}.weight", config) for name in linears}
        self._shapes = file_shapes(config, family)

    def check(self, adapter: Adapter, base: Path) -> tuple[str, ...]:
        """Check that an adapter fits a checkpoint and can be kept apart from the checkpoint's weights; return notes.

        Raises:
            LucidError: The adapter does not fit the checkpoint, replaces a weight, or changes a weight of other layers.
        """
        notes = adapter.check(self._shapes.get, base)
        other = sorted(adapter.weights - {place.name for place in self._stored.values()})
        if adapter.replaced or other:
            what = f"replaces {listed(sorted(adapter.replaced))}" if adapter.replaced else f"changes {listed(other)}"
            raise LucidError(
                f"{adapter.directory} {what}. Only linear layers can have another adapter in each row, but not a tied "
                "lm_head or layers in mixtures of experts. Merge the adapter into the weights: --merge-adapter."
            )
        return notes

    def matrices(self, adapter: Adapter, folded: Scales = MappingProxyType({})) -> Matrices:
        """Return A ``(in, rank)`` and B ``(rank, out)``, with the scale in B, by the names of linear layers.

        Args:
            folded: Scales that equalization folded into the weights; A and B are scaled to fit these weights.
        """
        import torch

        found = {}
        for name, place in self._stored.items():
            if place.name not in adapter.weights:
                continue
            a, b = adapter.matrices(place.name)
            a, b = a.mT, select_rows(b, place).mT
            inputs, outputs = (folded.get(f"{name}.weight{part}") for part in (INPUTS, OUTPUTS))
            found[name] = (
                a if inputs is None else a * torch.from_numpy(inputs)[:, None],
                b if outputs is None else b / torch.from_numpy(outputs),
            )
        return found


@dataclass(frozen=True)
class AdapterPlan:
    """The adapters of an export, and the room that its graphs reserve for them and for later ones."""

    slots: Slots
    adapters: Mapping[str, Adapter]  # by name
    notes: tuple[str, ...]
    layers: LinearLayers


def plan_adapters(source: Checkpoint, options: ExportOptions) -> AdapterPlan | None:
    """Open and check the adapters of an export; return None if the options ask for none.

    Raises:
        LucidError: An adapter cannot be read or kept apart, a name is invalid or taken, or a maximum is too small.
    """
    most, most_rank = options.max_adapters, options.max_adapter_rank
    if not options.adapters and most is None:
        if most_rank is not None:
            raise LucidError("--max-adapter-rank is for artifacts with adapters: add --adapter or --max-adapters.")
        return None
    layers, notes = LinearLayers(source.config), list[str]()
    adapters: dict[str, Adapter] = {}
    targets: dict[str, None] = {}
    for name, directory in options.adapters:
        check_name(name)
        if name in adapters:
            raise LucidError(f"Two adapters are called {name}: {adapters[name].directory} and {directory}.")
        adapters[name] = Adapter(directory)
        notes += layers.check(adapters[name], source.directory)
        targets |= dict.fromkeys(map(target_of, layers.matrices(adapters[name])))
    if most is not None:  # adapters that are added later may change any layer
        targets = dict.fromkeys(map(target_of, layers.sizes))
    rank = max((adapter.rank for adapter in adapters.values()), default=1)
    for option, given, needed in (
        ("--max-adapters", most, max(len(adapters), 1)),
        ("--max-adapter-rank", most_rank, rank),
    ):
        if given is not None and given < needed:
            raise LucidError(f"{option} {given} is too small: the adapters need {needed}.")
    reserved = most_rank or (rank if adapters else _DEFAULT_RANK)
    return AdapterPlan(Slots(tuple(targets), most or len(adapters), reserved), adapters, tuple(notes), layers)


def plan_file(plan: AdapterPlan, dtype: str) -> dict[str, StoredTensor]:
    """Return where each stacked matrix lies in ``adapters.bin``, by its name in the graphs."""
    places: dict[str, StoredTensor] = {}
    offset, slots = 0, plan.slots
    for name, (width, columns) in plan.layers.sizes.items():
        if target_of(name) in slots.targets:
            for part, shape in ((A, (width, slots.rank)), (B, (slots.rank, columns))):
                size = (slots.count + 1) * math.prod(shape) * ITEM_SIZES[dtype]
                places[name + part] = StoredTensor(name + part, (slots.count + 1, *shape), False, offset, size, dtype)
                offset += whole_pages(size)
    return places


def write_new(
    directory: Path, plan: AdapterPlan, places: Mapping[str, StoredTensor], dtype: str, folded: Scales
) -> AdapterSlots:
    """Write the adapter file of a new artifact; return its record for the manifest."""
    size = max(place.offset + whole_pages(place.size) for place in places.values())
    slots = AdapterSlots(count=plan.slots.count, rank=plan.slots.rank, targets=plan.slots.targets, size=size)
    file = _Editor(directory, slots, places, dtype, bytearray(size), ())
    for name, adapter in plan.adapters.items():
        file.add(name, adapter, plan.layers, folded)
    file.write()
    return slots


def change_adapters(artifact: Artifact, add: Mapping[str, Path], remove: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Remove adapters of an artifact and add others, in one atomic change; return notes.

    Raises:
        LucidError: The artifact has no room, a name is invalid, taken or unknown, or an adapter does not fit the
            checkpoint or the reserved room.
    """
    slots = artifact.manifest.adapters
    if slots is None:
        raise LucidError(
            f"{artifact.directory} was exported without room for adapters. Export it again with --adapter NAME=DIR or "
            "--max-adapters N."
        )
    places = {weight.name: weight for weight in artifact.weights("decode") if weight.file == ADAPTERS}
    layers, folded, notes = LinearLayers(artifact.config), read_scales(artifact.directory), list[str]()
    with _locked(artifact.directory):
        data = read_matrices(artifact.directory, slots)
        file = _Editor(artifact.directory, slots, places, artifact.manifest.dtype, data, artifact.adapters())
        for name in remove:
            file.remove(name)
        for name, directory in add.items():
            check_name(name)
            adapter = Adapter(directory)
            notes += layers.check(adapter, Path(artifact.manifest.source))
            file.add(name, adapter, layers, folded)
        file.write()
    return tuple(notes)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Let one process at a time change the artifact's adapters, so that none overwrites the change of another."""
    import fcntl

    handle = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


class _Editor:
    """The content of an adapter file, edited in memory; ``places`` says where each stacked matrix lies."""

    def __init__(
        self,
        directory: Path,
        slots: AdapterSlots,
        places: Mapping[str, Any],
        dtype: str,
        data: bytearray,
        adapters: tuple[StoredAdapter, ...],
    ) -> None:
        self._directory, self._slots, self._places, self._dtype = directory, slots, places, dtype
        self._data = data
        self._adapters = {each.name: each for each in adapters}

    def add(self, name: str, adapter: Adapter, layers: LinearLayers, folded: Scales) -> None:
        """Write an adapter into the first free slot."""
        slots = self._slots
        if name in self._adapters:
            raise LucidError(f"There is an adapter {name} already. Remove it first, or choose another name.")
        free = {*range(1, slots.count + 1)} - {each.slot for each in self._adapters.values()}
        if not free:
            raise LucidError(
                f"This artifact has room for {slots.count} adapters, and all of it is taken. Remove one, or export the "
                "model again with a larger --max-adapters."
            )
        if adapter.rank > slots.rank:
            raise LucidError(
                f"{adapter.directory} has the rank {adapter.rank}, and {slots.rank} is reserved. Export the model "
                f"again with --max-adapter-rank {adapter.rank}."
            )
        slot, digest = min(free), hashlib.sha256()
        for layer, (a, b) in layers.matrices(adapter, folded).items():
            if layer + A not in self._places:
                raise LucidError(
                    f"{adapter.directory} changes {layer}, for which nothing is reserved. Export the model again with "
                    "--max-adapters, which reserves room in all linear layers."
                )
            for part, matrix in ((A, a), (B, b)):
                stored = self._slot(layer + part, slot)
                stored[: matrix.shape[0], : matrix.shape[1]] = matrix
                digest.update(matrix.float().contiguous().numpy().data)
                if not stored.isfinite().all():
                    raise LucidError(f"{adapter.directory}: {layer} has numbers that are not finite in {self._dtype}.")
        source = str(adapter.directory.resolve())
        self._adapters[name] = StoredAdapter(name, slot, adapter.rank, source, digest.hexdigest())

    def remove(self, name: str) -> None:
        """Remove an adapter: its matrices become zeros."""
        if name not in self._adapters:
            raise LucidError(f"There is no adapter {name}; there are: {', '.join(self._adapters) or 'none'}.")
        entry = self._adapters.pop(name)
        for place in self._places:
            self._slot(place, entry.slot).zero_()

    def write(self) -> None:
        """Replace the file atomically by one with the edited content."""
        write_adapters(self._directory, self._data, list(self._adapters.values()))

    def _slot(self, name: str, slot: int) -> torch.Tensor:
        """Return one adapter's part of a stacked matrix, as a view into the content."""
        import torch

        place, kind = self._places[name], getattr(torch, self._dtype)
        shape = tuple(place.shape)
        whole = torch.frombuffer(self._data, dtype=kind, count=math.prod(shape), offset=place.offset).view(shape)
        return whole[slot]
