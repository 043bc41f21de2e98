"""Regression tests: faults that a new user of the commands could meet."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from tokenizers import Tokenizer

from lucid_deploy.artifact import Artifact, open_artifact
from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.cli import main
from lucid_deploy.errors import CheckFailed, LucidError
from lucid_deploy.export import exporter
from lucid_deploy.model.checkpoint import DEMO, resolve
from lucid_deploy.runtimes import open_session
from tests.patience import PATIENCE

Exported = Callable[..., tuple[Path, Artifact]]


def test_json_goes_through_pipes_and_links(exported: Exported, tmp_path: Path) -> None:
    _, artifact = exported()
    target, link, pipe = tmp_path / "target.json", tmp_path / "link.json", tmp_path / "pipe"
    target.write_text("old")
    link.symlink_to(target)
    assert CliRunner().invoke(main, ["inspect", str(artifact.directory), "--json", str(link)]).exit_code == 0
    assert link.is_symlink() and json.loads(target.read_text())["graphs"]
    os.mkfifo(pipe)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    assert CliRunner().invoke(main, ["inspect", str(artifact.directory), "--json", str(pipe)]).exit_code == 0
    reader.join(timeout=PATIENCE)
    assert json.loads(read[0])["graphs"] and pipe.is_fifo()


def test_what_appears_at_the_output_meanwhile_is_kept(exported: Exported, tmp_path: Path) -> None:
    checkpoint, _ = exported()
    output = tmp_path / "out"

    def meanwhile(*_: object) -> None:
        output.mkdir(exist_ok=True)
        (output / "thesis.txt").write_text("precious")

    with pytest.raises(LucidError, match="exists already"):
        exporter.export(checkpoint, output, progress=meanwhile)
    assert (output / "thesis.txt").read_text() == "precious"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_truncation_and_padding_of_a_tokenizer_file_are_not_applied(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(resolve(DEMO) / "tokenizer.json"))
    text = "fox has red lamp, owl has blue cup. owl has"
    wanted = tokenizer.encode(text).ids
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=16)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert TextTokenizer(tmp_path).encode(text) == wanted


def test_a_vocabulary_of_one_token_runs(exported: Exported) -> None:
    _, artifact = exported(vocab_size=1, eos_token_id=None, num_hidden_layers=1)
    session = open_session(artifact)
    logits = session.prefill(np.zeros((1, 3), np.int64), session.empty_cache())
    assert logits.shape == (1, 1, 1) and np.isfinite(logits).all()


def test_verify_passes_a_model_of_very_short_context(exported: Exported) -> None:
    _, artifact = exported(max_position_embeddings=7)
    result = CliRunner().invoke(main, ["verify", str(artifact.directory), "--seed", "1"])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data["config"].update(num_hidden_layers=3),
        lambda data: data["config"].update(head_dim=64),
        lambda data: data.update(dtype="float16", cache_dtype="float16"),
        lambda data: data.update(cache="static"),
        lambda data: data["config"].update(vocab_size=5),
        lambda data: data["graphs"].update(prefill=data["graphs"]["decode"]),
    ],
    ids=["layers", "width", "type", "cache", "vocabulary", "stages swapped"],
)
def test_a_manifest_that_does_not_fit_the_graphs_is_refused(artifact_copy: Path, change: Callable[[Any], None]) -> None:
    path = artifact_copy / "lucid.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(CheckFailed, match=r"does not fit lucid\.json"):
        open_artifact(artifact_copy)
