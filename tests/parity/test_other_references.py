"""Golden files that others wrote: they pass what is right, and catch what the toolkit's own model cannot see."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import lucid_deploy as ld
from examples.dump_golden import dump_golden
from lucid_deploy.errors import CheckFailed, LucidError
from lucid_deploy.model import checkpoint as checkpoints
from lucid_deploy.model.checkpoint import Checkpoint, load_model
from lucid_deploy.parity import VerifyOptions, verify_artifact
from lucid_deploy.parity.gate import FACTOR, UNIT, Gate
from lucid_deploy.parity.golden import rounding_of
from lucid_deploy.parity.record import TensorId, TensorRows, Trace
from lucid_deploy.parity.targets import OtherTrace, Reference, common_positions
from lucid_deploy.parity.verification import verify_against
from lucid_deploy.parity.words import coverage_line
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
    assert not report.passed and report.own_failure is None and report.first_failure is not None
    assert outcomes(report)["tensors"] == "passed"
    assert {outcomes(report)[reference.kind] for reference in report.others} == {"failed"}
    assert "both read the checkpoint differently" in report.to_dict()["advice"]
    assert f", against {report.first_failure.against}): relative error" in report.verdict()


@pytest.fixture(scope="module")
def right(exported: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[ld.Artifact, Path]:
    directory = tmp_path_factory.mktemp("right")
    checkpoint, artifact = exported(max_position_embeddings=48)
    return artifact, record_lucid(checkpoint, directory / "golden.safetensors", tokens=TOKENS)


@pytest.fixture(scope="module")
def verified(right: tuple[ld.Artifact, Path]) -> Any:
    artifact, golden = right
    return verify_artifact(artifact, VerifyOptions(golden=golden, **FEW))


def test_a_right_artifact_passes(verified: Any):
    assert verified.passed, verified.failure
    assert {reference.kind for reference in verified.others} == {"golden file"}
    assert outcomes(verified)["golden file"] == "passed"
    assert "another implementation" not in outcomes(verified)
    # Every position's logits, K and Y of every layer, fed by a prefill and by decoding.
    golden = verified.against("golden file")
    assert {str(item.tensor) for item in golden} == {str(item.tensor) for item in verified.against()}
    logits = [item for item in golden if item.tensor.is_logits]
    assert any(item.start == 0 and len(item.errors) == TOKENS for item in logits)
    assert {"one-shot", "chunks", "drafts", "padded"} == {item.schedule for item in golden}


def test_gates_are_rounding_and_nothing_else(verified: Any):
    assert all(item.gate.limit < 3e-5 and item.judged for item in verified.against("golden file"))


# Faults that the own model shares


def let_the_parser_ignore(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    """Make the parser give this key's neutral value, whatever the configuration says."""
    parse = checkpoints.parse_model_config

    def ignoring(*given: Any) -> Any:
        config = parse(*given)
        return dataclasses.replace(config, class_config={**config.class_config, key: 1.0})

    monkeypatch.setattr(checkpoints, "parse_model_config", ignoring)


def test_a_key_that_the_parser_ignores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    let_the_parser_ignore(monkeypatch, "residual_multiplier")
    checkpoint, golden = recorded(tmp_path, "granite", "multipliers")
    assert in_torch(checkpoint).passed
    found = in_torch(checkpoint, golden=golden)
    only_own_model_passes(found)
    assert str(found.first_failure.tensor) == "layer 1 K"


def test_another_diagonal(exported: Any, tmp_path: Path):
    checkpoint, artifact = exported(max_position_embeddings=48)
    other = record_lucid(checkpoint, tmp_path / "other.safetensors", "training", tokens=TOKENS)
    found = verify_artifact(artifact, VerifyOptions(golden=other, **FEW))
    only_own_model_passes(found)
    assert str(found.first_failure.tensor) == "layer 0 Y"
    with pytest.raises(CheckFailed, match=r"is beyond its gate at .*, against "):
        found.raise_if_failed()


def test_a_fault_in_the_graphs_is_named_against_the_own_model_first(right: Any, tmp_path: Path):
    """Then the graphs are wrong, not the reading, and causes are looked for."""
    import shutil

    from lucid_deploy.artifact import open_artifact
    from tests.parity.faults import change_weight

    artifact, golden = right
    copy = shutil.copytree(artifact.directory, tmp_path / "artifact")
    change_weight(copy, "model.layers.1.self_attn.v_proj.weight")
    found = verify_artifact(open_artifact(copy), VerifyOptions(golden=golden, **FEW))
    assert found.first_failure is found.own_failure is not None
    assert outcomes(found)["golden file"] == "failed" and outcomes(found)["causes"] == "reported"
    assert "--runtime torch" in found.to_dict()["advice"]


# Precision


def test_a_coarse_recording_widens_the_gates_by_what_it_costs_and_still_judges(tmp_path: Path):
    checkpoint, golden = recorded(tmp_path, "qwen3", "wide heads", torch.bfloat16)
    found = in_torch(checkpoint, golden=golden)
    items = found.against("golden file")
    assert found.passed, found.verdict()
    assert all(1e-3 < item.gate.limit < 0.5 and item.judged for item in items)


def test_what_cannot_be_judged_is_no_pass(right: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("lucid_deploy.parity.gate", fromlist=["UNIT"]).UNIT, "bfloat16", 2.0)
    whole = load_file(right[1])
    tensors = {name: x if x.dtype == torch.int64 else x.bfloat16() for name, x in whole.items()}
    save_file(tensors, tmp_path / "g.safetensors", {"golden_version": "1", "computed_in": "float32"})
    found = in_torch(Path(right[0].manifest.source), golden=tmp_path / "g.safetensors")
    assert not found.passed and outcomes(found)["golden file"] == "failed"
    assert all(item.outcome == "not judged" for item in found.against("golden file"))
    assert "Judged 96 of 96" in coverage_line(found) and "0 of 50 against" in coverage_line(found)


def test_a_cache_that_rounds(exported: Any, tmp_path: Path):
    checkpoint, _ = exported(max_position_embeddings=48)
    path = record_lucid(checkpoint, tmp_path / "g.safetensors", tokens=20)
    found = in_torch(checkpoint, cache_dtype="int8", golden=path)
    assert found.passed, found.verdict()
    assert outcomes(found)["golden file"] == "passed"


def test_quantized_artifacts_are_refused(right: Any):
    artifact, golden = right
    record = SimpleNamespace(method=SimpleNamespace(name="rtn"))
    small = dataclasses.replace(artifact, manifest=dataclasses.replace(artifact.manifest, quantization=record))
    with pytest.raises(LucidError, match=r"is quantized, so .*For --golden, export a checkpoint that is not quantized"):
        verify_artifact(small, VerifyOptions(golden=golden))


# Rows and gates

K, LOGITS = TensorId(0, 0), TensorId(1, 2)


def rows(start: int, stop: int) -> TensorRows:
    return TensorRows(np.arange(start + 1, stop + 1, dtype=np.float64)[None, :, None], start)


def test_only_positions_that_both_have_are_compared():
    one, other = common_positions(rows(3, 10), rows(0, 8))
    assert one.start == other.start == 3
    assert one.values.ravel().tolist() == other.values.ravel().tolist() == [4, 5, 6, 7, 8]
    assert common_positions(rows(6, 10), rows(0, 4))[0].values.shape[1] == 0


def test_a_comparison_names_its_reference_and_has_its_own_gate():
    reference = Reference("golden file", "the golden file g")
    other = OtherTrace(reference, Trace({LOGITS: rows(0, 8)}), {LOGITS: 0.5e-3})
    found = Trace({K: rows(0, 8), LOGITS: TensorRows(rows(4, 8).values * (1 + 1e-3), 4)})
    (item,) = other.compare(found, {LOGITS: Gate(1e-3, 0.25e-3)}, "golden 1", "chunks")
    assert (item.against, item.where) == ("golden file", "golden 1, chunks, against golden file")
    assert item.gate.limit == pytest.approx(1.5e-3) and item.failed_at is None and item.start == 4
    (tight,) = other.compare(found, {LOGITS: Gate(1e-4, 0.25e-4)}, "golden 1", "chunks")
    assert tight.failed_at == 4
    apart = OtherTrace(reference, Trace({K: rows(0, 2)}), {K: 0.0})
    assert apart.compare(Trace({K: rows(5, 8)}), {K: Gate(1.0, 0.1)}, "golden 1", "one-shot") == []


def test_rounding_follows_from_types():
    gates = {K: Gate(4e-6, 1e-6), LOGITS: Gate(4e-6, 1e-6)}
    same = rounding_of(gates, "float32", "float32", {K: "float32"}, None)
    assert same[K] == pytest.approx(FACTOR * 1e-6 + UNIT["float32"])
    finer = rounding_of(gates, "float32", "float64", {K: "float64"}, None)
    assert finer[K] == pytest.approx(FACTOR * 1e-6 * 2.0**-29 + UNIT["float64"])
    coarser = rounding_of(gates, "float32", "bfloat16", {K: "bfloat16"}, {K: 3e-3, LOGITS: 1.0})
    assert coarser == {K: FACTOR * 3e-3 + UNIT["bfloat16"]}
