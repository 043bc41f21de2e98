"""Whole models with the library's kernels, and choosing between them and the graph's functions."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from click.testing import CliRunner

from lucid_deploy.bench.contenders import Contender, open_contender
from lucid_deploy.cli import main
from lucid_deploy.errors import LucidError
from lucid_deploy.runtimes import open_session
from lucid_deploy.runtimes.onnxruntime.kernels import choose_kernels, describe_kernels


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("cache", ["growing", "static"])
def test_verify(exported, built_library, cache, dtype):
    checkpoint, artifact = exported(dtype, cache=cache)
    arguments = ["verify", str(artifact.directory), "--checkpoint", str(checkpoint), "--kernels", "library"]
    result = CliRunner().invoke(main, [*arguments, "--steps", "8", "--json", "-"])
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["kernels"] == "library"


@pytest.mark.parametrize("kind", ["lucid", "llama"])
def test_the_library_computes_what_the_functions_compute(exported, built_library, kind):
    _, artifact = exported(attention_type=kind)
    ids = np.random.default_rng(0).integers(0, 97, (2, 70))
    mask = np.ones((2, 70), bool)
    mask[0, :9] = False
    found = []
    for kernels in ("functions", "library"):
        session = open_session(artifact, threads=2, kernels=kernels)
        assert session.kernels == kernels
        cache = session.empty_cache(2)
        rows = [session.prefill(ids, cache, mask)] + [session.decode(ids[:, :1], cache) for _ in range(3)]
        found.append(np.concatenate(rows, axis=1))
    assert not np.array_equal(*found), "both were computed by the same kernels"
    np.testing.assert_allclose(found[1], found[0], atol=2e-4 * np.abs(found[0]).max())


def test_auto_takes_the_library_where_there_is_one(exported, built_library):
    session = open_session(exported()[1])
    assert session.kernels == "library" and session.label == "onnxruntime (library kernels)"
    assert describe_kernels()["auto"] == "library"
    contender = Contender("a", "artifact", str(exported()[1].directory))
    assert open_contender(contender).kernels == "library"


def test_auto_takes_the_functions_where_there_is_none(exported, no_library):
    session = open_session(exported()[1])
    assert session.kernels == "functions" and session.label == "onnxruntime"
    assert describe_kernels()["auto"] == "functions"


def test_a_library_that_is_wanted_and_missing(exported, no_library):
    arguments = ["run", str(exported()[1].directory), "--prompt-ids", "1,2", "--kernels", "library"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: There is no library of kernels ")
    assert result.stderr.endswith("Run: lucid-deploy plugin build --target onnxruntime\n")


def test_a_damaged_library_is_never_passed_over(exported, no_library, tmp_path):
    (tmp_path / "lucid-deploy").mkdir()
    (tmp_path / "lucid-deploy" / "liblucid_onnxruntime.so").write_text("not a library")
    with pytest.raises(LucidError, match="is damaged"):
        open_session(exported()[1])
    assert open_session(exported()[1], kernels="functions").kernels == "functions"
    facts = describe_kernels()
    assert facts["auto"] is None and "is damaged" in facts["problem"]
    result = CliRunner().invoke(main, ["inspect", str(exported()[1].directory)])
    assert result.exit_code == 0 and "is damaged" in result.stdout


def test_choices_that_cannot_be(exported):
    with pytest.raises(LucidError, match="'fast' are not known; known are auto, functions, library"):
        open_session(exported()[1], kernels="fast")
    with pytest.raises(LucidError, match="--kernels library is for onnxruntime on the CPU"):
        choose_kernels("library", "cuda")
    with pytest.raises(LucidError, match="--kernels is for onnxruntime; runtime torch has none"):
        open_session(exported()[1], "torch", kernels="library")


@pytest.mark.parametrize("command", ["run", "inspect"])
def test_what_was_used_is_said(exported, built_library, command):
    arguments = [command, str(exported()[1].directory)]
    if command == "run":
        result = CliRunner().invoke(main, [*arguments, "--prompt-ids", "1,2", "-n", "2"])
        assert "onnxruntime (library kernels), float32" in result.stderr
        result = CliRunner().invoke(main, [*arguments, "--prompt-ids", "1,2", "-n", "2", "--json"])
        assert json.loads(result.stdout)["kernels"] == "library"
    else:
        result = CliRunner().invoke(main, [*arguments, "--json", "-"])
        assert json.loads(result.stdout)["kernels"]["library"] == str(built_library)


def test_bench_with_both(exported, built_library, preloaded, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(preloaded / "python"))  # of the contenders' processes
    _, artifact = exported()
    arguments = [
        "bench",
        str(artifact.directory),
        "--kernels",
        "both",
        "--lengths",
        "16",
        "--repeats",
        "1",
        "--steps",
        "1",
    ]
    result = CliRunner().invoke(main, [*arguments, "--json", "-"])
    assert result.exit_code == 0, result.stderr
    kernels = {name: facts["kernels"] for name, facts in json.loads(result.stdout)["opened"].items()}
    name = artifact.directory.name
    assert kernels == {name: "library", f"{name}-functions": "functions"}
