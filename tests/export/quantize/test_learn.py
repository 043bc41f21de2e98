"""Scales learned from text: nearer to the original than rounded ones, checked, recorded, and all or nothing."""

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
from lucid_deploy.artifact.quantization import LearnedTensor, Quantization, QuantizedTensor
from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.cli import main
from lucid_deploy.demo import recall
from lucid_deploy.errors import CheckFailed, LucidError
from lucid_deploy.export import ExportOptions, export
from lucid_deploy.export.calibration import calibration_rows
from lucid_deploy.export.quantize.distill import METHOD, RoundedWeight
from lucid_deploy.export.quantize.hqq import METHOD as HQQ
from lucid_deploy.export.quantize.method import Rounded
from lucid_deploy.export.quantize.options import QuantizeOptions
from lucid_deploy.export.quantize.plan import plan_quantization
from lucid_deploy.model.checkpoint import Checkpoint, load_model, resolve
from lucid_deploy.parity.perplexity import held_out_cost
from lucid_deploy.parity.stored_weights import compare_weights
from lucid_deploy.runtimes.torch.artifact_weights import load_artifact_model
from tests.conftest import write_checkpoint
from tests.hybrid_artifact import write_hybrid
from tests.number_words import write_number_words, write_numbers
from tests.once_per_run import made_once, run_folder


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, and token ids like those that it is measured on."""

    def make(folder: Path) -> None:
        write_checkpoint(folder / "checkpoint")
        ids = np.random.default_rng(0).integers(0, 97, (32, 128))
        write_number_words(folder / "checkpoint", 97)
        write_numbers(folder / "ids.txt", ids)

    return made_once(run_folder(tmp_path_factory, "learned"), "source", make)


@pytest.fixture(scope="session")
def learned(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """An artifact in int4 by distillation."""

    def make(folder: Path) -> None:
        quantize = QuantizeOptions("int4", method="distill")
        options = ExportOptions(cache="growing", quantize=quantize, calibration=source / "ids.txt")
        export(source / "checkpoint", folder / "artifact", options)

    return open_artifact(made_once(run_folder(tmp_path_factory, "learned"), "distill", make) / "artifact")


def test_predictions_are_nearer_than_without_text(tmp_path: Path) -> None:
    """KL divergence of a trained model from its original, on questions that nothing was learned from."""
    asked = [each.prompt for each in recall.held_out(200)]
    (tmp_path / "text.txt").write_text("\n".join(asked[20:]))
    exact = load_model("demo")
    ids = torch.tensor([TextTokenizer(resolve("demo")).encode(" ".join(asked[:10]))])
    lost = []
    for text in (None, tmp_path / "text.txt"):
        options = ExportOptions(logits="all", cache="growing", quantize=QuantizeOptions("int4"), calibration=text)
        artifact = export("demo", tmp_path / f"learned {text is not None}", options)
        with torch.inference_mode():
            found, wanted = (model(ids)[0].log_softmax(-1) for model in (load_artifact_model(artifact), exact))
        lost.append(float((wanted.exp() * (wanted - found)).sum(-1).mean()))
    assert lost[1] < 0.8 * lost[0]


def test_integers_stay_those_of_hqq(source: Path) -> None:
    """Only scales and offsets are learned, and their values are exact in the type that they are stored in."""
    checkpoint = Checkpoint(source / "checkpoint")
    plan = plan_quantization(checkpoint.stored_shapes(), False, QuantizeOptions("int4", method="distill"))
    rows = calibration_rows(checkpoint, source / "ids.txt", 1024)
    found, _ = METHOD.learn(checkpoint, plan, rows, "float16", None)
    for name, parts in found.parts.items():
        (plain,) = HQQ.round(checkpoint.tensor(name), plan.tensors[name], 4, "float16", False)
        assert np.array_equal(parts.packed, plain.packed)
        for new, old in ((parts.scales, plain.scales), (parts.offsets, plain.offsets)):
            assert new.equal(new.half().float()) and not new.equal(old)
            torch.testing.assert_close(new, old, rtol=0.1, atol=0.1 * float(plain.scales.max()))


@pytest.mark.parametrize(("bits", "width"), [(4, 64), (8, 40)])
def test_gradients_of_scales_and_offsets_are_right(bits: int, width: int) -> None:
    """Checked by finite differences; rows that blocks do not divide are cut."""
    draw = np.random.default_rng(0)
    tensor = QuantizedTensor((3, width), 32, offsets=bits == 4, bits=bits)
    packed = draw.integers(0, 256, (3, tensor.blocks, 32 * bits // 8), dtype=np.uint8)
    scales = torch.from_numpy(draw.uniform(0.5, 1.5, (3, tensor.blocks)))
    weight = RoundedWeight(Rounded(packed, scales, scales / 3 if bits == 4 else None), tensor, bits)
    changes = [torch.zeros_like(scales, requires_grad=True) for _ in range(2)]
    assert weight.matrix(*changes).shape == (3, width)
    assert torch.autograd.gradcheck(weight.matrix, changes)


def test_what_is_recorded_is_true(source: Path, learned: Artifact) -> None:
    record = learned.manifest.quantization
    method = record.method
    assert (method.name, method.settings) == ("distill", {"rate": 1e-3})
    assert method.calibration["file"] == "ids.txt" and method.calibration["tokens"] == 28 * 128
    assert method.tensors.keys() == record.tensors.keys() - {"lm_head.weight"}
    assert record.tool.startswith("lucid-deploy")
    assert learned.manifest.options["quantize"]["method"] == "distill"
    original, model = Checkpoint(source / "checkpoint"), load_artifact_model(learned, dtype="float64").state_dict()
    for name, found in method.tensors.items():
        weight = original.tensor(name).double()
        assert found.distance == pytest.approx(float((model[name] - weight).norm() / weight.norm()), rel=1e-5)
    shown = CliRunner().invoke(main, ["inspect", str(learned.directory)])
    assert "were chosen by distill over 3584 tokens of ids.txt" in " ".join(shown.output.split())


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
    compare_weights(learned, original)
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
        with pytest.raises(CheckFailed, match=f"{name} is not .*its relative distance from the original is"):
            compare_weights(learned, Changed(source / "checkpoint"))
    record = learned.manifest.quantization
    tensors = {**record.method.tensors, name: LearnedTensor(0.2)}
    changed = replace(record, method=replace(record.method, tensors=tensors))
    with pytest.raises(CheckFailed, match=r"and 0\.2 is recorded"):
        compare_weights(Artifact(learned.directory, replace(learned.manifest, quantization=changed)), original)


def test_verify_passes_for_a_distilled_artifact(learned: Artifact, source: Path) -> None:
    result = CliRunner().invoke(
        main, ["verify", str(learned.directory), "--checkpoint", str(source / "checkpoint"), "--quick"]
    )
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("changes", "calibration", "message"),
    [
        ({"method": "distill"}, None, "learns from text.*--calibration, or leave out --method"),
        ({"method": "magic"}, "ids.txt", "method 'magic' is not known; known are rtn, hqq, distill"),
        ({"method": "distill", "calibration_tokens": 0}, "ids.txt", "--calibration-tokens must be 1 or more"),
        ({}, "missing.txt", "missing.txt cannot be read: No such file"),
        ({"method": "rtn"}, "ids.txt", "Leave it out"),
    ],
)
def test_bad_requests_leave_nothing(
    changes: dict[str, Any], calibration: str | None, message: str, source: Path, tmp_path: Path
) -> None:
    path = None if calibration is None else source / calibration
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
    plan = plan_quantization(checkpoint.stored_shapes(), False, QuantizeOptions("int4", method="distill"))
    rows = calibration_rows(checkpoint, source / "ids.txt", 1024)
    with pytest.raises(LucidError, match=r"layers\.1\.mlp\.up_proj\.weight has values that are not finite"):
        METHOD.learn(checkpoint, plan, rows, "float32", None)


def test_delta_rule_layers_are_learned_too(tmp_path: Path) -> None:
    """A hybrid of the delta rule and LUCID: every linear layer is learned."""
    checkpoint = Checkpoint(write_hybrid(tmp_path / "c"))
    write_number_words(checkpoint.directory, 61)
    write_numbers(tmp_path / "ids.txt", np.random.default_rng(0).integers(0, 61, (1, 1024)))
    plan = plan_quantization(checkpoint.stored_shapes(), False, QuantizeOptions("int4", method="distill"))
    rows = calibration_rows(checkpoint, tmp_path / "ids.txt", 1024)
    found, _ = METHOD.learn(checkpoint, plan, rows, "float32", None)
    assert found.parts.keys() == plan.tensors.keys() - {"lm_head.weight"} and any(
        "linear_attn.b_proj" in name for name in found.parts
    )


def test_weights_of_zeros_have_the_distance_0(source: Path, learned: Artifact) -> None:
    """As of an adapter that was never trained: their distance is 0, and the manifest can be read again."""
    name = "model.layers.1.mlp.up_proj.weight"

    class Zeros(Checkpoint):
        def tensor(self, wanted: str) -> torch.Tensor:
            return super().tensor(wanted) * (wanted != name)

    checkpoint = Zeros(source / "checkpoint")
    plan = plan_quantization(checkpoint.stored_shapes(), False, QuantizeOptions("int4", method="distill"))
    rows = calibration_rows(checkpoint, source / "ids.txt", 1024)
    found, record = METHOD.learn(checkpoint, plan, rows, "float32", None)
    assert found.tensors[name] == LearnedTensor(0.0)
    text = replace(learned.manifest, quantization=record).to_json()
    assert msgspec.convert(json.loads(text)["quantization"], Quantization) == record
