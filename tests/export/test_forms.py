"""One export with growing, static and inlined graphs: what it holds, and which form each runtime picks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lucid_deploy.artifact import STAGES, VERIFY, Artifact, open_artifact
from lucid_deploy.errors import CheckFailed, LucidError
from lucid_deploy.export import ExportOptions, export
from lucid_deploy.export.quantize.options import QuantizeOptions
from lucid_deploy.runtimes import RuntimeOptions, open_session
from lucid_deploy.runtimes.inspection import describe
from lucid_deploy.runtimes.onnxruntime import compatibility
from lucid_deploy.runtimes.open import runnable_forms
from tests.conftest import MIXED, write_checkpoint
from tests.once_per_run import made_once, run_folder

MODELS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # changes of the checkpoint, options
    "lucid": ({}, {}),
    "mixed": (MIXED, {}),
    "int8 cache": ({}, {"cache_dtype": "int8"}),
    "int4": (MIXED, {"quantize": QuantizeOptions("int4", activations="float")}),  # rounded inputs may differ at ties
    "opset 23": ({}, {"opset": 23}),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Artifact]:
    """Return a function that exports a model of the list with every form, once."""
    root = run_folder(tmp_path_factory, "forms")

    def get(name: str = "lucid") -> Artifact:
        changes, options = MODELS[name]

        def make(folder: Path) -> None:
            export(write_checkpoint(folder / "checkpoint", **changes), folder / "artifact", ExportOptions(**options))

        return open_artifact(made_once(root, name, make) / "artifact")

    return get


def answers(artifact: Artifact) -> list[np.ndarray[Any, Any]]:
    """Return logits of a padded batch, and of every step after it."""
    session = open_session(artifact, kernels="functions", threads=1)
    ids = np.random.default_rng(0).integers(0, 97, (2, 20))
    mask = np.ones(ids.shape, bool)
    mask[1, :4] = False
    held = session.empty_cache(2)
    found = [session.prefill(ids[:, :12], held, mask[:, :12])]
    found += [session.decode(ids[:, column : column + 1], held) for column in range(12, 16)]
    if session.multi_token_unsupported_reason is None:
        session.prepare_several()
        found.append(session.decode_several(ids[:, 16:], held))
    return found


@pytest.mark.parametrize("name", MODELS)
def test_every_form_computes_the_same_on_one_weight_file(whole: Callable[..., Artifact], name: str) -> None:
    artifact = whole(name)
    assert [each.form for each in artifact.manifest.each_form()] == ["growing", "static", "inlined"]
    assert artifact.manifest.graphs["prefill"].file == "prefill.onnx"
    assert sum(file.startswith("weights") for file in artifact.manifest.files) == 1
    growing, inlined = artifact.form("growing", inline=False), artifact.form(inline=True)
    static = artifact.form("static")
    wanted = answers(growing)
    for form in (static, inlined):
        for stage in form.manifest.graphs:
            assert set(form.weights(stage)) == set(growing.weights(stage))
        for got, right in zip(answers(form), wanted, strict=False):
            np.testing.assert_allclose(got, right, rtol=2e-4, atol=2e-5)
    assert (VERIFY in static.manifest.graphs) == (name in ("lucid", "int8 cache"))  # windows take no drafts
    assert static.writes_in_place == (name != "opset 23")


@pytest.mark.parametrize("name", ["lucid", "mixed", "int8 cache"])
def test_static_graphs_are_those_of_an_export_with_a_static_cache(
    whole: Callable[..., Artifact], exported: Any, name: str
) -> None:
    changes, options = MODELS[name]
    traced = exported(cache="static", **options, **changes)[1]
    derived = whole(name).form("static")
    for stage in STAGES[1:]:
        assert derived.manifest.graphs[stage].inputs == traced.manifest.graphs[stage].inputs
        assert derived.manifest.graphs[stage].outputs == traced.manifest.graphs[stage].outputs
        kinds = [
            sorted(n.op_type for n in each.graph(stage).graph.node if n.op_type != "Concat")
            for each in (derived, traced)
        ]
        assert [kind for kind in kinds[0] if kind != "Shape"] == [kind for kind in kinds[1] if kind != "Shape"]
    for got, right in zip(answers(derived), answers(traced), strict=True):
        np.testing.assert_allclose(got, right, rtol=1e-5, atol=1e-6)


def test_each_runtime_takes_the_form_that_it_prefers(
    whole: Callable[..., Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    def preferred(**options: Any) -> list[str]:
        return [form.form for form in runnable_forms(whole(), RuntimeOptions(**options))]

    assert preferred() == ["static", "growing", "inlined"]
    assert preferred(runtime="openvino") == ["inlined"]
    assert preferred(runtime="tensorrt", device="cuda") == ["growing", "static"]
    assert preferred(provider="cuda") == ["growing", "inlined"]
    monkeypatch.setattr(compatibility, "version", lambda _: "1.24.1")  # has no TensorScatter
    assert preferred() == ["growing", "inlined"]
    assert open_session(whole()).in_place is None


def test_a_form_that_is_missing_is_named_with_the_reason(
    whole: Callable[..., Artifact], exported: Any, tmp_path: Path
) -> None:
    artifact = export(write_checkpoint(tmp_path / "c"), tmp_path / "a", ExportOptions("float16", cache_dtype="fp8"))
    assert [form["name"] for form in describe(artifact)["forms"]] == ["growing", "inlined"]
    assert "It has no static graphs: A static cache cannot be in fp8" in describe(artifact)["remarks"][0]
    with pytest.raises(LucidError, match="has no static graphs: A static cache cannot be in fp8"):
        artifact.form("static")
    with pytest.raises(LucidError, match=r"no inlined graphs\. Export it again without --cache and --inline"):
        exported()[1].form(inline=True)
    only = export(tmp_path / "c", tmp_path / "only", ExportOptions(inline=True))
    assert only.manifest.forms == () and sorted(only.manifest.graphs) == ["decode", "prefill", "verify"]


def test_graphs_of_a_form_are_checked_when_it_is_chosen(whole: Callable[..., Artifact], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(whole().directory, tmp_path / "artifact"))
    other = (copy / "verify_static.onnx").read_bytes()
    (copy / "decode_static.onnx").write_bytes(other)
    data = json.loads((copy / "lucid.json").read_text())
    data["files"]["decode_static.onnx"] = data["files"]["verify_static.onnx"]
    (copy / "lucid.json").write_text(json.dumps(data))
    opened = open_artifact(copy)
    with pytest.raises(CheckFailed, match=r"decode_static\.onnx does not fit lucid\.json"):
        open_session(opened)
