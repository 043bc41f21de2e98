"""Open the PyTorch models that a session is compared with: reference, baseline, the checkpoint before quantization.

The float64 reference casts the weights of linear layers while it uses them, which saves memory. If the cache rounds, a
second float64 model is opened, which stores all weights in float64, because it also runs token by token.

A quantized artifact is compared with the model on the artifact's dequantized weights, and with --text also with the
model on the checkpoint's weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from lucid_deploy.artifact import Artifact
from lucid_deploy.artifact.quantized_bytes import read_scales, scaled
from lucid_deploy.errors import LucidError
from lucid_deploy.export.adapters import LinearLayers
from lucid_deploy.model.adapter import Adapter
from lucid_deploy.model.checkpoint import Checkpoint, resolve
from lucid_deploy.parity.progress import Progress
from lucid_deploy.runtimes.session import Session

if TYPE_CHECKING:
    from torch import Tensor

    from lucid_deploy.model.lucid import CausalModel
    from lucid_deploy.runtimes.torch.layers import TorchLayers
    from lucid_deploy.runtimes.torch.session import TorchSession


def find_checkpoint(artifact: Artifact, checkpoint: str | Path | None, trust_remote_code: bool = False) -> Checkpoint:
    """Open the checkpoint to verify against, by default the manifest's; LucidError if it is missing or another one."""
    name = checkpoint or artifact.manifest.source
    if checkpoint is None and not resolve(name).exists():
        hub, again = artifact.manifest.hub, ""
        if hub is not None:
            again = f" To download it again: hf download {hub['repository']} --revision {hub['commit']}"
        raise LucidError(
            f"{artifact.directory} was exported from {name}, which is not there any more. Say where the checkpoint is: "
            f"--checkpoint DIR.{again}"
        )
    adapter = artifact.manifest.adapter
    if adapter is not None and not Path(adapter).exists():
        raise LucidError(
            f"{artifact.directory} was exported with the adapter {adapter}, which is not there any more. Put it back."
        )
    states = artifact.config.state_dtype
    chosen = None if states == "float32" else states
    source = Checkpoint(
        name, artifact.manifest.assumed_unused, artifact.config.diagonal, chosen, adapter, trust_remote_code
    )
    differing = [
        f"{field.name} is {shorten(str(getattr(artifact.config, field.name)), 60)} in the artifact and "
        f"{shorten(str(getattr(source.config, field.name)), 60)} in the checkpoint"
        for field in fields(artifact.config)
        if getattr(artifact.config, field.name) != getattr(source.config, field.name)
    ]
    if differing:
        raise LucidError(
            f"{artifact.directory} was not exported from {source.directory}: {'; '.join(differing)}. Pass the right "
            "checkpoint with --checkpoint, or export again."
        )
    return source


@dataclass(frozen=True)
class ReferenceModels:
    """Opens the PyTorch models that a candidate is compared with."""

    candidate: Session[Any]  # the session under test; sessions opened here get its configuration and context limit
    source: Checkpoint
    artifact: Artifact | None = None  # the candidate's; None or not quantized: models run on the checkpoint's weights
    progress: Progress | None = None  # called while weights are loaded and texts are run
    adapter: Adapter | None = None  # the adapter that the candidate runs with, as PEFT saved it

    @property
    def quantized(self) -> bool:
        """Whether the artifact is quantized: all models but :meth:`original` then run on its dequantized weights."""
        return self.artifact is not None and self.artifact.manifest.quantization is not None

    def baseline(self) -> TorchSession:
        """Open PyTorch in the candidate's precision, with the candidate's cache dtype."""
        return self._open(self.candidate.dtype, self.candidate.cache_dtype)

    def reference(self) -> TorchSession:
        """Open PyTorch in float64, with weights that are cast while they are used."""
        from lucid_deploy.parity.on_demand import float64_on_demand

        model = float64_on_demand(self.source.config, _weights(self.source, self.artifact))
        return self._session(model, is_folded=self.quantized)

    def layers(self, opened: Callable[[], TorchSession]) -> TorchLayers:
        """Open one of these models for running its layers one by one."""
        from lucid_deploy.runtimes.torch.layers import TorchLayers

        return TorchLayers(opened().model)

    def rounded(self) -> TorchSession:
        """Open PyTorch in float64 with a cache that rounds as the candidate's does."""
        return self._open("float64", self.candidate.cache_dtype)

    def in_precision(self, dtype: str) -> TorchSession:
        """Open PyTorch in ``dtype``, with its cache in the same dtype."""
        return self._open(dtype, dtype)

    def original(self) -> TorchSession:
        """Open the model on the checkpoint's weights in float64, even if the artifact is quantized."""
        from lucid_deploy.parity.on_demand import float64_on_demand

        return self._session(float64_on_demand(self.source.config, _weights(self.source, None)))

    def _open(self, dtype: str, cache_dtype: str) -> TorchSession:
        import torch

        from lucid_deploy.model.checkpoint import load_model

        if self.artifact is not None and self.quantized:
            model = _quantized_model(self.artifact, self.candidate, dtype)
        else:
            loading = self.progress and partial(self.progress, f"Loading the weights in {dtype}")
            model = load_model(self.source, getattr(torch, dtype), progress=loading)
        return self._session(model.store_cache_as(cache_dtype), is_folded=self.quantized)

    def _session(self, model: CausalModel, is_folded: bool = False) -> TorchSession:
        from lucid_deploy.runtimes.torch.session import TorchSession

        if self.adapter is not None:
            folded = read_scales(self.artifact.directory) if is_folded and self.artifact is not None else {}
            _add_adapter(model, LinearLayers(self.source.config).matrices(self.adapter, folded))
        session = TorchSession(model)
        session.config = self.candidate.config  # an engine may take a shorter context, which prompts must fit
        return session


def _add_adapter(model: CausalModel, matrices: dict[str, tuple[Tensor, Tensor]]) -> None:
    """Add an adapter's ``x A B``, A ``(in, rank)`` and B ``(rank, out)`` by layer name, to linear layers' outputs."""
    kind = model.embedding.dtype

    def hook(a: Tensor, b: Tensor) -> Callable[..., Tensor]:
        return lambda _, inputs, output: output + (inputs[0].to(kind) @ a @ b).to(output.dtype)

    for name, (a, b) in matrices.items():
        model.get_submodule(name).register_forward_hook(hook(a.to(kind), b.to(kind)))


def _quantized_model(artifact: Artifact, candidate: Session[Any], dtype: str) -> CausalModel:
    """Return the PyTorch model on a quantized artifact's dequantized weights.

    Unless it runs in float64, it rounds what the candidate's runtime rounds: on the CPU, onnxruntime rounds the inputs
    of quantized matrix products to 8 bits if the artifact says so.
    """
    from lucid_deploy.runtimes.torch.artifact_weights import load_artifact_model
    from lucid_deploy.runtimes.torch.quantized_activations import quantize_activations

    record = artifact.manifest.quantization
    model = load_artifact_model(artifact, dtype=dtype)
    rounds = candidate.capabilities.rounds_activations
    if record is None or record.activations != "int8" or dtype == "float64" or not rounds:
        return model
    return quantize_activations(model, record.block_sizes(artifact.config.tie_word_embeddings))


def _weights(source: Checkpoint, artifact: Artifact | None) -> Callable[[str], Tensor]:
    """Return a function from names to weights: the checkpoint's, or a quantized artifact's dequantized ones."""
    import torch

    from lucid_deploy.runtimes.torch.artifact_weights import dequantized, stored_parts

    record = None if artifact is None else artifact.manifest.quantization
    parts, folded = {}, read_scales(artifact.directory) if artifact is not None else {}
    if record is not None and artifact is not None:
        parts = {name: stored for name, *stored in stored_parts(artifact)}

    def load(name: str) -> Tensor:
        name = source.stored_name(name)
        if record is None or artifact is None:
            return source.tensor(name)
        if record.pieces(name):
            return torch.from_numpy(dequantized(record, name, parts))
        weight = scaled(source.tensor(name), name, folded)
        return weight.to(getattr(torch, artifact.manifest.dtype))  # stored_weights checks that the artifact has these

    return load
