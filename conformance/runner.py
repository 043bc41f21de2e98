"""Run cases in onnxruntime and say how each went."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lucid_deploy.cache.storage import SCALED
from lucid_deploy.conformance.case_files import Case, data_folder, read_case, stored_names
from lucid_deploy.conformance.cases import case_names, make_case
from lucid_deploy.conformance.formulas import Array
from lucid_deploy.errors import LucidError
from lucid_deploy.runtimes.onnxruntime import CAPABILITIES
from lucid_deploy.runtimes.options import RuntimeOptions

if TYPE_CHECKING:
    import onnx

Update = Callable[[str, float, float], None]
Graph = Callable[[Mapping[str, Array]], dict[str, Array]]
Opener = Callable[["onnx.ModelProto"], Graph]
PASSED, FAILED, NOT_RUN = "passed", "failed", "not run"


@dataclass(frozen=True)
class Result:
    """The outcome of a case."""

    case: str  # its name
    status: str  # passed, failed or not run
    # Relative errors of the outputs, by name; None: a number that is not finite, or another shape.
    errors: dict[str, float | None] = field(default_factory=dict)
    tolerances: dict[str, float] = field(default_factory=dict)  # the largest errors that pass, by output
    remark: str = ""  # why it failed or was not run

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain data for JSON."""
        return asdict(self)


def run_cases(
    options: RuntimeOptions, folder: Path | None = None, only: str = "", update: Update | None = None
) -> list[Result]:
    """Run cases in onnxruntime on the CPU.

    Args:
        options: Say which kernels and how many threads are used.
        folder: A folder of cases; None: cases made now, with today's operator bodies.
        only: Run only cases that have this text in their names.
        update: Called with a case's name, how many cases are done and how many there are.

    Raises:
        LucidError: A case cannot be made or read, no name contains ``only``, or the kernels cannot be used.
    """
    if folder is None:
        names = case_names(only)
    elif not (names := [name for name in stored_names(folder) if only in name]):
        raise LucidError(f"No case in {folder} has {only!r} in its name.")
    results = []
    for done, name in enumerate(names):
        if update is not None:
            update(name, done, len(names))
        case = make_case(name) if folder is None else read_case(folder / name)
        results.append(run_case(case, lambda model: _open_in_onnxruntime(model, options)))
    return results


def run_case(case: Case, open_graph: Opener) -> Result:
    """Run a case, unless onnxruntime's CPU lacks one of its float types; any error but a LucidError fails the case."""
    can = CAPABILITIES["cpu"]
    floats = {kind for kind in case.description.types if "float" in kind}
    cached = {SCALED[name] for name in can.cache_dtypes if name in SCALED}
    if missing := sorted(floats - set(can.dtypes) - cached):
        return Result(case.name, NOT_RUN, remark=f"onnxruntime has no {' or '.join(missing)}")
    try:
        graph = open_graph(case.model)
        found = [graph(data.inputs) for data in case.data_sets]
    except LucidError:
        raise
    except Exception as error:  # noqa: BLE001 (onnxruntime's own, of any class: the case fails, and the table says why)
        return Result(case.name, FAILED, remark=f"{type(error).__name__}: {_line(error)}")
    pairs = list(zip(found, case.data_sets, strict=True))
    each = {
        name: [relative_error(outputs[name], data.outputs[name]) for outputs, data in pairs] for name in case.outputs
    }
    errors = {name: max(each[name]) for name in case.outputs}
    tolerances = {item.name: item.tolerance for item in case.description.outputs}
    wrong = [f"{name} is off{_where(each[name], most)}" for name, most in tolerances.items() if errors[name] > most]
    wrong_types = {
        f"{item.name} is {outputs[item.name].dtype}": None
        for item in case.model.graph.output
        for outputs in found
        if not _has_type(item, outputs)
    }
    return Result(
        case.name,
        FAILED if wrong or wrong_types else PASSED,
        {name: error if np.isfinite(error) else None for name, error in errors.items()},
        tolerances,
        "; ".join([*wrong, *wrong_types]),
    )


def _open_in_onnxruntime(model: onnx.ModelProto, options: RuntimeOptions) -> Graph:
    """Return a function that runs a graph in onnxruntime on the CPU."""
    from lucid_deploy.ort import import_onnxruntime
    from lucid_deploy.runtimes.onnxruntime.compatibility import choose_kernels
    from lucid_deploy.runtimes.onnxruntime.graph import ort_value

    ort = import_onnxruntime()
    library, settings = choose_kernels(options.kernels), ort.SessionOptions()
    settings.log_severity_level = 4
    if (threads := options.thread_count) is not None:
        settings.intra_op_num_threads = threads
    if library is not None:
        settings.register_custom_ops_library(str(library))
    session = ort.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(feed: Mapping[str, Array]) -> dict[str, Array]:
        values = {name: ort_value(array) for name, array in feed.items()}
        found = session.run_with_ort_values(names, values)
        # Copies, because an output may share memory with an input.
        return {name: value.numpy().copy() for name, value in zip(names, found, strict=True)}

    return run


def relative_error(found: Array, wanted: Array) -> float:
    """Return the largest relative error (L2) of a batch row of ``(B, …)``; infinite for NaN or another shape."""
    if found.shape != wanted.shape:
        return math.inf
    found, wanted = (x.astype(np.float64).reshape(len(x), -1) for x in (found, wanted))
    difference, size = np.linalg.norm(found - wanted, axis=1), np.linalg.norm(wanted, axis=1)
    error = np.where(difference == 0, 0.0, difference / np.maximum(size, np.finfo(np.float64).tiny))
    return float(np.where(np.isnan(error), np.inf, error).max(initial=0.0))


def _where(errors: list[float], tolerance: float) -> str:
    """Return a phrase that names the data sets with too large an error; empty if there is only one data set."""
    folders = [data_folder(number) for number, error in enumerate(errors) if not error <= tolerance]
    return f" in {', '.join(folders)}" if len(errors) > 1 else ""


def _has_type(item: onnx.ValueInfoProto, outputs: dict[str, Any]) -> bool:
    import onnx

    wanted = onnx.helper.tensor_dtype_to_np_dtype(item.type.tensor_type.elem_type)
    return bool(outputs[item.name].dtype == wanted)


def _line(error: Exception) -> str:
    return re.sub(r"\s+", " ", str(error)).strip()[:300]
