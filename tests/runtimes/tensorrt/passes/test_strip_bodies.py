"""The plugin's operators lose their bodies, and no others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lucid_deploy.artifact import Artifact
from lucid_deploy.runtimes.tensorrt.passes import strip_bodies
from tests.runtimes.tensorrt.graphs import load

Exported = Callable[..., tuple[Path, Artifact]]


def test_strip_bodies_takes_the_plugins_and_no_other(exported: Exported) -> None:
    model = load(exported()[1], "prefill")
    nodes = [node.op_type for node in model.graph]
    assert strip_bodies(model) and not strip_bodies(model)
    assert [key[1] for key in model.functions] == ["CausalAttention"]
    assert [node.op_type for node in model.graph] == nodes
