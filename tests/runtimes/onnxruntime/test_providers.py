"""onnxruntime's execution providers: what is asked for and what is refused.

No GPU is used: a stand-in for onnxruntime has the providers, records what it is told and computes on the CPU.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import onnxruntime as real
import pytest
from click.testing import CliRunner

from lucid_deploy.artifact import Artifact
from lucid_deploy.cli import main
from lucid_deploy.errors import LucidError
from lucid_deploy.runtimes import open_session
from lucid_deploy.runtimes.onnxruntime.providers import CPU, plan_provider
from lucid_deploy.runtimes.options import PROVIDERS
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
            'pip uninstall onnxruntime && pip install onnxruntime-gpu "tensorrt<12,>=10.14" "cuda-bindings<14,>=13" '
            '"polygraphy<1,>=0.53.6" "onnx-graphsurgeon<1,>=0.6.1"',
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
