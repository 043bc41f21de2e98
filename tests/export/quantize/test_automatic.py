"""Mixed precision: within the size asked for, within 5 % of the best of all choices, and recorded."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from lucid_deploy.artifact import open_artifact
from lucid_deploy.cli import main
from lucid_deploy.errors import LucidError
from lucid_deploy.export import ExportOptions, export
from lucid_deploy.export.calibration import CalibrationRows
from lucid_deploy.export.quantize.automatic import (
    BITS,
    Budget,
    LogitErrors,
    by_kind,
    predicted_best,
    refined,
    split_rows,
)
from lucid_deploy.export.quantize.options import QuantizeOptions
from lucid_deploy.model.checkpoint import Checkpoint, load_model
from tests.conftest import write_checkpoint


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "c", num_hidden_layers=1)
    ids = np.random.default_rng(0).integers(0, 97, (8, 128))
    (tmp_path / "ids.jsonl").write_text("\n".join(str(row.tolist()) for row in ids))
    return tmp_path


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


def test_errors_of_exchanged_weights(make_checkpoint: Any) -> None:
    checkpoint = Checkpoint(make_checkpoint())
    ids = np.random.default_rng(0).integers(0, 97, (2, 30))
    errors, model = LogitErrors(checkpoint, ids), load_model(checkpoint)
    name = "model.layers.0.self_attn.k_proj.weight"
    changed = checkpoint.tensor(name) * 1.1
    exact = model(torch.from_numpy(ids))[0]
    model.model.layers[0].self_attn.k_proj.weight.data = changed
    found = model(torch.from_numpy(ids))[0]
    wanted = ((found - exact).norm(dim=-1) / exact.norm(dim=-1)).mean()
    assert errors.of({name: changed}) == pytest.approx(float(wanted), rel=1e-4) and wanted > 1e-4
    assert errors.of({}) == 0, "its own weights are back"
    kinds = by_kind(list(checkpoint.stored_shapes()), checkpoint.tied)
    assert kinds["k_proj"] == [name, name.replace(".0.", ".1.")]


KINDS = ("q", "k", "v", "o", "up")
SIZES = {kind: (count * 0.625, count * 1.125) for kind, count in zip(KINDS, (100, 25, 25, 100, 300), strict=True)}


def budget(target: float) -> Budget:
    return Budget(SIZES, 550, target)


@pytest.mark.parametrize("target", [5.0, 5.5, 6.3, 8.0, 9.0, 32.0])
def test_the_best_prediction_within_the_budget(target: float) -> None:
    rng = np.random.default_rng(int(target * 10))
    errors = {kind: tuple(rng.uniform(0.1, 1) * scale for scale in (1, 1 / 16)) for kind in KINDS}
    found = predicted_best(budget(target), errors)
    every = [dict(zip(KINDS, bits, strict=True)) for bits in itertools.product(BITS, repeat=len(KINDS))]
    fitting = [choice for choice in every if budget(target).bits(choice) <= target]

    def lost(choice: dict[str, int]) -> float:
        return sum(errors[kind][BITS.index(bits)] ** 2 for kind, bits in choice.items())

    assert found in fitting and lost(found) == pytest.approx(min(map(lost, fitting)))
    assert budget(target).bits(dict.fromkeys(KINDS, 4)) == 5


def test_neighbours_are_measured_once_each_until_none_is_better() -> None:
    """Errors that do not add up: the best choice has none of what the prediction takes."""
    asked = []

    def measure(choice: dict[str, int]) -> float:
        asked.append(tuple(choice.values()))
        return sum((choice[kind] == 4) * weight for kind, weight in zip(KINDS, (5, 4, 1, 2, 9), strict=True))

    start = {"q": 4, "k": 4, "v": 8, "o": 8, "up": 4}
    choice, error, trials = refined(budget(6.0), start, measure, 100)
    assert choice == {"q": 8, "k": 8, "v": 4, "o": 4, "up": 4} and error == 12
    assert len(asked) == len(set(asked)) == trials
    assert all(budget(6.0).bits(dict(zip(KINDS, bits, strict=True))) <= 6 for bits in asked)
    stopped, _, trials = refined(budget(6.0), start, measure, 3)
    assert trials == 3 and budget(6.0).bits(stopped) <= 6
