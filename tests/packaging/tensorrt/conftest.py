from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lucid_deploy.artifact import Artifact
from lucid_deploy.packaging.tensorrt import TensorRtOptions, package_tensorrt

pytest.importorskip("polygraphy", reason='packages are written with Polygraphy: pip install -e ".[rtx]"')
LIMITS = {"max_batch": 2, "max_context": 64, "prefill_chunk": 16}


@pytest.fixture(scope="session")
def package(
    exported: Callable[..., tuple[Path, Artifact]], plugin: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Return the package of the tiny artifact. Do not change the files."""
    target = tmp_path_factory.mktemp("packages") / "tiny"
    return package_tensorrt(exported()[1], target, TensorRtOptions(plugin=plugin, **LIMITS))
