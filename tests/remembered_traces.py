"""Each model is traced once per test run: tracing takes most of an export's time."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import logging
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import pytest

from lucid_deploy.export import trace as tracing
from lucid_deploy.export.trace import Traced
from tests.once_per_run import run_folder

LOGGER = "torch.__trace"
KEPT = "LUCID_TESTS_TRACES"  # an environment variable: a folder of traces that several runs share
# Fields of the configuration that sessions use and graphs do not, with the values that replace them here.
NOT_IN_GRAPHS: dict[str, Any] = {"max_position_embeddings": 1, "bos_token_id": None, "eos_token_ids": ()}


def packed(traced: Traced) -> bytes:
    """Return a trace as bytes. Its weights have no data, which ONNX files cannot express: they are stored as inputs."""
    model = traced.model.clone()
    names = list(model.graph.initializers)
    weights = [name for name, value in model.graph.initializers.items() if value.const_value is None]
    for name in weights:
        model.graph.inputs.append(model.graph.initializers.pop(name))
    proto = ir.serde.serialize_model(model).SerializeToString()
    return pickle.dumps((proto, names, weights, traced.inputs, traced.outputs, traced.transposed))


def unpacked(data: bytes) -> Traced:
    """Return the trace that :func:`packed` turned into bytes."""
    proto, names, weights, *rest = pickle.loads(data)
    model = ir.serde.deserialize_model(onnx.load_from_string(proto))
    graph = model.graph
    given = {str(value.name): value for value in graph.inputs if value.name in set(weights)}
    for value in given.values():
        graph.inputs.remove(value)
    found = {**{str(name): graph.initializers.pop(name) for name in list(graph.initializers)}, **given}
    for name in names:
        graph.initializers[name] = found[name]
    return Traced(model, *rest)


def name_of(*arguments: Any, **options: Any) -> str:
    """Return one name for all calls that give the same trace."""
    call = inspect.signature(inspect.unwrap(tracing.trace)).bind(*arguments, **options)
    call.apply_defaults()
    asked, options = call.arguments, call.arguments.pop("options")
    # Prefill does not depend on the cache, and the other stages do not depend on the choice of logits.
    asked["logits"], asked["cache"] = (
        (options.logits, "growing") if asked["stage"] == "prefill" else ("last", asked["cache"])
    )
    asked |= {"dtype": options.dtype, "cache_dtype": options.cache_dtype, "opset": options.opset_for(asked["cache"])}
    asked["float32_head"] |= options.dtype == "float32"
    asked["config"] = dataclasses.replace(asked["config"], **NOT_IN_GRAPHS)
    return hashlib.sha256(repr(sorted(asked.items())).encode()).hexdigest()


@pytest.fixture(scope="session", autouse=True)
def _remembered_traces(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Exports of this run, in whichever worker, trace each model once."""
    folder = Path(os.environ.get(KEPT) or run_folder(tmp_path_factory, "traces"))
    original = tracing.trace

    @functools.wraps(original)
    def remembered(*arguments: Any, **options: Any) -> Traced:
        path = folder / name_of(*arguments, **options)
        if not path.is_file():
            _put(path, packed(original(*arguments, **options)))
        return unpacked(path.read_bytes())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracing, "trace", remembered)
        yield


def _put(path: Path, data: bytes) -> None:
    part = path.with_suffix(f".{os.getpid()}")
    part.write_bytes(data)
    part.replace(path)


@pytest.fixture
def fresh_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that change how models are traced: nothing is remembered."""
    monkeypatch.setattr(tracing, "trace", inspect.unwrap(tracing.trace))


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Turn off PyTorch's structured trace log, which takes a twelfth of the time of tracing.

    pytest adds its handlers to every logger that does not propagate. Without a handler this logger is silent; with one
    it describes each symbol and guard of a capture, with the stack.
    """
    trace = logging.getLogger(LOGGER)
    trace.handlers.clear()
    trace.propagate = True
