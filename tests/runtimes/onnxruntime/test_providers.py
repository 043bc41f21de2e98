"""onnxruntime's execution providers: what is asked for and what is refused.

No GPU is used: a stand-in for onnxruntime has the providers, records what it is told and computes on the CPU.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as real
import pytest
from click.testing import CliRunner

from lucid_deploy.artifact import Artifact, open_artifact
from lucid_deploy.cli import main
from lucid_deploy.errors import LucidError
from lucid_deploy.runtimes import open_session
from lucid_deploy.runtimes.onnxruntime import providers
from lucid_deploy.runtimes.onnxruntime.providers import CPU, choose_provider, plan_provider
from lucid_deploy.runtimes.options import PROVIDERS
from lucid_deploy.runtimes.tensorrt.limits import Limits, choose_limits, profile_shapes
from tests.phase_lines import error_line
from tests.runtimes.onnxruntime.fake_onnxruntime import NAMES, FakeOrt

Exported = Callable[..., tuple[Path, Artifact]]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeOrt:
    made = FakeOrt()
    monkeypatch.setitem(sys.modules, "onnxruntime", made)
    use_library(monkeypatch, tmp_path)
    return made


def use_library(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    library = folder / "plugin.so"
    library.write_bytes(b"stand-in")
    monkeypatch.setattr(providers, "_plugin_library", lambda: library)


@pytest.fixture
def artifact(exported: Exported, tmp_path: Path) -> Artifact:
    """An artifact of the test's own: TensorRT providers write into it."""
    return copy_of(exported()[1], tmp_path)


def copy_of(artifact: Artifact, folder: Path) -> Artifact:
    return open_artifact(shutil.copytree(artifact.directory, folder / "artifact"))


def everything(session: Any) -> list[np.ndarray]:
    ids = np.random.default_rng(0).integers(0, 97, (2, 40))
    cache = session.empty_cache(2)
    results = [session.prefill(ids[:, :30], cache)]
    return results + [session.decode(ids[:, i : i + 1], cache) for i in range(30, 40)]


@pytest.mark.parametrize("provider", NAMES)
def test_sessions_of_gpu_providers_compute_the_same(provider: str, fake: FakeOrt, artifact: Artifact) -> None:
    """They load the weights themselves; TensorRT reads a copy of the graph, of which the plugin's nodes get bodies."""
    session = open_session(artifact, provider=provider)
    assert (session.runtime, session.provider) == ("onnxruntime", provider)
    assert [asked[0][0] for asked in fake.asked] == [NAMES[provider]] * 2
    others = [(NAMES["cuda"], {"device_id": "0", "use_tf32": "0"})] if provider == "tensorrt" else []
    assert [asked[1:] for asked in fake.asked] == [[*others, CPU]] * 2
    assert [(each.initializers, each.entries) for each in fake.options] == [([], [])] * 2
    for ours, other in zip(everything(session), everything(open_session(artifact)), strict=True):
        np.testing.assert_allclose(ours, other, rtol=1e-4, atol=1e-4)


def test_the_cpu_shares_weights_and_asks_for_nothing_else(fake: FakeOrt, exported: Exported) -> None:
    assert open_session(exported()[1]).provider == "cpu"
    assert fake.asked == [[CPU], [CPU]]
    assert all(options.initializers for options in fake.options)
    # A small model keeps packed weights.
    assert all(options.entries == ["session.force_spinning_stop"] for options in fake.options)


def test_other_runtimes_have_no_provider(exported: Exported) -> None:
    _, artifact = exported()
    assert open_session(artifact, "torch").provider is None
    with pytest.raises(LucidError, match="--provider is for onnxruntime; runtime torch has none"):
        open_session(artifact, "torch", provider="cuda")


PROFILES = {  # of the test model's 512 tokens: 2 key/value heads of width 36
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
def test_options(
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


def test_a_graph_that_is_none_of_the_stages_has_no_profile(fake: FakeOrt, artifact: Artifact) -> None:
    chosen = choose_provider(fake, None, artifact, "tensorrt", 0)
    assert chosen == [
        (NAMES["tensorrt"], {"device_id": "0"}),
        (NAMES["cuda"], {"device_id": "0", "use_tf32": "0"}),
        CPU,
    ]
    fake.available.remove(NAMES["cuda"])
    assert choose_provider(fake, None, artifact, "tensorrt", 0)[1:] == [CPU]


@pytest.mark.parametrize("stage", ["prefill", "decode"])
def test_the_copy_for_tensorrt(stage: str, fake: FakeOrt, artifact: Artifact) -> None:
    """No function is left to inline, no loop, plugin nodes are typed, the weights are on disk once."""
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
    assert (plan.graph.parent / "weights.bin").samefile(artifact.path("weights.bin"))
    [model_inputs, others] = [[info.name for info in artifact.manifest.graphs[stage].inputs], model.graph.input]
    assert [value.name for value in others] == model_inputs
    open_artifact(artifact.directory)


def test_another_library_has_caches_of_its_own(
    fake: FakeOrt, artifact: Artifact, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = plan_provider(artifact, "tensorrt", 0, "decode").graph.parent
    (tmp_path / "plugin.so").write_bytes(b"another")
    assert plan_provider(artifact, "tensorrt", 0, "decode").graph.parent != before


def test_an_artifact_that_cannot_be_written_to(
    fake: FakeOrt, artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    (artifact.directory / "engines").write_text("a file where the folder should be")
    for provider in ("tensorrt", "nv-tensorrt-rtx"):
        with pytest.raises(LucidError, match=r"keep graphs and engines in .* cannot be written .*--provider cuda"):
            open_session(artifact, provider=provider)
    assert fake.asked == []


def test_a_file_system_without_links(fake: FakeOrt, artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", refuse)
    folder = plan_provider(artifact, "tensorrt", 0, "decode").graph.parent
    assert (folder / "weights.bin").read_bytes() == artifact.path("weights.bin").read_bytes()


def test_sessions_keep_to_the_profile(fake: FakeOrt, artifact: Artifact) -> None:
    session = open_session(artifact, provider="tensorrt")
    assert session.limits == choose_limits(artifact)  # type: ignore[attr-defined]
    with pytest.raises(LucidError, match="With --provider tensorrt up to 4 rows can be run, not 5"):
        session.prefill(np.zeros((5, 2), np.int64), session.empty_cache(5))
    session.limits = Limits(4, 512, 7)  # type: ignore[attr-defined]
    seen: list[int] = []
    session.prefill(np.zeros((1, 20), np.int64), session.empty_cache(1), progress=lambda done, total: seen.append(done))
    assert seen == [7, 14, 20]
    session.prefill(np.zeros((1, 6), np.int64), session.empty_cache(1), None, 5, lambda done, total: seen.append(done))
    assert seen[3:] == [5, 6]


def test_tensorrt_gets_the_plugin_library_registered(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    done, library, trt = [], tmp_path / "plugin.so", SimpleNamespace()
    monkeypatch.setattr("lucid_deploy.runtimes.tensorrt.plugin_library.default_library", lambda: library)
    monkeypatch.setattr("lucid_deploy.runtimes.tensorrt.plugin_library.register", lambda *given: done.append(given))
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
    with pytest.raises(LucidError, match=rf"{NAMES[provider]} does not start, and onnxruntime .* went on with {CPU}"):
        open_session(artifact, provider=provider)
    for name in ("run", "verify"):
        rest = ["--prompt-ids", "5"] if name == "run" else []
        result = CliRunner().invoke(main, [name, str(artifact.directory), "--provider", provider, *rest])
        assert (result.exit_code, result.stdout) == (2, "")
        assert error_line(result.stderr).startswith(f"Error: {NAMES[provider]} does not start")


@pytest.mark.parametrize(
    ("provider", "install"),
    [
        ("cuda", "pip uninstall onnxruntime && pip install onnxruntime-gpu"),
        (
            "tensorrt",
            'pip uninstall onnxruntime && pip install onnxruntime-gpu "tensorrt<12,>=10.14" "cuda-bindings<14,>=13"',
        ),
        ("nv-tensorrt-rtx", "pip install onnxruntime-ep-nv-tensorrt-rtx"),
    ],
)
@pytest.mark.parametrize("name", ["run", "verify"])
def test_a_provider_that_is_not_there_is_one_line(
    name: str, provider: str, install: str, fake: FakeOrt, exported: Exported
) -> None:
    fake.available = ["AzureExecutionProvider", CPU]
    rest = ["--prompt-ids", "5"] if name == "run" else []
    result = CliRunner().invoke(main, [name, str(exported()[1].directory), "--provider", provider, *rest])
    assert (result.exit_code, result.stdout, fake.asked) == (2, "", [])
    assert error_line(result.stderr) == (
        f"Error: onnxruntime {real.__version__} has no {NAMES[provider]}; it has AzureExecutionProvider, {CPU}. "
        f"Run: {install}\n"
    )


def test_tensorrt_rtx_from_its_package(fake: FakeOrt, artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.available = [CPU]
    name, package = NAMES["nv-tensorrt-rtx"], ModuleType("onnxruntime_ep_nv_tensorrt_rtx")
    package.__spec__ = SimpleNamespace()  # type: ignore[assignment]
    package.get_ep_name, package.get_library_path = lambda: name, lambda: "/ep.so"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, package.__name__, package)
    with pytest.raises(LucidError, match=f"{name} finds 0 GPUs that it can use here; number 0 is not among them"):
        open_session(artifact, provider="nv-tensorrt-rtx")
    fake.devices.append(SimpleNamespace(ep_name=name))
    fake.registered.clear()
    assert open_session(artifact, provider="nv-tensorrt-rtx").provider == "nv-tensorrt-rtx"
    assert fake.registered == [(name, "/ep.so")]
    assert [options.chosen for options in fake.options] == [[name]] * 2


def test_what_is_refused(exported: Exported, fake: FakeOrt) -> None:
    _, artifact = exported()
    with pytest.raises(LucidError, match="Provider 'rocm' is not known; known are " + ", ".join(PROVIDERS)):
        open_session(artifact, provider="rocm")
    with pytest.raises(LucidError, match="with --provider cuda runs on cuda, not on 'tpu'"):
        open_session(artifact, device="tpu", provider="cuda")
    with pytest.raises(LucidError, match="--provider cuda runs models in float32 or float16, and"):
        open_session(exported(dtype="bfloat16")[1], provider="cuda")
    with pytest.raises(LucidError, match=r"cuda runs caches that are growing, and .* Export with --cache growing"):
        open_session(exported(cache="static")[1], provider="cuda")


@pytest.mark.parametrize(("provider", "named"), [("cpu", "onnxruntime"), ("cuda", "onnxruntime (cuda)")])
def test_verify_says_what_ran(provider: str, named: str, fake: FakeOrt, exported: Exported) -> None:
    checkpoint, artifact = exported()
    arguments = [str(artifact.directory), "--checkpoint", str(checkpoint), "--steps", "1", "--provider", provider]
    result = CliRunner().invoke(main, ["verify", *arguments])
    assert result.exit_code == 0, result.stderr
    assert f"{named}, float32, against PyTorch" in result.stdout and f"{named} computes what PyTorch" in result.stdout


@pytest.mark.parametrize(("provider", "named"), [("cpu", "onnxruntime"), ("cuda", "onnxruntime (cuda)")])
def test_run_says_what_ran(provider: str, named: str, fake: FakeOrt, exported: Exported) -> None:
    arguments = ["run", str(exported()[1].directory), "--prompt-ids", "5,7", "-n", "3", "--provider", provider]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.stderr
    assert result.stderr.endswith(f"; {named}, float32\n")
    facts = json.loads(CliRunner().invoke(main, [*arguments, "--json"]).stdout)
    assert (facts["runtime"], facts["provider"]) == ("onnxruntime", provider)


@pytest.mark.parametrize("name", ["run", "verify"])
def test_the_command_line_knows_the_same_providers(name: str) -> None:
    command = main.get_command(None, name)  # type: ignore[arg-type]
    assert command is not None
    (option,) = [each for each in command.params if each.name == "provider"]
    assert tuple(option.type.choices) == PROVIDERS  # type: ignore[attr-defined]
