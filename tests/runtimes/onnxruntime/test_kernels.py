"""Whole models with the library's kernels, and choosing between them and the graph's functions."""

from __future__ import annotations

import numpy as np
import pytest
from click.testing import CliRunner

from lucid_deploy.bench.contenders import Contender, open_contender
from lucid_deploy.cli import main
from lucid_deploy.errors import LucidError
from lucid_deploy.runtimes import open_session
from lucid_deploy.runtimes.onnxruntime.kernels import describe_kernels


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


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
