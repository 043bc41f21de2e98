"""``lucid-deploy run --batch``: answers, bad input, interruptions."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from tokenizers import Tokenizer, models, pre_tokenizers

from lucid_deploy.artifact import Artifact
from lucid_deploy.batching import Batcher
from lucid_deploy.cli import main
from tests.batching.test_batcher import break_embedding
from tests.patience import PATIENCE

Exported = Callable[..., tuple[Path, Artifact]]
Answers = dict[int, dict[str, Any]]


@pytest.fixture(scope="module")
def directory(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A static artifact with a tokenizer whose words are w0 to w96."""
    return with_words(exported(cache="static")[1], tmp_path_factory.mktemp("batch") / "artifact")


def with_words(artifact: Artifact, target: Path) -> Path:
    shutil.copytree(artifact.directory, target)
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(97)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(target / "tokenizer.json"))
    return target


class Workplace:
    """A file of prompts and one of answers."""

    def __init__(self, directory: Path, place: Path) -> None:
        self.directory, self.prompts, self.output = directory, place / "prompts.jsonl", place / "answers.jsonl"
        self.record = place / "answers.jsonl.run.json"

    def write(self, *lines: Any) -> None:
        self.prompts.write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines))

    def arguments(self, *options: Any) -> list[str]:
        fixed = ["run", self.directory, "--batch", self.prompts, "--output", self.output, "--ignore-eos"]
        return [*map(str, fixed), *map(str, options)]

    def run(self, *options: Any, status: int = 0) -> Result:
        result = CliRunner().invoke(main, self.arguments(*options))
        assert result.exit_code == status, (result.stderr, result.exception)
        return result

    def answers(self) -> Answers:
        found = [json.loads(line) for line in self.output.read_text().splitlines()]
        assert len({answer["line"] for answer in found}) == len(found)
        return {answer["line"]: answer for answer in found}


@pytest.fixture
def place(directory: Path, tmp_path: Path) -> Workplace:
    return Workplace(directory, tmp_path)


def alone(directory: Path, prompt: str, *options: Any) -> dict[str, Any]:
    arguments = ["run", str(directory), "--prompt", prompt, "--ignore-eos", "--json", *map(str, options)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.stderr
    facts: dict[str, Any] = json.loads(result.stdout)
    return facts


MANY = [{"prompt": f"w{i} w5 w5 w{90 - i}", "id": f"p{i}"} for i in range(12)]


def test_answers_are_those_of_single_runs(place: Workplace) -> None:
    place.write(
        {"prompt": "w3 w4 w5", "id": "first"},
        "",
        {"prompt_ids": [3, 4, 5], "max_new_tokens": 3, "id": 7},
        {"prompt": "w9 w9 w9 w9", "temperature": 1.5, "seed": 4, "top_k": 50},
        {"prompt": "w9 w9 w9 w9", "temperature": 1.5, "seed": 5, "top_p": 0.9, "id": None},
    )
    summary = json.loads(place.run("-n", 12, "--rows", 3, "--json").stdout)
    found = place.answers()
    assert sorted(found) == [1, 3, 4, 5]  # numbers of lines, blank ones counted
    first = alone(place.directory, "w3 w4 w5", "-n", 12)
    assert found[1] == {
        "line": 1,
        "id": "first",
        "text": first["text"],
        "ids": first["ids"],
        "finish_reason": "length",
        "prompt_tokens": 3,
        "error": None,
    }
    assert (found[3]["id"], found[3]["ids"]) == (7, first["ids"][:3])
    for line, seed, *options in ((4, 4, "--top-k", 50), (5, 5, "--top-p", 0.9)):
        single = alone(place.directory, "w9 w9 w9 w9", "-n", 12, "--temperature", 1.5, "--seed", seed, *options)
        assert found[line]["ids"] == single["ids"]
    assert (summary["prompts"], summary["failed"], summary["generated_tokens"]) == (4, 0, 12 * 3 + 3)


def test_stop_strings_end_answers_and_free_their_rows(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    cancelled, cancel = list[int](), Batcher.cancel

    def noted(batcher: Batcher, number: int) -> None:
        cancelled.append(number)
        cancel(batcher, number)

    monkeypatch.setattr(Batcher, "cancel", noted)
    whole = alone(place.directory, "w3 w4 w5", "-n", 12)["text"]
    words = whole.split()
    stop = f"{words[5]} {words[6]}"
    shown = whole[: whole.index(stop)]
    single = alone(place.directory, "w3 w4 w5", "-n", 12, "--stop", stop, "--stop", "nowhere")
    assert (single["text"], single["finish_reason"]) == (shown, "stop")
    place.write({"prompt": "w3 w4 w5", "stop": stop}, {"prompt": "w3 w4 w5", "stop": ["x", "y"]}, *MANY)
    place.run("-n", 12, "--rows", 2)
    found = place.answers()
    assert (found[1]["text"], found[1]["finish_reason"]) == (shown, "stop")
    assert (found[2]["text"], found[2]["finish_reason"]) == (whole, "length")
    assert len(found) == 14 and cancelled == [0]


def test_a_killed_run_continues_without_losing_or_repeating_answers(place: Workplace) -> None:
    place.write(*MANY)
    place.run("-n", 200, "--rows", 3)
    wanted = place.answers()
    assert len(wanted) == len(MANY)
    place.output.unlink()
    command = [sys.executable, "-m", "lucid_deploy.cli", *place.arguments("-n", 200, "--rows", 3, "--threads", 1)]
    for number in (signal.SIGKILL, signal.SIGINT, signal.SIGTERM):
        process = subprocess.Popen(command, stderr=subprocess.PIPE)
        before = place.output.stat().st_size if place.output.exists() else 0
        deadline = time.monotonic() + PATIENCE
        # If SIGINT is ignored, as in background jobs of a script, the second run completes, and the third has
        # nothing to do.
        while process.poll() is None and time.monotonic() < deadline:
            if place.output.exists() and place.output.stat().st_size > before:
                break
            time.sleep(0.002)
        process.send_signal(number)
        _, errors = process.communicate(timeout=PATIENCE)
        if number != signal.SIGKILL and process.returncode:  # it may have finished before
            assert process.returncode == 128 + number and b"the same command continues" in errors
    part = place.output.read_bytes()
    assert part.endswith(b"\n") and 0 < part.count(b"\n") <= len(MANY)
    lines = part.splitlines(keepends=True)
    place.output.write_bytes(b"".join(lines[:-1]) + lines[-1][: len(lines[-1]) // 2])  # the last one is torn
    result = place.run("-n", 200, "--rows", 2)
    assert f"{len(lines) - 1} were answered before" in result.stderr or len(lines) == 1
    assert place.answers() == wanted
    before = place.output.read_bytes()
    place.run("-n", 200)  # nothing is left to do
    assert place.output.read_bytes() == before


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 3: The line is not valid JSON"),
        ('{"prompt_ids": [1, 97]}', "line 3: Token id 97"),
    ],
)
def test_bad_lines_are_named_before_anything_runs(line: str, message: str, place: Workplace) -> None:
    place.write({"prompt": "w1", "id": "a"}, "", line, {"prompt": "w2"})
    assert message in place.run(status=2).stderr
    assert not place.output.exists()


def test_bad_files_and_options_are_refused(place: Workplace, exported: Exported) -> None:
    assert "cannot be read" in place.run(status=2).stderr
    place.prompts.write_bytes(b'{"prompt": "w1"}\n{"prompt": "\xff"}')
    assert "line 2: The line is not valid JSON: 'utf-8' codec" in place.run(status=2).stderr
    place.write(*MANY)
    for rows in (0, 1_000_000):
        assert "1<=x<=1024" in place.run("--rows", rows, status=2).stderr
    assert "at least one token, not 0" in place.run("--prefill-chunk", 0, status=2).stderr
    assert "brings its own prompts" in place.run("--prompt", "x", status=2).stderr
    plain = Workplace(exported(cache="static")[1].directory, place.prompts.parent)
    assert "no tokenizer.json: give prompt_ids" in plain.run(status=2).stderr
    assert not place.output.exists()
    place.output.mkdir()
    assert "not a regular file" in place.run(status=2).stderr
    runner = CliRunner()
    for arguments, message in (
        (["--batch", str(place.prompts)], "needs a file for the answers"),
        (["--batch", str(place.prompts), "--output", "-"], "--output cannot be -"),
        (["--batch", "-", "--output", "answers.jsonl"], "--batch cannot be -"),
        (["--prompt", "w1", "--output", "x"], "--output goes with --batch"),
        (["--prompt", "w1", "--rows", "8"], "--rows and --prefix-cache-tokens go with --batch"),
        (["--prompt", "w1", "--prefix-cache-tokens", "5"], "--rows and --prefix-cache-tokens go with --batch"),
    ):
        assert message in runner.invoke(main, ["run", str(place.directory), *arguments]).stderr


def test_a_batch_continues_only_with_options_that_give_the_same_answers(
    exported: Exported, quantized: Exported, tmp_path: Path
) -> None:
    """In float32, drafts, stored prefixes and rows change no answer; with a static cache, rows never do."""
    exact, static, growing = (
        exported(cache="static")[1],
        exported(cache="static", cache_dtype="int8")[1],
        quantized("int8")[1],
    )
    chunk, prefixes, drafts, rows = (
        ("--prefill-chunk", 16),
        ("--prefix-cache-tokens", 100),
        ("--speculate", "lookup"),
        ("--rows", 3),
    )
    for name, artifact, refused, taken in (
        ("exact", exact, {"prefill_chunk": chunk}, [prefixes, drafts, rows]),
        (
            "static",
            static,
            {"prefill_chunk": chunk, "prefix_cache_tokens": prefixes, "speculate": drafts},
            [rows],
        ),
        ("growing", growing, {"prefix_cache_tokens": prefixes, "speculate": drafts, "rows": rows}, []),
    ):
        place = Workplace(with_words(artifact, tmp_path / name), tmp_path)
        place.write(*MANY[:3])
        place.run("-n", 3, "--overwrite")
        good = place.output.read_bytes()
        place.output.write_bytes(good.splitlines(keepends=True)[0])
        for word, options in refused.items():
            assert f"begun with other {word}. Choose" in place.run("-n", 3, *options, status=2).stderr
        for options in taken:
            place.run("-n", 3, *options)
            place.output.write_bytes(good.splitlines(keepends=True)[0])
        place.run("-n", 3)
        assert sorted(place.output.read_bytes().splitlines()) == sorted(good.splitlines())


def test_an_output_that_was_begun_with_other_options_is_refused(place: Workplace) -> None:
    place.write(*MANY[:3])
    place.run("-n", 3)
    good = place.output.read_bytes()
    for name, other in (("max_new_tokens", ["-n", 4]), ("extrapolation", ["-n", 3, "--allow-extrapolation"])):
        assert f"begun with other options ({name}). Choose" in place.run(*other, status=2).stderr
    assert "begun with other runtime" in place.run("-n", 3, "--runtime", "torch", status=2).stderr
    place.write(*MANY[:4])
    assert "begun with other prompts" in place.run("-n", 3, status=2).stderr
    assert place.output.read_bytes() == good
    place.run("-n", 3, "--overwrite")
    assert sorted(place.answers()) == [1, 2, 3, 4]
    damaged = place.output.read_bytes() + b"broken\n{}\n"
    place.output.write_bytes(damaged)
    assert "line 5 is not an answer" in place.run("-n", 3, status=1).stderr
    assert place.output.read_bytes() == damaged
    place.record.write_text("[]")
    place.output.write_bytes(b"")  # nothing to lose
    place.run("-n", 3)
    assert sorted(place.answers()) == [1, 2, 3, 4]


def test_a_prompt_that_fails_gives_an_answer_with_an_error_and_status_1(place: Workplace, tmp_path: Path) -> None:
    broken = Workplace(Path(shutil.copytree(place.directory, tmp_path / "broken")), tmp_path)
    break_embedding(broken.directory, 96)
    broken.write({"prompt": "w1 w2"}, {"prompt": "w96"}, {"prompt": "w3"})
    assert "1 of 3 prompts failed" in broken.run("-n", 5, status=1).stderr
    found = broken.answers()
    assert "not finite" in found[2]["error"] and found[2]["finish_reason"] == "error" and found[2]["ids"] == []
    assert len(found[1]["ids"]) == len(found[3]["ids"]) == 5
    assert "1 of 3 prompts failed" in broken.run("-n", 5, status=1).stderr  # again, without running a prompt
    assert broken.answers() == found
