"""No command overwrites what it reads: the files stay as they were, byte by byte."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from lucid_deploy.artifact import Artifact, open_artifact
from lucid_deploy.cli import main

Exported = Callable[..., tuple[Path, Artifact]]


@pytest.fixture
def place(exported: Exported, tmp_path: Path) -> Path:
    """A folder with copies of an artifact and of its checkpoint, and a file of prompts with links to it."""
    checkpoint, artifact = exported()
    shutil.copytree(checkpoint, tmp_path / "checkpoint")
    shutil.copytree(artifact.directory, tmp_path / "artifact")
    shutil.copytree(artifact.directory, tmp_path / "draft")
    manifest = tmp_path / "artifact" / "lucid.json"
    manifest.write_text(manifest.read_text().replace(str(checkpoint), str(tmp_path / "checkpoint")))
    (tmp_path / "p.jsonl").write_text('{"prompt_ids": [5]}\n')
    (tmp_path / "symlink").symlink_to("p.jsonl")
    (tmp_path / "out.run.json").symlink_to("p.jsonl")
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


BATCH = "run artifact --batch p.jsonl --overwrite --output"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (f"{BATCH} p.jsonl", "--output p.jsonl would overwrite p.jsonl, which is read"),
        (f"{BATCH} symlink", "would overwrite p.jsonl"),
        (f"{BATCH} out", "--output out.run.json would overwrite p.jsonl"),
        (f"{BATCH} artifact/answers.jsonl", "lies inside artifact, which is read"),
        (f"{BATCH} out2 --json out2", "--output out2 is what --json writes too"),
        (f"{BATCH} draft/weights.bin --speculate draft --draft draft", "lies inside draft, which is read"),
        ("inspect artifact --json artifact", "--json artifact would replace artifact"),
        ("verify artifact --json checkpoint/config.json", "/checkpoint, which is read"),
        ("verify artifact --report page.html --json page.html", "--report page.html is what --json writes too"),
        ("export checkpoint --output checkpoint/artifact", "lies inside checkpoint"),
        ("export checkpoint --output new --calibration p.jsonl --dtype fp16 --json symlink", "would overwrite p.jsonl"),
        (
            "run artifact --prompt-ids 5 --json none/facts.json",
            "none/facts.json cannot be written: there is no folder none.",
        ),
        ("run artifact --prompt-ids 5 --json checkpoint/..", "checkpoint/.. cannot be written: it is a folder."),
    ],
)
def test_bad_outputs_change_nothing(place: Path, line: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    before = contents(place)
    result = CliRunner().invoke(main, line.split())
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1), result.output
    assert said in result.stderr and result.stdout == ""
    assert contents(place) == before


@pytest.mark.parametrize("extra", ["--json facts.json", "--json /dev/null", "--json -", "-q --json ./artifact.json"])
def test_other_outputs_are_written(place: Path, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    line = f"run artifact --batch p.jsonl --output answers.jsonl -n 1 --ignore-eos {extra}"
    for _ in range(2):  # the second time the answers are there
        result = CliRunner().invoke(main, line.split(), catch_exceptions=False)
        assert result.exit_code == 0, result.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device without room")
def test_an_error_after_the_answer_has_a_line_of_its_own(place: Path) -> None:
    line = f"run {place / 'artifact'} --prompt-ids 5 -n 2 --ignore-eos -q --json /dev/full"
    result = CliRunner().invoke(main, line.split())
    answer, error = result.output.splitlines()
    assert result.exit_code == 2 and answer.count(",") == 1
    assert error == "Error: /dev/full cannot be written: No space left on device."


def test_a_file_may_lie_in_a_folder_that_the_command_makes(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)

    def export(*_: Any) -> Artifact:
        (place / "new").mkdir()
        return open_artifact(place / "artifact")

    monkeypatch.setattr("lucid_deploy.export.export", export)
    line = "export checkpoint --output new --json new/facts.json"
    result = CliRunner().invoke(main, line.split())
    assert (result.exit_code, (place / "new" / "facts.json").is_file()) == (0, True), result.stderr
