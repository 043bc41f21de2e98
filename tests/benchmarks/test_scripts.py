"""Benchmark scripts can say how they are used, and compare what they say they compare."""

from __future__ import annotations

import importlib
import math
from pathlib import Path

import click
import common
import hybrid
import pytest
from click.testing import CliRunner

from lucid_deploy.model.checkpoint import Checkpoint, expected_shapes
from lucid_deploy.model.config import LucidConfig
from lucid_deploy.model.config_parsing import parse_config

SCRIPTS = sorted(path.stem for path in (Path(__file__).parents[2] / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_imports_and_has_help(name: str) -> None:
    main = getattr(importlib.import_module(name), "main", None)
    if isinstance(main, click.Command):
        result = CliRunner().invoke(main, ["--help"])
        assert result.exit_code == 0 and result.output.startswith("Usage:")


def test_the_twin_has_the_same_weights_and_standard_attention(tmp_path: Path) -> None:
    lucid = common.write_random_checkpoint(tmp_path / "lucid", "small")
    twin = common.write_standard_twin(lucid)
    assert [Checkpoint(path).config.kinds for path in (lucid, twin)] == [("lucid",), ("standard",)]
    assert all((twin / path.name).samefile(path) for path in lucid.glob("*.safetensors*"))


def config(shape: str, changes: dict) -> LucidConfig:
    raw = {**common.BASE, **common.SHAPES[shape], **changes}
    return parse_config({key: value for key, value in raw.items() if value is not None}, shape)


@pytest.mark.parametrize("shape", ["hybrid", "small-hybrid"])
def test_the_models_are_of_one_size(shape: str) -> None:
    found = {name: config(shape, changes) for name, changes in hybrid.MODELS.items()}
    kinds = {name: set(each.kinds) for name, each in found.items()}
    assert kinds == {"hybrid": {"gated_delta", "lucid"}, "lucid": {"lucid"}, "standard": {"standard"}}
    assert found["hybrid"].kinds.count("gated_delta") == 3 * found["hybrid"].kinds.count("lucid")
    sizes = {name: sum(map(math.prod, expected_shapes(each).values())) for name, each in found.items()}
    assert sizes["lucid"] == sizes["standard"] and 0.9 < sizes["hybrid"] / sizes["lucid"] < 1.02


def test_it_says_how_it_is_used() -> None:
    result = CliRunner().invoke(hybrid.main, ["--help"])
    assert result.exit_code == 0 and "--context" in result.stdout
