"""Other implementations to compare with: a golden file, and the model of transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lucid_deploy.artifact import Artifact
from lucid_deploy.artifact.quantization import STORED
from lucid_deploy.errors import LucidError
from lucid_deploy.model.checkpoint import Checkpoint
from lucid_deploy.model.config import LucidConfig
from lucid_deploy.model.description import LayerDescription
from lucid_deploy.parity.gate import FACTOR, UNIT
from lucid_deploy.parity.golden import Golden, read_golden
from lucid_deploy.parity.metrics import position_errors
from lucid_deploy.parity.options import Workload
from lucid_deploy.parity.record import TensorId, Trace, record_all
from lucid_deploy.parity.rounded_cache import Gates
from lucid_deploy.parity.scenarios import ONE_SHOT, Scenario, equal_lengths
from lucid_deploy.parity.targets import CallCounter, OtherTrace, Progress, Target, Targets, common_positions
from lucid_deploy.parity.transformers_model import TransformersModel
from lucid_deploy.runtimes.session import Session

AGAINST = ("transformers",)


@dataclass(frozen=True)
class OtherReferences:
    """What a candidate is compared with beside our own model: a golden file, the model of transformers, or both."""

    golden: Golden | None = None
    model: TransformersModel | None = None

    def scenarios(self, config: LucidConfig, workload: Workload) -> list[Scenario]:
        """Return the token sequences that come with them."""
        return [] if self.golden is None else self.golden.scenarios(config.max_position_embeddings, workload)

    def add_to(
        self, targets: Targets, in_precision: Callable[[str], Session[Any]], progress: Progress | None = None
    ) -> Targets:
        """Return targets with the numbers of these references for their scenarios.

        ``in_precision`` opens our own model in a type, to measure what rounding in it costs.
        """
        if self.golden is not None:
            targets = _with_golden(targets, self.golden, in_precision, progress)
        return targets if self.model is None else _with_model(targets, self.model, progress)


def open_references(
    golden: str | Path | None,
    against: str | None,
    source: Checkpoint,
    layers: tuple[LayerDescription, ...],
    artifact: Artifact | None = None,
) -> OtherReferences:
    """Open a golden file, the model of transformers, or neither; check that it fits before anything is run."""
    if against is not None and against not in AGAINST:
        raise LucidError(f"An artifact is verified against {' or '.join(AGAINST)}, not {against!r}.")
    record = None if artifact is None else artifact.manifest.quantization
    if artifact is not None and record is not None and (golden or against):
        alone = "verified without --golden and --against, every weight of it against the checkpoint."
        if record.method.name == STORED:
            raise LucidError(
                f"{artifact.directory} holds the numbers of a quantized checkpoint, and is {alone} For a comparison "
                "with other code, export the checkpoint that it was made from, and verify that."
            )
        raise LucidError(
            f"{artifact.directory} is quantized, so it does not compute what the checkpoint's own code computes. "
            "Export without --quantize and verify that with --golden or --against; the quantized artifact is "
            f"{alone}"
        )
    return OtherReferences(
        None if golden is None else read_golden(golden, source.config, layers),
        None if against is None else TransformersModel(source, layers),
    )


def recording_type(golden: Golden) -> str:
    """Return the type to count a golden file's rounding in.

    Float32 at best: common code casts norms, softmax and rotary angles to float32, whatever the model's type.
    """
    return max(golden.computed_in, "float32", key=UNIT.__getitem__)


def _with_golden(
    targets: Targets, golden: Golden, in_precision: Callable[[str], Session[Any]], progress: Progress | None
) -> Targets:
    found = {item.scenario.name: trace for item in targets.items if (trace := golden.trace(item.scenario)) is not None}
    recorded = [item for item in targets.items if item.scenario.name in found]
    reference = golden.reference(max(item.scenario.length for item in recorded))
    precision, errors = recording_type(golden), None
    if UNIT[precision] > UNIT[targets.dtype]:  # recorded more coarsely than the candidate computes
        errors = _errors_in(precision, recorded, in_precision(precision), progress)

    def other(item: Target) -> OtherTrace:
        rounding = rounding_of(item.gates, targets.dtype, precision, golden.stored, errors)
        return OtherTrace(reference, found[item.scenario.name], rounding)

    return _added(targets, ((item, other(item)) for item in recorded))


def _errors_in(
    dtype: str, items: list[Target], session: Session[Any], progress: Progress | None
) -> dict[TensorId, float]:
    """Return what rounding in a type costs our own model, the most of any of these scenarios."""
    scenarios = [item.scenario for item in items]
    total = sum(ONE_SHOT.calls(group[0]) for group in equal_lengths(scenarios))
    meter = CallCounter(progress, f"PyTorch in {dtype}: what recording in it cost", total)
    traces = record_all(session, scenarios, ONE_SHOT, meter.tick)
    each = [own_errors(traces[item.scenario.name], item.reference, dtype) for item in items]
    return {tensor: max(errors[tensor] for errors in each) for tensor in each[0]}


def _with_model(targets: Targets, model: TransformersModel, progress: Progress | None) -> Targets:
    meter = CallCounter(progress, "transformers in float64: the other reference", len(targets.items))
    made = []
    for item in targets.items:
        trace = model.trace(item.scenario.ids)
        stored = dict.fromkeys(trace.tensors, "float64")
        rounding = rounding_of(item.gates, targets.dtype, "float64", stored, None)
        made.append((item, OtherTrace(model.reference, trace, rounding)))
        meter.tick()
    return _added(targets, made)


def _added(targets: Targets, made: Iterable[tuple[Target, OtherTrace]]) -> Targets:
    by_name = {item.scenario.name: other for item, other in made}
    items = [
        replace(item, others=(*item.others, by_name[item.scenario.name])) if item.scenario.name in by_name else item
        for item in targets.items
    ]
    return replace(targets, items=tuple(items))


def rounding_of(
    gates: Gates,
    dtype: str,
    precision: str,
    stored: Mapping[TensorId, str],
    errors: Mapping[TensorId, float] | None,
) -> dict[TensorId, float]:
    """Return the allowance for rounding in numbers that other code computed in ``precision`` and stored in some types.

    ``gates`` are our own model's, derived for ``dtype``. ``errors`` are our own model's in ``precision``; without them
    the baseline's error is scaled by the two types' units in the last place.
    """
    share = UNIT[precision] / UNIT[dtype]
    return {
        tensor: FACTOR * (gates[tensor].baseline * share if errors is None else errors[tensor]) + UNIT[stored[tensor]]
        for tensor in stored
    }


def own_errors(found: Trace, reference: Trace, dtype: str) -> dict[TensorId, float]:
    """Return our own model's largest relative L2 error of any position in a type against float64, by tensor."""
    errors = {}
    for tensor, rows in reference.tensors.items():
        actual, wanted = common_positions(found.tensors[tensor], rows)
        errors[tensor] = float(position_errors(actual.values, wanted.values, tensor.accumulated).max())
        if not errors[tensor] < float("inf"):
            raise LucidError(
                f"The model gives NaN or infinity in {dtype} ({tensor}), in which the golden file was recorded: "
                "what rounding cost there is unknown. Record it in a wider type."
            )
    return errors
