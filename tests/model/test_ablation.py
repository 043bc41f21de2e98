"""An ablated model is a configuration of other layers, with the weights that there were."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lucid_deploy.errors import LucidError
from lucid_deploy.model.ablation import ABLATIONS, ablated
from lucid_deploy.model.config_parsing import load_config
from lucid_deploy.model.description import describe
from lucid_deploy.runtimes import options


def test_only_lucid_layers_change(demo_directory: Path) -> None:
    config = load_config(demo_directory)
    assert config.kinds == ("lucid",) * 3
    assert ablated(config, "preconditioner").kinds == ("standard",) * 3
    assert ablated(config, "keys").kinds == ("lucid_raw_keys",) * 3
    for part in ABLATIONS:
        whole, other = (describe(item, "float32") for item in (config, ablated(config, part)))
        for mine, theirs in zip(whole, other, strict=True):
            assert mine.weights == theirs.weights and mine.cache == theirs.cache and not theirs.solves


def test_other_layers_stay(demo_directory: Path) -> None:
    mixed = replace(load_config(demo_directory), layer_kinds=("delta", "lucid", "standard"))
    assert ablated(mixed, "preconditioner").kinds == ("delta", "standard", "standard")
    assert ablated(mixed, "keys").kinds == ("delta", "lucid_raw_keys", "standard")


def test_what_cannot_be_ablated(demo_directory: Path) -> None:
    config = load_config(demo_directory)
    with pytest.raises(LucidError, match="no ablation of 'heads'; there are preconditioner, keys"):
        ablated(config, "heads")
    with pytest.raises(LucidError, match="has no LUCID layers, so it can't be run without their keys"):
        ablated(ablated(config, "preconditioner"), "keys")


def test_options_know_the_same_parts() -> None:
    assert tuple(ABLATIONS) == options.ABLATIONS
    with pytest.raises(LucidError, match="Ablate 'heads' is not known"):
        options.RuntimeOptions(ablate="heads")
