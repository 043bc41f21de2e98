"""Read golden files: safetensors with results that other code, such as training code, computed for given tokens.

``docs/verification.md`` describes the format. A file is read and checked against the model before anything is run.
:func:`add_golden` widens the gates by the rounding errors of the recorded results.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lucid_deploy.artifact import Artifact
from lucid_deploy.cache.layout import CacheTensor
from lucid_deploy.cache.storage import decoded_layout
from lucid_deploy.errors import LucidError, in_one_line
from lucid_deploy.model.config import LucidConfig
from lucid_deploy.model.description import LayerDescription
from lucid_deploy.parity.gate import FACTOR, UNIT, Gates
from lucid_deploy.parity.metrics import position_errors
from lucid_deploy.parity.progress import CallCounter, Progress
from lucid_deploy.parity.record import KINDS, TensorId, TensorRows, Trace, record_all
from lucid_deploy.parity.scenarios import MIN_PROMPT, ONE_SHOT, PADDING, Scenario, Workload, equal_lengths
from lucid_deploy.parity.targets import OtherTrace, Reference, Target, Targets, common_positions
from lucid_deploy.runtimes.session import Array, Session

KIND = "golden file"
VERSION = "1"
IDS, LOGITS = "input_ids", "logits"
AGAIN = "Write it again with examples/dump_golden.py."
STORED = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}  # dtype by its safetensors name
INTEGERS = ("I64", "I32", "U32", "I16", "U16", "U8")


@dataclass(frozen=True)
class Golden:
    """The contents of a golden file that was checked against a model."""

    path: Path
    ids: Array  # token ids, int64 (B, T)
    tensors: dict[TensorId, TensorRows]  # (B, T, F) each; for a layer over a window, perhaps only the last rows
    computed_in: str  # dtype that the recording model computed in
    stored: dict[TensorId, str]  # dtype that each tensor is stored in
    model: str = ""  # description of the model in the file, for people

    def reference(self, tokens: int) -> Reference:
        """Return a description of this file as a reference; ``tokens`` is how many tokens of each row are compared."""
        by, whole = f" by {self.model}" if self.model else "", self.ids.shape[1]
        words = f"the golden file {self.path}, recorded{by} in {self.computed_in}"
        cut = "" if tokens == whole else f"Of its {whole:,} tokens in a row, the first {tokens:,} were compared."
        return Reference(KIND, words, left_out=cut)

    def scenarios(self, limit: int, workload: Workload) -> list[Scenario]:
        """Return two scenarios for each row (one for 2 tokens): a prompt with decode steps, and a prompt of 1 token.

        Every schedule but "in turns" feeds the first; its logits are compared from the last prompt token on, or later
        in schedules that decode fewer tokens. Only the one-shot schedule feeds the second, and all its logits are
        compared. Rows are cut to :meth:`tokens_used`.
        """
        found = []
        tokens = self.tokens_used(limit, workload)
        steps = min(workload.steps, max(tokens - MIN_PROMPT, 1))
        for row, ids in enumerate(self.ids[:, :tokens]):
            cut = tokens - steps
            found.append(Scenario(row_name(row), ids[:cut], ids[cut:]))
            if cut > 1:
                found.append(Scenario(f"{row_name(row)}, decoded", ids[:1], ids[1:], one_shot_only=True))
        return found

    def tokens_used(self, limit: int, workload: Workload) -> int:
        """Return how many tokens of a row are run: as many as fit ``limit`` with padding, or the reduced workload."""
        tokens = min(self.ids.shape[1], limit - PADDING)
        return tokens if workload.has_all_sequences else min(tokens, workload.prompt_tokens + workload.steps)

    def trace(self, scenario: Scenario) -> Trace | None:
        """Return the recorded trace of a scenario; None if the scenario is not from this file."""
        for row in range(len(self.ids)):
            if scenario.name in (row_name(row), f"{row_name(row)}, decoded"):
                return Trace({name: _part(rows, row, scenario.length) for name, rows in self.tensors.items()})
        return None


def _part(rows: TensorRows, row: int, tokens: int) -> TensorRows:
    """Return one batch row of a tensor, cut to the recorded positions before ``tokens``."""
    return TensorRows(rows.values[row : row + 1, : max(tokens - rows.start, 0)], rows.start)


def row_name(row: int) -> str:
    """Return the name of a row's scenario, which counts from 1; ``row`` counts from 0."""
    return f"golden {row + 1}"


def open_golden(
    path: str | Path | None, config: LucidConfig, layers: tuple[LayerDescription, ...], artifact: Artifact | None
) -> Golden | None:
    """Read the golden file at ``path``, if any; raise LucidError for a quantized artifact, whose results differ."""
    if path is None:
        return None
    if artifact is not None and artifact.manifest.quantization is not None:
        raise LucidError(
            f"{artifact.directory} is quantized, so it does not compute what the checkpoint's own code computes. "
            "Verify it without --golden: this compares every weight with the checkpoint's. For --golden, export a "
            "checkpoint that is not quantized, without --quantize."
        )
    return read_golden(path, config, layers)


def read_golden(path: str | Path, config: LucidConfig, layers: tuple[LayerDescription, ...]) -> Golden:
    """Read a golden file; raise LucidError unless its tensors, types, shapes and values fit the model."""
    import torch  # numpy has no bfloat16
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise LucidError(f"There is no golden file {path}. examples/dump_golden.py writes one.")
    read: dict[str, Array] = {}
    try:
        with safe_open(path, framework="pt") as file:
            metadata, known = file.metadata() or {}, _tensors_of(layers)
            _check_version(path, metadata)
            headers = {str(name): file.get_slice(name) for name in sorted(file.keys())}
            types = {name: str(header.get_dtype()) for name, header in headers.items()}
            shapes = {name: list(header.get_shape()) for name, header in headers.items()}
            _check_headers(path, types, shapes, known, config)
            for name in headers:
                x = file.get_tensor(name)
                read[name] = (x.float() if x.dtype == torch.bfloat16 else x).numpy()
    except (SafetensorError, OSError) as error:
        raise LucidError(f"{path} is not a valid safetensors file ({in_one_line(error)}). {AGAIN}") from error
    _check_values(path, read, config)
    ids = read.pop(IDS).astype(np.int64)
    ids_of = {name: tensor for name, (tensor, _) in known.items()}
    ids_of[LOGITS] = TensorId(len(layers), KINDS.index(LOGITS))
    stored = {ids_of[name]: STORED[types[name]] for name in read}
    computed_in = metadata.get("computed_in", max(stored.values(), key=UNIT.__getitem__))  # else the coarsest dtype
    if computed_in not in UNIT:
        raise LucidError(f"{path}: computed_in is {computed_in!r} in its metadata, not one of {', '.join(UNIT)}.")
    rows = {ids_of[name]: _rows(x, ids.shape[1]) for name, x in read.items()}
    return Golden(path, ids, rows, computed_in, stored, metadata.get("model", ""))


def _check_version(path: Path, metadata: dict[str, str]) -> None:
    version = metadata.get("golden_version")
    if version is None:
        raise LucidError(f"{path} has no golden_version in its metadata, so it is not a golden file. {AGAIN}")
    if version != VERSION:
        raise LucidError(f"{path} has golden_version {version}; this version reads {VERSION}. {AGAIN}")


def _tensors_of(layers: tuple[LayerDescription, ...]) -> dict[str, tuple[TensorId, CacheTensor]]:
    """Return the cached keys and values that a golden file may contain, by their names there."""
    return {
        f"layers.{index}.{tensor.name}": (TensorId.of(index, place, tensor, layer), tensor)
        for index, layer in enumerate(layers)
        for place, tensor in enumerate(decoded_layout(layer.cache))
        if tensor.name in ("key", "value") and tensor.has_tokens
    }


def _check_headers(
    path: Path,
    types: dict[str, str],
    shapes: dict[str, list[int]],
    known: dict[str, tuple[TensorId, CacheTensor]],
    config: LucidConfig,
) -> None:
    """Raise LucidError if tensors are missing or unknown, or if dtypes or shapes do not fit this model."""
    if missing := [name for name in (IDS, LOGITS) if name not in types]:
        raise LucidError(f"{path} has no tensor {missing[0]}. {AGAIN}")
    if types[IDS] not in INTEGERS:
        raise LucidError(f"{path}: input_ids has the type {types[IDS]}; token ids must be integers. {AGAIN}")
    if len(shapes[IDS]) != 2 or shapes[IDS][0] < 1 or shapes[IDS][1] < 2:
        raise LucidError(
            f"{path}: input_ids has the shape {shapes[IDS]}; it must be [batch, tokens] with at least 2 tokens, one to "
            "prefill and one to decode."
        )
    batch, tokens = shapes[IDS]
    for name, shape in shapes.items():
        if name == IDS:
            continue
        if name != LOGITS and name not in known:
            raise LucidError(
                f"{path} has a tensor {name}. A golden file may contain only input_ids, logits, and layers.N.key and "
                f"layers.N.value for layers of this model that cache them. Remove or rename it. {AGAIN}"
            )
        if types[name] not in STORED:
            raise LucidError(f"{path}: {name} has the type {types[name]}, not one of {', '.join(STORED)}. {AGAIN}")
        wanted, layout = [batch, tokens, config.vocab_size], "[batch, tokens, vocabulary]"
        if name != LOGITS:
            tensor = known[name][1]
            heads, width = tensor.shape
            # A layer over a window drops its first rows, so only the last rows may have been recorded.
            is_cut = tensor.sort == "ring" and len(shape) == 4 and 0 < shape[2] <= tokens
            wanted = [batch, heads, shape[2] if is_cut else tokens, width]
            layout = "[batch, key/value heads, tokens, width]"
        if shape != wanted:
            raise LucidError(
                f"{path}: {name} has the shape {shape}; with these input_ids and this model it must be {wanted}, "
                f"{layout}. It was recorded with another model or other tokens."
            )


def _check_values(path: Path, read: dict[str, Array], config: LucidConfig) -> None:
    """Raise LucidError for token ids outside the vocabulary, NaN and infinity."""
    ids = read[IDS]
    wrong = ids[(ids < 0) | (ids >= config.vocab_size)]
    if len(wrong):
        raise LucidError(
            f"{path}: input_ids contains {wrong[0]}, which is outside the model's vocabulary (0 to "
            f"{config.vocab_size - 1}). It was recorded with another model."
        )
    for name, x in read.items():
        bad = np.argwhere(~np.isfinite(x))
        if len(bad):
            position = bad[0][1] if name == LOGITS else bad[0][2] + ids.shape[1] - x.shape[2]
            raise LucidError(
                f"{path}: {name} contains NaN or infinity (first in row {bad[0][0]} at position {position}), so the "
                "recording model failed there. Record it in a wider type."
            )


def _rows(x: Array, tokens: int) -> TensorRows:
    """Return logits unchanged; reshape the last n keys or values ``(B, KV, n, D)`` to rows ``(B, n, F)``."""
    if x.ndim == 3:
        return TensorRows(x)
    return TensorRows(x.transpose(0, 2, 1, 3).reshape(len(x), x.shape[2], -1), tokens - x.shape[2])


def add_golden(
    targets: Targets, golden: Golden, in_precision: Callable[[str], Session[Any]], progress: Progress | None = None
) -> Targets:
    """Return the targets with the recorded tensors added to the golden file's scenarios.

    ``in_precision`` opens our own PyTorch model in a dtype, to measure its rounding errors; LucidError if it overflows.
    """
    found = {item.scenario.name: trace for item in targets.items if (trace := golden.trace(item.scenario)) is not None}
    recorded = [item for item in targets.items if item.scenario.name in found]
    reference = golden.reference(max(item.scenario.length for item in recorded))
    # Assume at best float32: even float64 models commonly cast norms, softmax and rotary angles to float32.
    precision, errors = max(golden.computed_in, "float32", key=UNIT.__getitem__), None
    if UNIT[precision] > UNIT[targets.dtype]:  # the recording model's precision was lower than the candidate's
        errors = _errors_in(precision, recorded, in_precision(precision), progress)

    def with_golden(item: Target) -> Target:
        if item.scenario.name not in found:
            return item
        rounding = rounding_of(item.gates, targets.dtype, precision, golden.stored, errors)
        return replace(item, other=OtherTrace(reference, found[item.scenario.name], rounding))

    return replace(targets, items=tuple(map(with_golden, targets.items)))


def _errors_in(
    dtype: str, items: list[Target], session: Session[Any], progress: Progress | None
) -> dict[TensorId, float]:
    """Return our own model's rounding errors in a dtype: by tensor, the largest relative L2 error of any position."""
    scenarios = [item.scenario for item in items]
    total = sum(ONE_SHOT.calls(group[0]) for group in equal_lengths(scenarios))
    meter = CallCounter(progress, f"PyTorch in {dtype}: rounding errors of the golden file", total)
    traces = record_all(session, scenarios, ONE_SHOT, meter.tick)
    errors: dict[TensorId, float] = {}
    for item in items:
        for tensor, rows in item.reference.tensors.items():
            actual, wanted = common_positions(traces[item.scenario.name].tensors[tensor], rows)
            error = float(position_errors(actual.values, wanted.values, tensor.accumulated).max())
            if not error < float("inf"):
                raise LucidError(
                    f"The model gives NaN or infinity in {dtype} ({tensor}), in which the golden file was recorded, "
                    "so its rounding errors are unknown. Record it in a wider type."
                )
            errors[tensor] = max(errors.get(tensor, 0.0), error)
    return errors


def rounding_of(
    gates: Gates,
    dtype: str,
    precision: str,
    stored: Mapping[TensorId, str],
    errors: Mapping[TensorId, float] | None,
) -> dict[TensorId, float]:
    """Return how much to widen each tensor's gate for rounding errors of other code that computed in ``precision``.

    ``gates`` are our own model's, derived for ``dtype``; ``stored`` are the dtypes in the file. ``errors`` are our own
    model's in ``precision``; None: the baseline's, times the ratio of the two dtypes' units in the last place.
    """
    share = UNIT[precision] / UNIT[dtype]
    return {
        tensor: FACTOR * (gates[tensor].baseline * share if errors is None else errors[tensor]) + UNIT[stored[tensor]]
        for tensor in stored
    }
