"""Building and checking the plugin library: every failure has one clear message."""

import pytest

from lucid_deploy.errors import LucidError
from lucid_deploy.plugins.hosts.tensorrt import build
from lucid_deploy.plugins.table import FLOATS
from tests.plugins.hosts.tensorrt.plugin_tools import Problem, stand_ins


@pytest.fixture(scope="module")
def kernels():
    return stand_ins((90,), ptx=False)[:3]


def test_the_library_carries_this_versions_abi(tools):
    build.check_plugin(tools.plugin)
    assert build.plugin_abi(tools.plugin) == build.PLUGIN_ABI


def test_a_changed_workspace_needs_another_abi():
    """An engine stores the workspace size from its build; a library that needs more would write beyond it.

    If this fails, increase ``PLUGIN_ABI`` and write the new sizes here.
    """
    plans = [Problem("Precondition", dtype, new=70, past=33, width=68).plan(86) for dtype in FLOATS]
    for operator in ("DecodeAttention", "DecodeAttentionFloat8"):
        plans.append(Problem(operator, new=2, past=777, groups=4).plan(89))
    plans.append(Problem("DeltaRule", new=130, width=68, value_width=100).plan(86))
    found = [plan.workspace_bytes for plan in plans]
    assert (build.PLUGIN_ABI, found) == (9, [884, 836, 54016, 675840, 675840, 84480])


@pytest.fixture(scope="module")
def library_for_90(tmp_path_factory):
    """A library as from ``plugin build --arch 9.0``: machine code for 9.0, PTX for 8.6, and for 8.9 with E4M3."""
    return build.build_plugin(tmp_path_factory.mktemp("chip") / "plugin.so", stand_ins((90,)))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_compute_capabilities_of_a_library(library_for_90, dtype):
    build.check_kernels(library_for_90, dtype, (36, 64, 128), capabilities=(86, 89, 90, 100, 120, 121))
    with pytest.raises(LucidError, match=r"compute capability 8\.0\. Run: .* --arch 8\.0,9\.0 --output LIBRARY"):
        build.check_kernels(library_for_90, dtype, (64,), capabilities=(80, 90))


def test_compute_capabilities_with_e4m3_kernels(library_for_90):
    build.check_kernels(library_for_90, "float16", (64,), True, (89, 90, 100, 120))
    with pytest.raises(LucidError, match=r"compute capability 8\.6\. Run: "):
        build.check_kernels(library_for_90, "float16", (64,), True, (86, 89))


def test_a_failed_build_keeps_the_previous_library(kernels, tmp_path, monkeypatch):
    (tmp_path / "plugin.so").write_text("the one before")
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.setattr(build, "find_tensorrt_headers", lambda: empty)
    with pytest.raises(LucidError, match=r"does not compile(.|\n)*NvInferRuntime\.h"):
        build.build_plugin(tmp_path / "plugin.so", kernels)
    assert (tmp_path / "plugin.so").read_text() == "the one before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "plugin.so"]


def test_a_file_that_is_not_a_library_is_refused(tmp_path):
    (tmp_path / "plugin.so").write_text("not a library")
    with pytest.raises(LucidError, match="not a usable plugin library"):
        build.check_plugin(tmp_path / "plugin.so")


def test_a_library_of_another_abi(tools, monkeypatch):
    monkeypatch.setattr(build, "PLUGIN_ABI", 999)
    with pytest.raises(LucidError, match=r"has ABI \d+ and this version needs 999\. Run: lucid-deploy plugin build"):
        build.check_plugin(tools.plugin)
