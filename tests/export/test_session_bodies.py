"""The texts that sessions read say what their sources say."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from lucid_deploy.export.session_bodies import FOLDER, texts

SAY = "import json; from lucid_deploy.export.session_bodies import texts; print(json.dumps(texts()))"


def test_the_files_are_up_to_date() -> None:
    """The compiler's names depend on Python's order of sets, which is fixed when they are written."""
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    made = subprocess.run([sys.executable, "-c", SAY], env=environment, capture_output=True, text=True, check=True)
    assert {path.name: path.read_text() for path in FOLDER.glob("*.onnxtxt")} == json.loads(made.stdout), (
        "Run: python -m lucid_deploy.export.session_bodies"
    )


def test_there_is_one_of_each_for_either_diagonal() -> None:
    assert {path.name for path in FOLDER.glob("*.onnxtxt")} == set(texts())
