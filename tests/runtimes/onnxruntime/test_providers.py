"""onnxruntime's execution providers, on a stand-in that computes on the CPU: options, graphs, errors, numbers."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as real
import pytest
from click.testing import CliRunner

from lucid_deploy.artifact import Artifact, open_artifact
from lucid_deploy.cli import main
from lucid_deploy.errors import CheckFailed, LucidError
from lucid_deploy.export import ExportOptions, export
from lucid_deploy.export.quantize.options import QuantizeOptions
from lucid_deploy.runtimes import open_session
from lucid_deploy.runtimes.onnxruntime.providers import CPU, plan_provider
from lucid_deploy.runtimes.options import PROVIDERS
from lucid_deploy.runtimes.tensorrt.limits import choose_limits, profile_shapes
from tests.conftest import MIXED
from tests.phase_lines import error_line
from tests.runtimes.onnxruntime.fake_onnxruntime import NAMES, FakeOrt, copy_of, use_library

Exported = Callable[..., tuple[Path, Artifact]]


@pytest.mark.parametrize(
    ("provider", "changes", "names"),
    [
        ("cuda", {}, {"use_tf32": "0"}),
        ("tensorrt", {}, {"trt_extra_plugin_lib_paths": "LIBRARY"}),
        ("tensorrt", {"attention_type": "llama"}, {}),
        ("tensorrt", {"dtype": "float16"}, {"trt_fp16_enable": "1", "trt_extra_plugin_lib_paths": "LIBRARY"}),
        ("nv-tensorrt-rtx", {}, {}),
    ],
    ids=str,
)
def test_each_provider_gets_its_options(
    provider: str, changes: dict[str, str], names: dict[str, str], fake: FakeOrt, exported: Exported, tmp_path: Path
) -> None:
    artifact = copy_of(exported(**changes)[1], tmp_path)
    open_session(artifact, device="cuda:1", provider=provider)
    expected = {"device_id": "1", **names}
    if "trt_extra_plugin_lib_paths" in names:
        expected["trt_extra_plugin_lib_paths"] = str(tmp_path / "plugin.so")
    if provider != "cuda":
        [folder] = (artifact.directory / "engines" / f"onnxruntime-{provider}").iterdir()
        caches = ("engine", "timing") if provider == "tensorrt" else ()
        expected |= {f"trt_{cache}_cache_enable": "1" for cache in caches}
        expected |= {f"trt_{cache}_cache_path": str(folder) for cache in caches}
        expected |= {} if caches else {"nv_runtime_cache_path": str(folder)}
    for asked in fake.asked:
        name, options = asked[0]
        assert name == NAMES[provider]
        assert {key: value for key, value in options.items() if "_profile_" not in key} == expected
        assert sum("_profile_" in key for key in options) == (0 if provider == "cuda" else 3)


def test_tensorrt_gets_the_plugin_library_registered(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    done, library, trt = [], tmp_path / "plugin.so", SimpleNamespace()
    monkeypatch.setattr("lucid_deploy.runtimes.tensorrt.plugin_library.default_library", lambda: library)
    monkeypatch.setattr(
        "lucid_deploy.plugins.hosts.tensorrt.registry.register_plugins", lambda *given: done.append(given)
    )
    monkeypatch.setattr(
        "lucid_deploy.runtimes.tensorrt.backend.load_backend", lambda name: SimpleNamespace(name=name, trt=trt)
    )
    with pytest.raises(LucidError, match=r"no plugin library .*plugin\.so\. Run: lucid-deploy plugin build"):
        plan_provider(artifact, "tensorrt", 0, "decode")
    monkeypatch.setattr("lucid_deploy.plugins.hosts.tensorrt.build.check_plugin", lambda path: None)
    library.write_bytes(b"stand-in")
    options = plan_provider(artifact, "tensorrt", 0, "decode").options
    assert options["trt_extra_plugin_lib_paths"] == str(library)
    assert done == [(library, trt)]


@pytest.mark.parametrize("provider", NAMES)
def test_a_provider_that_does_not_start_is_an_error(
    provider: str, artifact: Artifact, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", FakeOrt(starts=False))
    use_library(monkeypatch, tmp_path)
    with pytest.raises(LucidError, match=rf"{NAMES[provider]} does not start, and onnxruntime .* fell back to {CPU}"):
        open_session(artifact, provider=provider)
    result = CliRunner().invoke(main, ["verify", str(artifact.directory), "--provider", provider])
    assert (result.exit_code, result.stdout) == (2, "")
    assert error_line(result.stderr).startswith(f"Error: {NAMES[provider]} does not start")


@pytest.mark.parametrize(
    ("provider", "install"),
    [
        ("cuda", "pip uninstall onnxruntime && pip install onnxruntime-gpu"),
        (
            "tensorrt",
            'pip uninstall onnxruntime && pip install onnxruntime-gpu "tensorrt<12,>=10.14" "onnx-ir<2,>=0.1.16" '
            '"cuda-bindings<14,>=13" "polygraphy<1,>=0.53.6" "onnx-graphsurgeon<1,>=0.6.1"',
        ),
        ("nv-tensorrt-rtx", "pip install onnxruntime-ep-nv-tensorrt-rtx"),
    ],
)
def test_a_missing_provider_gives_one_error_line(
    provider: str, install: str, fake: FakeOrt, exported: Exported
) -> None:
    fake.available = ["AzureExecutionProvider", CPU]
    asked = ["run", str(exported()[1].directory), "--provider", provider, "--prompt-ids", "5"]
    result = CliRunner().invoke(main, asked)
    assert (result.exit_code, result.stdout, fake.asked) == (2, "", [])
    assert error_line(result.stderr) == (
        f"Error: onnxruntime {real.__version__} has no {NAMES[provider]}; it has AzureExecutionProvider, {CPU}. "
        f"Run: {install}\n"
    )


def test_unsupported_providers_devices_and_artifacts_are_refused(exported: Exported, fake: FakeOrt) -> None:
    _, artifact = exported()
    with pytest.raises(LucidError, match="Provider 'rocm' is not known; known are " + ", ".join(PROVIDERS)):
        open_session(artifact, provider="rocm")
    with pytest.raises(LucidError, match="with --provider cuda runs on cuda, not on 'tpu'"):
        open_session(artifact, device="tpu", provider="cuda")
    with pytest.raises(LucidError, match="--provider cuda takes artifacts whose type is float32 or float16, and"):
        open_session(exported("bfloat16", tie_word_embeddings=True)[1], provider="cuda")
    with pytest.raises(LucidError, match=r"tensorrt supports cached tensors of the sort rows or state; .* sort ring"):
        open_session(exported(**MIXED)[1], provider="tensorrt")
    with pytest.raises(LucidError, match=r"cuda takes artifacts whose cache is growing.* Export without --cache and"):
        open_session(exported(cache="static")[1], provider="cuda")


PROFILES = {  # of the test model: 512 tokens, 2 key/value heads of width 36
    "min": "input_ids:1x1,attention_mask:1x1,position_ids:1x1,past_key_values.0.key:1x2x0x36",
    "opt": "input_ids:4x512,attention_mask:4x512,position_ids:4x512,past_key_values.0.key:4x2x0x36",
    "max": "input_ids:4x512,attention_mask:4x1023,position_ids:4x512,past_key_values.0.key:4x2x511x36",
}


@pytest.mark.parametrize(("provider", "prefix"), [("tensorrt", "trt"), ("nv-tensorrt-rtx", "nv")])
def test_tensorrt_gets_the_profiles_of_build(provider: str, prefix: str, fake: FakeOrt, artifact: Artifact) -> None:
    open_session(artifact, device="cuda:1", provider=provider)
    prefill, decode = (asked[0][1] for asked in fake.asked)
    limits = choose_limits(artifact)
    for index, (which, start) in enumerate(PROFILES.items()):
        assert prefill[f"{prefix}_profile_{which}_shapes"].startswith(start)
        for stage, options in (("prefill", prefill), ("decode", decode)):
            shapes = dict(item.split(":") for item in options[f"{prefix}_profile_{which}_shapes"].split(","))
            built = profile_shapes(artifact, stage, limits)
            assert shapes == {name: "x".join(map(str, ranges[index])) for name, ranges in built.items()}
            assert shapes.keys() == {info.name for info in artifact.manifest.graphs[stage].inputs}


@pytest.mark.parametrize("stage", ["prefill", "decode"])
def test_the_graph_copy_for_tensorrt_has_what_its_parser_needs(stage: str, fake: FakeOrt, artifact: Artifact) -> None:
    """No functions or loops are left, plugin nodes' outputs have types, and ONNX reads the unlinked weights."""
    plan = plan_provider(artifact, "tensorrt", 0, stage)
    again = plan_provider(artifact, "tensorrt", 0, stage)
    assert again == plan and sorted(path.name for path in plan.graph.parent.iterdir()) == [
        plan.graph.name,
        "weights.bin",
    ]
    model = onnx.load(str(plan.graph), load_external_data=False)
    operator = {"prefill": "Precondition", "decode": "DecodeAttention"}[stage]
    nodes = [node for node in model.graph.node if node.domain]
    assert [(node.op_type, node.domain) for node in nodes] == [(operator, "trt.plugins")] * 2
    typed = {value.name for value in (*model.graph.value_info, *model.graph.output) if value.type.tensor_type.elem_type}
    assert all(name in typed for node in nodes for name in node.output)
    assert not model.functions and not {"Loop", "Scan", "If"} & {node.op_type for node in model.graph.node}
    assert {each.domain: each.version for each in model.opset_import} == {"": 23, "trt.plugins": 1}
    assert {path.stat().st_nlink for path in (*plan.graph.parent.iterdir(), artifact.path("weights.bin"))} == {1}
    weights = onnx.load(plan.graph).graph.initializer
    assert all(onnx.numpy_helper.to_array(weight).size for weight in weights if weight.name.endswith(".weight"))
    [model_inputs, others] = [[info.name for info in artifact.manifest.graphs[stage].inputs], model.graph.input]
    assert [value.name for value in others] == model_inputs
    open_artifact(artifact.directory)


def everything(session: Any) -> list[np.ndarray]:
    ids = np.random.default_rng(0).integers(0, 97, (2, 40))
    cache = session.empty_cache(2)
    results = [session.prefill(ids[:, :30], cache)]
    return results + [session.decode(ids[:, i : i + 1], cache) for i in range(30, 40)]


@pytest.mark.parametrize("provider", NAMES)
def test_sessions_of_gpu_providers_compute_the_same(provider: str, fake: FakeOrt, artifact: Artifact) -> None:
    """They load the weights themselves; TensorRT reads a copy of the graph; the fake gives its plugin nodes bodies."""
    session = open_session(artifact, provider=provider)
    assert (session.runtime, session.provider) == ("onnxruntime", provider)
    assert [asked[0][0] for asked in fake.asked] == [NAMES[provider]] * 2
    others = [(NAMES["cuda"], {"device_id": "0", "use_tf32": "0"})] if provider == "tensorrt" else []
    assert [asked[1:] for asked in fake.asked] == [[*others, CPU]] * 2
    assert [(each.initializers, each.entries) for each in fake.options] == [([], [])] * 2
    for ours, other in zip(everything(session), everything(open_session(artifact)), strict=True):
        np.testing.assert_allclose(ours, other, rtol=1e-4, atol=1e-4)


def test_cpu_sessions_share_weights_and_ask_for_no_other_provider(fake: FakeOrt, exported: Exported) -> None:
    assert open_session(exported()[1]).provider == "cpu"
    assert fake.asked == [[CPU], [CPU]]
    assert all(options.initializers for options in fake.options)
    # A small model keeps packed weights.
    entries = ["session.force_spinning_stop", "session.use_env_allocators"]
    entries += ["session.model_external_initializers_file_folder_path"]  # of a graph that was changed
    assert all(options.entries == entries for options in fake.options)


def test_a_verify_graph_of_a_newer_export_is_refused(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    """4-bit weights are read when a graph is loaded, so drafts would be verified with another model's weights."""
    quantize = QuantizeOptions("int4", format="qdq", block_size=16)
    options = ExportOptions(cache="growing", quantize=quantize, overwrite=True)
    session = open_session(export(make_checkpoint("older", 0, num_hidden_layers=1), tmp_path / "out", options))
    export(make_checkpoint("newer", 1, num_hidden_layers=1), tmp_path / "out", options)
    assert everything(session)  # graphs that are loaded still run
    with pytest.raises(CheckFailed, match="changed while it was in use"):
        session.decode_several(np.ones((1, 3), np.int64), session.empty_cache(1))
