"""The graph that verifies drafts: what is in it, and prefill graphs of which it cannot be made."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest

from lucid_deploy.plugins.table import DECODE_ATTENTION, PRECONDITION
from lucid_deploy.runtimes import open_session
from lucid_deploy.runtimes.several_tokens import LOGIT_OFFSETS, NotAsExported, last_logits, several_tokens


def operators(model):
    return [node.op_type for node in model.graph.node]


@pytest.mark.parametrize(("cache", "logits"), [("growing", "last"), ("growing", "all"), ("static", "last")])
def test_k_and_y_are_read_once(exported, cache, logits):
    prefill = exported(cache=cache, logits=logits)[1].graph("prefill")
    before = prefill.SerializeToString()
    made = several_tokens(prefill, cache == "static")
    assert prefill.SerializeToString() == before
    found = operators(made)
    assert found.count(DECODE_ATTENTION.name) == 2 and PRECONDITION.name not in found
    assert "ArgMax" not in found  # the choice of the last token
    assert found.count("TensorScatter") == (4 if cache == "static" else 0)
    shape = [axis.dim_param or axis.dim_value for axis in made.graph.output[0].type.tensor_type.shape.dim]
    assert shape == ["batch", "sequence", 97]
    if cache == "static":
        decode = exported(cache=cache, logits=logits)[1].graph("decode")
        assert {value.name for value in made.graph.input} == {value.name for value in decode.graph.input}


@pytest.mark.parametrize("cache", ["growing", "static"])
@pytest.mark.parametrize("layers", [1, 2])
def test_any_number_of_layers(exported, cache, layers):
    """A graph of one layer reads the batch from the mask, which a longer one does from the cache of its last layer."""
    artifact = exported(cache=cache, num_hidden_layers=layers)[1]
    session, text = open_session(artifact, "onnxruntime", kernels="functions"), np.array([[5, 9, 40], [5, 5, 5]])
    held, padded = session.empty_cache(2), np.array([[True] * 3, [True, False, False]])
    session.prefill(text, held)
    singly = session.fork(held)
    logits = session.decode_several(text, held, padded)
    for place in range(3):
        one = session.decode(text[:, place : place + 1], singly, padded[:, place : place + 1])
        rows = padded[:, place]
        assert np.abs(one[rows, 0] - logits[rows, place]).max() < 1e-5 * np.abs(one).max()


@pytest.mark.parametrize("cache", ["growing", "static"])
def test_logits_of_tokens_before_the_last(exported, cache):
    """By onnxruntime alone, beside a graph that was exported with the logits of all; the new input may be left out."""
    artifact, whole = (exported(logits=logits, cache=cache)[1] for logits in ("last", "all"))
    model, unchanged = onnx.ModelProto(), onnx.ModelProto()
    model.CopyFrom(artifact.graph("prefill"))
    unchanged.CopyFrom(whole.graph("prefill"))
    assert last_logits(model) and not last_logits(unchanged) and unchanged == whole.graph("prefill")
    onnx.checker.check_model(with_weights(model, artifact))
    shape = [axis.dim_param or axis.dim_value for axis in model.graph.output[0].type.tensor_type.shape.dim]
    assert shape == ["batch", "kept", 97]
    ids = np.random.default_rng(0).integers(0, 97, (2, 12))
    mask = np.ones_like(ids)
    mask[0, 9:] = 0  # padding behind a row: offsets are from its last token
    feed = {"input_ids": ids, "attention_mask": mask, "position_ids": np.arange(12)[None].repeat(2, 0)}
    for value in model.graph.input:
        if value.name.startswith("past_key_values"):
            feed[value.name] = np.zeros(
                (2, *(axis.dim_value for axis in value.type.tensor_type.shape.dim[1:])), np.float32
            )
    run = onnxruntime.InferenceSession(with_weights(model, artifact).SerializeToString()).run
    every = onnxruntime.InferenceSession(with_weights(whole.graph("prefill"), whole).SerializeToString()).run(
        None, feed
    )[0]
    ends = np.array([8, 11])
    for offsets in (None, [0], [-3, -2, -1, 0], [-7, 0]):
        given = {} if offsets is None else {LOGIT_OFFSETS: np.array(offsets)}
        found = run(None, feed | given)[0]
        wanted = every[np.arange(2)[:, None], ends[:, None] + np.array(offsets or [0])]
        assert np.abs(found - wanted).max() < 1e-5 * np.abs(every).max()


def with_weights(graph, artifact):
    """Return a graph with its weights in it."""
    model = onnx.ModelProto()
    model.CopyFrom(graph)
    onnx.external_data_helper.load_external_data_for_model(model, str(artifact.directory))
    return model


@pytest.mark.parametrize(
    ("operator", "message"),
    [
        ("CausalAttention", "the attention that reads"),
        ("Unsqueeze", "each row's last token"),
    ],
)
def test_graphs_that_are_not_as_exported(exported, operator, message):
    model = onnx.ModelProto()
    model.CopyFrom(exported()[1].graph("prefill"))
    for node in model.graph.node:
        if node.op_type == operator:
            node.op_type = "Other"
    with pytest.raises(NotAsExported, match=message):
        several_tokens(model, static=False)
    if operator == "Unsqueeze":
        with pytest.raises(NotAsExported, match=message):
            last_logits(model)


def test_a_present_tensor_that_is_no_concatenation_cannot_be_written_in_place(exported):
    model = onnx.ModelProto()
    model.CopyFrom(exported(cache="static")[1].graph("prefill"))
    [node] = [node for node in model.graph.node if "present.1.value" in node.output]
    reader = next(each for each in model.graph.node if node.output[0] in each.input)
    node.output[0] = "joined"
    model.graph.node.append(onnx.helper.make_node("Identity", ["joined"], ["present.1.value"]))
    reader.input[:] = ["joined" if name == "present.1.value" else name for name in reader.input]
    with pytest.raises(NotAsExported, match=r"is not past_key_values\.1\.value with the new rows"):
        several_tokens(model, static=True)
