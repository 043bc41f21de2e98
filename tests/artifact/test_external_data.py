"""Where weights outside of a graph's file may lie, and that they do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lucid_deploy.artifact.external_data import check_external_data, stored_weights
from lucid_deploy.errors import CheckFailed


def external() -> TensorProto:
    tensor = TensorProto(name="stolen", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": "../secret", "offset": "0", "length": "4"}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def graph(*nodes: onnx.NodeProto, **fields: list[object]) -> onnx.GraphProto:
    return onnx.GraphProto(name="graph", node=nodes, **fields)  # type: ignore[arg-type]


CONSTANT = helper.make_node("Constant", [], ["x"], value=external())


BRANCHES = helper.make_node("If", ["c"], ["x"], then_branch=graph(CONSTANT), else_branch=graph())


FUNCTION = helper.make_function("d", "F", [], ["x"], [CONSTANT], [helper.make_opsetid("", 23)])


SPARSE = onnx.SparseTensorProto(values=external(), dims=[4])


@pytest.mark.parametrize(
    "model",
    [
        onnx.ModelProto(graph=graph(initializer=[external()])),
        onnx.ModelProto(graph=graph(sparse_initializer=[SPARSE])),
        onnx.ModelProto(graph=graph(CONSTANT)),
        onnx.ModelProto(graph=graph(BRANCHES)),
        onnx.ModelProto(graph=graph(), functions=[FUNCTION]),
    ],
    ids=["initializer", "sparse initializer", "constant", "branch", "function"],
)
def test_a_tensor_outside_is_found_wherever_it_hides(tmp_path: Path, model: onnx.ModelProto) -> None:
    (tmp_path / "weights.bin").write_bytes(bytes(16))
    path = tmp_path / "graph.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(CheckFailed, match=r"weight stolen lies in '\.\./secret'"):
        check_external_data(path)


def saved(folder: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """Save a graph as onnx does, all weights in one file beside it; return its path and the weights."""
    rng = np.random.default_rng(0)
    arrays = {"half": rng.standard_normal((3, 5)).astype(np.float16), "number": rng.integers(0, 9, (2, 2, 2))}
    initializers = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    whole = helper.make_model(helper.make_graph([], "graph", [], [], initializers))
    options = {"location": "weights.bin", "size_threshold": 0}
    onnx.save_model(whole, str(folder / "graph.onnx"), save_as_external_data=True, **options)
    return folder / "graph.onnx", arrays


def test_weights_lie_where_onnx_has_put_them(tmp_path: Path) -> None:
    path, arrays = saved(tmp_path)
    data = (tmp_path / "weights.bin").read_bytes()
    found = stored_weights(check_external_data(path))
    assert [weight.name for weight in found] == list(arrays)
    for weight in found:
        assert weight.data_type == helper.np_dtype_to_tensor_dtype(arrays[weight.name].dtype)
        raw = np.frombuffer(data[weight.offset : weight.offset + weight.size], arrays[weight.name].dtype)
        np.testing.assert_array_equal(raw.reshape(weight.shape), arrays[weight.name])


def test_weights_within_the_graph_are_none_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"")
    inside = helper.make_graph([], "graph", [], [], [numpy_helper.from_array(np.ones(3, np.float32), "one")])
    onnx.save(helper.make_model(inside), str(tmp_path / "graph.onnx"))
    assert stored_weights(check_external_data(tmp_path / "graph.onnx")) == ()


def test_a_file_that_lacks_its_last_byte_is_too_short(tmp_path: Path) -> None:
    path, _ = saved(tmp_path)
    weights = tmp_path / "weights.bin"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(CheckFailed, match=r"weight number lies beyond the end of weights\.bin \(64 bytes at"):
        check_external_data(path)


def test_a_file_that_is_no_graph(tmp_path: Path) -> None:
    (tmp_path / "graph.onnx").write_bytes(b"\xff" * 9)
    with pytest.raises(CheckFailed, match="is not a readable ONNX file"):
        check_external_data(tmp_path / "graph.onnx")
