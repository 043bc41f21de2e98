"""Threads of PyTorch and NumPy: how many they are, and that they sleep while they wait; what the user says counts."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

NAMES = ("OMP_WAIT_POLICY", "OPENBLAS_THREAD_TIMEOUT")
CALL = "from lucid_deploy.cli._threads import let_waiting_threads_sleep as call; call()"
VERIFY = """
from lucid_deploy.cli import main
try:
    main(["verify", "no-such-artifact"])
except SystemExit as left:
    assert left.code == 2
assert "numpy" in sys.modules
"""


def shown(code: str, given: dict[str, str], *names: str) -> str:
    """Run code in a process whose environment has of some names only what is given; return their values then."""
    kept = {name: value for name, value in os.environ.items() if name not in names}
    show = f"print(*(os.environ.get(name) for name in {names}))"
    found = subprocess.run(
        [sys.executable, "-c", f"import os, sys\n{code}\n{show}"],
        env={**kept, **given},
        capture_output=True,
        text=True,
        check=True,
    )
    return found.stdout.splitlines()[-1]


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
    assert shown(code, given, *NAMES) == wanted


COUNT = "from lucid_deploy import processors; processors.allowed_threads = lambda: {threads}\n"
COUNT += "from lucid_deploy.cli import main\n"
HELP = """
try:
    main(["--version"])
except SystemExit:
    pass
"""


@pytest.mark.parametrize(
    ("code", "given", "wanted"),
    [
        (COUNT.format(threads=3) + HELP, {}, "3"),
        (COUNT.format(threads=None) + HELP, {}, "None"),
        (COUNT.format(threads=3) + HELP, {"OMP_NUM_THREADS": "2"}, "2"),
        (COUNT.format(threads=3) + "import numpy\n" + HELP, {}, "None"),
    ],
    ids=["fewer", "all", "chosen", "loaded"],
)
def test_no_more_than_this_process_may_use(code: str, given: dict[str, str], wanted: str) -> None:
    assert shown(code, given, "OMP_NUM_THREADS") == wanted
