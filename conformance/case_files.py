"""A case as a folder: ``model.onnx`` and ``test_data_set_N`` as ONNX's backend tests have them, and ``case.json``."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import numpy as np

from lucid_deploy.conformance.formulas import Array
from lucid_deploy.errors import LucidError
from lucid_deploy.json_fields import FieldError, decode

if TYPE_CHECKING:
    import onnx

MODEL, DESCRIPTION = "model.onnx", "case.json"
_DATA = "test_data_set_"
DATA = f"{_DATA}0"
_NotNegative = Annotated[float, msgspec.Meta(ge=0)]


class Output(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """How exact an output must be.

    Attributes:
        name: The output's name in the graph.
        tolerance: The largest relative error of a batch row that passes.
        baseline: Error of a plain implementation in the case's type; the tolerance is a multiple of it, or of a floor.
    """

    name: str
    tolerance: _NotNegative
    baseline: _NotNegative


class Description(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The content of ``case.json``.

    Attributes:
        text: What is special about the case.
        operator: The name of an operator of ``ai.lucid``, or ``model`` for a whole model.
        type: The type that the operator's ``T`` stands for, or the model's type.
        types: ``type``, and the types of all of the graph's inputs.
        derivation: How the tolerances were derived.
        outputs: The outputs' tolerances, in the graph's order.
    """

    text: str
    operator: str
    type: str
    types: list[str]
    derivation: str
    outputs: list[Output]


@dataclass(frozen=True)
class DataSet:
    """Inputs and expected outputs of a graph, both by name, in the graph's order."""

    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]


@dataclass(frozen=True)
class Case:
    """A case: a graph, and inputs with the outputs that it must give for them."""

    name: str  # of its folder
    description: Description  # the content of case.json
    model: onnx.ModelProto  # the graph, with the bodies of our operators
    inputs: Mapping[str, Array]  # by name, in the graph's order
    outputs: Mapping[str, Array]  # expected, by name: int8, or float32 rounded from float64
    further: tuple[DataSet, ...] = ()  # more inputs and outputs for the same graph, with other numbers of tokens

    @property
    def data_sets(self) -> tuple[DataSet, ...]:
        """Return all inputs with their outputs, in the order of their folders."""
        return DataSet(self.inputs, self.outputs), *self.further


def stored_names(folder: Path) -> list[str]:
    """Return the names of the cases in a folder.

    Raises:
        LucidError: There are none.
    """
    found = sorted(path.parent.name for path in folder.glob(f"*/{DESCRIPTION}"))
    if not found:
        raise LucidError(f"{folder} has no cases: no folder in it has a {DESCRIPTION}.")
    return found


def write_case(folder: Path, case: Case) -> None:
    """Write a case's files into the new folder ``folder / case.name``."""
    import onnx

    (folder / case.name).mkdir(parents=True)
    onnx.save(case.model, str(folder / case.name / MODEL))
    text = msgspec.json.format(msgspec.json.encode(case.description), indent=2)
    (folder / case.name / DESCRIPTION).write_bytes(text + b"\n")
    for number, data_set in enumerate(case.data_sets):
        data = folder / case.name / data_folder(number)
        data.mkdir()
        for kind, arrays in (("input", data_set.inputs), ("output", data_set.outputs)):
            for place, (name, array) in enumerate(arrays.items()):
                tensor = onnx.numpy_helper.from_array(array, name)
                (data / f"{kind}_{place}.pb").write_bytes(tensor.SerializeToString(deterministic=True))


def data_folder(number: int) -> str:
    """Return the name of the folder of a case's data set."""
    return f"{_DATA}{number}"


def read_case(folder: Path) -> Case:
    """Read a case from its folder.

    Raises:
        LucidError: A file is missing or damaged, or files do not fit together; the message says which and why.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        description = decode((folder / DESCRIPTION).read_bytes(), Description, DESCRIPTION)
        model = onnx.ModelProto.FromString((folder / MODEL).read_bytes())
        onnx.checker.check_model(model)
    except FieldError as error:
        raise LucidError(f"{folder / DESCRIPTION} cannot be read: {error}") from error
    except OSError as error:
        raise LucidError(f"{error.filename} cannot be read: {error.strerror}.") from error
    except (DecodeError, onnx.checker.ValidationError, ValueError, RecursionError) as error:
        raise LucidError(f"{folder / MODEL} is not a complete ONNX model: {_line(error)}.") from error
    given = [item.name for item in model.graph.input]
    wanted = [item.name for item in model.graph.output]
    described = [output.name for output in description.outputs]
    if described != wanted:
        raise LucidError(f"{folder / DESCRIPTION} has the outputs {described}, and the graph has {wanted}.")
    if not all(math.isfinite(output.tolerance) for output in description.outputs):
        raise LucidError(f"{folder / DESCRIPTION} has a tolerance that is not finite.")
    first, *further = (
        DataSet(_tensors(data, "input", given), _tensors(data, "output", wanted)) for data in _data_folders(folder)
    )
    return Case(folder.name, description, model, first.inputs, first.outputs, tuple(further))


def _data_folders(folder: Path) -> Iterator[Path]:
    """Yield the folders of a case's data sets; the first one comes even if it is missing.

    Raises:
        LucidError: Their numbers have a gap, so that one is missing.
    """
    count = max(1, len([*folder.glob(f"{_DATA}*")]))
    for number in range(count):
        if number and not (folder / data_folder(number)).is_dir():
            raise LucidError(f"{folder / data_folder(number)} is missing: the case has {count} data sets.")
        yield folder / data_folder(number)


def _tensors(data: Path, kind: str, names: list[str]) -> dict[str, Array]:
    import onnx
    from google.protobuf.message import DecodeError

    found = {}
    for place, name in enumerate(names):
        path = data / f"{kind}_{place}.pb"
        try:
            tensor = onnx.TensorProto.FromString(path.read_bytes())
            array = np.asarray(onnx.numpy_helper.to_array(tensor))
            finite = bool(np.isfinite(array).all())  # raises a TypeError for a tensor of strings
        except OSError as error:
            raise LucidError(f"{path} cannot be read: {error.strerror}.") from error
        except (DecodeError, ValueError, TypeError, KeyError) as error:
            raise LucidError(f"{path} is not a complete tensor: {_line(error)}.") from error
        if tensor.name != name:
            raise LucidError(f"{path} holds the tensor {tensor.name!r}, and the graph has {name!r} there.")
        if kind == "output" and not finite:
            raise LucidError(f"{path} has a number that is not finite; nothing can be compared with it.")
        found[name] = array
    return found


def _line(error: Exception) -> str:
    """Return an error's message as one short line."""
    text = re.sub(r"\s+", " ", str(error)).strip(" .")
    return text[:200] or type(error).__name__
