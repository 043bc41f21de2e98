"""The bundled checkpoint, and artifacts of it exported once per test run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lucid_deploy.artifact import Artifact, open_artifact
from lucid_deploy.export import ExportOptions, export
from lucid_deploy.model.checkpoint import DEMO, resolve
from tests.once_per_run import made_once, run_folder


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Artifact]:
    """Return a function that exports the bundled model, with the logits of every token unless told otherwise."""
    root = run_folder(tmp_path_factory, "demo")

    def get(dtype: str = "float32", logits: str = "all", **options: Any) -> Artifact:
        def make(folder: Path) -> None:
            export(DEMO, folder / "artifact", ExportOptions(dtype, logits=logits, **options))

        key = f"{dtype}-{logits}-{sorted(options.items())}"
        return open_artifact(made_once(root, key, make) / "artifact")

    return get


@pytest.fixture(scope="session")
def demo_directory() -> Path:
    """The bundled checkpoint."""
    return resolve(DEMO)
