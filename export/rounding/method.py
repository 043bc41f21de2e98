"""Methods that learn: how the numbers of products are chosen, given what they read over a text."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from lucid_deploy.artifact.folded_scales import INPUTS, OUTPUTS
from lucid_deploy.artifact.quantization_method import AWQ, GPTQ, LearnedTensor
from lucid_deploy.export.layer_by_layer import final_norm, run_layer
from lucid_deploy.export.quantize import HEAD
from lucid_deploy.export.rounding.awq import GRID, Target, clipped_scales, input_scale, input_sizes, rounded
from lucid_deploy.export.rounding.folding import Fold, find_folds, storable
from lucid_deploy.export.rounding.gptq import GptqSettings, column_order, round_columns
from lucid_deploy.export.rounding.inputs import InputMoments, ProductErrors, inputs_of
from lucid_deploy.export.rounding.scales import number_range, search_scales

if TYPE_CHECKING:
    import torch

    from lucid_deploy.model.block import Layer
    from lucid_deploy.model.checkpoint import Checkpoint
    from lucid_deploy.model.config import LucidConfig

Array = np.ndarray[Any, np.dtype[Any]]
Streams = list[tuple["torch.Tensor", "torch.Tensor"]]  # residual streams of the rounded model, and of the exact one
# From a weight, float32 (out, in), and what its outputs lose, to whole numbers int8 (out, in) and scales (out, blocks).
Choose = Callable[["torch.Tensor", Target, ProductErrors], tuple["torch.Tensor", "torch.Tensor"]]


@dataclass
class LearnedWeights:
    """What was chosen.

    Attributes:
        parts: Packed bytes ``(out, blocks, block_size · bits / 8)`` and scales, float32 ``(out, blocks)``, by the
            checkpoint's names.
        tensors: For the manifest, by the same names.
        folded: Scales of inputs that went into weights, see :mod:`lucid_deploy.artifact.folded_scales`.
    """

    parts: dict[str, tuple[Array, Array]] = field(default_factory=dict)
    tensors: dict[str, LearnedTensor] = field(default_factory=dict)
    folded: dict[str, Array] = field(default_factory=dict)


@dataclass(frozen=True)
class LayerInputs:
    """A layer whose weights are to be rounded.

    Attributes:
        layer: Its module, in float32; nothing in it is rounded yet.
        prefix: Of its weights' names in the checkpoint.
        config: The model's configuration.
        index: Which layer.
        groups: Names of its linear parts that read the same tensor, in the order they run.
        targets: How its quantized weights are to be rounded, by the checkpoint's names.
    """

    layer: Layer
    prefix: str
    config: LucidConfig
    index: int
    groups: Sequence[Sequence[str]]
    targets: Mapping[str, Target]


class LearningMethod(ABC):
    """A way to choose numbers by data.

    Attributes:
        name: As ``--method`` has it.
        settings: For the manifest.
    """

    name: str
    settings: dict[str, Any]

    def fold(self, part: LayerInputs, streams: Streams) -> dict[str, Array]:
        """Scale a layer's inputs, in place; return the scales, see :mod:`lucid_deploy.artifact.folded_scales`.

        Args:
            part: The layer.
            streams: What it is given in the rounded model, and in the exact one.
        """
        del part, streams
        return {}

    def fold_head(self, checkpoint: Checkpoint, target: Target, streams: Streams) -> dict[str, Array]:
        """Return the scales of the head's input, by name as :meth:`fold`."""
        del checkpoint, target, streams
        return {}

    @abstractmethod
    def chooser(self, moments: InputMoments, scale: torch.Tensor | None) -> Choose:
        """Return what chooses numbers of products that read one input.

        Args:
            moments: Of that input, float64, before it was divided by a scale.
            scale: What it was divided by, ``(in,)``; None: nothing.
        """


class Gptq(LearningMethod):
    """See :mod:`lucid_deploy.export.rounding.gptq`.

    What is rounded is not the weight, but the one whose outputs on the rounded model's inputs are nearest to the exact
    outputs.
    """

    name = GPTQ

    def __init__(self, settings: GptqSettings | None = None) -> None:
        self._settings = settings or GptqSettings()
        self.settings = vars(self._settings).copy()

    def chooser(self, moments: InputMoments, scale: torch.Tensor | None) -> Choose:
        """See :meth:`LearningMethod.chooser`."""
        assert scale is None
        order = column_order(moments.x_x, self._settings.damping, self._settings.activation_order)

        def choose(weight: torch.Tensor, target: Target, errors: ProductErrors) -> tuple[torch.Tensor, torch.Tensor]:
            scales = search_scales(weight, target.tensor, target.bits, target.dtype, target.positive)
            spread = scales.repeat_interleave(target.tensor.block_size, dim=1)[:, : weight.shape[1]]
            return round_columns(
                errors.target(order), spread, order, number_range(target.bits, target.positive)
            ), scales

        return choose


class Awq(LearningMethod):
    """See :mod:`lucid_deploy.export.rounding.awq`."""

    name = AWQ

    def __init__(self) -> None:
        self.settings = {"grid": GRID}

    def fold(self, part: LayerInputs, streams: Streams) -> dict[str, Array]:
        """See :meth:`LearningMethod.fold`."""
        layer, prefix, targets = part.layer, part.prefix, part.targets

        def run(other: Any, x: torch.Tensor) -> torch.Tensor:
            return run_layer(other, part.config, part.index, x)[0]

        folds = find_folds(layer, run, streams[0][0], part.groups)
        used = [fold for fold in folds if fold is not None and _may_change(fold, part)]
        readers = [layer.get_submodule(fold.readers[0]) for fold in used]
        inputs = (inputs_of(readers, lambda x: run(layer, x), x)[0] for x, _ in streams)
        sizes = input_sizes(inputs, len(used))
        scales: list[torch.Tensor] = []
        for fold, size in zip(used, sizes, strict=True):
            names = [f"{prefix}{name}.weight" for name in fold.readers]
            weights = [layer.get_submodule(name).weight.data for name in fold.readers]
            scale = input_scale(size, [(w, targets[name]) for w, name in zip(weights, names, strict=True)])
            giver = layer.get_submodule(fold.giver).weight.data
            scales.append(storable(scale, giver, targets[names[0]].dtype) if giver.dim() == 1 else scale)
        found: dict[str, Array] = {}
        for fold, scale in zip(used, scales, strict=True):  # now that all were found on the layer as it was
            fold.apply(layer, scale)
            found |= fold.scales(prefix, layer, scale)
        return found

    def fold_head(self, checkpoint: Checkpoint, target: Target, streams: Streams) -> dict[str, Array]:
        """See :meth:`LearningMethod.fold_head`."""
        norm = "model.norm.weight"
        (size,) = input_sizes(([final_norm(checkpoint, x)] for x, _ in streams), 1)
        scale = input_scale(size, [(checkpoint.tensor(HEAD).float(), target)])
        stored = storable(scale, checkpoint.tensor(norm).float(), target.dtype).numpy()
        return {HEAD + INPUTS: stored, norm + OUTPUTS: stored}

    def chooser(self, moments: InputMoments, scale: torch.Tensor | None) -> Choose:
        """See :meth:`LearningMethod.chooser`."""
        import torch

        given = moments.x_x if scale is None else moments.x_x / torch.outer(scale, scale)
        x_x = given.to(torch.float32)

        def choose(weight: torch.Tensor, target: Target, errors: ProductErrors) -> tuple[torch.Tensor, torch.Tensor]:
            del errors
            scales = clipped_scales(weight, target, x_x)
            return rounded(weight, scales, target)[0], scales

        return choose


def _may_change(fold: Fold, part: LayerInputs) -> bool:
    """Whether all weights that a scale changes are quantized, but a norm's: one that is kept stays as it is."""
    is_norm = part.layer.get_submodule(fold.giver).weight.dim() == 1
    changed = [*fold.readers] if is_norm else [fold.giver, *fold.readers]
    return all(f"{part.prefix}{name}.weight" in part.targets for name in changed)
