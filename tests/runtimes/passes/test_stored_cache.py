"""Sessions whose decode graph is changed, in memory, to read the cache as it is stored; and when it is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from lucid_deploy.errors import LucidError
from lucid_deploy.model.checkpoint import Checkpoint, load_model
from lucid_deploy.runtimes import open_session
from lucid_deploy.runtimes.passes.stored_cache import read_as_stored
from lucid_deploy.runtimes.torch.session import TorchSession

CASES = [
    ("float32", "int8", "growing"),
    ("float32", "int8", "static"),
    ("float32", "float16", "growing"),
    ("float16", "fp8", "growing"),
]


KERNELS = [case for case in CASES if case[1] != "fp8"]  # of onnxruntime's library


PATH = Path("decode.onnx")


OPERATOR = {"float16": "DecodeAttentionFloat16", "int8": "DecodeAttentionInt8", "fp8": "DecodeAttentionFloat8"}


@pytest.fixture
def artifact_of(exported):
    def get(dtype, cache_dtype, cache):
        return exported(dtype, cache=cache, cache_dtype=cache_dtype)

    return get


def decode_graph(artifact):
    return onnx.load(str(artifact.graph_path("decode")), load_external_data=False)


def count(model):
    kinds = [node.op_type for node in model.graph.node]
    return {kind: kinds.count(kind) for kind in sorted(set(kinds))}


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_only_the_caches_conversions_are_removed(artifact_of, case):
    model = decode_graph(artifact_of(*case)[1])
    before = count(model)
    read_as_stored(model, PATH)
    after, layers = count(model), 2
    assert after.pop(OPERATOR[case[1]]) == before.pop("DecodeAttention") == layers
    gone = {"Cast": 2 * layers * (2 if case[0] == "float16" else 1)}
    if case[1] != "float16":
        gone["Mul"] = 2 * layers
    assert {
        kind: number - after.get(kind, 0) for kind, number in before.items() if number != after.get(kind, 0)
    } == gone
    attention = next(node for node in model.graph.node if node.op_type == OPERATOR[case[1]])
    suffixes = ("key", "value", "key_scale", "value_scale") if case[1] != "float16" else ("key", "value")
    assert list(attention.input[3:-1]) == [f"past_key_values.0.{suffix}" for suffix in suffixes]
    assert attention.attribute[0].name == "epsilon"


def conversion(model, suffix="key"):
    """Return the node that multiplies layer 0's int8 rows by their scales."""
    return next(node for node in model.graph.node if f"past_key_values.0.{suffix}_scale" in node.input[1:2])


def coarser_read(model):
    """Multiply the scale by 127/128 before the rows are multiplied by the scale."""
    node = conversion(model)
    model.graph.initializer.append(numpy_helper.from_array(np.float32(127 / 128), "wrong_factor"))
    place = list(model.graph.node).index(node)
    model.graph.node.insert(place, helper.make_node("Mul", [node.input[1], "wrong_factor"], ["wrong_scale"]))
    conversion_of_rows = model.graph.node[place + 1]
    conversion_of_rows.input[1] = "wrong_scale"


def other_type(model):
    next(value for value in model.graph.input if value.name == "past_key_values.0.key").type.tensor_type.elem_type = 2


@pytest.mark.parametrize(
    "edit",
    [
        coarser_read,
        lambda model: setattr(conversion(model), "op_type", "Sub"),
        lambda model: conversion(model).input.reverse(),
        other_type,
    ],
)
def test_unknown_conversions_of_the_cache_are_refused(artifact_of, edit):
    model = decode_graph(artifact_of("float32", "int8", "static")[1])
    edit(model)
    with pytest.raises(LucidError, match=r"^decode.onnx is not as lucid-deploy export writes it: .* are not converted"):
        read_as_stored(model, PATH)


def test_conversions_that_something_else_reads_stay(artifact_of):
    model = decode_graph(artifact_of("float32", "int8", "growing")[1])
    shown = conversion(model).output[0]
    model.graph.output.append(helper.make_tensor_value_info(shown, TensorProto.FLOAT, None))
    read_as_stored(model, PATH)
    makers = {name: node for node in model.graph.node for name in node.output}
    assert makers[makers[shown].input[0]].op_type == "Cast"


def run(session, steps=12):
    """Decode after a prompt with padding on both sides; return logits and the arrays of the cache."""
    ids, mask = np.random.default_rng(0).integers(0, 97, (3, 70)), np.ones((3, 70), bool)
    mask[0, :9], mask[1, -5:] = False, False
    cache = session.empty_cache(3)
    rows = [session.prefill(ids, cache, mask)] + [session.decode(ids[:, i : i + 1], cache) for i in range(steps)]
    return np.concatenate(rows, axis=1), session.layer_arrays(cache)


@pytest.mark.parametrize("case", KERNELS, ids="-".join)
def test_the_library_computes_what_the_functions_compute(artifact_of, built_library, case):
    """A number halfway between two codes may be rounded either way, so the gate is a share of the rounding error."""
    checkpoint, artifact = artifact_of(*case)
    exact, _ = run(TorchSession(load_model(Checkpoint(checkpoint), torch.float64)))
    found = {}
    for kernels in ("functions", "library"):
        session = open_session(artifact, threads=2, kernels=kernels)
        assert session.reads_stored_cache == (kernels == "library")
        found[kernels], _ = run(session)
    assert not np.array_equal(found["functions"], found["library"]), "both were computed by the same kernels"
    cost = np.linalg.norm(found["functions"] - exact)
    share = 1.0 if case[0] == "float16" else 0.25  # float16 arithmetic moves many codes
    assert np.linalg.norm(found["library"] - found["functions"]) <= share * cost
    assert np.linalg.norm(found["library"] - exact) <= 1.1 * cost
