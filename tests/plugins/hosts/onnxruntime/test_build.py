"""Building the library for onnxruntime, and refusing one that is missing, damaged or of another version."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from lucid_deploy.cli import main
from lucid_deploy.errors import LucidError
from lucid_deploy.plugins.hosts.compiler import find_compiler, system_includes
from lucid_deploy.plugins.hosts.onnxruntime import build
from lucid_deploy.runtimes.onnxruntime.compatibility import choose_kernels
from tests.plugins.cpu_sessions import INSTRUCTIONS, runnable


@pytest.fixture
def copy(library: Path, tmp_path: Path) -> Path:
    """Return a copy of the library and its record, which a test may damage."""
    shutil.copy(library.with_name(library.name + ".json"), tmp_path)
    return Path(shutil.copy(library, tmp_path))


def test_the_fastest_kernels_that_can_run_are_chosen(library, fastest):
    assert fastest == runnable(library)[0]
    assert [name for name in INSTRUCTIONS if name in runnable(library)][-1] == "portable"
    with pytest.raises(LucidError, match="cannot run the kernels 'avx1024'"):
        build.kernels_name(library, "avx1024")


def test_a_missing_library(tmp_path):
    with pytest.raises(LucidError, match=r"no library of kernels .*plugin build --target onnxruntime"):
        build.check_ort_library(tmp_path / "none.so")


@pytest.mark.parametrize("damage", ["truncated", "empty", "changed", "no record", "not a record", "half a record"])
def test_a_damaged_library(copy, damage):
    record = copy.with_name(copy.name + ".json")
    data = copy.read_bytes()
    if damage == "truncated":
        copy.write_bytes(data[: len(data) // 2])  # loading it would end the process
    elif damage == "empty":
        copy.write_bytes(b"")
    elif damage == "changed":
        copy.write_bytes(data[:5000] + b"\0" + data[5001:] if data[5000] else data[:5000] + b"\1" + data[5001:])
    elif damage == "no record":
        record.unlink()
    else:
        record.write_text("[1" if damage == "not a record" else '{"abi": 1}')
    with pytest.raises(LucidError, match=r"cannot be trusted.*plugin build --target onnxruntime.*--kernels functions"):
        build.check_ort_library(copy)


@pytest.mark.parametrize("field", ["abi", "sources"])
def test_a_library_of_another_version(copy, field):
    record = copy.with_name(copy.name + ".json")
    record.write_text(json.dumps({**json.loads(record.read_text()), field: 0}))
    with pytest.raises(LucidError, match="from the sources of another version"):
        build.check_ort_library(copy)


def test_each_versions_sources_have_a_library_of_their_own(tmp_path, monkeypatch):
    """Two checkouts of one user share the cache folder; neither finds or replaces the other's library."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = build.user_ort_library()
    first.parent.mkdir()
    first.write_text("the other checkout's")
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-DANOTHER"))
    assert build.user_ort_library() != first and build.user_ort_library().parent == first.parent
    assert choose_kernels("auto") is None


def test_another_shared_library_is_refused(tmp_path):
    other = tmp_path / "other.so"
    subprocess.run([find_compiler(), "-shared", "-fPIC", "-x", "c++", "/dev/null", "-o", other], check=True)
    with pytest.raises(LucidError, match="not a usable library of kernels"):
        build.kernels_name(other)


def test_a_failed_build_keeps_the_previous_library(tmp_path, monkeypatch):
    (tmp_path / "library.so").write_text("the one before")
    monkeypatch.setattr(build, "FLAGS", ("-no-such-flag",))
    with pytest.raises(LucidError, match="does not compile"):
        build.build_ort_library(tmp_path / "library.so")
    assert (tmp_path / "library.so").read_text() == "the one before"
    assert [path.name for path in tmp_path.iterdir()] == ["library.so"]


CHECK = """
#include "ort_abi.h"
#include <cstddef>
#define AT(member, place) static_assert(offsetof(OrtApi, member) == (place) * sizeof(void*), #member)
AT(CreateStatus, 0); AT(CreateCustomOpDomain, 26); AT(CustomOpDomain_Add, 27); AT(AddCustomOpDomain, 28);
AT(GetTensorMutableData, 51); AT(GetDimensionsCount, 61); AT(GetDimensions, 62); AT(GetTensorTypeAndShape, 65);
AT(KernelInfoGetAttribute_float, 85); AT(KernelInfoGetAttribute_int64, 86);
AT(KernelContext_GetInput, 90); AT(KernelContext_GetOutput, 91);
AT(ReleaseTensorTypeAndShapeInfo, 99); AT(KernelInfoGetConstantInput_tensor, 249); AT(KernelContext_ParallelFor, 274);
static_assert(offsetof(OrtCustomOp, KernelComputeV2) == 18 * sizeof(void*), "KernelComputeV2");
static_assert(sizeof(OrtCustomOp) == 26 * sizeof(void*), "OrtCustomOp");
"""


@pytest.mark.parametrize("header", ["own", "system"])
def test_indices_in_onnxruntimes_function_table(tmp_path, header):
    """Check the indices in our declarations, and in the real header if it is installed."""
    name = "ort_abi.h" if header == "own" else "onnxruntime_c_api.h"
    places = (build.HOST, *(place / "onnxruntime" for place in system_includes()))
    include = next((place for place in places if (place / name).is_file()), None)
    if include is None:
        pytest.skip(f"no {name} here")
    source = tmp_path / "check.cpp"
    source.write_text(CHECK.replace("ort_abi.h", name))
    command = [find_compiler(), "-std=c++17", "-fsyntax-only", "-isystem", str(include), str(source)]
    assert subprocess.run(command, capture_output=True, text=True).stderr == ""


def test_the_build_command(built_library):
    result = CliRunner().invoke(main, ["plugin", "build", "--target", "onnxruntime", "--json", "-"])
    assert result.exit_code == 0, result.stderr
    facts = json.loads(result.stdout)
    assert facts["library"] == str(built_library) and not facts["compiled"] and facts["abi"] == build.ORT_ABI
    result = CliRunner().invoke(main, ["plugin", "build", "--target", "onnxruntime"])
    assert result.stdout.startswith(f"Kept {built_library}: ") and facts["instructions"] in result.stdout


def test_no_function_for_avx512_can_be_shared_with_other_files(library, tmp_path):
    """The linker may use a weak function for all files, also on processors that lack the instructions.

    The file for AVX2 has the same kernels; a weak function would be found in either.
    """
    source, target = build.HOST / "isa_avx512.cpp", tmp_path / "avx512.o"
    flags = [flag for flag in build.FLAGS if flag != "-shared"]
    folders = ["-I", str(build.PLUGINS), "-I", "."]  # all as for the library, whose object is kept: see compiled_once
    command = [find_compiler(), *flags, *folders, "-c", str(source), "-o", str(target)]
    subprocess.run(command, check=True)
    listed = subprocess.run(["nm", "-C", str(target)], capture_output=True, text=True, check=True).stdout
    assert [line for line in listed.splitlines() if " W " in line and "lucid::kAvx" not in line] == []
