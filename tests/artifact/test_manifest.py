"""The content of lucid.json: its published schema, what is written and read again, and what is refused."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest

from lucid_deploy.artifact import Artifact, open_artifact
from lucid_deploy.artifact.manifest import Manifest, read_manifest
from lucid_deploy.artifact.quantization import Quantization, QuantizedTensor
from lucid_deploy.errors import LucidError
from lucid_deploy.model.config_parsing import parse_config
from lucid_deploy.model.description import describe
from lucid_deploy.plugins.table import CAUSAL_ATTENTION, DECODE_ATTENTION, PRECONDITION
from tests.conftest import TINY

Exported = Callable[..., tuple[Path, Artifact]]


def test_layers_in_a_manifest_are_read_strictly(artifact_copy) -> None:
    path = artifact_copy / "lucid.json"
    whole = json.loads(path.read_text())
    for change in (
        lambda data: data["layers"].pop(),
        lambda data: data["layers"][0]["cache"][0].update(sort="heap"),
        lambda data: data["layers"][0]["cache"][0].update(sort="ring"),
        lambda data: data["layers"][0]["cache"][0].update(shape=[2, True]),
        lambda data: data["layers"][0]["cache"][1].update(name="key"),
        lambda data: data["layers"][0].update(solves=1),
        lambda data: data["layers"][0].pop("kind"),
        lambda data: data.update(transposed=[1]),
        lambda data: data.update(float32_head="yes"),
    ):
        data = json.loads(json.dumps(whole))
        change(data)
        path.write_text(json.dumps(data))
        with pytest.raises(LucidError, match=r"is damaged|does not fit lucid\.json"):
            open_artifact(artifact_copy)


def rewritten(directory: Path, manifest: Manifest) -> Manifest:
    """Return a manifest as it is read again."""
    (directory / "lucid.json").write_text(manifest.to_json())
    return read_manifest(directory)


def test_whatever_a_manifest_records_is_read_again(exported: Exported, tmp_path: Path) -> None:
    _, artifact = exported()
    parts = {"lm_head.weight": QuantizedTensor((97, 64), 32)}
    whole = dataclasses.replace(
        artifact.manifest,
        cache_dtype="int8",
        quantization=Quantization("int4", 4, "qdq", "float", parts, ("model.embed_tokens.weight",), "a tool"),
        transposed=("b", "a"),
        float32_head=False,
        notes=("It was trained with beta.",),
        assumed_unused={"zeta": [1, None]},
        hub={"repository": "org/name", "revision": "main", "commit": "0" * 40},
    )
    for manifest in (artifact.manifest, whole):
        assert rewritten(tmp_path, manifest) == manifest


def test_the_cache_has_the_models_type_unless_another_is_recorded(exported: Exported) -> None:
    _, artifact = exported()
    plain = dataclasses.replace(artifact.manifest, cache_dtype="", dtype="float16")
    assert (plain.cache_dtype, dataclasses.replace(plain, cache_dtype="int8").cache_dtype) == ("float16", "int8")


def test_a_manifest_knows_the_operators_of_its_layers(exported: Exported) -> None:
    _, artifact = exported()
    standard = describe(parse_config({**TINY, "attention_type": "llama"}, "config.json"), "float32")
    baseline = dataclasses.replace(artifact.manifest, layers=standard)
    assert artifact.manifest.uses((PRECONDITION.name,)) and artifact.manifest.uses(("Other", DECODE_ATTENTION.name))
    assert baseline.uses((CAUSAL_ATTENTION.name,)) and not baseline.uses((PRECONDITION.name, DECODE_ATTENTION.name))


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../b"])
def test_a_file_outside_of_the_artifact_is_refused(exported: Exported, tmp_path: Path, name: str) -> None:
    _, artifact = exported()
    files = {**artifact.manifest.files, name: {"size": 1, "sha256": "0" * 64}}
    with pytest.raises(LucidError, match="lies outside the artifact"):
        rewritten(tmp_path, dataclasses.replace(artifact.manifest, files=files))


SCHEMA = Path(__file__).resolve().parents[2] / "docs" / "schemas" / "lucid.schema.json"


RULES = (
    "cache tensor",
    "a scan that was not skipped",
    "quantization",
)  # errors about several fields together, which the JSON schema does not describe
WRONG: tuple[Any, ...] = (True, "x", "", -1, 1.5, None, [], {}, {"x": 1}, [1], 2**63)


def variations(value: Any, root: Any, put: Callable[[Any], None]) -> Iterator[Any]:
    """Yield the document with each value replaced by each wrong one in turn, and without each key in turn."""
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
        msgspec.convert(document, Manifest)
    except msgspec.ValidationError as error:
        return str(error)
    return ""


def test_the_published_schema_refuses_what_the_code_refuses(exported: Any):
    """Compared by what they accept, since the schema that msgspec generates changes from version to version."""
    schema = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text()))
    document = json.loads((exported(cache="static", cache_dtype="int8")[1].directory / "lucid.json").read_text())
    for graph in document["graphs"].values():  # one tensor stands for all
        graph["inputs"], graph["outputs"] = graph["inputs"][:1], graph["outputs"][:1]
    differences, count = [], 0
    for key, value in list(document.items())[2:]:  # after the format and its version
        for changed in variations(value, document, functools.partial(document.__setitem__, key)):
            count += 1
            refused = refusal(changed)
            if schema.is_valid(changed) == bool(refused) and not refused.startswith(RULES):
                differences.append((key, changed[key], refused))
    assert differences == [] and count > 1000


def test_a_manifest_fits_the_published_schema(exported: Any):
    schema = json.loads(SCHEMA.read_text())
    for options in ({}, {"cache": "static", "cache_dtype": "int8"}, {"dtype": "float16"}):
        _, artifact = exported(**options)
        jsonschema.validate(json.loads((artifact.directory / "lucid.json").read_text()), schema)


@pytest.mark.parametrize(
    "text",
    [
        '"opset": true',
        '"float32_head": 1',
        '"graphs": {"prefill": null, "decode": null}',
        '"files": {"weights.bin": {"size": true, "sha256": ""}}',
        '"dtpe": "float32"',
    ],
)
def test_a_wrong_value_gives_one_line_that_names_the_field(artifact_copy: Path, text: str):
    path = artifact_copy / "lucid.json"
    name = text.split('"')[1]
    data = {key: value for key, value in json.loads(path.read_text()).items() if key != name}
    path.write_text(json.dumps(data)[:-1] + f", {text}}}")
    with pytest.raises(LucidError, match=r"lucid\.json is damaged") as caught:
        open_artifact(artifact_copy)
    assert "\n" not in str(caught.value) and name in str(caught.value)
