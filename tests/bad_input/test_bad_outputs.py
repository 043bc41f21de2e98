"""Outputs that export must not touch, and exports that fail or are interrupted."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from lucid_deploy.artifact import Artifact
from lucid_deploy.cli import main
from tests.patience import PATIENCE
from tests.phase_lines import without_progress

Refused = Callable[..., str]
MakeCheckpoint = Callable[..., Path]
Exported = Callable[..., tuple[Path, Artifact]]


def test_an_existing_output_is_refused(refused: Refused, make_checkpoint: MakeCheckpoint, artifact_copy: Path) -> None:
    message = refused("export", make_checkpoint(), "--output", artifact_copy)
    assert f"{artifact_copy} exists already" in message
    assert "--overwrite" in message


@pytest.mark.parametrize("kind", ["directory", "file"])
def test_overwriting_what_is_no_artifact_is_refused(
    refused: Refused, make_checkpoint: MakeCheckpoint, tmp_path: Path, kind: str
) -> None:
    output = tmp_path / "photos"
    if kind == "directory":
        output.mkdir()
        (output / "holiday.jpg").write_bytes(b"precious")
    else:
        output.write_bytes(b"precious")
    message = refused("export", make_checkpoint(), "--output", output, "--overwrite")
    assert "is not an exported artifact, so --overwrite does not replace it" in message


def test_overwriting_the_checkpoint_is_refused(refused: Refused, make_checkpoint: MakeCheckpoint) -> None:
    checkpoint = make_checkpoint()
    (checkpoint / "lucid.json").write_text("{}")  # so that it could pass for an artifact
    message = refused("export", checkpoint, "--output", checkpoint, "--overwrite")
    assert f"would replace {checkpoint}" in message


def test_overwriting_an_artifact_that_holds_the_checkpoint_is_refused(
    refused: Refused, make_checkpoint: MakeCheckpoint, artifact_copy: Path
) -> None:
    checkpoint = make_checkpoint("artifact/deep/checkpoint")
    message = refused("export", checkpoint, "--output", artifact_copy, "--overwrite")
    assert "would replace the checkpoint" in message


def test_a_parent_that_is_a_file_is_refused(refused: Refused, make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    parent = tmp_path / "file"
    parent.touch()
    message = refused("export", make_checkpoint(), "--output", parent / "artifact")
    assert "failed: Not a directory" in message


# Tracing, which takes seconds, is left out of exports that end while they write weights.
UNTRACED = """
import types
import lucid_deploy.export.trace
from lucid_deploy.cli import main
lucid_deploy.export.trace.trace = lambda *_, **__: types.SimpleNamespace(transposed=frozenset())
lucid_deploy.export.trace.derive_static = lambda *_: None
"""


def test_a_write_error_leaves_nothing_behind(make_checkpoint: MakeCheckpoint, tmp_path: Path, preloaded: Path) -> None:
    """The export runs in a process whose files may have 60,000 bytes, so writing the weights fails halfway."""
    limited = f"""{UNTRACED}
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
main()
"""
    arguments = ["export", str(make_checkpoint()), "--output", str(tmp_path / "artifact"), "--quiet"]
    before = sorted(tmp_path.rglob("*"))
    command = [preloaded / "python", "-c", limited, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    message = f"Error: Writing {tmp_path / 'artifact'} failed: File too large. Nothing was left behind.\n"
    assert (result.returncode, result.stdout, without_progress(result.stderr)) == (2, "", message)
    assert sorted(tmp_path.rglob("*")) == before


# An export that waits after writing its weights, so that the signal comes before the export has finished.
HELD = f"""{UNTRACED}
import time
import lucid_deploy.export.weights as weights
write = weights.write_weights
weights.write_weights = lambda *arguments: (write(*arguments), time.sleep({PATIENCE}))[0]
main()
"""


@pytest.mark.parametrize(
    ("number", "statuses", "said"),
    [
        # Python may end itself by the signal, if in an import
        (signal.SIGINT, {130, -signal.SIGINT}, "Interrupted.\n"),
        (signal.SIGTERM, {143}, ""),
        (signal.SIGKILL, {-signal.SIGKILL}, ""),
    ],
    ids=["SIGINT", "SIGTERM", "SIGKILL"],
)
def test_an_interrupted_export_leaves_no_artifact(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, preloaded: Path, number: int, statuses: set[int], said: str
) -> None:
    output = tmp_path / "new" / "artifact"
    command = [str(preloaded / "python"), "-c", HELD, "export", "--quiet"]
    command += [str(make_checkpoint()), "--output", str(output)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:
        deadline = time.monotonic() + PATIENCE
        while not any(tmp_path.glob("new/*.tmp-*/weights.bin")) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=PATIENCE)
    assert (stdout, without_progress(stderr)) == ("", said)
    assert process.returncode in statuses
    assert not output.exists()
    if number != signal.SIGKILL:  # which leaves a folder for the user to delete
        assert not output.parent.exists()
        return
    assert CliRunner().invoke(main, command[3:]).exit_code == 0
    assert (output / "lucid.json").is_file() and len(list(output.parent.iterdir())) == 2
