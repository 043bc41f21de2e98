"""``lucid-deploy inspect`` shows what is in an artifact's files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from lucid_deploy.artifact import Artifact
from lucid_deploy.cli import main
from lucid_deploy.export.quantize.options import QuantizeOptions

Exported = Callable[..., tuple[Path, Artifact]]


def run(*words: Any) -> Result:
    return CliRunner().invoke(main, ["inspect", *map(str, words)])


def test_files_graphs_and_memory_are_shown(exported: Exported) -> None:
    _, artifact = exported()
    result = run(artifact.directory, "--batch", 3, "--context", 100)
    assert result.exit_code == 0, result.stderr
    digest = hashlib.sha256(artifact.path("weights.bin").read_bytes()).hexdigest()
    assert digest[:16] in result.stdout and "sha256 checked" not in result.stdout
    for shown in ("past_key_values.{0..1}.key", "ai.lucid::Precondition 2", "vocabulary 97, context 512"):
        assert shown in result.stdout
    cache = 3 * 100 * 2 * 2 * 2 * 36 * 4  # rows, tokens, K and Y, layers, key/value heads, width, bytes
    assert "Memory to decode at batch 3, context 100: weights " in result.stdout
    assert f"cache {cache / 1024:.1f} KiB" in result.stdout


def test_a_context_beyond_the_models_maximum_gives_a_note(exported: Exported) -> None:
    directory, note = (
        exported()[1].directory,
        "Note: the model was made for 512 tokens (max_position_embeddings); a context of",
    )
    assert f"{note} 513 runs with --allow-extrapolation only." in run(directory, "--context", 513).stderr
    assert "Note" not in run(directory, "--context", 512).stderr


def test_hashes_are_read_only_if_asked_for(artifact_copy: Path) -> None:
    assert "Files (sha256 checked)" in run(artifact_copy, "--check").stdout
    with (artifact_copy / "weights.bin").open("r+b") as file:
        file.write(b"\0\1\2\3")
    assert run(artifact_copy).exit_code == 0
    damaged = run(artifact_copy, "--check")
    assert damaged.exit_code == 1 and "weights.bin" in damaged.stderr


def test_commands_describe_quantization_in_the_same_words(demo: Callable[..., Artifact]) -> None:
    artifact = demo(quantize=QuantizeOptions("int4"))
    for words in (
        ["inspect"],
        ["run", "--prompt", "fox has red lamp. fox has"],
        ["eval", "--task", "recall", "--limit", "1"],
        ["bench", "--lengths", "8", "--stages", "decode", "--repeats", "1"],
    ):
        shown = CliRunner().invoke(main, [words[0], str(artifact.directory), *words[1:]]).output
        assert "float32, int4 hqq, 5.615 bits a weight; int8 inputs on the CPU" in shown.replace("\n", " "), words
