"""What OpenVINO cannot do is refused before a graph is loaded, with what can be done instead."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lucid_deploy.artifact import Artifact
from lucid_deploy.errors import LucidError
from lucid_deploy.runtimes import RuntimeOptions, find_runtime, open_session

Exported = Callable[..., tuple[Path, Artifact]]


def test_graphs_with_functions_are_refused(exported: Exported) -> None:
    with pytest.raises(LucidError, match="--inline"):
        open_session(exported()[1], "openvino")


@pytest.mark.parametrize("device", ["cuda", "npu", "cpu:1"])
def test_it_runs_on_the_cpu(device: str, exported: Exported) -> None:
    with pytest.raises(LucidError, match=f"Runtime openvino runs on cpu, not on '{device}'"):
        open_session(exported()[1], "openvino", device=device)


def test_layers_are_in_one_piece_and_types_go_through_numpy() -> None:
    can = find_runtime("openvino").capabilities(RuntimeOptions())
    assert not can.reads_layers and not can.rounds_activations and "bfloat16" not in can.dtypes
