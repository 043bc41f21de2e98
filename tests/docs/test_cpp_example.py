"""The C++ example compiles without warnings and answers. Debian has its header: libonnxruntime-dev."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from lucid_deploy.artifact import Artifact
from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.generation.generate import Generation
from lucid_deploy.plugins.hosts.compiler import find_compiler
from lucid_deploy.runtimes import open_session
from tests.conftest import MIXED
from tests.patience import PATIENCE

Exported = Callable[..., tuple[Path, Artifact]]

SOURCE = Path(__file__).resolve().parents[2] / "examples" / "cpp" / "generate.cpp"
HEADER = "onnxruntime_cxx_api.h"


def header_folder() -> Path | None:
    roots = [Path(os.environ["ONNXRUNTIME_ROOT"])] if "ONNXRUNTIME_ROOT" in os.environ else []
    places = [root / "include" for root in roots] + [
        Path("/usr/include/onnxruntime"),
        Path("/usr/local/include/onnxruntime"),
    ]
    return next((place for place in places if (place / HEADER).is_file()), None)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    include = header_folder()
    if include is None:
        pytest.skip(f"{HEADER} is not installed")
    folder = tmp_path_factory.mktemp("cpp")
    (library,) = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.1*")
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):  # as a release names it
        (folder / name).symlink_to(library)
    built = folder / "generate"
    warnings = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror"]
    link = [f"-L{folder}", "-lonnxruntime", f"-Wl,-rpath,{folder}", "-o", str(built)]
    command = [find_compiler(), *warnings, str(SOURCE), "-isystem", str(include), *link]
    subprocess.run(command, check=True, timeout=PATIENCE)
    return built


def run(program: Path, artifact: Path | str, *arguments: object) -> tuple[int, str, str]:
    """Return status, stdout and stderr."""
    line = [str(program), str(artifact), *map(str, arguments)]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=PATIENCE)
    return done.returncode, done.stdout, done.stderr


def test_the_program_answers(program: Path, demo: Callable[..., Artifact]) -> None:
    artifact = demo().directory
    prompt = TextTokenizer(artifact).encode("fox has red lamp, owl has blue cup. owl has")
    assert run(program, artifact, 8, 2, *prompt) == (0, "72 114 \n", "")


def test_the_program_ends_where_the_context_ends(program: Path, exported: Exported) -> None:
    """As our own generation does: the last token that is chosen does not run any more."""
    artifact = exported(max_position_embeddings=20, logits="last")[1]
    prompt = [5, 9, 40, 5, 9, 40, 5, 9]
    generation = Generation(open_session(artifact), prompt, 50, stop_at_eos=False)
    wanted = "".join(f"{token} " for token in generation)
    assert generation.finish_reason == "context"
    none = -1  # no token ends the text
    found = run(program, artifact.directory, 50, none, *prompt)
    assert found == (0, f"{wanted}\n", "stopped: the context of 20 tokens is full\n")
    status, answer, said = run(program, artifact.directory, 5, none, *range(21))
    assert (status, answer, said) == (2, "", "the prompt has 21 tokens; the model takes 20\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "usage: generate ARTIFACT"),
        (["abc", 2, 1], "MAX_NEW_TOKENS must be a whole number of at least 1, not 'abc'; usage: generate ARTIFACT"),
        ([0, 2, 1], "MAX_NEW_TOKENS must be a whole number of at least 1, not '0'; usage:"),
        (["3x", 2, 1], "MAX_NEW_TOKENS must be a whole number of at least 1, not '3x'; usage:"),
        ([4, -2, 1], "EOS must be a whole number of at least -1, not '-2'; usage:"),
        ([4, 2, 1, "9" * 30], f"ID must be a whole number of at least 0, not '{'9' * 30}'; usage:"),
        ([4, 2, 1, 97], "token id 97 is outside the vocabulary (0 to 96)"),
    ],
)
def test_arguments_that_are_no_valid_numbers_are_refused(
    program: Path, exported: Exported, arguments: list[object], said: str
) -> None:
    status, answer, error = run(program, exported()[1].directory, *arguments)
    assert (status, answer, error[: len(said)], error.count("\n")) == (2, "", said, 1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"cache": "static"}, "the decode graph has other inputs"),
        (MIXED, "is no float32 row for each token"),
        ({"cache_dtype": "int8"}, "past_key_values.0.key is no float32 row for each token"),
        ({"dtype": "float16"}, "past_key_values.0.key is no float32 row for each token"),
    ],
)
def test_other_caches_are_refused_before_anything_is_printed(
    program: Path, exported: Exported, options: dict[str, Any], said: str
) -> None:
    status, answer, error = run(program, exported(**options)[1].directory, 4, 2, 5, 9)
    assert (status, answer) == (2, "") and said in error and error.count("\n") == 1
    assert error.endswith("; this program takes growing float32 caches of models without windows and states\n")


def test_what_is_no_artifact_is_refused(program: Path) -> None:
    status, _, error = run(program, "nowhere", 8, 2, 5)
    assert (status, error[:35]) == (2, "nowhere/lucid.json cannot be read o")
