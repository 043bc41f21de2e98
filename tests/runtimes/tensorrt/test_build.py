"""Engines are built on a machine without a GPU, and checked during the build."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from lucid_deploy.artifact import Artifact, open_artifact
from lucid_deploy.cli.build import command as build_command
from lucid_deploy.errors import LucidError
from lucid_deploy.export import ExportOptions, export
from lucid_deploy.export.adapters import change_adapters
from lucid_deploy.export.quantize.options import QuantizeOptions
from lucid_deploy.model.checkpoint import Checkpoint
from lucid_deploy.parity.stored_weights import compare_weights
from lucid_deploy.plugins.hosts.tensorrt.build import build_plugin
from lucid_deploy.plugins.table import DECODE_ATTENTION_FLOAT8, PRECONDITION
from lucid_deploy.runtimes.tensorrt import build
from lucid_deploy.runtimes.tensorrt.build import BuildOptions, BuiltEngine, build_engines, check_network
from lucid_deploy.runtimes.tensorrt.callbacks import (
    CallbackFailure,
    explain,
    make_monitor,
)
from lucid_deploy.runtimes.tensorrt.limits import choose_limits
from lucid_deploy.runtimes.tensorrt.manifest import open_engines
from lucid_deploy.runtimes.tensorrt.prepare import PreparedGraph
from tests.conftest import write_checkpoint
from tests.export.test_adapters import ALL, train
from tests.plugins.hosts.tensorrt.plugin_tools import stand_ins
from tests.runtimes.tensorrt.engine_copies import SMALL, copy_of

trt = pytest.importorskip("tensorrt_rtx", reason='building engines needs TensorRT-RTX: pip install -e ".[rtx]"')


Exported = Callable[..., tuple[Path, Artifact]]


def test_all_engines_are_built(exported: Exported, plugin: Path, tmp_path: Path) -> None:
    artifact = copy_of(exported(cache="static")[1], tmp_path / "artifact")
    report = build_engines(artifact, BuildOptions(plugin=plugin, speculate=True, capabilities=("8.6",), **SMALL))
    taken = {
        stage: {name: len(layers) for name, layers in engine.plugin_layers.items()}
        for stage, engine in report.manifest.engines.items()
    }
    decoding = {"DecodeAttention": 2}
    assert taken == {"prefill": {"Precondition": 2}, "decode": decoding, "verify": decoding}
    for engine in report.manifest.engines.values():
        assert engine.size == (report.directory / engine.file).stat().st_size > 100_000
    past = report.manifest.engines["prefill"].profile["past_key_values.0.key"]
    assert [shape[2] for shape in past] == [0, 32, 63], "an empty past is in the profile"
    cache = report.manifest.engines["decode"].profile["past_key_values.0.key"]
    assert [shape[2] for shape in cache] == [64] * 3
    verify = report.manifest.engines["verify"].profile
    assert verify["past_key_values.0.key"] == cache and [shape[1] for shape in verify["input_ids"]] == [1, 8, 16]
    assert report.manifest.plugin is not None
    assert open_engines(artifact, "tensorrt-rtx", trt.__version__) == report.manifest


def test_engines_contain_adapters_and_are_refused_after_these_change(plugin: Path, tmp_path: Path) -> None:
    """The adapter id of each row is an input of the engines."""
    checkpoint = write_checkpoint(tmp_path / "checkpoint", num_hidden_layers=4)
    for name in ("one", "two"):
        train(checkpoint, tmp_path / name, 1, target_modules=ALL, r=4)
    adapters: dict[str, Any] = {"adapters": (("one", tmp_path / "one"),), "max_adapters": 3, "max_adapter_rank": 5}
    options = ExportOptions(cache="growing", **adapters)  # as in tests.export.test_adapters
    artifact = export(checkpoint, tmp_path / "artifact", options)
    report = build_engines(artifact, BuildOptions(plugin=plugin, capabilities=("8.6",), **SMALL))
    for built in report.manifest.engines.values():
        assert [len(shape) for shape in built.profile["adapter_ids"]] == [1, 1, 1], "an input by row"
    assert open_engines(artifact, "tensorrt-rtx", trt.__version__) == report.manifest
    change_adapters(artifact, {"two": tmp_path / "two"})
    with pytest.raises(LucidError, match=r"from another model: adapters.bin differ.* Build them again"):
        open_engines(artifact, "tensorrt-rtx", trt.__version__)


def test_a_verify_engine_for_a_model_with_states_is_refused(hybrid: Callable[..., Artifact], plugin: Path) -> None:
    message = r"No engine can verify drafts: layer 0 .* keeps a state.*leave out --speculate"
    with pytest.raises(LucidError, match=message):
        build_engines(hybrid(cache="static"), BuildOptions(plugin=plugin, speculate=True, **SMALL))


def test_engines_are_not_replaced_unless_asked_to(
    damaged: tuple[Artifact, Path], plugin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact, folder = damaged
    with pytest.raises(LucidError, match=r"exists already\. Pass --overwrite"):
        build_engines(artifact, BuildOptions(plugin=plugin, **SMALL))
    built = BuiltEngine(b"another engine", 1, {}, 0.0)
    monkeypatch.setattr(build, "build_engine", lambda *_: built)
    build_engines(artifact, BuildOptions(plugin=plugin, overwrite=True, **SMALL))
    assert (folder / "decode.engine").read_bytes() == b"another engine"
    assert os.listdir(folder.parent) == ["tensorrt-rtx"]


def test_a_failed_build_keeps_the_engines_that_are_there(
    damaged: tuple[Artifact, Path], plugin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact, folder = damaged
    before, configure = {path.name: path.read_bytes() for path in folder.iterdir()}, build._configure

    def tight(*given: Any) -> Any:
        config = configure(*given)
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, 1)
        return config

    monkeypatch.setattr(build, "_configure", tight)
    with pytest.raises(LucidError, match="cannot build the prefill engine: "):
        build_engines(artifact, BuildOptions(plugin=plugin, overwrite=True, **SMALL))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
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


KINDS = SimpleNamespace(
    **{name: name for name in ("PLUGIN_V3", "KV_CACHE_UPDATE", "TRIP_LIMIT", "RECURRENCE", "ITERATOR", "LOOP_OUTPUT")}
)


class PluginLayer(SimpleNamespace):
    """``IPluginV3Layer``, and the base class that the bindings return in its place."""


PARSED = SimpleNamespace(LayerType=KINDS, IPluginV3Layer=PluginLayer, PluginCapabilityType=SimpleNamespace(CORE="core"))


def network(*layers: Any) -> Any:
    return SimpleNamespace(num_layers=len(layers), get_layer=lambda index: layers[index])


def plugin_layer(operator: str, name: str) -> PluginLayer:
    core = SimpleNamespace(plugin_name=operator)
    return PluginLayer(type=KINDS.PLUGIN_V3, name=name, plugin=SimpleNamespace(get_capability_interface=lambda _: core))


def prepared_graph(updates: int = 0, **nodes: int) -> PreparedGraph:
    return PreparedGraph("decode", b"", nodes, updates)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([plugin_layer("Solve", "a")], r"'Solve': 2} the plugin library took {'Solve': 1}\.$"),
        ([plugin_layer("Solve", "a"), plugin_layer("Other", "b")], r"took {'Solve': 1, 'Other': 1}\.$"),
        (
            [
                plugin_layer("Solve", "a"),
                plugin_layer("Solve", "b"),
                SimpleNamespace(type=KINDS.RECURRENCE, name="again"),
            ],
            "and loops are left: again",
        ),
    ],
)
def test_nodes_that_the_plugin_library_did_not_take_are_an_error(layers: list[Any], message: str) -> None:
    with pytest.raises(LucidError, match=message):
        check_network(PARSED, network(*layers), prepared_graph(Solve=2))


def test_cache_updates_must_be_in_place() -> None:
    update = SimpleNamespace(type=KINDS.KV_CACHE_UPDATE)
    check_network(PARSED, network(update, update), prepared_graph(2))
    with pytest.raises(LucidError, match="TensorRT does only 2 of the decode graph's 3 cache updates in place"):
        check_network(PARSED, network(update, update), prepared_graph(3))


class Interface:
    """Stands for the classes of TensorRT that ours are derived from."""

    INTERNAL_ERROR, ERROR, WARNING = range(3)


TRT = SimpleNamespace(ILogger=Interface, IProgressMonitor=Interface)


def test_progress_counts_the_outermost_phase_and_an_exception_in_it_stops_the_build() -> None:
    seen: list[tuple[int, int]] = []

    def report(done: int, total: int) -> None:
        seen.append((done, total))
        if done == 2:
            raise KeyboardInterrupt

    failure = CallbackFailure()
    with pytest.raises(KeyboardInterrupt), failure.raising():
        monitor = make_monitor(TRT, report, failure)
        monitor.phase_start("build", None, 2)
        for outer in range(2):
            monitor.phase_start("tactics", "build", 4)
            assert monitor.step_complete("tactics", 0)
            assert monitor.step_complete("build", outer) is (outer == 0)
    assert seen == [(1, 2), (2, 2)] and failure.error is None


def test_the_parser_s_reason_comes_with_the_node_that_it_names() -> None:
    node = 'ModelImporter.cpp:140: While parsing node number 15 [DequantizeLinear -> "w"]:'
    frame = ["ModelImporter.cpp:142: --- Begin node ---\nNode name: w_node", "ModelImporter.cpp:143: --- End node ---"]
    reason = "ERROR: In function resolveScaleInput:\n[6] Assertion failed: Scale coefficients must all be positive"
    assert explain([node, *frame, reason, "after"]) == f"{node} {reason}".replace("\n", " ")
    assert explain([node, *frame]) == node and explain(["why", reason]) == "why"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_batch": 0}, "--max-batch must be at least 1, not 0"),
        ({"max_context": 1}, "--max-context must be at least 2"),
        ({"max_context": 513}, r"--max-context 513 is more than the model was made for: 512"),
        ({"prefill_chunk": 0}, "--prefill-chunk must be at least 1"),
        ({"max_context": 64, "prefill_chunk": 65}, "--prefill-chunk 65 and --max-context 64 contradict each other"),
        ({"max_batch": 10**8}, r"TensorRT supports at most 2³¹ − 1\. Lower one"),
    ],
    ids=str,
)
def test_wrong_limits_are_refused_by_name(options: dict[str, Any], message: str, exported: Exported) -> None:
    with pytest.raises(LucidError, match=message):
        choose_limits(exported()[1], **options)


DRAFTS: dict[str, Any] = {"max_batch": 2, "max_context": 64, "prefill_chunk": 16, "speculate": True}


def test_engines_with_an_fp8_cache_are_built(plugin: Path, make_checkpoint: Any, tmp_path: Path) -> None:
    """The plugin reads the cache in decoding and verifying; weights are in NVFP4.

    In half precision TensorRT-RTX 1.7 fails with attention of some head widths, 36 among them, quantized or not.
    """
    quantize = QuantizeOptions("nvfp4", "qdq", method="rtn")
    options = ExportOptions("bfloat16", cache="growing", cache_dtype="fp8", quantize=quantize)
    artifact = export(make_checkpoint(num_hidden_layers=1, head_dim=64), tmp_path / "a", options)
    with pytest.raises(LucidError, match=r"capability 8\.6 do not support fp8, in which the cache of .* is; 8\.9"):
        build_engines(artifact, BuildOptions(plugin=plugin, capabilities=("8.6", "8.9"), **DRAFTS))
    old = build_plugin(tmp_path / "old.so", stand_ins((80,), ptx=False))
    with pytest.raises(LucidError, match="has no kernels that read a cache in fp8"):
        build_engines(artifact, BuildOptions(plugin=old, capabilities=("12.0",), **DRAFTS))
    report = build_engines(artifact, BuildOptions(plugin=plugin, capabilities=("12.0",), **DRAFTS))
    taken = {stage: set(engine.plugin_layers) for stage, engine in report.manifest.engines.items()}
    reads = {DECODE_ATTENTION_FLOAT8.name}
    assert taken == {"prefill": {PRECONDITION.name}, "decode": reads, "verify": reads}


Made = Callable[..., tuple[Path, Artifact]]


def test_engines_with_int8_weights_are_built(quantized: Made, make_checkpoint: Any, plugin: Path) -> None:
    """Also with rows of zeros, as in a padded vocabulary: TensorRT requires positive int8 scales."""
    checkpoint = make_checkpoint(num_hidden_layers=1)
    weights = load_file(checkpoint / "model.safetensors")
    weights["lm_head.weight"][-3:] = 0
    save_file(weights, checkpoint / "model.safetensors")
    _, made = quantized("int8", "qdq", source=str(checkpoint))
    compare_weights(made, Checkpoint(checkpoint))
    artifact = open_artifact(shutil.copytree(made.directory, checkpoint.parent / "artifact"))
    report = build_engines(artifact, BuildOptions(plugin=plugin, capabilities=("8.6",), **SMALL))
    assert set(report.manifest.engines) == {"prefill", "decode"}
    assert all(engine.size > 100_000 for engine in report.manifest.engines.values())


def test_onnxruntime_s_own_operators_are_refused(quantized: Made) -> None:
    _, artifact = quantized("int8")
    result = CliRunner().invoke(build_command, [str(artifact.directory)])
    assert isinstance(result.exception, LucidError) and result.exception.exit_code == 2
    assert "Export it for TensorRT with --quantize int8 --quantize-format qdq" in str(result.exception)
    assert not (artifact.directory / "engines").exists()
