"""Cross-layer equalization: equalize the magnitudes of a weight's columns before rounding, with or without a text.

Rounding with one scale per block of inputs loses most where a few columns are much larger than their neighbours, and
where inputs are large. Column i of the weights that read an input is multiplied by s_i = input_i^(1 - α) / size_i^α,
where size_i is the root mean square of the column and input_i that of the input's channel i; the channel is divided by
s_i in the layer or norm that produces it. This is SmoothQuant's scale (Xiao et al., arXiv 2211.10438, equation 4) with
root mean squares instead of maxima. As the exponents add up to 1, it does not matter how a channel's magnitude is split
between its producer and its readers. Experts' scales ignore inputs, as in Nagel et al. (arXiv 1906.04721, section 4.1).

Random tokens suffice to find the large channels of an input; a calibration text, if given, finds them more precisely.
Dividing a weight's rows adds no rounding error: each row has its own scales, which become smaller with it.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lucid_deploy.artifact.quantized_bytes import INPUTS, OUTPUTS, scaled
from lucid_deploy.export.quantize.folds import SAME, Fold, Run, find_folds, storable

if TYPE_CHECKING:
    import torch
    from torch import nn

    from lucid_deploy.artifact.quantization import Quantization
    from lucid_deploy.export.calibration import CalibrationRows
    from lucid_deploy.model.checkpoint import Checkpoint
    from lucid_deploy.model.config import LucidConfig

ALPHA = 0.7  # α, by measurement: see docs/quantization.md
_TOKENS, _ROWS = 256, 2  # run the layers on this many random tokens, or rows of a calibration text


def equalizing_scales(
    source: Checkpoint,
    quantization: Quantization,
    dtype: str,
    progress: Callable[[str, int, int], None] | None = None,
    text: CalibrationRows | None = None,
) -> dict[str, np.ndarray[Any, np.dtype[Any]]]:
    """Return float32 scales to fold into weights, named as in :mod:`lucid_deploy.artifact.quantized_bytes`.

    Args:
        quantization: Which weights will be rounded. Of the others, only norms, routers and shared experts are scaled.
        dtype: Dtype of the norms in the artifact.
        text: Calibration text, of which at most two rows run through the layers; None: use random tokens.
    """
    import torch

    found: dict[str, Any] = {}
    config, layers = source.config, source.config.num_hidden_layers
    if text is not None:
        ids = torch.from_numpy(text.rows[0][:_ROWS])
    else:
        count = min(_TOKENS, config.max_position_embeddings)
        ids = torch.randint(config.vocab_size, (1, count), generator=torch.Generator().manual_seed(0))
    stream = first_stream(source, ids)
    for index in range(layers):
        if progress is not None:
            progress("Equalizing", index, layers)
        layer, prefix = load_layer(source, index), f"model.layers.{index}."

        def run(other: nn.Module, x: torch.Tensor, index: int = index) -> torch.Tensor:
            return run_layer(other, config, index, x)

        with torch.inference_mode():
            x = stream
            groups, stream = shared_inputs(layer, run, x)
            folds = find_folds(layer, run, x, [group.names for group in groups], config.num_key_value_heads)
            for group, fold in zip(groups, folds, strict=True):
                if fold is not None and fold.changes_only(quantization.tensors, layer, prefix):
                    scale = _scale(layer, fold, group.values, dtype)
                    fold.apply(layer, scale)
                    found |= fold.scales(prefix, layer, scale)
            for scales in _of_experts(layer, run, x, quantization, prefix, dtype):
                found |= {prefix + name: scale for name, scale in scales.items()}
    return found


def first_stream(checkpoint: Checkpoint, ids: torch.Tensor) -> torch.Tensor:
    """Embed tokens, int64 ``(B, N)``; return the first layer's input, float32 ``(B, N, C)``."""
    if checkpoint.config.class_config:
        from lucid_deploy.model.transformers_class import slices

        return slices.first_stream(checkpoint, ids)
    return checkpoint.tensor("model.embed_tokens.weight")[ids].float()


def load_layer(checkpoint: Checkpoint, index: int) -> nn.Module:
    """Load one layer of a checkpoint in float32."""
    import torch

    if checkpoint.config.class_config:
        from lucid_deploy.model.transformers_class import slices

        return slices.load_layer(checkpoint, index)
    from lucid_deploy.model.block import make_layer

    with torch.device("meta"):
        layer = make_layer(checkpoint.config, index, "blocked")
    prefix = f"model.layers.{index}."
    state = {name: checkpoint.tensor(prefix + name).float() for name in layer.state_dict()}
    layer.load_state_dict(state, assign=True)
    return layer.eval()


def run_layer(layer: nn.Module, config: LucidConfig, index: int, x: torch.Tensor) -> torch.Tensor:
    """Run one layer over whole sequences ``(B, N, C)``; return its output, of the same shape."""
    import torch

    if config.class_config:
        from lucid_deploy.model.transformers_class import slices

        return slices.run_layer(layer, x)
    from lucid_deploy.model.mixer import layer_steps

    batch, n, _ = x.shape
    positions = torch.arange(n).expand(batch, n)
    step = layer_steps(config, positions, torch.float32)[index]
    found: torch.Tensor = layer(x, step, layer.mixer.empty_cache(batch, x))[0]  # type: ignore[operator, union-attr]
    return found


@dataclass(frozen=True)
class SharedInput:
    """A tensor that is the input of consecutive linear layers."""

    names: list[str]  # of the linear layers, within their layer
    values: torch.Tensor  # (B, N, in)


def shared_inputs(layer: nn.Module, run: Run, x: torch.Tensor) -> tuple[list[SharedInput], torch.Tensor]:
    """Run a layer; return the inputs of its linear layers in execution order, and the layer's output."""
    import torch

    seen: list[tuple[str, torch.Tensor]] = []
    handles = [
        module.register_forward_pre_hook(lambda _, args, name=name: seen.append((name, args[0])))
        for name, module in layer.named_modules()
        if isinstance(module, torch.nn.Linear)
    ]
    try:
        output = run(layer, x)
    finally:
        for handle in handles:
            handle.remove()
    groups: list[SharedInput] = []
    for name, given in seen:
        if not groups or given is not groups[-1].values:
            groups.append(SharedInput([], given))
        groups[-1].names.append(name)
    return groups, output


def _of_experts(
    layer: nn.Module, run: Run, x: torch.Tensor, quantization: Quantization, prefix: str, dtype: str
) -> Iterator[dict[str, Any]]:
    """Apply and yield the scales of the inputs of experts' matrices, by names of the layer's parameters.

    The input of ``down_proj`` is divided in the rows of the expert's own up projection, that of ``gate_up_proj`` in the
    norm before the experts. The norm's other readers, router and shared experts, are multiplied. Experts that are
    stored as ``(E, in, out)`` or not quantized are skipped.
    """
    for path, experts in list(layer.named_modules()):
        names = [f"{path}.gate_up_proj", f"{path}.down_proj"]
        if getattr(experts, "is_transposed", True) or not {prefix + name for name in names} <= {*quantization.tensors}:
            continue
        gate_up, down = (layer.get_parameter(name).data for name in names)  # (E, 2F, H), (E, H, F)
        own = _alike(down.square().mean(1) / down.square().mean((1, 2)).clamp(min=1e-30)[:, None])  # (E, F)
        candidates = [{names[1] + INPUTS: own[:, None], names[0] + OUTPUTS: _below_ones(own)[..., None]}]
        sizes = gate_up.square().mean((0, 1))
        for norm, readers in _read_norms(layer, run, x, path):
            scale = storable(_alike(sizes[None] / sizes.mean().clamp(min=1e-30))[0], norm[1], dtype)
            read = (names[0] if name == path else f"{name}.weight" for name in readers)
            candidates.append({norm[0] + OUTPUTS: scale} | {f"{name}{INPUTS}": scale for name in read})
        for candidate in candidates:
            scales = {name: scale.contiguous().numpy() for name, scale in candidate.items()}
            if _apply_if_same(layer, run, x, scales):
                yield scales


def _below_ones(scale: torch.Tensor) -> torch.Tensor:
    """Return scales for the rows of ``gate_up_proj``, ``(E, 2F)``: ones for the gate, then ``scale``, ``(E, F)``."""
    import torch

    return torch.cat([torch.ones_like(scale), scale], dim=1)


def _read_norms(
    layer: nn.Module, run: Run, x: torch.Tensor, experts: str
) -> Iterator[tuple[tuple[str, torch.Tensor], list[str]]]:
    """Yield the weight (name, value) of each norm whose output the experts read, and the names of all its readers."""
    import torch

    given: dict[int, str] = {}
    read: dict[str, list[str]] = {}
    kept = []  # outputs, kept alive so that no other tensor gets their address

    def behind(name: str, _: nn.Module, __: Any, output: torch.Tensor) -> None:
        given[output.data_ptr()] = name
        kept.append(output)

    def before(name: str, _: nn.Module, args: tuple[Any, ...]) -> None:
        if args and isinstance(args[0], torch.Tensor) and args[0].data_ptr() in given:
            read.setdefault(given[args[0].data_ptr()], []).append(name)

    handles = []
    for name, module in layer.named_modules():
        axes = [value.dim() for value in module.parameters(recurse=False)]
        if axes == [1]:
            handles.append(module.register_forward_hook(functools.partial(behind, name)))
        elif axes:
            handles.append(module.register_forward_pre_hook(functools.partial(before, name)))
    run(layer, x)
    for handle in handles:
        handle.remove()
    for name, readers in read.items():
        if experts in readers:
            yield (f"{name}.weight", layer.get_parameter(f"{name}.weight").data), readers


def _apply_if_same(layer: nn.Module, run: Run, x: torch.Tensor, scales: dict[str, Any]) -> bool:
    """Fold scales into a layer's parameters if its float64 outputs do not change; return whether they were folded."""
    changed = {name.removesuffix(INPUTS).removesuffix(OUTPUTS) for name in scales}
    parameters = dict(layer.named_parameters())
    if not changed <= parameters.keys():
        return False
    wide = copy.deepcopy(layer).double()
    before = run(wide, x.double())
    for module in (wide, layer):
        for name in changed:
            value = module.get_parameter(name)
            value.data = scaled(value.data, name, scales)
        if module is wide and (run(wide, x.double()) - before).abs().max() > SAME * before.abs().max():
            return False
    return True


def _alike(squares: torch.Tensor, inputs: torch.Tensor | None = None) -> torch.Tensor:
    """Return scales around 1 that equalize columns, given their mean squares ``(…, in)``, one row per matrix.

    Args:
        inputs: Mean squares of the columns' inputs, of the same shape; None: all equal.
    """
    scale = _sizes(squares).pow(-ALPHA)
    if inputs is not None:
        scale = scale * _sizes(inputs).pow(1 - ALPHA)
    return scale / scale.log().mean(-1, keepdim=True).exp()


def _sizes(squares: torch.Tensor) -> torch.Tensor:
    sizes = squares.sqrt()
    return sizes.clamp(min=1e-3 * sizes.amax(-1, keepdim=True)).clamp(min=1e-15)  # columns of zeros get a finite scale


def _scale(layer: nn.Module, fold: Fold, inputs: torch.Tensor, dtype: str) -> torch.Tensor:
    """Return scales around 1 for the outputs of ``fold.giver``; ``inputs``, ``(…, in)``, are those of its readers."""
    import torch

    read = inputs.flatten(0, -2).square().mean(0)
    columns = [layer.get_parameter(f"{name}.weight").data.square().mean(0) for name in fold.readers]
    squares = torch.stack([column / (column * read).mean().clamp(min=1e-30) for column in columns]).sum(0)

    def of_giver(values: torch.Tensor) -> torch.Tensor:
        return values.unflatten(0, (fold.heads, fold.repeated, -1)).mean(1).flatten()[None]

    scale = _alike(of_giver(squares), of_giver(read))[0]
    giver = layer.get_parameter(f"{fold.giver}.weight").data
    return storable(scale, giver, dtype) if giver.dim() == 1 else scale
