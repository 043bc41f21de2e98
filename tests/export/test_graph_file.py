"""A graph's file: weights in the file beside it, bodies attached or inlined, and no metadata of the tracer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from onnx import helper

from lucid_deploy.artifact import ALIGNMENT
from lucid_deploy.artifact.external_data import check_external_data, stored_weights
from lucid_deploy.export.graph_file import write_graph
from lucid_deploy.export.operators import OPSET
from lucid_deploy.export.weights import plan_weights
from lucid_deploy.plugins.precondition.torch_operator import precondition
from lucid_deploy.plugins.table import DELTA_RULE, DOMAIN, PRECONDITION
from tests.export.passes.graphs import FLOAT, model, weight_of
from tests.plugins.problems import keys

PAST, NEW, WIDTH, EPS = 3, 9, 8, 1e-5
SCALE = np.random.default_rng(0).standard_normal((WIDTH, WIDTH)).astype(np.float32)
BOOL = onnx.TensorProto.BOOL


def made(weight: str = "scale") -> ir.Model:
    """Values are multiplied by a weight and solved; nodes have metadata as the tracer writes it."""
    new, old = (FLOAT, ["batch", 2, "new", WIDTH]), (FLOAT, ["batch", 2, "past", WIDTH])
    inputs = {"k": new, "v": new, "k_past": old, "y_past": old, "mask": (BOOL, ["batch", "all"])}
    nodes = [
        helper.make_node("MatMul", ["v", weight], ["w"], doc_string="File /home/someone/model.py"),
        helper.make_node(PRECONDITION.name, ["k", "w", "k_past", "y_past", "mask"], ["y"], domain=DOMAIN, epsilon=EPS),
    ]
    found = model(nodes, {**inputs, weight: (FLOAT, [WIDTH, WIDTH])}, {"y": new}, OPSET)
    weight_of(found.graph, weight)
    for node in found.graph:
        node.metadata_props["pkg.torch.onnx.stack_trace"] = "File /home/someone/model.py"
    return found


def written(folder: Path, found: ir.Model, inline: bool, stored: str = "scale") -> Path:
    plan = plan_weights({"first": (5,), stored: SCALE.shape}, set(), "float32")
    (folder / "weights.bin").write_bytes(bytes(ALIGNMENT) + SCALE.tobytes())
    write_graph(folder / "graph.onnx", found, plan, inline)
    return folder / "graph.onnx"


@pytest.mark.parametrize("inline", [False, True])
def test_a_written_graph_runs_with_its_weights_and_bodies(inline: bool, tmp_path: Path) -> None:
    path = written(tmp_path, made(), inline)
    k, v = keys(0.9, 2, 2, PAST + NEW, WIDTH), torch.randn(2, 2, NEW, WIDTH).double()
    y_past = precondition(k[:, :, :PAST], torch.randn(2, 2, PAST, WIDTH).double(), implementation="reference")
    mask = torch.ones(2, PAST + NEW, dtype=torch.bool)
    mask[1, :2] = False
    inputs = (k[:, :, PAST:], v, k[:, :, :PAST], y_past)
    names = ("k", "v", "k_past", "y_past")
    feed = {name: x.float().numpy() for name, x in zip(names, inputs, strict=True)}
    [y] = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {**feed, "mask": mask.numpy()})
    scaled = v @ torch.from_numpy(SCALE).double()
    wanted = precondition(inputs[0], scaled, *inputs[2:], mask, EPS, "reference")
    np.testing.assert_allclose(y, wanted.numpy(), rtol=1e-3, atol=1e-4)


def test_weights_are_where_the_plan_says_and_no_traces_are_left(tmp_path: Path) -> None:
    path = written(tmp_path, made(), inline=False)
    found = check_external_data(path)
    [weight] = stored_weights(found)
    assert (weight.name, weight.offset, weight.size) == ("scale", ALIGNMENT, SCALE.nbytes)
    assert found.producer_name == "lucid-deploy" and b"/home/someone" not in path.read_bytes()


@pytest.mark.parametrize(("inline", "bodies"), [(False, [PRECONDITION.name]), (True, [])])
def test_bodies_are_attached_or_inlined(inline: bool, bodies: list[str], tmp_path: Path) -> None:
    found = check_external_data(written(tmp_path, made(), inline))
    assert [function.name for function in found.functions] == bodies
    assert (DOMAIN in {item.domain for item in found.opset_import}) is not inline
    assert (DOMAIN in {node.domain for node in found.graph.node}) is not inline


@pytest.mark.parametrize(("tokens", "loops"), [("new", 2), (2, 2), (1, 0)])
def test_nodes_of_one_new_token_get_a_body_without_loops(tokens: str | int, loops: int, tmp_path: Path) -> None:
    rows, gates, state = ["batch", 2, tokens, WIDTH], ["batch", 2, tokens], ["batch", 2, WIDTH, WIDTH]
    shapes = dict(zip(DELTA_RULE.input_names, (rows, rows, rows, gates, gates, state), strict=True))
    outputs = dict(zip(DELTA_RULE.output_names, (rows, state), strict=True))
    node = helper.make_node(DELTA_RULE.name, list(shapes), list(outputs), domain=DOMAIN, scale=1.0)
    types = [{name: (FLOAT, shape) for name, shape in each.items()} for each in (shapes, outputs)]
    write_graph(tmp_path / "graph.onnx", model([node], *types, OPSET), {})
    [body] = onnx.load(str(tmp_path / "graph.onnx")).functions
    assert (body.name, sum(each.op_type == "Loop" for each in body.node)) == (DELTA_RULE.name, loops)
