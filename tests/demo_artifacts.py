"""The bundled checkpoint, and artifacts of it exported once per test run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lucid_deploy.artifact import Artifact
from lucid_deploy.export import ExportOptions, export
from lucid_deploy.model.checkpoint import DEMO, resolve


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Artifact]:
    """Return a function that exports the bundled model, with the logits of every token unless told otherwise."""
    root, done = tmp_path_factory.mktemp("demo"), {}

    def get(dtype: str = "float32", logits: str = "all") -> Artifact:
        key = f"{dtype}-{logits}"
        if key not in done:
            done[key] = export(DEMO, root / key, ExportOptions(dtype, logits=logits))
        return done[key]

    return get


@pytest.fixture(scope="session")
def demo_directory() -> Path:
    """The bundled checkpoint."""
    return resolve(DEMO)
