"""Hold an artifact against its checkpoint: which PyTorch models are reference and baseline, and what is reported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from lucid_deploy.artifact import Artifact
    from lucid_deploy.model.checkpoint import Checkpoint
    from lucid_deploy.model.lucid import LucidForCausalLM
    from lucid_deploy.parity import Report, Targets
    from lucid_deploy.runtimes.layers import Layers
    from lucid_deploy.runtimes.runtime import Capabilities
    from lucid_deploy.runtimes.session import Array, Session
    from lucid_deploy.runtimes.torch.session import TorchSession


SMALL_WEIGHTS = 1 << 30  # bytes


@dataclass(frozen=True)
class Closer:
    """What to look at beyond the comparison.

    Attributes:
        tolerance: A gate set by hand for every tensor; None: derived gates.
        always: Look for causes even if nothing fails.
        text: Token ids to take the perplexity of.
        layers: Opens the candidate's layers; raises LucidError with the reason if they cannot be run by themselves.
            None: no causes are looked for.
    """

    tolerance: float | None = None
    always: bool = False
    text: Array | None = None
    layers: Callable[[], Layers] | None = None


def find_checkpoint(artifact: Artifact, checkpoint: str | None) -> Checkpoint:
    """Open the checkpoint to verify against, and check that it is of the artifact's model.

    Args:
        artifact: The artifact.
        checkpoint: What the user named; None: the source in the manifest.

    Raises:
        LucidError: The source is gone, or the configurations differ (all differing fields are named).
    """
    from dataclasses import fields

    from lucid_deploy.errors import LucidError
    from lucid_deploy.model.checkpoint import Checkpoint, resolve

    name = checkpoint or artifact.manifest.source
    if checkpoint is None and not resolve(name).exists():
        hub, again = artifact.manifest.hub, ""
        if hub is not None:
            again = f" This brings it back: hf download {hub['repository']} --revision {hub['commit']}"
        raise LucidError(
            f"{artifact.directory} was exported from {name}, which is not there any more. Say where the checkpoint is: "
            f"--checkpoint DIR.{again}"
        )
    source = Checkpoint(name, artifact.manifest.assumed_unused)
    differing = [
        f"{field.name} is {getattr(artifact.config, field.name)} in the artifact and "
        f"{getattr(source.config, field.name)} in the checkpoint"
        for field in fields(artifact.config)
        if getattr(artifact.config, field.name) != getattr(source.config, field.name)
    ]
    if differing:
        raise LucidError(
            f"{artifact.directory} was not exported from {source.directory}: {'; '.join(differing)}. Name the right "
            "checkpoint with --checkpoint, or export again."
        )
    return source


def check_memory(
    artifact: Artifact, source: Checkpoint, runtime: Capabilities, steps: int, causes: bool, free: int | None
) -> None:
    """Refuse a verification that does not fit into memory, before anything large is opened.

    Args:
        artifact: What is to be verified.
        source: Its checkpoint.
        runtime: What its runtime can do.
        steps: Decode steps.
        causes: Whether causes are looked for in any case.
        free: Bytes that can be taken, from :func:`lucid_deploy.parity.measure.memory.available`; None: not known.

    Raises:
        LucidError: It takes more; the parts are named.
    """
    from lucid_deploy.parity.measure import memory

    tokens, decoded = memory.sequence_tokens(artifact.config, steps)
    rounds = artifact.manifest.cache_dtype != artifact.manifest.dtype
    sizes = _model_bytes(artifact, source)
    parts = {"programs": memory.FIXED, f"PyTorch in {artifact.manifest.dtype}": sizes["baseline"]}
    if rounds:
        parts["PyTorch in float64"] = sizes["float64"]
    if runtime.copies_weights:
        parts["the artifact in its runtime"] = sizes["runtime"]
    parts |= memory.record_bytes(artifact.config, tokens, decoded, rounds)
    if causes:
        parts |= _explaining(artifact, tokens, runtime)
    remedy = "Verify it on a machine with more memory, or end other programs."
    if causes:
        remedy += " Without --explain and --report it takes less."
    memory.check_fits(f"Verifying {artifact.directory}", parts, free, remedy)


def _explaining(artifact: Artifact, tokens: int, runtime: Capabilities) -> dict[str, int]:
    """Return what looking for causes takes beside the rest."""
    from lucid_deploy.parity.measure import memory

    parts = memory.explain_bytes(artifact.config, tokens)
    cut = runtime.reads_layers and runtime.copies_weights
    return {**parts, "the graphs cut into layers": _runtime_bytes(artifact)} if cut else parts


def _runtime_bytes(artifact: Artifact) -> int:
    """Return what a runtime takes for an artifact's weights beyond their mapped file.

    onnxruntime reads large float32 weights from there, all but a quarter, and copies small ones. Of float16 and
    quantized ones it keeps copies in the type or the layout that it computes with, as large as two of the file.
    """
    from lucid_deploy.artifact import WEIGHTS

    plain = artifact.manifest.dtype == "float32" and artifact.manifest.quantization is None
    size = int(artifact.manifest.files[WEIGHTS]["size"])
    return max(size // 4, min(size, SMALL_WEIGHTS)) if plain else 2 * size


def _model_bytes(artifact: Artifact, source: Checkpoint) -> dict[str, int]:
    """Return what models take beyond mapped files: weights of another type than they are stored in."""
    import math

    import torch

    dtype = getattr(torch, artifact.manifest.dtype)
    counts = {name: math.prod(shape) for name, shape in source.stored_shapes().items()}
    cast = [name for name in counts if artifact.manifest.quantization is not None or source.tensor(name).dtype != dtype]
    return {
        "baseline": sum(counts[name] for name in cast) * dtype.itemsize,
        "float64": sum(counts.values()) * 8,
        "runtime": _runtime_bytes(artifact),
    }


def verify_against(
    candidate: Session[Any],
    source: Checkpoint,
    steps: int,
    seed: int,
    prompt: Array | None,
    update: Callable[[str, int, int], None],
    closer: Closer | None = None,
    artifact: Artifact | None = None,
) -> Report:
    """Verify a session against its checkpoint.

    The float64 reference casts its weights while it uses them, so it takes little memory beside the baseline. Only
    where the cache rounds, a second reference has all of its weights in float64, for it runs token by token.

    A quantized artifact is held against the model on its own, dequantized weights; what quantization cost against the
    checkpoint is measured beside that.

    Args:
        candidate: The session under test.
        source: The checkpoint.
        steps: Decode steps after each prompt.
        seed: For the scenarios.
        prompt: Token ids of a real prompt, or None.
        update: Called with (what is being done, done, in all).
        closer: What else to look at.
        artifact: What the session runs, if it is known; without it, it is taken for one that is not quantized.
    """
    from dataclasses import replace

    import torch

    from lucid_deploy.model.checkpoint import load_model
    from lucid_deploy.model.on_demand import float64_on_demand
    from lucid_deploy.parity import check, prepare
    from lucid_deploy.runtimes.torch.session import TorchSession

    closer = closer or Closer()
    record = None if artifact is None else artifact.manifest.quantization

    def opener(dtype: str, cache_dtype: str = "auto") -> Callable[[], TorchSession]:
        def open_model() -> TorchSession:
            def loading(done: int, total: int) -> None:
                update(f"Loading {dtype}", done, total)

            if dtype == "float64" and cache_dtype == "auto":
                model = float64_on_demand(source.config, _weights(source, artifact))
            elif record is not None and artifact is not None:
                model = _quantized_model(artifact, candidate, dtype)
            else:
                model = load_model(source, getattr(torch, dtype), progress=loading)
            model.store_cache_as(cache_dtype)
            session = TorchSession(model)
            session.config = candidate.config  # engines may take less context than the model: prompts must fit both
            return session

        return open_model

    targets = prepare(
        opener(candidate.dtype, candidate.cache_dtype),
        opener("float64"),
        steps=steps,
        seed=seed,
        prompt=prompt,
        embeddings=source.tensor("model.embed_tokens.weight").float().numpy(),
        rounded=opener("float64", candidate.cache_dtype),
        progress=update,
    )
    if closer.tolerance is not None:
        targets = targets.with_tolerance(closer.tolerance)
    report = check(candidate, targets, progress=update)
    if record is not None:
        from lucid_deploy.parity.measure.quantization import measure_cost

        cost = measure_cost(lambda: _original(source, candidate), candidate, targets, update)
        report = replace(report, quantization=record, cost=cost)
    return _look_closer(report, candidate, targets, opener, closer, update)


def _quantized_model(artifact: Artifact, candidate: Session[Any], dtype: str) -> LucidForCausalLM:
    """Return the PyTorch model that a quantized artifact is held against, as exactly as a type goes.

    In float64 it is the model on the dequantized weights. In the artifact's own type it sets the gates, so it does what
    the runtime does: on the CPU onnxruntime rounds the inputs of quantized products to 8 bits, if the artifact says so.
    """
    from lucid_deploy.model.quantized_activations import quantize_activations
    from lucid_deploy.runtimes.torch.artifact_weights import load_artifact_model

    record = artifact.manifest.quantization
    model = load_artifact_model(artifact, dtype=dtype)
    rounds = candidate.capabilities.rounds_activations
    if record is None or record.activations != "int8" or dtype == "float64" or not rounds:
        return model
    return quantize_activations(model, record.block_sizes(artifact.config.tie_word_embeddings))


def _weights(source: Checkpoint, artifact: Artifact | None = None) -> Callable[[str], Tensor]:
    """Return a function giving the reference's weights by name: the checkpoint's, or the dequantized ones."""
    import torch

    from lucid_deploy.runtimes.torch.artifact_weights import stored_parts

    record = None if artifact is None else artifact.manifest.quantization
    parts = {}
    if record is not None and artifact is not None:
        parts = {name: (packed, scales) for name, packed, scales in stored_parts(artifact)}

    def load(name: str) -> Tensor:
        name = source.stored_name(name)
        if record is None or artifact is None:
            return source.tensor(name)
        if name in parts:
            return torch.from_numpy(record.dequantize(name, *parts[name]))
        return source.tensor(name).to(getattr(torch, artifact.manifest.dtype))  # checked to be what the artifact has

    return load


def _original(source: Checkpoint, candidate: Session[Any]) -> Session[Any]:
    """Open the checkpoint in float64, with the candidate's limits."""
    from lucid_deploy.model.on_demand import float64_on_demand
    from lucid_deploy.runtimes.torch.session import TorchSession

    session = TorchSession(float64_on_demand(source.config, _weights(source)))
    session.config = candidate.config
    return session


def _look_closer(
    report: Report,
    candidate: Session[Any],
    targets: Targets,
    opener: Callable[[str, str], Callable[[], TorchSession]],
    closer: Closer,
    update: Callable[[str, int, int], None],
) -> Report:
    """Add to a report what was asked for and, after a failure, the causes."""
    from dataclasses import replace

    from lucid_deploy.errors import LucidError
    from lucid_deploy.parity import explain, explained_scenarios
    from lucid_deploy.runtimes.torch.layers import TorchLayers

    causes = closer.layers is not None and (closer.always or not report.passed)
    if not causes and closer.text is None:
        return report
    layers, unavailable = None, None
    if causes and closer.layers is not None:
        try:
            layers = closer.layers()
        except LucidError as error:  # a reason, which the report gives
            unavailable = str(error)
    failing = None if report.failure is None else report.failure.scenario
    explanation = explain(
        explained_scenarios(targets, failing),
        candidate,
        layers,
        lambda: TorchLayers(opener(candidate.dtype, candidate.cache_dtype)().model),
        lambda: TorchLayers(opener("float64", "auto")().model),
        unavailable=unavailable,
        tolerance=targets.tolerance,
        text=closer.text,
        progress=update,
    )
    return replace(report, explanation=explanation)
