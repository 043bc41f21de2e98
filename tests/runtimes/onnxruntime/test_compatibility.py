"""Versions that compute wrongly are refused; the library of kernels is used if there is one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from lucid_deploy.artifact import Artifact
from lucid_deploy.bench.contenders import Contender, open_contender
from lucid_deploy.cli import main
from lucid_deploy.errors import LucidError
from lucid_deploy.plugins.hosts.onnxruntime.build import user_ort_library
from lucid_deploy.runtimes import open_session
from lucid_deploy.runtimes.onnxruntime.compatibility import check_version, describe_kernels

Exported = Callable[..., tuple[Path, Artifact]]


@pytest.mark.parametrize("version", ["1.22.1", "1.23.0"])
def test_old_versions_are_refused(version: str, exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits of 1.23.0 were off by 0.35 (LUCID) and 0.70 (standard attention) of their size; 1.23.1 is right."""
    check_version("1.23.1", exported()[1])
    monkeypatch.setattr("onnxruntime.__version__", version)
    with pytest.raises(LucidError, match=rf'onnxruntime {version} computes .* wrongly .*"onnxruntime>=1\.23\.1"$'):
        open_session(exported()[1])


@pytest.mark.parametrize("version", ["1.23.1", "1.24.4", "1.24.0+cu12"])
def test_static_caches_need_1_25(version: str, exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = exported(cache="static")[1]
    monkeypatch.setattr("onnxruntime.__version__", version)
    with pytest.raises(
        LucidError,
        match=r'static cache .* TensorScatter.* "onnxruntime>=1\.25", or .* --opset 23 or --cache growing',
    ):
        open_session(artifact)


def test_caches_in_fp8_need_1_24(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    """1.23.1 computes with FP8 caches but cannot return them to NumPy; tests/compat/ runs 1.23.1 and 1.24.1."""
    artifact = exported()[1]
    rounded = Artifact(artifact.directory, replace(artifact.manifest, cache_dtype="fp8"))
    check_version("1.24.1", rounded)
    with pytest.raises(
        LucidError, match=r'1\.23\.1 cannot read back the FP8 cache of .*"onnxruntime>=1\.24", or .*--cache-'
    ):
        check_version("1.23.1", rounded)


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


def test_a_missing_library_that_was_asked_for_is_an_error(exported, no_library):
    arguments = ["run", str(exported()[1].directory), "--prompt-ids", "1,2", "--kernels", "library"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: There is no library of kernels ")
    assert result.stderr.endswith("Run: lucid-deploy plugin build --target onnxruntime\n")


def test_a_damaged_library_is_refused_unless_functions_are_chosen(exported, no_library, tmp_path):
    user_ort_library().parent.mkdir()
    user_ort_library().write_text("not a library")
    with pytest.raises(LucidError, match="cannot be trusted"):
        open_session(exported()[1])
    assert open_session(exported()[1], kernels="functions").kernels == "functions"
    facts = describe_kernels()
    assert facts["auto"] is None and "cannot be trusted" in facts["problem"]
    result = CliRunner().invoke(main, ["inspect", str(exported()[1].directory)])
    assert result.exit_code == 0 and "cannot be trusted" in result.stdout
