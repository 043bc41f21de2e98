"""The same source is compiled once; another one, another flag or an error is compiled by the compiler."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.compiled_once import COMPILER, install

LOG = """#!/bin/bash
[[ " $* " == *" -c "* ]] && echo "$@" >> {log}
exec {real} "$@"
"""


@pytest.fixture
def compiler(tmp_path: Path) -> Path:
    """Return the program, in front of a compiler that writes down what it is asked for."""
    real = shutil.which(COMPILER)
    if real is None:
        pytest.skip("needs g++")
    logging = tmp_path / "logging"
    logging.write_text(LOG.format(log=tmp_path / "log", real=real))
    logging.chmod(0o755)
    (tmp_path / "bin").mkdir()
    return install(tmp_path / "bin", str(logging))


def compiled(compiler: Path, source: Path, *others: str | Path, output: str) -> tuple[int, str]:
    command = [str(compiler), "-shared", "-fPIC", *map(str, others), str(source), "-o", str(source.with_name(output))]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.returncode, result.stderr


def test_what_is_the_same_is_compiled_once(compiler: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    source, copy = tmp_path / "a.cpp", tmp_path / "there" / "b.cpp"
    source.write_text('#include "c.h"\nextern "C" int answer() { return ANSWER; }\n')
    (tmp_path / "c.h").write_text("#define ANSWER 1\n")
    shutil.copy(source, copy)
    shutil.copy(tmp_path / "c.h", copy.parent)
    assert compiled(compiler, source, output="one.so") == (0, "")
    assert compiled(compiler, copy, output="two.so") == (0, "")
    log = tmp_path / "log"
    assert len(log.read_text().splitlines()) == 1
    assert (tmp_path / "one.so").read_bytes() == (copy.parent / "two.so").read_bytes()
    assert compiled(compiler, source, "-O1", output="three.so") == (0, "")
    (tmp_path / "c.h").write_text("#define ANSWER 2\n")
    assert compiled(compiler, source, output="four.so") == (0, "")
    assert len(log.read_text().splitlines()) == 3
    assert [ctypes.CDLL(str(tmp_path / name)).answer() for name in ("one.so", "three.so", "four.so")] == [1, 1, 2]


def test_of_several_sources_only_those_that_changed_are_compiled(compiler: Path, tmp_path: Path) -> None:
    first, second, log = tmp_path / "a.cpp", tmp_path / "b.cpp", tmp_path / "log"
    first.write_text('extern "C" int answer(); extern "C" int twice() { return 2 * answer(); }\n')
    second.write_text('extern "C" int answer() { return ANSWER; }\n')
    for name, answer in (("one.so", 1), ("two.so", 2), ("three.so", 1)):
        assert compiled(compiler, first, second, f"-DANSWER={answer}", "-Wl,--no-undefined", output=name) == (0, "")
    assert [Path(line.split()[-3]).name for line in log.read_text().splitlines()] == ["b.cpp", "a.cpp", "b.cpp"]
    assert [ctypes.CDLL(str(tmp_path / name)).twice() for name in ("one.so", "two.so", "three.so")] == [2, 4, 2]


def test_a_file_that_is_read_while_compiling_may_change(compiler: Path, tmp_path: Path) -> None:
    """As the GPU kernels in TensorRT's library do: the preprocessor does not see what is in it."""
    source, data = tmp_path / "a.cpp", tmp_path / "data"
    lines = '.globl data\\n.section .rodata\\ndata: .incbin \\"' + str(data) + '\\"\\n.text'
    source.write_text(f'asm("{lines}"); extern "C" const int data; extern "C" int answer() {{ return data; }}\n')
    for name, answer in (("one.so", 1), ("two.so", 2)):
        data.write_bytes(answer.to_bytes(4, "little"))
        assert compiled(compiler, source, output=name) == (0, "")
    assert [ctypes.CDLL(str(tmp_path / name)).answer() for name in ("one.so", "two.so")] == [1, 2]


def test_an_object_is_that_of_the_library(compiler: Path, tmp_path: Path) -> None:
    source, log = tmp_path / "a.cpp", tmp_path / "log"
    source.write_text('extern "C" int answer() { return 5; }\n')
    assert compiled(compiler, source, "-isystem", tmp_path, output="a.so") == (0, "")
    made = [tmp_path / "a.o", tmp_path / "b.o"]
    for target, flags in zip(made, ([], ["-O1"]), strict=True):
        subprocess.run([compiler, "-fPIC", *flags, "-c", source, "-o", target], check=True)
    assert len(log.read_text().splitlines()) == 2  # for the library, and with another flag
    assert all(b"answer" in target.read_bytes() for target in made)


@pytest.mark.parametrize("source", ["not C++", '#include "nowhere.h"'])
def test_an_error_is_the_compilers_each_time(source: str, compiler: Path, tmp_path: Path) -> None:
    (tmp_path / "a.cpp").write_text(source + "\n")
    for _ in range(2):
        status, said = compiled(compiler, tmp_path / "a.cpp", output="a.so")
        assert status != 0 and "error" in said
    assert not (tmp_path / "a.so").exists()


def test_what_is_no_library_is_the_compilers(compiler: Path, tmp_path: Path) -> None:
    (tmp_path / "a.cpp").write_text("int main() { return 3; }\n")
    subprocess.run([str(compiler), str(tmp_path / "a.cpp"), "-o", str(tmp_path / "a")], check=True)
    assert subprocess.run([str(tmp_path / "a")], check=False).returncode == 3
