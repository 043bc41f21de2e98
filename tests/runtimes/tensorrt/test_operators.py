"""The operators that TensorRT takes from the plugin are those that exported graphs have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from lucid_deploy.artifact import Artifact
from lucid_deploy.plugins.table import DECODE_ATTENTION_FLOAT8, DOMAIN
from lucid_deploy.runtimes.tensorrt.operators import PLUGIN_OPERATORS, STAGE_OPERATORS

Exported = Callable[..., tuple[Path, Artifact]]


@pytest.mark.parametrize("stage", ["prefill", "decode"])
def test_each_stage_has_one_per_layer(stage: str, exported: Exported) -> None:
    graph = exported()[1].graph(stage).graph
    found = Counter(node.op_type for node in graph.node if node.domain == DOMAIN)
    assert {name: found[name] for name in PLUGIN_OPERATORS} == {
        name: 2 if name == STAGE_OPERATORS[stage][0] else 0 for name in PLUGIN_OPERATORS
    }


def test_the_plugin_has_every_stages_operator() -> None:
    in_place_of_another = {DECODE_ATTENTION_FLOAT8.name}  # engines of an FP8 cache have it instead of DecodeAttention
    assert set().union(*STAGE_OPERATORS.values()) == set(PLUGIN_OPERATORS) - in_place_of_another
