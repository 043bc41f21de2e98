"""AWQ of whole checkpoints: exported, verified, resumed; keys that stay, and weights that are kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from lucid_deploy.artifact import Artifact
from lucid_deploy.artifact.quantization import LearnedTensor
from lucid_deploy.artifact.quantized_bytes import FILE, read_scales, scaled, write_scales
from lucid_deploy.cli import main
from lucid_deploy.errors import CheckFailed
from lucid_deploy.export import ExportOptions, export
from lucid_deploy.export.calibration import CalibrationRows, calibration_rows
from lucid_deploy.export.quantize.awq import AwqRule
from lucid_deploy.export.quantize.learn import learn_weights
from lucid_deploy.export.quantize.options import QuantizeOptions
from lucid_deploy.export.quantize.plan import plan_quantization
from lucid_deploy.export.range_scan import scan
from lucid_deploy.model.checkpoint import Checkpoint, load_model
from lucid_deploy.parity.stored_weights import check_weights
from tests.conftest import write_checkpoint
from tests.hybrid_artifact import write_hybrid

CHANCE = 1e-3  # of calling numbers better that are as good as the nearest
AWQ = QuantizeOptions("int4", method="awq", calibration_tokens=2048)


def text(folder: Path, vocabulary: int = 97) -> Path:
    ids = np.random.default_rng(0).integers(0, vocabulary, (8, 256))
    path = folder / "ids.jsonl"
    path.write_text("\n".join(str(row.tolist()) for row in ids))
    return path


def learn(checkpoint: Checkpoint, rows: CalibrationRows, **more: Any) -> Any:
    plan = plan_quantization(checkpoint.stored_shapes(), checkpoint.tied, replace(AWQ, **more))
    return learn_weights(checkpoint, plan, rows, AwqRule(), "float32")


def loses_less_than_nearest(tensors: Mapping[str, LearnedTensor]) -> bool:
    """Whether more products lose less than with nearest numbers than a coin thrown for each would say (sign test).

    No theorem says it of each product: one scale serves all that read an input, and is searched before numbers are
    clipped. If it brought nothing, each would be as likely worse as better.
    """
    better, count = sum(found.output_error < found.nearest_error for found in tensors.values()), len(tensors)
    return sum(comb(count, more) for more in range(better, count + 1)) <= CHANCE * 2**count


def test_an_artifact_of_it(tmp_path: Path) -> None:
    """Verified element by element with the scales that went into weights; other scales are found."""
    checkpoint = write_checkpoint(tmp_path / "c", num_key_value_heads=4, attention_bias=True)
    options = ExportOptions("float16", quantize=AWQ, calibration=text(tmp_path))
    artifact = export(checkpoint, tmp_path / "a", options)
    record, folded = artifact.manifest.quantization, read_scales(artifact.directory)
    assert record is not None and (record.method.name, record.method.settings) == ("awq", {"grid": 20})
    assert record.method.calibration["file"] == "ids.jsonl" and FILE in artifact.manifest.files
    givers = {name.removesuffix(".outputs") for name in folded if name.endswith(".outputs")}
    assert {"model.norm.weight", "model.layers.1.self_attn.v_proj.bias"} <= givers
    assert not any("k_proj" in name or "q_proj" in name for name in givers), "K is what it was"
    assert artifact.manifest.ranges is not None
    scanned, plain = artifact.manifest.ranges["peaks"]["layer 1"], scan(Checkpoint(checkpoint), options.calibration)
    normed = plain.peaks["layer 1"]["attention input"] / scanned["attention input"]
    assert not 0.99 < normed < 1.01, "the scan is of the model without the scales"
    assert scanned["key"] == pytest.approx(plain.peaks["layer 1"]["key"], rel=1e-3)
    assert loses_less_than_nearest(record.method.tensors)
    arguments = ["verify", str(tmp_path / "a"), "--checkpoint", str(checkpoint), "--quick"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0 and "(int4, awq, " in " ".join(result.output.split()), result.output
    for name in ("model.norm.weight.outputs", "model.layers.0.mlp.down_proj.weight.inputs"):
        changed = {**folded, name: folded[name] * np.where(np.arange(len(folded[name])) == 3, 1.05, 1)}
        write_scales(artifact.directory, {key: value.astype(np.float32) for key, value in changed.items()})
        with pytest.raises(CheckFailed, match="scales that were put into weights do not cancel"):
            check_weights(Artifact(artifact.directory, artifact.manifest), Checkpoint(checkpoint))


def test_scales_alone_change_no_logits(tmp_path: Path) -> None:
    """In float64, before anything is rounded: the solve sees the same keys."""
    checkpoint = Checkpoint(write_checkpoint(tmp_path / "c", num_key_value_heads=4))
    learned, _ = learn(checkpoint, calibration_rows(checkpoint, text(tmp_path), 1024, 1))
    model, ids = load_model(checkpoint, torch.float64), torch.arange(96).reshape(2, 48)
    with torch.inference_mode():
        before, caches = model(ids)
        for name, value in model.state_dict().items():
            whole = {key: scale.astype(np.float64) for key, scale in learned.folded.items()}
            for part, divides in ((".inputs", False), (".outputs", True)):
                if name + part in whole:
                    scale = torch.from_numpy(whole[name + part])
                    rows = scale.unflatten(0, (-1, *([1] * (value.dim() - 1))))
                    value.copy_(value / rows if divides else value * scale)
        after, others = model(ids)
    assert (after - before).abs().max() < 1e-9 * before.abs().max()
    for ours, theirs in zip(caches, others, strict=True):
        assert (ours[0] - theirs[0]).abs().max() < 1e-9 * ours[0].abs().max()
    assert len(learned.folded) > 20 and scaled(torch.ones(3), "x", learned.folded).equal(torch.ones(3))


def test_weights_that_are_kept_stay_as_they_are(tmp_path: Path) -> None:
    """No scale goes where it would change one: not into the norm that a kept K reads, nor into a kept ``up``."""
    checkpoint = Checkpoint(write_checkpoint(tmp_path / "c", num_hidden_layers=1))
    rows = calibration_rows(checkpoint, text(tmp_path), 1024, 1)
    learned, record = learn(checkpoint, rows, keep_float=("layers.*.k_proj", "layers.*.up_proj"))
    changed = {name.rpartition(".")[0] for name in learned.folded}
    assert (
        changed == {"model.norm.weight", "lm_head.weight"}
        and "model.layers.0.self_attn.q_proj.weight" in record.tensors
    )


def test_layers_of_other_kinds(tmp_path: Path) -> None:
    checkpoint = Checkpoint(write_hybrid(tmp_path / "c"))
    rows = calibration_rows(checkpoint, text(tmp_path, 61), 1024, 1)
    learned, record = learn(checkpoint, rows)
    assert learned.parts.keys() == record.tensors.keys()
    assert any("linear_attn.b_proj.weight.inputs" in name for name in learned.folded)
    assert not any("linear_attn.o_proj" in name for name in learned.folded)
    assert loses_less_than_nearest(learned.tensors)
