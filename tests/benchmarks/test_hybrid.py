"""The models that benchmarks/hybrid.py compares are of one size, and differ in their layers."""

from __future__ import annotations

import math

import common
import hybrid
import pytest
from click.testing import CliRunner

from lucid_deploy.model.checkpoint import expected_shapes
from lucid_deploy.model.config import LucidConfig, parse_config


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
