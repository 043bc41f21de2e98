"""``lucid-deploy clean``: what killed commands left goes, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from lucid_deploy.cli import main
from lucid_deploy.files import partial_directory


def clean(*arguments: Any) -> str:
    result = CliRunner().invoke(main, ["clean", *map(str, arguments)])
    assert result.exit_code == 0, result.stderr
    return result.stdout


@pytest.fixture
def left(tmp_path: Path) -> list[Path]:
    """What was left beside an artifact, and inside of it beside its engines."""
    (tmp_path / "artifact" / "engines").mkdir(parents=True)
    places = [tmp_path / ".new.abcdefgh.lucid.partial", tmp_path / "artifact" / "engines" / ".rtx.a_c0efgh.lucid.old"]
    for place in places:
        place.mkdir()
        (place / "weights.bin").write_bytes(b"half")
    return places


def test_it_says_what_it_does(tmp_path: Path, left: list[Path]) -> None:
    beside, inside = left
    with partial_directory(tmp_path / "other") as making:
        beside.mkdir(exist_ok=True)  # making it has tidied up already
        asked = (tmp_path, tmp_path / "artifact")
        said = clean(*asked, "--dry-run").splitlines()
        assert said == [f"Would have removed: {beside}", f"Would have removed: {inside}", f"In use: {making}"]
        assert beside.exists() and inside.exists()
        facts = json.loads(clean(*asked, "--json"))
        assert facts == {
            "dry_run": False,
            "removed": [str(beside), str(inside)],
            "restored": [],
            "in_use": [str(making)],
            "failed": [],
        }
        assert making.is_dir() and not beside.exists() and not inside.exists()
    assert clean(*asked) == "Nothing was left behind.\n"


def test_this_directory_if_none_is_named(tmp_path: Path, left: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert clean() == f"Removed: {left[0].name}\n"


def test_no_directory(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["clean", str(tmp_path / "none")])
    assert (result.exit_code, result.stderr) == (2, f"Error: {tmp_path / 'none'} is no directory.\n")


def test_what_cannot_be_removed_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was said to be removed, and nothing behind it was looked at."""
    kept, moved = tmp_path / ".a.abcdefgh.lucid.old", tmp_path / ".b.abcdefgh.lucid.partial"
    (kept / "a").mkdir(parents=True)
    moved.mkdir()

    def read_only(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.rename", read_only)
    result = CliRunner().invoke(main, ["clean", str(tmp_path)])
    assert (result.exit_code, result.stdout) == (2, f"Removed: {moved}\n")
    assert result.stderr.startswith(f"Error: {kept} could not be removed, or get its name again.")
    assert (kept / "a").is_dir() and not moved.exists()
