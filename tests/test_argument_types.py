"""What the Python API's parameters take, read from annotations; everything else is refused by name."""

from __future__ import annotations

import dataclasses
import enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lucid_deploy.argument_types import KINDS, annotations_of, check_arguments
from lucid_deploy.errors import LucidError
from lucid_deploy.export import ExportOptions
from lucid_deploy.export.quantize_options import QuantizeOptions
from lucid_deploy.generation.sampling import Sampling
from lucid_deploy.model.hub import HubOptions
from lucid_deploy.parity.options import VerifyOptions
from lucid_deploy.runtimes.options import RuntimeOptions


class Word(str, enum.Enum):  # noqa: UP042 (str() of StrEnum is its text)
    CUP = "cup"


IDS = "a list of token ids"
ID = "a token id, which is a whole number"


@pytest.mark.parametrize(
    "annotation, value, taken",
    [
        ("int", np.int64(3), 3),
        ("int", torch.tensor(3), 3),
        ("int | None", None, None),
        ("float", 1, 1.0),
        ("float", np.float32(0.5), 0.5),
        ("float", torch.tensor(0.5), 0.5),
        ("float", np.array(2), 2.0),
        ("bool", np.True_, True),
        ("str", "é\0", "é\0"),
        ("str", Word.CUP, "cup"),
        ("str | Path", "demo", "demo"),
        ("str | Path", Path("demo"), Path("demo")),
        ("Path | None", "text.txt", Path("text.txt")),
        ("Callable | None", print, print),
        ("tuple[str, ...]", ["a", "b"], ("a", "b")),
        ("Texts", None, ()),
        ("Texts", "cup", ("cup",)),
        ("Texts", {"cup"}, ("cup",)),
        ("Texts", (word for word in ("cup", "red")), ("cup", "red")),
        ("str | Ids", [3, np.int32(4)], [3, 4]),
        ("str | Ids", range(3), [0, 1, 2]),
        ("str | Ids", np.array([3, 4], np.int32), [3, 4]),
        ("str | Ids", torch.tensor([3, 4]), [3, 4]),
        ("str | Ids", (token for token in (3, 4)), [3, 4]),
        ("str | Ids", [-1, 10**30], [-1, 10**30]),  # whether they are in the vocabulary is asked elsewhere
        ("Biases", {3: 5, np.int64(4): np.float32(0.5)}, ((3, 5.0), (4, 0.5))),
        ("Biases", [(3, 5)], ((3, 5.0),)),
    ],
)
def test_what_is_taken(annotation: str, value: Any, taken: Any) -> None:
    found = check_arguments({"x": value}, {"x": annotation})["x"]
    assert found == taken and type(found) is type(taken)


def test_an_array_of_token_ids() -> None:
    assert check_arguments({"x": [3, 4]}, {"x": "str | Array | None"})["x"].dtype == np.int64


@pytest.mark.parametrize(
    "annotation, value, said",
    [
        ("int", 2.5, "x must be a whole number, not 2.5."),
        ("int", True, "x must be a whole number, not True."),
        ("int", np.True_, "x must be a whole number, not np.True_."),
        ("int", "3", "x must be a whole number, not '3'."),
        ("int", torch.tensor(1.0), "x must be a whole number, not tensor(1.)."),
        ("int", torch.tensor(1, device="meta"), "x must be a whole number, not tensor(..."),
        ("float", torch.tensor(1.0, device="meta"), "x must be a number, not tensor(..."),
        ("int | None", 1.0, "x must be a whole number or None, not 1.0."),
        ("float", None, "x must be a number, not None."),
        ("float", True, "x must be a number, not True."),
        ("float", torch.tensor(True), "x must be a number, not tensor(True)."),
        ("float", np.array("3"), "x must be a number, not array('3'"),
        ("float", 1 + 2j, "x must be a number, not (1+2j)."),
        ("bool", 0, "x must be True or False, not 0."),
        ("bool", "no", "x must be True or False, not 'no'."),
        ("str", b"a", "x must be a text, not b'a'."),
        ("str", "\ud800", "x must be a text, not '\\ud800', which is no text in UTF-8."),
        ("str | Path", 3, "x must be a text or a path, not 3."),
        ("Path", b"a", "x must be a path, not b'a'."),
        ("Path", "caf\udce9", "x must be a path, not 'caf\\udce9', which is no text in UTF-8."),
        ("Texts", {3}, "x[0] must be a text, not 3."),
        ("Path", "a\0", "x must be a path, not 'a\\x00'."),
        ("Callable", 3, "x must be a function, not 3."),
        ("tuple[str, ...]", "abc", "x must be a list of texts, not 'abc'."),
        ("tuple[str, ...]", ["a", 3], "x[1] must be a text, not 3."),
        ("str | Ids", None, f"x must be a text or {IDS}, not None."),
        ("str | Ids", b"abc", f"x must be a text or {IDS}, not b'abc'."),
        ("str | Ids", {1: 2}, f"x must be a text or {IDS}, not {{1: 2}}."),
        ("str | Ids", {1}, f"x must be a text or {IDS}, not {{1}}."),
        ("str | Ids", np.array(3), f"x must be a text or {IDS}, not array(3)."),
        ("str | Ids", [1, 4.2], f"x[1] must be {ID}, not 4.2."),
        ("str | Ids", ["3"], f"x[0] must be {ID}, not '3'."),
        ("str | Ids", [True], f"x[0] must be {ID}, not True."),
        ("str | Ids", np.array([[3]]), f"x[0] must be {ID}, not array([3])."),
        ("str | Ids", torch.tensor([1.5]), f"x[0] must be {ID}, not tensor(1.5000)."),
        ("Array", [2**70], f"x must be {IDS}, not [1180591620717411303424]."),
        ("Biases", 3, "x must be a mapping from token ids to numbers, not 3."),
        ("Biases", {3.7: 5}, "x's keys must be token ids, which are whole numbers, not 3.7."),
        ("Biases", {"3": 5}, "x's keys must be token ids, which are whole numbers, not '3'."),
        ("Biases", {3: "5"}, "x[3] must be a number, not '5'."),
        ("dict[str, int]", {"a": 1.5}, "x must be a mapping from names to whole numbers, not {'a': 1.5}."),
        ("QuantizeOptions | None", "int8", "x must be a QuantizeOptions object or None, not 'int8'."),
        ("QuantizeOptions", QuantizeOptions(3), "x.scheme must be a text, not 3."),  # type: ignore[arg-type]
        ("HubOptions", HubOptions(token=b"hf_secret"), "x.token must be a text or None, not a bytes."),  # type: ignore[arg-type]
    ],
)
def test_what_is_refused(annotation: str, value: Any, said: str) -> None:
    with pytest.raises(LucidError) as error:
        check_arguments({"x": value}, {"x": annotation})
    assert str(error.value).startswith(said)


@pytest.mark.parametrize("options", [ExportOptions, RuntimeOptions, VerifyOptions, QuantizeOptions, HubOptions])
def test_every_annotation_is_known_and_takes_the_default(options: type[Any]) -> None:
    ours = {"QuantizeOptions", "HubOptions", "RuntimeOptions"}
    assert {kind for item in annotations_of(options).values() for kind in item.split(" | ")} <= ours | KINDS.keys()
    made = options(**({"scheme": "int8"} if options is QuantizeOptions else {}))
    given = {item.name: getattr(made, item.name) for item in dataclasses.fields(options)}
    assert check_arguments(given, annotations_of(options)) == given


def test_annotations_of_sampling_are_known_but_for_what_the_api_takes_otherwise() -> None:
    kinds = {name: kind for name, kind in annotations_of(Sampling).items() if name not in ("logit_bias", "bad_words")}
    assert {kind for item in kinds.values() for kind in item.split(" | ")} <= KINDS.keys()


def test_options_objects_are_taken_as_plain_values_too() -> None:
    given = QuantizeOptions("int8", block_size=np.int64(32), keep_float=(name for name in ("head", "embed")))  # type: ignore[arg-type]
    found = check_arguments({"x": given}, {"x": "QuantizeOptions | None"})["x"]
    assert found == QuantizeOptions("int8", block_size=32, keep_float=("head", "embed"))
    assert type(found.block_size) is int
