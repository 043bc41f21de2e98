"""Cases are read as they were written; damaged ones are refused in one line that names the file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from lucid_deploy.conformance.case_files import DATA, read_case, write_case
from lucid_deploy.conformance.cases import make_case
from lucid_deploy.errors import LucidError

NAME = "decode_attention_past"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_case(tmp_path, make_case(NAME))
    return tmp_path / NAME


def test_every_data_set_is_read_as_it_was_written(tmp_path: Path) -> None:
    case = make_case("decode_attention_boundaries")
    write_case(tmp_path, case)
    again = read_case(tmp_path / case.name)
    assert [data.inputs["K"].shape[2] for data in again.data_sets] == [65, 1, 2, 63, 64, 127, 128, 129, 96, 97]
    for data, other in zip(case.data_sets, again.data_sets, strict=True):
        for name, array in {**data.inputs, **data.outputs}.items():
            np.testing.assert_array_equal({**other.inputs, **other.outputs}[name], array)


def test_the_files_are_those_of_onnx_backend_tests(folder: Path) -> None:
    """Which ``onnx.backend.test`` reads: a model, and a data set of numbered tensors that have the graph's names."""
    case = read_case(folder)
    assert sorted(path.name for path in (folder / DATA).iterdir()) == sorted(
        [f"input_{place}.pb" for place in range(6)] + [f"output_{place}.pb" for place in range(2)]
    )
    assert list(case.inputs) == [item.name for item in case.model.graph.input]
    assert {array.dtype for array in case.outputs.values()} == {np.dtype(np.float32)}


def cut(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).write_bytes((folder / name).read_bytes()[:-7])

    return damage


def described(**changes: object) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "case.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return damage


def renamed(folder: Path) -> None:
    path = folder / DATA / "input_1.pb"
    tensor = onnx.load_tensor(path)
    tensor.name = "Keys"
    path.write_bytes(tensor.SerializeToString())


def not_finite(folder: Path) -> None:
    path = folder / DATA / "output_0.pb"
    tensor = onnx.load_tensor(path)
    array = np.full(onnx.numpy_helper.to_array(tensor).shape, np.nan, np.float32)
    path.write_bytes(onnx.numpy_helper.from_array(array, tensor.name).SerializeToString())


def output(tolerance: object, name: str = "O") -> list[object]:
    other = {"name": "Y_new", "tolerance": 1e-6, "baseline": 1e-7}
    return [{"name": name, "tolerance": tolerance, "baseline": 1e-7}, other]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut("model.onnx"), "model.onnx is not a complete ONNX model"),
        (cut(f"{DATA}/input_0.pb"), "input_0.pb is not a complete tensor"),
        (cut("case.json"), "case.json cannot be read"),
        (lambda folder: (folder / "model.onnx").unlink(), "model.onnx cannot be read: No such file"),
        (lambda folder: (folder / DATA / "output_1.pb").unlink(), "output_1.pb cannot be read: No such file"),
        (renamed, "holds the tensor 'Keys', and the graph has 'K_new' there"),
        (not_finite, "a number that is not finite"),
        (described(outputs=output(float("nan"))), "NaN is not a JSON number"),
        (described(outputs=output(-1.0)), "tolerance: expected"),
        (described(outputs=output("wide")), "tolerance: expected `float`"),
        (described(outputs=output(1e-6, "P")), "has the outputs ['P', 'Y_new'], and the graph has ['O', 'Y_new']"),
        (described(more=1), "Unknown field"),
    ],
)
def test_a_damaged_case_is_refused(folder: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(folder)
    with pytest.raises(LucidError) as caught:
        read_case(folder)
    assert message in str(caught.value) and "\n" not in str(caught.value)
