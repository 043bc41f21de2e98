"""GPTQ of a whole checkpoint: nearer to the original than nearest numbers, checked, recorded, and all or nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from lucid_deploy.artifact import Artifact, open_artifact
from lucid_deploy.artifact.quantization import LearnedTensor, Quantization
from lucid_deploy.cli import main
from lucid_deploy.errors import CheckFailed, LucidError
from lucid_deploy.export import ExportOptions, export
from lucid_deploy.export.calibration import calibration_rows
from lucid_deploy.export.quantize.gptq import METHOD
from lucid_deploy.export.quantize.options import QuantizeOptions
from lucid_deploy.export.quantize.plan import plan_quantization
from lucid_deploy.model.checkpoint import Checkpoint, load_model
from lucid_deploy.parity.stored_weights import check_weights
from lucid_deploy.parity.verification import held_out_cost
from lucid_deploy.runtimes.torch.artifact_weights import load_artifact_model
from tests.conftest import write_checkpoint
from tests.hybrid_artifact import write_hybrid
from tests.number_words import write_number_words, write_numbers
from tests.once_per_run import made_once, run_folder

BIASED = {"attention_bias": True, "mlp_bias": True}


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, and token ids like those that it is measured on."""

    def make(folder: Path) -> None:
        write_checkpoint(folder / "checkpoint", **BIASED)
        ids = np.random.default_rng(0).integers(0, 97, (32, 128))
        write_number_words(folder / "checkpoint", 97)
        write_numbers(folder / "ids.txt", ids)

    return made_once(run_folder(tmp_path_factory, "learned"), "source", make)


@pytest.fixture(scope="session")
def learned(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """An artifact in int4 by GPTQ."""

    def make(folder: Path) -> None:
        options = ExportOptions(
            "float32", quantize=QuantizeOptions("int4", method="gptq"), calibration=source / "ids.txt"
        )
        export(source / "checkpoint", folder / "artifact", options)

    return open_artifact(made_once(run_folder(tmp_path_factory, "learned"), "gptq", make) / "artifact")


def logits_of(model: Any) -> torch.Tensor:
    ids = torch.from_numpy(np.random.default_rng(9).integers(0, 97, (4, 128)))
    with torch.inference_mode():
        found: torch.Tensor = model(ids)[0].double()
    return found


def test_logits_are_nearer_by_two_fifths_at_least(source: Path, learned: Artifact) -> None:
    """The artifact's weights, on tokens it has not learned from, against nearest numbers of the same blocks."""
    exact = logits_of(load_model(source / "checkpoint"))
    checkpoint = Checkpoint(source / "checkpoint")
    record = learned.manifest.quantization
    nearest = load_model(source / "checkpoint")
    for name, parameter in nearest.named_parameters():
        if name in record.tensors:
            blocks = checkpoint.tensor(name).unflatten(1, (-1, 16))
            scale = blocks.abs().amax(-1, keepdim=True) / 8  # finer blocks, and the nearest numbers
            parameter.data = ((blocks / scale).round().clamp(-8, 7) * scale).flatten(1)
    ours = (logits_of(load_artifact_model(learned)) - exact).norm()
    assert ours < 0.6 * (logits_of(nearest) - exact).norm()


def test_what_is_recorded_is_true(source: Path, learned: Artifact) -> None:
    record = learned.manifest.quantization
    method = record.method
    assert (method.name, method.settings) == ("gptq", {"damping": 0.01})
    assert method.calibration["file"] == "ids.txt" and method.calibration["tokens"] == 28 * 128
    assert method.tensors.keys() == record.tensors.keys() and record.tool.startswith("lucid-deploy")
    assert learned.manifest.options["quantize"]["method"] == "gptq"
    original, model = Checkpoint(source / "checkpoint"), load_artifact_model(learned, dtype="float64").state_dict()
    for name, found in method.tensors.items():
        weight = original.tensor(name).double()
        assert found.distance == pytest.approx(float((model[name] - weight).norm() / weight.norm()), rel=1e-5)
    shown = CliRunner().invoke(main, ["inspect", str(learned.directory)])
    assert "were chosen by gptq over 3584 tokens of ids.txt" in " ".join(shown.output.split())


def test_the_cost_is_measured_on_rows_that_were_held_out(source: Path, learned: Artifact) -> None:
    """The artifact's perplexity and the checkpoint's, computed by hand on the same row."""
    facts = learned.manifest.quantization.method.calibration
    found = held_out_cost(learned, source / "ids.txt")
    (index,) = facts["held_out"]
    ids = [token for line in (source / "ids.txt").read_text().splitlines() for token in map(int, line.split())]
    row = torch.tensor(ids[index * facts["row_tokens"] : (index + 1) * facts["row_tokens"]])
    models = load_artifact_model(learned), load_model(source / "checkpoint")
    wanted = [torch.nn.functional.cross_entropy(model(row[None])[0][0, :-1], row[1:]).exp() for model in models]
    assert (found.own, found.original) == pytest.approx([float(each) for each in wanted], rel=1e-2)
    assert found.original == pytest.approx(float(wanted[1]), rel=1e-5) and 0 < found.kl < 1


def test_the_check_finds_another_checkpoint_and_other_records(source: Path, learned: Artifact, tmp_path: Path) -> None:
    original = Checkpoint(source / "checkpoint")
    check_weights(learned, original)
    name = "model.layers.1.mlp.up_proj.weight"

    class Changed(Checkpoint):
        def tensor(self, wanted: str) -> torch.Tensor:
            value = super().tensor(wanted)
            if wanted == name:
                value = value.clone()
                value[3, 5] += added[0]
            return value

    added = [0.0]
    for added[0] in (0.02, 5.0):
        with pytest.raises(CheckFailed, match=f"{name} is not .*of the original's norm away"):
            check_weights(learned, Changed(source / "checkpoint"))
    record = learned.manifest.quantization
    tensors = {**record.method.tensors, name: LearnedTensor(0.2)}
    changed = replace(record, method=replace(record.method, tensors=tensors))
    with pytest.raises(CheckFailed, match=r"and 0\.2 is recorded"):
        check_weights(Artifact(learned.directory, replace(learned.manifest, quantization=changed)), original)


def test_the_runtime_computes_it(learned: Artifact, source: Path) -> None:
    result = CliRunner().invoke(
        main, ["verify", str(learned.directory), "--checkpoint", str(source / "checkpoint"), "--quick"]
    )
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("changes", "calibration", "message"),
    [
        ({"method": "gptq"}, None, "learns from text.*--calibration, or leave out --method"),
        ({"method": "magic"}, "ids.txt", "--method must be one of rtn, hqq, gptq"),
        ({"method": "gptq", "calibration_tokens": 0}, "ids.txt", "--calibration-tokens must be 1 or more"),
        ({"method": "gptq"}, "short.txt", "needs at least 144"),
        ({}, "missing.txt", "missing.txt cannot be read: No such file"),
        ({"method": "rtn"}, "ids.txt", "Leave it out"),
    ],
)
def test_bad_requests_leave_nothing(
    changes: dict[str, Any], calibration: str | None, message: str, source: Path, tmp_path: Path
) -> None:
    (tmp_path / "short.txt").write_text("1 2 3")
    path = None if calibration is None else source / calibration
    if calibration == "short.txt":
        path = tmp_path / calibration
    options = ExportOptions(quantize=QuantizeOptions("int4", **changes), calibration=path)
    with pytest.raises(LucidError, match=message):
        export(source / "checkpoint", tmp_path / "out" / "artifact", options)
    assert not (tmp_path / "out").exists()


def test_damaged_weights_are_named(source: Path, tmp_path: Path) -> None:
    class Damaged(Checkpoint):
        def tensor(self, name: str) -> torch.Tensor:
            value = super().tensor(name)
            return value * float("nan") if name.endswith("1.mlp.up_proj.weight") else value

    checkpoint = Damaged(source / "checkpoint")
    plan = plan_quantization(checkpoint.stored_shapes(), False, QuantizeOptions("int4", method="gptq"))
    rows = calibration_rows(checkpoint, source / "ids.txt", 1024, 1)
    with pytest.raises(LucidError, match=r"layers\.1\.mlp\.up_proj\.weight has values that are not finite"):
        METHOD.learn(checkpoint, plan, rows, "float32", None)


def test_layers_of_other_kinds(tmp_path: Path) -> None:
    """A hybrid of the delta rule and LUCID: every product is seen."""
    checkpoint = Checkpoint(write_hybrid(tmp_path / "c"))
    write_number_words(checkpoint.directory, 61)
    write_numbers(tmp_path / "ids.txt", np.random.default_rng(0).integers(0, 61, (1, 1024)))
    plan = plan_quantization(checkpoint.stored_shapes(), False, QuantizeOptions("int4", method="gptq"))
    rows = calibration_rows(checkpoint, tmp_path / "ids.txt", 1024, 1)
    found, _ = METHOD.learn(checkpoint, plan, rows, "float32", None)
    assert found.parts.keys() == plan.tensors.keys() and any("linear_attn.b_proj" in name for name in found.parts)


def test_weights_of_zeros(source: Path, learned: Artifact) -> None:
    """As of an adapter that was never trained: their distance is 0, and the manifest can be read again."""
    name = "model.layers.1.mlp.up_proj.weight"

    class Zeros(Checkpoint):
        def tensor(self, wanted: str) -> torch.Tensor:
            return super().tensor(wanted) * (wanted != name)

    checkpoint = Zeros(source / "checkpoint")
    plan = plan_quantization(checkpoint.stored_shapes(), False, QuantizeOptions("int4", method="gptq"))
    rows = calibration_rows(checkpoint, source / "ids.txt", 1024, 1)
    found, record = METHOD.learn(checkpoint, plan, rows, "float32", None)
    assert found.tensors[name] == LearnedTensor(0.0)
    text = replace(learned.manifest, quantization=record).to_json()
    assert msgspec.convert(json.loads(text)["quantization"], Quantization) == record
