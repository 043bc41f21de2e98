"""The C++ example compiles without warnings and answers. Debian has its header: libonnxruntime-dev."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import onnxruntime
import pytest

from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.export import export
from lucid_deploy.plugins.hosts.compiler import find_compiler
from tests.patience import PATIENCE

SOURCE = Path(__file__).resolve().parents[2] / "examples" / "cpp" / "generate.cpp"
HEADER = "onnxruntime_cxx_api.h"


def header_folder() -> Path | None:
    roots = [Path(os.environ["ONNXRUNTIME_ROOT"])] if "ONNXRUNTIME_ROOT" in os.environ else []
    places = [root / "include" for root in roots] + [
        Path("/usr/include/onnxruntime"),
        Path("/usr/local/include/onnxruntime"),
    ]
    return next((place for place in places if (place / HEADER).is_file()), None)


def test_the_program_answers(tmp_path: Path) -> None:
    include = header_folder()
    if include is None:
        pytest.skip(f"{HEADER} is not installed")
    (library,) = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.1*")
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):  # as a release names it
        (tmp_path / name).symlink_to(library)
    program = tmp_path / "generate"
    command = [
        find_compiler(),
        "-std=c++17",
        "-O1",
        "-Wall",
        "-Wextra",
        "-Werror",
        str(SOURCE),
        "-isystem",
        str(include),
    ]
    link = [f"-L{tmp_path}", "-lonnxruntime", f"-Wl,-rpath,{tmp_path}", "-o", str(program)]
    subprocess.run([*command, *link], check=True, timeout=PATIENCE)
    artifact = export("demo", tmp_path / "artifact")
    prompt = TextTokenizer(artifact.directory).encode("fox has red lamp, owl has blue cup. owl has")
    arguments = [str(program), str(artifact.directory), "8", "2", *map(str, prompt)]
    assert subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=PATIENCE).stdout == "72 114 \n"
    broken = subprocess.run([*arguments[:1], "nowhere", *arguments[2:]], capture_output=True, text=True, check=False)
    assert (broken.returncode, broken.stderr[:12]) == (1, "onnxruntime:")
    assert subprocess.run([str(program)], capture_output=True, check=False).returncode == 2
