"""A session's layers are opened where its runtime can run them, and refused by name elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lucid_deploy.artifact import Artifact
from lucid_deploy.errors import LucidError
from lucid_deploy.runtimes import open_session
from lucid_deploy.runtimes.layers import Layers
from lucid_deploy.runtimes.open_layers import open_layers

Exported = Callable[..., tuple[Path, Artifact]]


@pytest.mark.parametrize("runtime", ["onnxruntime", "torch"])
def test_layers_are_those_of_the_session(runtime: str, exported: Exported) -> None:
    _, artifact = exported()
    session = open_session(artifact, runtime)
    found = open_layers(session, artifact)
    assert isinstance(found, Layers)
    assert (found.config, found.dtype, found.cache_dtype) == (session.config, session.dtype, session.cache_dtype)
    assert found.layers == session.layers


def test_a_graph_in_one_piece_is_refused_with_what_can(exported: Exported) -> None:
    _, artifact = exported()
    session: Any = open_session(artifact)
    session.capabilities = replace(session.capabilities, reads_layers=False)
    with pytest.raises(LucidError, match=r"onnxruntime.* runs a graph as one piece.*--runtime torch or onnxruntime"):
        open_layers(session, artifact)
