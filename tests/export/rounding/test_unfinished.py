"""An export that is interrupted while it learns goes on where it was, and gives the same bytes."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from lucid_deploy.errors import LucidError
from lucid_deploy.export import ExportOptions, export
from lucid_deploy.export.calibration import CalibrationRows, calibration_rows
from lucid_deploy.export.numbers import learned_numbers
from lucid_deploy.export.quantize import plan_quantization
from lucid_deploy.export.quantize_options import QuantizeOptions
from lucid_deploy.export.rounding import unfinished as unfinished_module
from lucid_deploy.export.rounding.sensitivity import LogitErrors
from lucid_deploy.export.rounding.unfinished import CODE, LearnedWeights, UnfinishedLearning, code_digest, learning_key
from lucid_deploy.files import resumable
from lucid_deploy.model.checkpoint import Checkpoint
from tests.conftest import write_checkpoint

KEPT = "Finished layers are kept in {}; the same command goes on with them, and clean removes them."
GPTQ = QuantizeOptions("int4", method="gptq")
KILLED = """
import os, signal, sys
from pathlib import Path
from tests.export.rounding.test_unfinished import learn, opened
def progress(text, done, total):
    if done == 1:
        os.kill(os.getpid(), signal.SIGKILL)
learn(Path(sys.argv[1]), opened(Path(sys.argv[1])), progress)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint of two layers, and token ids."""
    write_checkpoint(tmp_path / "checkpoint")
    ids = np.random.default_rng(0).integers(0, 97, (12, 128))
    (tmp_path / "ids.jsonl").write_text("\n".join(str(row.tolist()) for row in ids))
    return tmp_path


def opened(folder: Path) -> Checkpoint:
    return Checkpoint(folder / "checkpoint")


def rows_of(folder: Path, tokens: int = 1536) -> CalibrationRows:
    return calibration_rows(opened(folder), folder / "ids.jsonl", tokens, 1)


def learn(
    folder: Path, checkpoint: Checkpoint, progress: Any = None, options: QuantizeOptions = GPTQ
) -> tuple[Any, dict[str, list[bytes]]]:
    """Learn beside the output ``a``; return the record, and the bytes found."""
    record = plan_quantization(checkpoint.stored_shapes(), checkpoint.tied, options)
    target = folder / "a"
    with learned_numbers(checkpoint, options, record, rows_of(folder), "float32", target, progress) as (found, chosen):
        assert chosen is not None
        return found, {name: [part.tobytes() for part in chosen.parts[name]] for name in sorted(chosen.parts)}


def test_after_kill_9_it_goes_on_with_the_second_layer(folder: Path, tmp_path: Path, preloaded: Path) -> None:
    whole = learn(folder, opened(folder))
    assert resumable(tmp_path / "a") == [], "what is finished leaves nothing"
    done = subprocess.run([preloaded / "python", "-c", KILLED, folder], cwd=Path.cwd(), capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    (left,) = resumable(tmp_path / "a")
    assert {path.name for path in left.iterdir()} > {"layer-0000.safetensors", "streams-0000.safetensors"}
    (left / ".layer-0001.safetensors.abcdefgh.lucid.partial").write_bytes(b"half")
    steps: list[tuple[str, int, int]] = []
    assert learn(folder, opened(folder), lambda *step: steps.append(step)) == whole
    assert [step[1:] for step in steps] == [(0, 2), (1, 2), (2, 2)] and "1 of 3 parts found before" in steps[0][0]
    assert resumable(tmp_path / "a") == []


def test_after_ctrl_c_and_a_full_disk_the_artifact_is_the_same(folder: Path, tmp_path: Path) -> None:
    """Pressed after learning, while the weights are written: all layers are there, and no half artifact."""
    options = ExportOptions(quantize=GPTQ, calibration=folder / "ids.jsonl")

    def press(text: str, done: int, total: int) -> None:
        if text.startswith("Tracing"):
            raise KeyboardInterrupt

    def fill(text: str, done: int, total: int) -> None:
        if text.startswith("Tracing"):
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(LucidError, match=r"failed: No space left on device\. Finished layers are kept in .*resume; "):
        export(folder / "checkpoint", tmp_path / "new" / "a", options, fill)
    with pytest.raises(KeyboardInterrupt):
        export(folder / "checkpoint", tmp_path / "new" / "a", options, press)
    assert [path.name for path in (tmp_path / "new").iterdir()] == [
        path.name for path in resumable(tmp_path / "new" / "a")
    ]
    steps: list[tuple[str, int, int]] = []
    resumed = export(folder / "checkpoint", tmp_path / "new" / "a", options, lambda *step: steps.append(step))
    assert steps and not [step for step in steps if "Calibrating" in step[0]], "all was found before"
    whole = export(folder / "checkpoint", tmp_path / "a", options)
    for name in ("weights.bin", "prefill.onnx", "decode.onnx", "lucid.json"):
        assert resumed.path(name).read_bytes() == whole.path(name).read_bytes(), name
    assert resumable(tmp_path / "new" / "a") == []


def test_mixed_bits_are_not_measured_again(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = QuantizeOptions("int4", method="auto", target_bits=7.0, keep_float=("layers.*.mlp.*", "lm_head"))
    measured: list[int] = []
    calls: list[int] = []
    measure = LogitErrors.of

    def counted(self: LogitErrors, weights: dict[str, torch.Tensor]) -> float:
        calls.append(len(weights))
        return measure(self, weights)

    monkeypatch.setattr(LogitErrors, "of", counted)

    def press(text: str, done: int, total: int) -> None:
        measured.append(done)
        if len(measured) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn(folder, opened(folder), press, options)
    (left,) = resumable(tmp_path / "a")
    before, first = (left / "measured.json").read_text(), len(calls)
    resumed = learn(folder, opened(folder), None, options)
    assert before.count("[") >= 3 and first >= 3
    both, calls[:] = len(calls), []
    assert resumed == learn(folder, opened(folder), None, options)
    assert both == len(calls), "what was measured before the interruption is not measured again"


def fails(error: BaseException) -> Callable[..., None]:
    def progress(text: str, done: int, total: int) -> None:
        if done == 1:
            raise error

    return progress


def test_an_error_of_learning_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(LucidError) as caught:
        learn(folder, opened(folder), fails(LucidError("no")))
    assert resumable(tmp_path / "a") == [] and not hasattr(caught.value, "__notes__")


def test_other_errors_keep_what_was_learned_and_say_so(folder: Path, tmp_path: Path) -> None:
    """A full disk while learning, and anything that comes after it."""
    with pytest.raises(OSError, match="full") as caught:
        learn(folder, opened(folder), fails(OSError("full")))
    (left,) = resumable(tmp_path / "a")
    assert caught.value.__notes__ == [KEPT.format(left)]
    checkpoint, rows = opened(folder), rows_of(folder)
    record = plan_quantization(checkpoint.stored_shapes(), checkpoint.tied, GPTQ)
    settings, steps = (checkpoint, GPTQ, record, rows, "float32", tmp_path / "a"), []
    for text in ("first", "second"):
        with (
            pytest.raises(ValueError, match=text) as later,
            learned_numbers(*settings, lambda *step: steps.append(step)),
        ):
            raise ValueError(text)
        assert later.value.__notes__ == [KEPT.format(left)]
    assert [step[1:] for step in steps] == [(0, 2), (1, 2), (2, 2)], "two parts the first time, then none"


def test_an_interruption_before_anything_is_finished_says_nothing(folder: Path, tmp_path: Path) -> None:
    def press(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        learn(folder, opened(folder), press)
    assert resumable(tmp_path / "a") == [] and not hasattr(caught.value, "__notes__")


def test_the_key_holds_what_decides(folder: Path) -> None:
    checkpoint, rows = opened(folder), rows_of(folder)
    plan = plan_quantization(checkpoint.stored_shapes(), False, GPTQ)
    key = learning_key(checkpoint, plan, rows, "float32", {"damping": 0.01})
    assert key == learning_key(opened(folder), plan, rows_of(folder), "float32", {"damping": 0.01})
    other_plan = plan_quantization(checkpoint.stored_shapes(), False, replace(GPTQ, block_size=64))
    others = [
        learning_key(checkpoint, other_plan, rows, "float32", {"damping": 0.01}),
        learning_key(checkpoint, plan, rows_of(folder, 100), "float32", {"damping": 0.01}),
        learning_key(checkpoint, plan, rows, "float16", {"damping": 0.01}),
        learning_key(checkpoint, plan, rows, "float32", {"damping": 0.02}),
    ]
    weights = next((folder / "checkpoint").glob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    others.append(learning_key(checkpoint, plan, rows, "float32", {"damping": 0.01}))
    assert len({key, *others}) == 6


def test_the_key_holds_versions_and_code(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint, rows = opened(folder), rows_of(folder)
    plan = plan_quantization(checkpoint.stored_shapes(), False, GPTQ)
    keys = {learning_key(checkpoint, plan, rows, "float32", {})}
    for library in (torch, onnxruntime, np):
        with monkeypatch.context() as patch:
            patch.setattr(library, "__version__", "0.0.1")
            keys.add(learning_key(checkpoint, plan, rows, "float32", {}))
    with monkeypatch.context() as patch:
        patch.setattr(unfinished_module, "code_digest", lambda: "other code")
        keys.add(learning_key(checkpoint, plan, rows, "float32", {}))
    assert len(keys) == 5


@pytest.mark.parametrize(
    "name",
    [
        "export/rounding/gptq.py",
        "export/quantize.py",
        "export/layer_by_layer.py",
        "model/lucid.py",
        "model/layers/a.py",
    ],
)
def test_other_code_has_another_digest(name: str, tmp_path: Path) -> None:
    """And a file that has nothing to do with it the same."""
    path = tmp_path / name
    path.parent.mkdir(parents=True)
    path.write_text("a = 1")
    before = code_digest(tmp_path)
    (tmp_path / "export").mkdir(exist_ok=True)
    (tmp_path / "export" / "trace.py").write_text("a = 1")
    assert code_digest(tmp_path) == before
    path.write_text("a = 2")
    assert code_digest(tmp_path) != before
    for package, pattern in CODE:
        assert list(Path(str(files(package))).glob(pattern)), f"{package} has no {pattern}"


def test_a_layer_counts_when_its_numbers_are_there(tmp_path: Path) -> None:
    """Its streams are written first: without its numbers the layer before is the last one."""
    unfinished = UnfinishedLearning(tmp_path)
    learned = LearnedWeights()
    streams = [(torch.arange(6.0).reshape(1, 2, 3), torch.ones(1, 2, 3))]
    unfinished.keep(0, learned, [], streams)
    (tmp_path / "streams-0001.safetensors").write_bytes(b"half")
    count, found = unfinished.load(LearnedWeights())
    assert count == 1 and all(a.equal(b) for a, b in zip(found[0], streams[0], strict=True))
    assert UnfinishedLearning(None).load(learned) == (0, []) and os.listdir(tmp_path)


def test_damaged_files_are_removed_and_named(folder: Path, tmp_path: Path) -> None:
    """In one line; the next run begins anew."""

    def press(text: str, done: int, total: int) -> None:
        if done == 1:
            raise KeyboardInterrupt

    for name, content in (("layer-0000.safetensors", b"half"), ("streams-0000.safetensors", None)):
        with pytest.raises(KeyboardInterrupt):
            learn(folder, opened(folder), press)
        (left,) = resumable(tmp_path / "a")
        path = left / name
        path.unlink() if content is None else path.write_bytes(content)
        with pytest.raises(LucidError, match=r"is damaged .*It was removed; run the command again") as caught:
            learn(folder, opened(folder))
        assert "\n" not in str(caught.value) and resumable(tmp_path / "a") == []
    (tmp_path / "measured.json").write_text("3")
    with pytest.raises(LucidError, match="is damaged"):
        UnfinishedLearning(tmp_path).measured("key", lambda: 1)
