"""Engines are built on a machine without a GPU, and checked while they are."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lucid_deploy.artifact import Artifact, open_artifact
from lucid_deploy.errors import LucidError
from lucid_deploy.runtimes.tensorrt import build
from lucid_deploy.runtimes.tensorrt.build import BuildOptions, build_engines
from lucid_deploy.runtimes.tensorrt.manifest import open_engines
from tests.runtimes.tensorrt.engine_copies import SMALL, copy_of

trt = pytest.importorskip("tensorrt_rtx", reason='building engines needs TensorRT-RTX: pip install -e ".[rtx]"')
Exported = Callable[..., tuple[Path, Artifact]]
VARIANTS: list[dict[str, Any]] = [
    {},
    {"cache": "static"},
    {"attention_type": "llama", "logits": "all", "use_rope": False},
    {"attention_type": "llama", "cache": "static", "dtype": "float16"},
    {"dtype": "float16", "head_dim": 68},
    {"dtype": "bfloat16", "cache": "static"},
]


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_all_engines_are_built(changes: dict[str, Any], exported: Exported, plugin: Path, tmp_path: Path) -> None:
    artifact = copy_of(exported(**changes)[1], tmp_path / "artifact")
    report = build_engines(artifact, BuildOptions(plugin=plugin, speculate=True, **SMALL))
    lucid = changes.get("attention_type") != "llama"
    taken = {
        stage: {name: len(layers) for name, layers in engine.plugin_layers.items()}
        for stage, engine in report.manifest.engines.items()
    }
    decoding = {"DecodeAttention": 2} if lucid else {}
    assert taken == {"prefill": {"Precondition": 2} if lucid else {}, "decode": decoding, "verify": decoding}
    for engine in report.manifest.engines.values():
        assert engine.size == (report.directory / engine.file).stat().st_size > 100_000
    past = report.manifest.engines["prefill"].profile["past_key_values.0.key"]
    assert [shape[2] for shape in past] == [0, 32, 63], "an empty past is in the profile"
    cache = report.manifest.engines["decode"].profile["past_key_values.0.key"]
    assert [shape[2] for shape in cache] == ([64] * 3 if changes.get("cache") == "static" else [0, 32, 63])
    verify = report.manifest.engines["verify"].profile
    assert verify["past_key_values.0.key"] == cache and [shape[1] for shape in verify["input_ids"]] == [1, 8, 16]
    assert (report.manifest.plugin is not None) == lucid
    assert open_engines(artifact, "tensorrt-rtx", trt.__version__) == report.manifest


@pytest.mark.parametrize("cache", ["growing", "static"])
def test_engines_of_a_hybrid_take_and_give_its_states(
    cache: str, hybrid: Callable[..., Artifact], plugin: Path, tmp_path: Path
) -> None:
    artifact = copy_of(hybrid(cache=cache), tmp_path / "artifact")
    engines = build_engines(artifact, BuildOptions(plugin=plugin, **SMALL)).manifest.engines
    taken = {
        stage: {name: len(layers) for name, layers in engine.plugin_layers.items()} for stage, engine in engines.items()
    }
    assert taken == {
        "prefill": {"DeltaRule": 2, "Precondition": 1},
        "decode": {"DeltaRule": 2, "DecodeAttention": 1},
    }
    state = [(1, 8, 16, 16), (2, 8, 16, 16), (2, 8, 16, 16)]
    for engine in engines.values():
        assert [tuple(shape) for shape in engine.profile["past_key_values.0.recurrent_state"]] == state


def test_what_cannot_take_drafts_back_has_no_engine_that_verifies_them(
    hybrid: Callable[..., Artifact], plugin: Path
) -> None:
    message = r"No engine can verify drafts: layer 0 .* keeps a state.*leave out --speculate"
    with pytest.raises(LucidError, match=message):
        build_engines(hybrid(), BuildOptions(plugin=plugin, speculate=True, **SMALL))


def test_the_report_and_the_folder(built_engines: Any) -> None:
    artifact, report, calls = built_engines
    names = sorted(path.name for path in report.directory.iterdir())
    assert names == ["decode.engine", "engines.json", "liblucid_tensorrt.so", "prefill.engine"]
    assert os.listdir(artifact.directory / "engines") == ["tensorrt-rtx"]
    assert json.loads(json.dumps(report.to_dict()))["built"]["decode"]["seconds"] > 0
    for stage in ("prefill", "decode"):
        done = [call[1] / call[2] for call in calls if stage in call[0]]
        assert len(done) > 20 and done == sorted(done) and done[-1] > 0.5
    open_artifact(artifact.directory)


def test_engines_are_not_replaced_unless_asked_to(damaged: tuple[Artifact, Path], plugin: Path) -> None:
    artifact, folder = damaged
    with pytest.raises(LucidError, match=r"exists already\. Pass --overwrite"):
        build_engines(artifact, BuildOptions(plugin=plugin, **SMALL))
    (folder / "decode.engine").write_bytes(b"")
    build_engines(artifact, BuildOptions(plugin=plugin, overwrite=True, **SMALL))
    open_engines(artifact, "tensorrt-rtx", trt.__version__)
    assert os.listdir(folder.parent) == ["tensorrt-rtx"]


def test_a_failed_build_keeps_the_engines_that_are_there(damaged: tuple[Artifact, Path], plugin: Path) -> None:
    artifact, folder = damaged
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(
        LucidError, match=r"cannot build the prefill engine: .* The limit of --workspace may be too low"
    ):
        build_engines(artifact, BuildOptions(plugin=plugin, workspace=1, overwrite=True, **SMALL))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_full_disk_is_one_message(artifact: Artifact, plugin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(LucidError, match=r"No space left on device\. Nothing was left behind"):
        build_engines(artifact, BuildOptions(plugin=plugin, **SMALL))
    assert not (artifact.directory / "engines").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_batch": 0}, "--max-batch must be at least 1, not 0"),
        ({"max_context": 1}, "--max-context must be at least 2"),
        (
            {"max_context": 513},
            r"--max-context 513 is more than the model was made for: 512 \(max_pos",
        ),
        ({"prefill_chunk": 0}, "--prefill-chunk must be at least 1"),
        ({"max_context": 64, "prefill_chunk": 65}, "--prefill-chunk 65 and --max-context 64 contradict each other"),
        ({"max_batch": 10**8}, r"TensorRT takes 2³¹ − 1 at most\. Lower one"),
        ({"workspace": 0}, "--workspace must be at least 1 byte"),
        ({"workspace": 1 << 64}, "--workspace must be at least 1 byte and less than 2⁶⁴, not 18446744073709551616"),
        ({"backend": "tensorflow"}, "Backend 'tensorflow' is not known; known are tensorrt-rtx, tensorrt"),
        ({"capabilities": ("9.0", "8.6")}, "cannot build for compute capability 9.0; it can for 7.5, 8.0, 8.6"),
        ({"capabilities": ("hopper",)}, "cannot build for compute capability hopper"),
        ({"capabilities": ("7.5",)}, "7.5 cannot run this artifact: the plugin library has no kernels"),
        ({"capabilities": ("8.0", "8.6"), "weightless": True}, "built for one compute capability"),
        (  # the library of these tests has machine code and PTX for 8.6
            {"capabilities": ("8.0", "12.0")},
            r"no kernels for a GPU of compute capability 8\.0\. Run: lucid-deploy plugin build --target "
            r"tensorrt --dtype float32 --arch 8\.0,12\.0 --output LIBRARY, and pass --plugin LIBRARY\.$",
        ),
        (
            {"plugin": Path("/nowhere/plugin.so")},
            r"no plugin library /nowhere/plugin\.so\. Run: lucid-",
        ),
    ],
    ids=str,
)
def test_bad_options_are_refused_before_the_build(
    options: dict[str, Any], message: str, artifact: Artifact, plugin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "build_engine", lambda *_: pytest.fail("the build began"))
    with pytest.raises(LucidError, match=message):
        build_engines(artifact, BuildOptions(**{"plugin": plugin, **options}))
