"""The content of lucid.json: written, read again, and refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lucid_deploy.artifact import Artifact, open_artifact
from lucid_deploy.artifact.manifest import Manifest, read_manifest
from lucid_deploy.artifact.quantization import Quantization, QuantizedTensor
from lucid_deploy.errors import LucidError
from lucid_deploy.model.config import parse_config
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
        ranges={"skipped": True},
        quantization=Quantization("int4", 4, "qdq", "float", parts, ("model.embed_tokens.weight",), "a tool"),
        transposed=("b", "a"),
        float32_head=False,
        notes=("It was trained with beta.",),
        assumed_unused={"zeta": [1, None]},
        hub={"repository": "org/name", "revision": "main", "commit": "0" * 40},
    )
    for manifest in (artifact.manifest, whole):
        assert rewritten(tmp_path, manifest) == manifest


def test_the_cache_is_of_the_models_type_unless_it_says_another(exported: Exported) -> None:
    _, artifact = exported()
    plain = dataclasses.replace(artifact.manifest, cache_dtype="", dtype="float16")
    assert (plain.cache_dtype, dataclasses.replace(plain, cache_dtype="int8").cache_dtype) == ("float16", "int8")


def test_the_operators_of_its_layers(exported: Exported) -> None:
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


def test_numbers_that_would_not_be_read_are_not_written(exported: Exported) -> None:
    manifest = exported()[1].manifest
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not JSON compliant"):
            dataclasses.replace(manifest, ranges={"largest": value}).to_json()
