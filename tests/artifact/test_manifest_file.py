"""The manifest's form: its published schema, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from lucid_deploy.artifact import open_artifact
from lucid_deploy.artifact.manifest_file import json_schema
from lucid_deploy.errors import LucidError

SCHEMA = Path(__file__).resolve().parents[2] / "docs" / "schemas" / "lucid.schema.json"


def test_the_published_schema_is_the_codes():
    assert json.loads(SCHEMA.read_text()) == json.loads(json.dumps(json_schema()))


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
