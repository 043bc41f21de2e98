"""flash-linear-attention's published recurrences and the tensors of its classes, from the package on PyPI."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.compat.environments import packages_beside
from tests.patience import PATIENCE

pytestmark = pytest.mark.compat
ROOT = Path(__file__).resolve().parents[2]


def test_the_layers_written_out_are_those_around_the_published_recurrence() -> None:
    folder = packages_beside("flash-linear-attention==0.6.0", "fla-core==0.6.0", "einops==0.8.2")
    given = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.compat.run_flash"]
    result = subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True, timeout=PATIENCE)
    assert result.returncode == 0 and result.stdout.split()[-1] == "equal", result.stdout + result.stderr[-3000:]
