"""``lucid-deploy build`` hands its options over as they were written, and shows what was built."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from lucid_deploy.artifact import Artifact
from lucid_deploy.cli import main
from lucid_deploy.runtimes.tensorrt.build import BuildOptions, BuildReport
from lucid_deploy.runtimes.tensorrt.limits import Limits
from lucid_deploy.runtimes.tensorrt.manifest import EngineFile, EngineManifest

Exported = Callable[..., tuple[Path, Artifact]]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[BuildOptions]:
    """Replace the build by a stand-in; return the list of options that it gets."""
    given: list[BuildOptions] = []

    def build(artifact: Artifact, options: BuildOptions, progress: Any, announce: Any) -> BuildReport:
        given.append(options)
        engine = EngineFile("decode.engine", 3 * 2**20, "", {}, {"DecodeAttention": ["a", "b"]})
        plain = EngineFile("prefill.engine", 512, "", {}, {})
        engines = {"prefill": plain, "decode": engine}
        manifest = EngineManifest("tensorrt-rtx", "1.7", "0", (86,), Limits(2, 64, 16), False, {}, None, engines)
        built = {stage: {"layers": 40, "seconds": 1.25} for stage in engines}
        return BuildReport(artifact.directory / "engines", manifest, built)

    monkeypatch.setattr("lucid_deploy.runtimes.tensorrt.build.build_engines", build)
    return given


def run(artifact: Artifact, *words: str) -> Result:
    return CliRunner().invoke(main, ["build", str(artifact.directory), *words])


def test_options_arrive_and_the_table_says_what_was_built(exported: Exported, asked: list[BuildOptions]) -> None:
    words = "--max-batch 2 --max-context 64 --prefill-chunk 16 --compute-capability 8.6,,12.0"
    result = run(exported()[1], *words.split(), "--weightless", "--overwrite")
    assert result.exit_code == 0, result.stderr
    assert asked == [BuildOptions(None, 2, 64, 16, ("8.6", "12.0"), True, None, True)]
    assert "tensorrt-rtx 1.7, batch up to 2, context up to 64" in result.stdout
    assert "compute capability: 8.6" in result.stdout
    rows = [" ".join(line.replace("│", " ").split()) for line in result.stdout.splitlines()]
    assert "prefill.engine 512 B 40 none needed 1.2" in rows
    assert "decode.engine 3.0 MiB 40 2 DecodeAttention 1.2" in rows


def test_a_list_without_a_gpu_is_refused(exported: Exported, asked: list[BuildOptions]) -> None:
    result = run(exported()[1], "--compute-capability", ",")
    message = "--compute-capability names no GPU; it takes a list such as 8.6,12.0."
    assert result.exit_code == 2 and message in " ".join(result.stderr.split()) and asked == []
