"""``lucid-deploy bench`` measures what it was told to, and refuses what makes no sense."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from lucid_deploy.artifact import Artifact
from lucid_deploy.cli import main

BASELINES = ("standard", "torch-dense", "torch-blocked", "transformers", "llama.cpp", "openvino")
Exported = Callable[..., tuple[Path, Artifact]]


def test_bench_command_measures_all_contenders(
    exported: Exported, tmp_path: Path, preloaded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib", reason='plots need: pip install ".[bench]"')
    monkeypatch.setattr(sys, "executable", str(preloaded / "python"))  # of the contenders' processes
    _, artifact = exported()
    target = tmp_path / "out.json"
    arguments = ["bench", str(artifact.directory), "--lengths", "8,40", "--repeats", "2", "--steps", "2"]
    for baseline in BASELINES:
        arguments += ["--baseline", baseline]
    result = CliRunner().invoke(main, [*arguments, "--json", str(target), "--plot", str(tmp_path / "plots")])
    assert result.exit_code == 0, result.output
    report = json.loads(target.read_text())
    names = [
        artifact.directory.name,
        "standard",
        "torch-dense",
        "torch-blocked",
        "transformers",
        "llama.cpp",
        "openvino",
    ]
    points = {(row["contender"], row["stage"], row["length"]) for row in report["measurements"]}
    assert points == {(name, stage, n) for name in names for stage in ("prefill", "decode") for n in (8, 40)}
    for row in report["measurements"]:
        assert len(row["seconds"]) == 2 and row["median"] > 0 and row["peak"] > 10**7
    assert ("Note: llama.cpp: " in result.stderr) is (report["opened"]["llama.cpp"]["remark"] is not None)
    assert report["machine"]["versions"]["onnxruntime"] and report["machine"]["copy_bytes_per_second"] > 0
    plots = {path.name for path in (tmp_path / "plots").iterdir()}
    assert plots == {f"{stage}{number}.png" for stage in ("prefill", "decode") for number in ("", "-2")}


def test_a_temporary_directory_that_libraries_cannot_read_is_named(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was said to be a safetensors file, cut or corrupted, and with llama.cpp a traceback's last line."""
    monkeypatch.setattr(tempfile, "tempdir", f"{tmp_path}/x\udcff")
    asked = ["bench", str(exported()[1].directory), "--lengths", "8", "--repeats", "1", "--baseline", "standard"]
    result = CliRunner().invoke(main, asked)
    assert result.exit_code == 2 and "Set TMPDIR to another one." in result.stderr
    assert f"the name of {tmp_path}/x\\xff is no text in UTF-8" in result.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device without room")
def test_times_are_shown_also_if_their_file_cannot_be_written(exported: Exported) -> None:
    asked = ["bench", str(exported()[1].directory), "--lengths", "8", "--repeats", "1", "--steps", "1"]
    result = CliRunner().invoke(main, [*asked, "--stages", "decode", "--json", "/dev/full"])
    assert result.exit_code == 2 and "Error: /dev/full cannot be written: No space left on device." in result.stderr
    assert "decode" in result.stdout and "copies" in result.stdout


@pytest.mark.parametrize("cache", ["growing", "static"])
def test_bench_command_measures_openvino(exported: Exported, cache: str) -> None:
    pytest.importorskip("openvino", reason='needs OpenVINO: pip install -e ".[openvino]"')
    small = {"num_hidden_layers": 1, "inline": True, "cache": cache, "opset": 23}
    asked = ["bench", str(exported(**small)[1].directory), "--runtime", "openvino", "--threads", "1"]
    result = CliRunner().invoke(main, [*asked, "--lengths", "8", "--repeats", "2", "--steps", "2", "--json", "-"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert {(row["stage"], row["length"]) for row in report["measurements"]} == {("prefill", 8), ("decode", 8)}
    assert all(row["median"] > 0 for row in report["measurements"]) and report["machine"]["versions"]["openvino"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lengths", "8,x"], "'8,x' is not a list of whole numbers such as 512,2048."),
        (["--batches", "0"], "'0' must hold positive numbers"),
        (["--stages", "train"], "--stages takes prefill, decode, or prefill,decode, not 'train'"),
        (["--baseline", "vllm"], "'vllm' is not one of 'standard'"),
        (["--repeats", "0"], "0 is not in the range"),
        (["--lengths", "99999999999"], "The caches of 1 x 99999999999 tokens alone take "),
        (["--batches", "1,9" + 30 * "9"], "Take smaller --lengths or --batches; lucid-deploy inspect ARTIFACT"),
    ],
)
def test_what_makes_no_sense_is_refused(words: list[str], message: str, exported: Exported) -> None:
    result = CliRunner().invoke(main, ["bench", str(exported()[1].directory), *words])
    assert result.exit_code == 2 and message in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"cache_dtype": "fp8"}, "and that of {} is in fp8"),
        ({"dtype": "bfloat16"}, "and {} has bfloat16"),
        (None, "of layer 1 (gated_delta) in {} is of the sort state"),
    ],
    ids=["cache", "type", "layers"],
)
def test_a_baseline_that_openvino_does_not_take_names_the_artifact(
    changes: dict[str, Any] | None,
    reason: str,
    exported: Exported,
    hybrid: Callable[..., Artifact],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before anything is exported."""
    monkeypatch.setattr("lucid_deploy.bench.standard.export", lambda *_: pytest.fail("it was exported"))
    artifact = hybrid(short=True) if changes is None else exported(**changes)[1]
    result = CliRunner().invoke(main, ["bench", str(artifact.directory), "--baseline", "openvino", "--lengths", "8"])
    assert result.exit_code == 2 and reason.format(artifact.directory) in result.stderr
    assert result.stderr.endswith(". Leave out --baseline openvino.\n")


def test_too_little_memory_in_a_contender_s_process_is_one_line(
    exported: Exported, preloaded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(preloaded / "python"))
    monkeypatch.setattr("lucid_deploy.bench.memory.physical_bytes", lambda: 1 << 80)
    beyond = str(1 << 50)  # more than a process can address
    result = CliRunner().invoke(main, ["bench", str(exported()[1].directory), "--lengths", beyond])
    (said,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert result.exit_code == 2 and said.startswith("Error: There is too little memory: ")
    assert "Unable to allocate 8.00 PiB" in said and said.endswith(" says the need.")


def test_contenders_need_different_names(exported: Exported) -> None:
    path = str(exported()[1].directory)
    result = CliRunner().invoke(main, ["bench", path, path, "--lengths", "8"])
    assert result.exit_code == 2 and "Contenders need different names; these are called" in result.stderr


@pytest.mark.parametrize(("lengths", "note"), [("8,512", None), ("8,513,600", "Note: 513, 600 tokens are more than")])
def test_lengths_beyond_the_model_s_context_are_named(lengths: str, note: str | None, exported: Exported) -> None:
    """Of a command that ends before it measures anything."""
    path = str(exported()[1].directory)
    shown = CliRunner().invoke(main, ["bench", path, path, "--lengths", lengths]).stderr
    assert f"{note} the model was made for (512, max_position_embeddings)" in shown if note else "Note" not in shown
