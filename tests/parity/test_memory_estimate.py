"""A verification that cannot fit into memory is refused before anything is opened."""

import json

import pytest
from click.testing import CliRunner

from lucid_deploy.cli import main


@pytest.mark.parametrize("options", [[], ["--explain"]])
def test_too_little_memory_is_one_error_before_the_run(exported, monkeypatch, options):
    _, artifact = exported(max_position_embeddings=48)
    monkeypatch.setattr("lucid_deploy.parity.measure.memory.available", lambda: 10**8)
    monkeypatch.setattr("lucid_deploy.runtimes.open_session", None)  # nothing is opened
    result = CliRunner().invoke(main, ["verify", str(artifact.directory), *options], catch_exceptions=False)
    words = " ".join(result.stderr.split())
    assert result.exit_code == 2
    assert "GB of memory" in words and "0.1 GB are free" in words and "more memory" in words
    assert ("Without --explain" in words) == bool(options)


def test_what_to_do_is_said_after_a_failure_only(exported):
    _, artifact = exported(max_position_embeddings=48)
    run = ["verify", str(artifact.directory), "--steps", "4", "--runtime", "torch", "--json", "-"]
    assert json.loads(CliRunner().invoke(main, run).stdout)["advice"] == ""
    result = CliRunner().invoke(main, [*run, "--tolerance", "1e-12"])
    assert result.exit_code == 1 and "What to do" in json.loads(result.stdout)["advice"]
