"""References that others wrote: they pass what is right, and catch what the toolkit's own model cannot see."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import lucid_deploy as ld
from examples.dump_golden import dump_golden
from lucid_deploy.artifact.quantization_method import STORED
from lucid_deploy.errors import CheckFailed, LucidError
from lucid_deploy.model.checkpoint import Checkpoint, load_model
from lucid_deploy.model.families import granite, qwen3
from lucid_deploy.parity import VerifyOptions, verify_artifact
from lucid_deploy.parity.measure.golden import read_golden
from lucid_deploy.parity.outside import needs_run, open_references, recording_type
from lucid_deploy.parity.show.page import render_page
from lucid_deploy.parity.show.terminal import render
from lucid_deploy.parity.show.words import coverage_line
from lucid_deploy.parity.verification import verify_against
from lucid_deploy.runtimes.torch.session import TorchSession
from tests.model.family_shapes import SHAPES, random_model
from tests.parity.recording_models import record_lucid

pytestmark = pytest.mark.slow  # exports

FEW: dict[str, Any] = {"quick": True, "steps": 4}
TOKENS = 40


def recorded(directory: Path, family: str, shape: str, dtype: torch.dtype = torch.float32) -> tuple[Path, Path]:
    """Return a random model of transformers as a checkpoint, and a golden file that transformers wrote."""
    model = random_model(SHAPES[family][shape]()).to(dtype)
    model.save_pretrained(directory / "checkpoint")
    dump_golden(model, directory / "golden.safetensors", tokens=TOKENS)
    return directory / "checkpoint", directory / "golden.safetensors"


def in_torch(source: Path, dtype: str = "float32", cache_dtype: str | None = None, **options: Any) -> Any:
    """Verify our own model in PyTorch, without an export: what it reads wrongly is the same."""
    model = load_model(source, getattr(torch, dtype))
    session = TorchSession(model.store_cache_as(cache_dtype or dtype))
    return verify_against(session, Checkpoint(source), VerifyOptions(**options, **FEW))


def outcomes(found: Any) -> dict[str, str]:
    return {check.name: check.outcome for check in found.checks}


def only_own_model_passes(report: Any) -> None:
    """The seeded fault is on both sides of the toolkit, so its own model agrees, and the others do not."""
    assert not report.passed and report.own_failure is None and report.failure is not None
    assert outcomes(report)["tensors"] == "passed"
    assert {outcomes(report)[reference.kind] for reference in report.outside} == {"failed"}
    assert "both read the checkpoint otherwise" in report.advice()
    assert f", against {report.failure.against}): relative error" in report.verdict()


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> tuple[ld.Artifact, Path]:
    directory = tmp_path_factory.mktemp("right")
    checkpoint, golden = recorded(directory, "qwen3", "window")
    return ld.export(checkpoint, directory / "artifact"), golden


@pytest.fixture(scope="module")
def verified(right: tuple[ld.Artifact, Path]) -> Any:
    artifact, golden = right
    return artifact.verify(golden=golden, against="transformers", **FEW)


def test_a_right_artifact_passes_every_reference(verified: Any):
    assert verified.passed, verified.failure
    assert {reference.kind for reference in verified.report.outside} == {"golden file", "transformers"}
    assert (outcomes(verified)["golden file"], outcomes(verified)["transformers"]) == ("passed", "passed")
    assert "another implementation" not in outcomes(verified)
    # Every position's logits, K and V of every layer, fed by a prefill and by decoding.
    golden = verified.report.against("golden file")
    assert {str(item.tensor) for item in golden} == {str(item.tensor) for item in verified.report.against()}
    logits = [item for item in golden if item.tensor.is_logits]
    assert any(item.start == 0 and len(item.errors) == TOKENS for item in logits)
    assert {"one-shot", "chunks", "padded"} == {item.schedule for item in golden}


def test_gates_are_rounding_and_nothing_else(verified: Any):
    for kind in ("golden file", "transformers"):
        assert all(item.gate.limit < 3e-5 and item.judged for item in verified.report.against(kind))
    own = {(item.tensor, item.scenario): item.gate.limit for item in verified.report.against()}
    for item in verified.report.against("transformers"):  # in float64 it adds next to nothing
        assert item.gate.limit == pytest.approx(own[item.tensor, item.scenario], rel=1e-6)


def test_the_first_line_says_how_much_was_judged_against_which_reference(verified: Any, right: Any):
    from rich.console import Console

    line = coverage_line(verified.report)
    assert line.startswith("Judged 106 of 106 comparisons against this toolkit's own PyTorch model in float64, and ")
    assert f" of 56 against the golden file {right[1]}, recorded by Qwen3ForCausalLM in float32" in line
    assert " of 105 against transformers' Qwen3ForCausalLM in float64 with eager attention" in line
    console = Console(width=1000)
    with console.capture() as shown:
        console.print(render(verified.report))
    assert shown.get().splitlines()[0].strip() == line
    page = render_page(verified.report, verified.facts)
    assert "And against" in page and "golden 1, one-shot, against golden file" in page


def test_json_says_it_too(verified: Any):
    data = json.loads(json.dumps(verified.to_dict(), allow_nan=False))
    found = {item["kind"]: item for item in data["coverage"]["references"]}
    assert next(iter(found)) == "own model" and found["golden file"]["independent"] is True
    counted = {kind: sum(item["against"] == kind for item in data["comparisons"]) for kind in found}
    assert counted == {kind: item["total"] for kind, item in found.items()}
    assert data["coverage"]["total"] == sum(counted.values())


# Faults that the own model shares


def let_the_parser_ignore(monkeypatch: pytest.MonkeyPatch, **settings: float) -> None:
    """Make Granite's parser give these settings, whatever the configuration says."""
    configure = type(granite.FAMILY).configure

    def ignoring(self: Any, config: Any, keys: Any, where: str) -> Any:
        return dataclasses.replace(configure(self, config, keys, where), **settings)

    monkeypatch.setattr(type(granite.FAMILY), "configure", ignoring)


def test_a_key_that_the_parser_ignores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    let_the_parser_ignore(monkeypatch, residual_multiplier=1.0)
    checkpoint, golden = recorded(tmp_path, "granite", "multipliers")
    assert in_torch(checkpoint).passed
    for options in ({"golden": golden}, {"against": "transformers"}):
        found = in_torch(checkpoint, **options)
        only_own_model_passes(found)
        assert str(found.failure.tensor) == "layer 1 K"


def test_a_key_that_only_the_logits_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    let_the_parser_ignore(monkeypatch, logits_divisor=1.0)
    checkpoint, golden = recorded(tmp_path, "granite", "multipliers")
    for options, position in (({"golden": golden}, 0), ({"against": "transformers"}, 139)):  # after prompts of 140
        found = in_torch(checkpoint, **options)
        only_own_model_passes(found)
        assert (str(found.failure.tensor), found.failure.failed_at) == ("logits", position)


def test_norms_after_rotation_in_place_of_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        type(qwen3.FAMILY), "configure", lambda self, config, *_: dataclasses.replace(config, qk_norm="after_rope")
    )
    checkpoint, golden = recorded(tmp_path, "qwen3", "wide heads")
    assert in_torch(checkpoint).passed
    for options in ({"golden": golden}, {"against": "transformers"}):
        found = in_torch(checkpoint, **options)
        only_own_model_passes(found)
        assert str(found.failure.tensor) == "layer 0 K"


def test_another_diagonal(exported: Any, tmp_path: Path):
    checkpoint, artifact = exported(max_position_embeddings=48)
    assert verify_artifact(artifact, VerifyOptions(**FEW)).passed
    same = record_lucid(checkpoint, tmp_path / "same.safetensors", tokens=TOKENS)
    assert verify_artifact(artifact, VerifyOptions(golden=same, **FEW)).passed
    other = record_lucid(checkpoint, tmp_path / "other.safetensors", "training", tokens=TOKENS)
    found = verify_artifact(artifact, VerifyOptions(golden=other, **FEW))
    only_own_model_passes(found.report)
    assert str(found.report.failure.tensor) == "layer 0 Y"
    with pytest.raises(CheckFailed, match=r"is beyond its gate at .*, against "):
        found.raise_if_failed()


def test_without_k_and_y_the_logits_show_the_diagonal(exported: Any, tmp_path: Path):
    checkpoint, _ = exported(max_position_embeddings=48)
    path = record_lucid(checkpoint, tmp_path / "whole.safetensors", "training", tokens=TOKENS)
    whole = load_file(path)
    few = {name: whole[name] for name in ("input_ids", "logits")}
    save_file(few, path, {"golden_version": "1", "computed_in": "float64"})
    found = in_torch(checkpoint, golden=path)
    only_own_model_passes(found)
    assert str(found.failure.tensor) == "logits"


def test_a_fault_in_the_graphs_is_named_against_the_own_model_first(right: Any, tmp_path: Path):
    """Then the graphs are wrong, not the reading, and causes are looked for."""
    import shutil

    from lucid_deploy.artifact import open_artifact
    from tests.parity.faults import change_weight

    artifact, golden = right
    copy = shutil.copytree(artifact.directory, tmp_path / "artifact")
    change_weight(copy, "model.layers.1.self_attn.v_proj.weight")
    found = verify_artifact(open_artifact(copy), VerifyOptions(golden=golden, **FEW))
    assert found.report.failure is found.report.own_failure is not None
    assert outcomes(found)["golden file"] == "failed" and outcomes(found)["causes"] == "reported"
    assert "--runtime torch" in found.report.advice()


# Precision


def test_a_coarse_recording_widens_the_gates_by_what_it_costs_and_still_judges(tmp_path: Path):
    checkpoint, golden = recorded(tmp_path, "qwen3", "wide heads", torch.bfloat16)
    found = in_torch(checkpoint, golden=golden)
    items = found.against("golden file")
    assert found.passed, found.verdict()
    assert all(1e-3 < item.gate.limit < 0.5 and item.judged for item in items)


def test_a_recording_counts_as_float32_at_best(right: Any):
    artifact, path = right
    golden = read_golden(path, artifact.config, artifact.manifest.layers)
    wide = dataclasses.replace(golden, computed_in="float64")
    assert (recording_type(wide), recording_type(golden)) == ("float32", "float32")
    assert not needs_run(golden, "float32") and not needs_run(golden, "bfloat16")
    assert needs_run(dataclasses.replace(golden, computed_in="bfloat16"), "float32")


def test_what_cannot_be_judged_is_no_pass(right: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("lucid_deploy.parity.measure.gate", fromlist=["UNIT"]).UNIT, "bfloat16", 2.0)
    whole = load_file(right[1])
    tensors = {name: x if x.dtype == torch.int64 else x.bfloat16() for name, x in whole.items()}
    save_file(tensors, tmp_path / "g.safetensors", {"golden_version": "1", "computed_in": "float32"})
    found = in_torch(Path(right[0].manifest.source), golden=tmp_path / "g.safetensors")
    assert not found.passed and outcomes(found)["golden file"] == "failed"
    assert all(item.outcome == "not judged" for item in found.against("golden file"))
    assert "Judged 106 of 106" in coverage_line(found) and "0 of 56 against" in coverage_line(found)


def test_a_half_precision_model(right: Any):
    artifact, golden = right
    found = in_torch(Path(artifact.manifest.source), "bfloat16", golden=golden, against="transformers")
    assert found.passed, found.verdict()


def test_a_cache_that_rounds(exported: Any, tmp_path: Path):
    checkpoint, _ = exported(max_position_embeddings=48)
    path = record_lucid(checkpoint, tmp_path / "g.safetensors", tokens=20)
    found = in_torch(checkpoint, cache_dtype="int8", golden=path)
    assert found.passed, found.verdict()
    assert outcomes(found)["golden file"] == "passed"


def test_a_tolerance_set_by_hand_counts_there_too(right: Any):
    artifact, golden = right
    found = artifact.verify(golden=golden, tolerance=1e-9, **FEW)
    assert {item.gate.limit for item in found.report.comparisons} == {1e-9}
    assert outcomes(found)["golden file"] == "failed" and found.report.within_derived


# What is compared


def test_a_row_longer_than_the_context_is_compared_as_far_as_it_goes(exported: Any, tmp_path: Path):
    checkpoint, artifact = exported(max_position_embeddings=48)
    path = record_lucid(checkpoint, tmp_path / "g.safetensors", tokens=48)
    found = verify_artifact(artifact, VerifyOptions(golden=path, **FEW))
    assert found.passed, found.failure
    (check,) = [check for check in found.checks if check.name == "whole golden file"]
    assert check.detail == "Of its 48 tokens in a row, the first 43 were compared."


@pytest.mark.parametrize("tokens", [2, 9])
def test_few_tokens_are_compared_too(exported: Any, tmp_path: Path, tokens: int):
    checkpoint, _ = exported(max_position_embeddings=48)
    path = tmp_path / "g.safetensors"
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, 97, (1, tokens)))
    record_lucid(checkpoint, path, input_ids=ids)
    found = in_torch(checkpoint, golden=path)
    assert found.passed and outcomes(found)["golden file"] == "passed", found.verdict()


# What is refused


def test_lucid_layers_are_refused_against_transformers_by_name(exported: Any):
    _, artifact = exported(max_position_embeddings=48)
    with pytest.raises(LucidError, match=r"2 of its 2 layers are of the kind 'lucid'.*--golden"):
        verify_artifact(artifact, VerifyOptions(against="transformers"))


def test_an_unknown_reference_is_refused(right: Any):
    with pytest.raises(LucidError, match="against transformers, not 'numpy'"):
        right[0].verify(against="numpy")


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("rtn", "is quantized.*without --quantize"),
        (STORED, "a quantized checkpoint.*that it was made from"),
    ],
)
def test_quantized_artifacts_are_refused(right: Any, method: str, said: str):
    """One that has a quantized checkpoint's numbers has them without --quantize too, so that is no remedy."""
    artifact, golden = right
    record = SimpleNamespace(method=SimpleNamespace(name=method))
    small = dataclasses.replace(artifact, manifest=dataclasses.replace(artifact.manifest, quantization=record))
    for options in ({"golden": golden}, {"against": "transformers"}):
        with pytest.raises(LucidError, match=said):
            verify_artifact(small, VerifyOptions(**options))


def test_nothing_is_opened_unless_it_is_asked_for(exported: Any):
    checkpoint, artifact = exported(max_position_embeddings=48)
    found = open_references(None, None, Checkpoint(checkpoint), artifact.manifest.layers, artifact)
    assert found.golden is found.model is None and found.scenarios(artifact.config, VerifyOptions().extent) == []
