"""The manifest's form: its published schema, and what is refused."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest

from lucid_deploy.artifact import open_artifact
from lucid_deploy.artifact.manifest_file import ManifestFile
from lucid_deploy.errors import LucidError

SCHEMA = Path(__file__).resolve().parents[2] / "docs" / "schemas" / "lucid.schema.json"


RULES = ("cache tensor", "a scan that was not skipped")  # between fields: a JSON schema does not say them
WRONG: tuple[Any, ...] = (True, "x", "", -1, 1.5, None, [], {}, {"x": 1}, [1], 2**63)


def variations(value: Any, root: Any, put: Callable[[Any], None]) -> Iterator[Any]:
    """Yield the whole document once for each value in it and each wrong one in its place, and without each key."""
    for wrong in WRONG:
        put(wrong)
        yield root
    put(value)
    if isinstance(value, dict):
        for key, part in list(value.items()):
            del value[key]
            yield root
            yield from variations(part, root, functools.partial(value.__setitem__, key))
    elif isinstance(value, list) and value:
        yield from variations(value[0], root, functools.partial(value.__setitem__, 0))


def refusal(document: Any) -> str:
    try:
        msgspec.convert(document, ManifestFile)
    except msgspec.ValidationError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("options", [{"cache": "static", "cache_dtype": "int8"}, {"dtype": "float16"}])
def test_the_published_schema_refuses_what_the_code_refuses(exported: Any, options: dict[str, str]):
    """Compared by what they accept, since the schema that msgspec generates changes from version to version."""
    schema = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text()))
    document = json.loads((exported(**options)[1].directory / "lucid.json").read_text())
    differences, count = [], 0
    for key, value in list(document.items()):
        for changed in variations(value, document, functools.partial(document.__setitem__, key)):
            count += 1
            refused = refusal(changed)
            if schema.is_valid(changed) == bool(refused) and not refused.startswith(RULES):
                differences.append((key, changed[key], refused))
    assert differences == [] and count > 1000


def test_the_published_schema_has_the_fields_of_the_code():
    definitions, kinds = json.loads(SCHEMA.read_text())["$defs"], {}
    for kind in msgspec.inspect.multi_type_info([ManifestFile]):
        collect(kind, kinds)
    assert {name: set(each["properties"]) for name, each in definitions.items()} == kinds


def collect(kind: Any, found: dict[str, set[str]]) -> None:
    """Add the fields of every struct and dataclass that a type consists of."""
    fields = getattr(kind, "fields", ())
    if fields and kind.cls.__name__ not in found:
        found[kind.cls.__name__] = {field.encode_name for field in fields}
    parts = [field.type for field in fields]
    parts += [getattr(kind, name) for name in ("item_type", "value_type") if hasattr(kind, name)]
    for part in [*parts, *getattr(kind, "types", ())]:
        collect(part, found)


def test_a_manifest_fits_the_published_schema(exported: Any):
    schema = json.loads(SCHEMA.read_text())
    for options in ({}, {"cache": "static", "cache_dtype": "int8"}, {"dtype": "float16"}):
        _, artifact = exported(**options)
        jsonschema.validate(json.loads((artifact.directory / "lucid.json").read_text()), schema)


@pytest.mark.parametrize(
    "text",
    [
        '"opset": true',
        '"opset": 23.5',
        '"opset": "23"',
        '"opset": -1',
        '"float32_head": 1',
        '"dtype": "float8"',
        '"source": null',
        '"transposed": "all"',
        '"graphs": {"prefill": null, "decode": null}',
        '"files": {"weights.bin": {"size": 1e400, "sha256": ""}}',
        '"files": {"weights.bin": {"size": true, "sha256": ""}}',
        '"ranges": {"skipped": false, "limit": NaN}',
        '"ranges": {"skipped": false}',
        '"dtpe": "float32"',
    ],
)
def test_a_wrong_value_is_one_line_that_says_where(artifact_copy: Path, text: str):
    path = artifact_copy / "lucid.json"
    name = text.split('"')[1]
    data = {key: value for key, value in json.loads(path.read_text()).items() if key != name}
    path.write_text(json.dumps(data)[:-1] + f", {text}}}")
    with pytest.raises(LucidError, match=r"lucid\.json is damaged") as caught:
        open_artifact(artifact_copy)
    assert "\n" not in str(caught.value) and name in str(caught.value)
