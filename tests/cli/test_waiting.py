"""Threads of PyTorch and NumPy sleep while they wait, where that can still be said and the user has not."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

NAMES = ("OMP_WAIT_POLICY", "OPENBLAS_THREAD_TIMEOUT")
SHOW = f"print(*(os.environ.get(name) for name in {NAMES}))"
CALL = "from lucid_deploy.cli._waiting import let_waiting_threads_sleep as call; call()"
VERIFY = """
from lucid_deploy.cli import main
try:
    main(["verify", "no-such-artifact"])
except SystemExit as left:
    assert left.code == 2
assert "numpy" in sys.modules
"""


@pytest.mark.parametrize(
    ("code", "given", "wanted"),
    [
        (CALL, {}, "PASSIVE 4"),
        (CALL, {"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE 4"),
        ("import numpy; " + CALL, {}, "None None"),
        (VERIFY, {}, "PASSIVE 4"),
    ],
    ids=["fresh", "chosen", "loaded", "verify"],
)
def test_it_is_set_before_the_libraries_are_loaded(code: str, given: dict[str, str], wanted: str) -> None:
    kept = {name: value for name, value in os.environ.items() if name not in NAMES}
    found = subprocess.run(
        [sys.executable, "-c", f"import os, sys\n{code}\n{SHOW}"],
        env={**kept, **given},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == wanted
