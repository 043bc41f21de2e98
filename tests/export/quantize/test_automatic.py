"""Mixed precision: within the size asked for, within 5 % of the best of all choices, and recorded."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from lucid_deploy.artifact import open_artifact
from lucid_deploy.cli import main
from lucid_deploy.errors import LucidError
from lucid_deploy.export import ExportOptions, export
from lucid_deploy.export.calibration import CalibrationRows, calibration_rows
from lucid_deploy.export.quantize.automatic import budget_of, learn_mixed, split_rows, widest_input, with_bits
from lucid_deploy.export.quantize.budget import BITS
from lucid_deploy.export.quantize.gptq import GptqRule
from lucid_deploy.export.quantize.learn import learn_weights, rounded_weight
from lucid_deploy.export.quantize.numbers import rows_to_learn_from
from lucid_deploy.export.quantize.options import QuantizeOptions
from lucid_deploy.export.quantize.plan import plan_quantization
from lucid_deploy.export.quantize.sensitivity import LogitErrors, by_kind
from lucid_deploy.model.checkpoint import Checkpoint
from tests.conftest import write_checkpoint

KEPT = ("*.q_proj", "*.gate_proj", "*.o_proj")  # five kinds are left: 32 choices
TARGETS = (5.5, 6.5, 7.5, 8.5)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "c", num_hidden_layers=1)
    ids = np.random.default_rng(0).integers(0, 97, (8, 128))
    (tmp_path / "ids.jsonl").write_text("\n".join(str(row.tolist()) for row in ids))
    return tmp_path


def test_within_five_percent_of_the_best_of_all_choices(source: Path) -> None:
    checkpoint = Checkpoint(source / "c")
    options = QuantizeOptions("int4", method="auto", keep_float=KEPT)
    plan = plan_quantization(checkpoint.stored_shapes(), checkpoint.tied, options)
    rows, kinds = calibration_rows(checkpoint, source / "ids.jsonl", 4096, 1), by_kind(list(plan.tensors), False)
    learned_from, measured = split_rows(rows, widest_input(plan))
    errors, found = LogitErrors(checkpoint, measured), {}
    few = replace(rows, rows=[learned_from])
    for bits in itertools.product(BITS, repeat=len(kinds)):
        mixed = with_bits(plan, kinds, dict(zip(kinds, bits, strict=True)))
        learned, record = learn_weights(checkpoint, mixed, few, GptqRule(), "float32")
        weights = {n: rounded_weight(checkpoint, record, n, learned.parts[n], "float32") for n in record.tensors}
        found[bits] = errors.of(weights)
    for target in TARGETS:
        _, record = learn_mixed(checkpoint, plan, rows, GptqRule(), "float32", target)
        budget = budget_of(plan, kinds, "float32", target)
        best = min(error for bits, error in found.items() if budget.bits(dict(zip(kinds, bits, strict=True))) <= target)
        chosen = tuple(record.method.settings["bits"].values())
        assert found[chosen] <= 1.05 * best and record.bits_per_weight("float32") <= target
        assert record.method.settings["error"] == pytest.approx(found[chosen], rel=1e-3)


@pytest.mark.parametrize(
    ("count", "row", "widest", "learns", "measures"),
    [
        (64, 512, 768, 8, 4),  # enough of both: 4096 and 2048 tokens
        (64, 512, 14336, 28, 4),  # as many tokens as the widest input has
        (9, 512, 768, 6, 3),  # a short text: a third is measured
        (3, 128, 144, 2, 1),  # the least that will do
    ],
)
def test_rows_are_learned_from_or_measured(count: int, row: int, widest: int, learns: int, measures: int) -> None:
    ids = np.arange(count * row).reshape(count, row)
    rows = CalibrationRows([ids, np.zeros((1, 5), int)], {"row_tokens": row})
    learned_from, measured = split_rows(rows, widest)
    assert learned_from.shape == (learns, row) and measured.shape == (measures, row)
    assert learned_from.size >= widest and not set(learned_from.ravel()) & set(measured.ravel())


def test_a_text_that_is_too_short_for_both(source: Path) -> None:
    (source / "ids.jsonl").write_text(str(list(range(97)) * 2))
    options = QuantizeOptions("int4", method="auto", target_bits=7)
    with pytest.raises(
        LucidError, match=r"needs \d+ for both; the calibration text has 194\. Give more text"
    ) as caught:
        export(source / "c", source / "out" / "a", ExportOptions(quantize=options, calibration=source / "ids.jsonl"))
    assert "\n" not in str(caught.value) and not (source / "out").exists()
    needed = int(str(caught.value).split(" needs ")[1].split()[0])
    checkpoint = Checkpoint(source / "c")
    (source / "ids.jsonl").write_text(str([5] * needed))
    plan = plan_quantization(checkpoint.stored_shapes(), checkpoint.tied, options)
    for tokens in (32768, 5):  # how few --calibration-tokens there may be
        rows = rows_to_learn_from(checkpoint, replace(options, calibration_tokens=tokens), plan, source / "ids.jsonl")
        assert rows is not None and rows.tokens == needed


def test_an_artifact_of_4_and_8_bits(source: Path) -> None:
    arguments = ["export", str(source / "c"), "-o", str(source / "a"), "--quantize", "int4", "--method", "auto"]
    arguments += ["--target-bits", "7", "--calibration", str(source / "ids.jsonl")]
    told = CliRunner().invoke(main, arguments)
    assert told.exit_code == 0, told.output
    assert "were chosen by auto over 1024 tokens of ids.jsonl, with 8 bits for " in " ".join(told.output.split())
    record = open_artifact(source / "a").manifest.quantization
    assert {record.bits_of(name) for name in record.tensors} == {4, 8} and 5 < record.bits_per_weight("float32") <= 7
    assert record.method.name == "auto" and set(record.method.settings["alone"]) == {"int4", "int8"}
    checked = CliRunner().invoke(main, ["verify", str(source / "a"), "--quick"])
    assert checked.exit_code == 0, checked.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (QuantizeOptions("int4", method="auto"), "needs a size: add --target-bits"),
        (QuantizeOptions("int8", method="auto", target_bits=6), "use it with --quantize int4"),
        (QuantizeOptions("int4", method="gptq", target_bits=6), "has no such setting, so leave out --target-bits"),
        (QuantizeOptions("int4", method="auto", target_bits=float("nan")), "must be above 0"),
        (QuantizeOptions("int4", method="auto", target_bits=4.5), "--target-bits 4.5 is impossible: .* takes 5"),
    ],
)
def test_budgets_that_cannot_be(options: QuantizeOptions, message: str, source: Path) -> None:
    with pytest.raises(LucidError, match=message):
        export(source / "c", source / "out" / "a", ExportOptions(quantize=options, calibration=source / "ids.jsonl"))
    assert not (source / "out").exists()
