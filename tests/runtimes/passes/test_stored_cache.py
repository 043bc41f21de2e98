"""Sessions whose decode graph is changed, in memory, to read the cache as it is stored; and when it is not."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from lucid_deploy.artifact import MANIFEST, open_artifact
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


TOKENS = ("--prompt-tokens", "140", "--steps", "6")  # prompts end inside the second block of 128


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
def test_the_conversions_go_and_nothing_else(artifact_of, case):
    model = decode_graph(artifact_of(*case)[1])
    before = count(model)
    assert read_as_stored(model) == []
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


def first(model, kind):
    return next(node for node in model.graph.node if node.op_type == kind)


def conversion(model, suffix="key"):
    """Return the product of layer 0's int8 rows with their scales."""
    return next(node for node in model.graph.node if f"past_key_values.0.{suffix}_scale" in node.input[1:2])


def coarser_read(model):
    """The scale is multiplied by 127/128 before the numbers meet it."""
    node = conversion(model)
    model.graph.initializer.append(numpy_helper.from_array(np.float32(127 / 128), "wrong_factor"))
    place = list(model.graph.node).index(node)
    model.graph.node.insert(place, helper.make_node("Mul", [node.input[1], "wrong_factor"], ["wrong_scale"]))
    conversion_of_rows = model.graph.node[place + 1]
    conversion_of_rows.input[1] = "wrong_scale"


def other_type(model):
    next(value for value in model.graph.input if value.name == "past_key_values.0.key").type.tensor_type.elem_type = 2


def scales_for_all(model):
    scale = next(value for value in model.graph.input if value.name == "past_key_values.0.key_scale")
    scale.type.tensor_type.shape.dim[3].dim_value = 36


def another_domain(model):
    for node in model.graph.node:
        if node.op_type == "DecodeAttention":
            node.domain = "some.other"


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (coarser_read, "are not converted"),
        (lambda model: setattr(conversion(model), "op_type", "Sub"), "are not converted"),
        (lambda model: conversion(model).input.reverse(), "are not converted"),
        (other_type, "are not converted"),
        (scales_for_all, "are not converted"),
        (another_domain, "there is no DecodeAttention"),
    ],
)
def test_what_is_not_as_exported_is_left_alone(artifact_of, edit, said):
    model = decode_graph(artifact_of("float32", "int8", "static")[1])
    edit(model)
    before = model.SerializeToString(deterministic=True)
    (obstacle,) = read_as_stored(model)
    assert said.split(" ", 3)[-1] in obstacle
    assert model.SerializeToString(deterministic=True) == before


def test_conversions_that_something_else_reads_stay(artifact_of):
    model = decode_graph(artifact_of("float32", "int8", "growing")[1])
    shown = conversion(model).output[0]
    model.graph.output.append(helper.make_tensor_value_info(shown, TensorProto.FLOAT, None))
    assert read_as_stored(model) == []
    makers = {name: node for node in model.graph.node for name in node.output}
    assert makers[makers[shown].input[0]].op_type == "Cast"


def run(session, steps=12):
    """Decode behind a prompt with padding on both sides of it; return logits and the arrays of the cache."""
    ids, mask = np.random.default_rng(0).integers(0, 97, (3, 70)), np.ones((3, 70), bool)
    mask[0, :9], mask[1, -5:] = False, False
    cache = session.empty_cache(3)
    rows = [session.prefill(ids, cache, mask)] + [session.decode(ids[:, i : i + 1], cache) for i in range(steps)]
    return np.concatenate(rows, axis=1), session.layer_arrays(cache)


@pytest.mark.parametrize("case", KERNELS, ids="-".join)
def test_the_library_computes_what_the_functions_compute(artifact_of, built_library, case):
    """A number on the edge between two codes may fall differently, so the gate is a part of what rounding costs."""
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


@pytest.fixture
def damaged(artifact_of, tmp_path):
    """Return a function giving a copy whose decode graph was edited, with a manifest that agrees."""

    def make(edit, cache="static"):
        directory = tmp_path / "artifact"
        shutil.copytree(artifact_of("float32", "int8", cache)[1].directory, directory)
        path = open_artifact(directory).graph_path("decode")
        model = onnx.load(str(path), load_external_data=False)
        edit(model)
        onnx.save(model, str(path))
        manifest = json.loads((directory / MANIFEST).read_text())
        content = path.read_bytes()
        manifest["files"][path.name].update(size=len(content), sha256=hashlib.sha256(content).hexdigest())
        (directory / MANIFEST).write_text(json.dumps(manifest))
        return directory

    return make


def test_a_graph_that_is_not_changed_is_told_of_and_run_as_it_is(artifact_of, damaged, built_library, caplog):
    directory = damaged(coarser_read)
    with caplog.at_level(logging.WARNING):
        session = open_session(directory, kernels="library")
    assert not session.reads_stored_cache and session.kernels == "library"
    model = decode_graph(artifact_of("float32", "int8", "static")[1])  # whose names are those of the copy
    names = f"{conversion(model).output[0]} and {conversion(model, 'value').output[0]}"
    assert "converts all of its int8 cache in every step" in caplog.text and names in caplog.text
    wrong, _ = run(session)
    same, _ = run(open_session(directory, kernels="functions"))
    np.testing.assert_allclose(wrong, same, atol=2e-4 * np.abs(same).max())
