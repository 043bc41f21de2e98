"""Open a session's layers, to run them one by one."""

from __future__ import annotations

from typing import Any

from lucid_deploy.artifact import Artifact
from lucid_deploy.errors import LucidError
from lucid_deploy.runtimes.layers import Layers
from lucid_deploy.runtimes.options import RuntimeOptions
from lucid_deploy.runtimes.registry import built_in_runtimes, find_runtime
from lucid_deploy.runtimes.session import Session


def open_layers(session: Session[Any], artifact: Artifact | None) -> Layers:
    """Return the layers behind a session.

    Args:
        session: What runs the model.
        artifact: What it runs, for runtimes that run graphs.

    Raises:
        LucidError: This runtime's layers cannot be run one by one.
    """
    if session.capabilities.reads_layers:
        return find_runtime(session.runtime).open_layers(session, artifact)
    able = [item.name for item in built_in_runtimes() if item.capabilities(RuntimeOptions()).reads_layers]
    raise LucidError(
        f"{session.label} runs a graph as one piece, so that no layer can be run by itself: own and inherited errors, "
        f"and what the solve adds, are not known. Verify the artifact with --runtime {' or '.join(able)} for them."
    )
