"""What a user's home and cache hold changes no test."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from lucid_deploy.plugins.hosts.onnxruntime.build import LIBRARY_NAME, default_ort_library
from lucid_deploy.plugins.hosts.triton.compiled_kernel import default_cache
from tests.patience import PATIENCE

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = """import json, tempfile
from pathlib import Path
print(json.dumps([str(Path.home()), tempfile.gettempdir()]))"""
INNER = """
import multiprocessing.util, os, tempfile
from pathlib import Path

def test_it():
    multiprocessing.util.get_temp_dir()  # of this process, which removes it when it ends
    for place in (Path.home(), Path(os.environ["XDG_CACHE_HOME"]), Path(tempfile.gettempdir())):
        assert place.is_dir() and not list(place.rglob("liblucid*")), place
"""


def test_folders_are_those_of_this_run() -> None:
    home, temporary = Path.home(), Path(tempfile.gettempdir())
    assert home != Path(pwd.getpwuid(os.getuid()).pw_dir)
    assert home.parent == temporary.parent
    for cache in (default_ort_library(), default_cache()):
        assert home.parent in cache.parents
    told = subprocess.run([sys.executable, "-c", FOLDERS], capture_output=True, text=True, check=True, timeout=PATIENCE)
    assert json.loads(told.stdout) == [str(home), str(temporary)]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_library_that_the_user_built_is_not_seen(tmp_path: Path, workers: int) -> None:
    user = {name: str(tmp_path / name) for name in ("HOME", "XDG_CACHE_HOME", "TMPDIR")}
    for folder in (tmp_path / "HOME" / ".cache", tmp_path / "XDG_CACHE_HOME"):
        (folder / "lucid-deploy").mkdir(parents=True)
        (folder / "lucid-deploy" / LIBRARY_NAME).write_bytes(b"")
    (tmp_path / "TMPDIR").mkdir()
    (tmp_path / "test_it.py").write_text(INNER)
    command = [sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(tmp_path)]
    command += ["-p", "no:cacheprovider", "-p", "tests.own_folders", "-n", str(workers), str(tmp_path / "test_it.py")]
    environment = {**os.environ, **user}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert (result.returncode, result.stderr) == (0, ""), result.stdout
    assert not list((tmp_path / "TMPDIR").glob("lucid-*")), "the folders are left"
