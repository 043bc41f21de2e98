"""lucid-deploy chat: through a pipe, in a terminal that a test types into, and its parts."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from lucid_deploy.artifact import chat_process
from lucid_deploy.bounded_process import Bounds
from lucid_deploy.cli import main
from lucid_deploy.cli._chat_loop import ChatSession, ChatTurns, CompletionTurns, stoppable
from lucid_deploy.errors import LucidError
from tests.generation.sample_tokenizers import BLANKS, with_blank_first
from tests.patience import PATIENCE
from tests.serving.serving_tools import replace_file

TEMPLATE = (
    "{% for m in messages %}{% if m.content == 'w90' %}{{ raise_exception('not that') }}{% endif %}"
    "{% if m.content == 'w91' %}"
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}{% endif %}"
    "{{ {'system': 'w11', 'user': 'w12', 'assistant': 'w13'}[m.role] }} {{ m.content }} {% endfor %}w13"
)
FIXED = ("--ignore-eos", "-n", "6")


@pytest.fixture
def chatty(with_tokenizer: Path) -> Path:
    """The tiny artifact with a chat template."""
    replace_file(with_tokenizer, "tokenizer_config.json", json.dumps({"chat_template": TEMPLATE}).encode())
    return with_tokenizer


def chat(directory: Path, *lines: str, options: tuple[str, ...] = FIXED, status: int = 0) -> Result:
    """Give lines through a pipe."""
    result = CliRunner().invoke(main, ["chat", str(directory), *options], input="".join(f"{line}\n" for line in lines))
    assert result.exit_code == status, result.output
    return result


def new_tokens(result: Result) -> list[tuple[int, int]]:
    """Return for each answer how many tokens of its prompt were run, and how many there were."""
    return [(int(a), int(b)) for a, b in re.findall(r"(\d+) of (\d+) prompt tokens were new", result.stderr)]


def ran(directory: Path, prompt: str) -> str:
    """Return what `run` answers to a text that the template has made."""
    result = CliRunner().invoke(main, ["run", str(directory), "--prompt", prompt, *FIXED])
    assert result.exit_code == 0
    return result.stdout.removesuffix("\n")


def test_each_answer_is_what_run_answers_to_the_whole_chat(chatty: Path) -> None:
    result = chat(chatty, "w1 w2 w3", "w4", options=(*FIXED, "--system", "w20"))
    first, second = result.stdout.splitlines()
    assert first == ran(chatty, "w11 w20 w12 w1 w2 w3 w13")
    assert second == ran(chatty, f"w11 w20 w12 w1 w2 w3 w13 {first} w12 w4 w13")
    # The cache has the first prompt's seven tokens, and its answer without the last token.
    assert new_tokens(result) == [(7, 7), (4, 16)]


def test_a_model_without_a_template_continues_one_text(with_tokenizer: Path) -> None:
    result = chat(with_tokenizer, "w1 w2 w3", "w4")
    first, second = result.stdout.splitlines()
    assert "has no chat template: it continues one text" in result.stderr
    assert first == ran(with_tokenizer, "w1 w2 w3")
    assert second == ran(with_tokenizer, f"w1 w2 w3 {first} w4")
    assert new_tokens(result) == [(3, 3), (2, 10)]
    refused = chat(with_tokenizer, "w1", options=("--system", "w2"), status=2)
    assert "--system needs a chat template: the model has no chat template." in refused.stderr


def test_completion_ignores_the_chat_template(chatty: Path) -> None:
    assert chat(chatty, "w1 w2", options=(*FIXED, "--completion")).stdout == ran(chatty, "w1 w2") + "\n"


def test_commands_do_what_help_says(chatty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "saved.json"
    result = chat(chatty, "w1", "/system w5 w6", "w2", f"/save {file}", "/help", "/exit", "w3")
    (_, answer) = result.stdout.splitlines()
    assert json.loads(file.read_text()) == {
        "messages": [
            {"role": "system", "content": "w5 w6"},
            {"role": "user", "content": "w2"},
            {"role": "assistant", "content": answer},
        ]
    }
    assert answer == ran(chatty, "w11 w5 w6 w12 w2 w13")
    assert "/reset            forget the conversation" in result.stderr
    for line, message in (
        (f"/save {file}", "exists. Name another file."),
        ("/save", "Name the file"),
        ("/what", "There is no command /what"),
        (f"/save {tmp_path}/none/x", "cannot be written"),
    ):
        monkeypatch.setattr("sys.stdin", io.StringIO(line))
        with pytest.raises(LucidError, match=message):
            ChatSession(SimpleNamespace(), ChatTurns(list), SimpleNamespace()).run()


def test_texts_of_several_lines_and_with_a_slash_are_read(chatty: Path) -> None:
    result = chat(chatty, '"""w1', "w2", 'w3"""', "/reset", "w1 \\", "w2 w3", "/reset", "", "   ", "//w1")
    block, continued, slash = result.stdout.splitlines()
    assert block == continued == ran(chatty, "w12 w1 w2 w3 w13")
    assert slash == ran(chatty, "w12 /w1 w13")


def test_a_stop_string_ends_an_answer_and_is_not_part_of_the_chat(chatty: Path) -> None:
    whole = ran(chatty, "w12 w1 w13").split()
    place = next(i for i, word in enumerate(whole) if i and word not in whole[:i])
    result = chat(chatty, "w1", "w4", options=(*FIXED, "--stop", f" {whole[place]}"))
    first, second = result.stdout.splitlines()
    assert first == " ".join(whole[:place]) and "(stop)" in result.stderr
    wanted = ran(chatty, f"w12 w1 w13 {first} w12 w4 w13")
    assert wanted.startswith(second)


def test_answers_are_what_the_options_ask_for(with_byte_level_tokenizer: Callable[..., Any], tmp_path: Path) -> None:
    """With each constraint, chat answers as `run` does; an invalid constraint is refused before a line is read."""
    directory, sampled = with_byte_level_tokenizer()[1].directory, ("-n", "60", "--temperature", "1", "--seed", "3")
    grammar = tmp_path / "grammar.lark"
    grammar.write_text('start: "yes" | "no"\n')
    for wanted, options in (
        ("(left|right) *", ("--choice", "left", "--choice", "right")),
        ("[0-9]{3}", ("--regex", "[0-9]{3}")),
        ("yes|no", ("--grammar", str(grammar))),
    ):
        result = chat(directory, "keys", "more", options=(*sampled, *options))
        first, second = result.stdout.splitlines()
        assert re.fullmatch(wanted, first) and re.fullmatch(wanted, second) and "(eos)" in result.stderr
        alone = CliRunner().invoke(main, ["run", str(directory), "--prompt", "keys", *sampled, *options])
        assert alone.stdout == first + "\n"
    assert "--regex: The constraint cannot be enforced" in chat(directory, options=("--regex", "("), status=2).stderr
    assert (
        "--choice cannot be combined with --regex"
        in chat(directory, options=("--regex", "a", "--choice", "a"), status=2).stderr
    )


def test_speculation_changes_no_answer_and_says_how_far_drafts_were_right(chatty: Path) -> None:
    options, lines = ("--ignore-eos", "-n", "12"), ("w1 w2 w3", "w4", "w1 w2")
    stop = chat(chatty, lines[0], options=options).stdout.split()[5]
    plain = chat(chatty, *lines, options=(*options, "--stop", stop))
    assert "drafted" not in plain.stderr
    for speculation in (("lookup",), ("draft", "--draft", str(chatty))):
        guessed = chat(chatty, *lines, options=(*options, "--stop", stop, "--speculate", *speculation))
        assert guessed.stdout == plain.stdout and new_tokens(guessed) == new_tokens(plain)
        assert len(re.findall(r"new; \d+ of \d+ drafted tokens accepted\]", guessed.stderr)) == 3
    assert "go together" in chat(chatty, options=("--speculate", "draft"), status=2).stderr


def test_prompts_that_cannot_be_answered_are_refused(chatty: Path) -> None:
    assert "the model was made for 512" in chat(chatty, "w1 " * 600, status=2).stderr
    assert "max_new_tokens must be at least 1" in chat(chatty, "w1", options=("-n", "0"), status=2).stderr


def test_a_template_in_a_loop_is_ended(chatty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No Ctrl-C is needed: the rendering process has the limits that a server sets, here with less time."""
    monkeypatch.setattr(chat_process, "Bounds", lambda: Bounds(0.5))
    assert "took more than 0.5 s of processor time" in chat(chatty, "w91", status=2).stderr


class Terminal:
    """A command in a terminal."""

    def __init__(self, arguments: list[str]) -> None:
        self.handle, child = pty.openpty()
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm", "NO_COLOR": "1"}
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=child,
            stdout=child,
            stderr=child,
            env=environment,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # so that Ctrl-C reaches this process
        )
        os.close(child)
        self.text, self.is_open = "", True

    def type(self, text: str) -> None:
        os.write(self.handle, text.encode())

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Read until the text after the last match matches, and keep what follows for the next call."""
        end = time.monotonic() + PATIENCE
        while (found := re.search(pattern, self.text, re.S)) is None:
            assert time.monotonic() < end and self.is_open, self.text
            self.read(0.5)
        self.text = self.text[found.end() :]
        return found

    def interrupt(self, pattern: str) -> re.Match[str]:
        """Press Ctrl-C until the text matches: Python can miss one while it begins to wait for a line."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end and self.is_open:
            self.type("\x03")
            for _ in range(10):
                if re.search(pattern, self.text, re.S):
                    return self.wait_for(pattern)
                self.read(0.2)
        raise AssertionError(self.text)

    def read(self, seconds: float) -> None:
        """Read what is available, or comes within ``seconds``."""
        if select.select([self.handle], [], [], seconds)[0]:
            try:
                self.text += os.read(self.handle, 65536).decode(errors="replace").replace("\r", "")
            except OSError:  # the command has ended
                self.is_open = False

    def status(self) -> int:
        return self.process.wait(PATIENCE)


@pytest.fixture
def terminal(chatty: Path) -> Iterator[Terminal]:
    program = str(Path(__file__).parent / "slow_chat.py")
    options = ["--ignore-eos", "-n", "400"]
    opened = Terminal([program, "0.05", "chat", str(chatty), *options])
    yield opened
    with contextlib.suppress(ProcessLookupError):
        opened.process.kill()
    opened.process.wait()
    os.close(opened.handle)


def test_a_session_in_a_terminal(terminal: Terminal) -> None:
    terminal.wait_for(r"Ctrl-D leaves\.\n.*> ")
    terminal.type("w1 w2 w3\n")
    terminal.wait_for(r"w3\n\w+ \w+ \w+")  # the answer has begun …
    terminal.type("\x03")  # … and Ctrl-C stops it, not the session
    found = terminal.wait_for(r"\[(\d+) tokens \(stopped by Ctrl-C\); 5 of 5 prompt tokens were new\]\n.*> ")
    assert 3 <= int(found[1]) < 400
    terminal.type("w90\n")
    terminal.wait_for(r"Error: The model's chat template refuses these messages: not that\.\n.*> ")
    terminal.type("w5\n")
    terminal.wait_for(r"w5\n\w+ \w+")
    terminal.type("\x03")
    again = terminal.wait_for(r"stopped by Ctrl-C\); (\d) of (\d+) prompt tokens were new\]\n.*> ")
    assert int(again[2]) == 5 + int(found[1]) + 3 and int(again[1]) == 4
    terminal.type("/reset\n")
    terminal.wait_for(r"forgotten\.\n.*> ")
    terminal.type("\x1b[A\x1b[A\x1b[A\x1b[A\n")  # up to the first line
    terminal.wait_for(r"w2 w3\n\w+ \w+")
    terminal.type("\x03")
    terminal.wait_for(r"5 of 5 prompt tokens were new\]\n.*> ")
    terminal.type("w7 half a line")  # Ctrl-C while typing drops the line
    terminal.wait_for(r"half a line")
    terminal.interrupt(r"Ctrl-D leaves; /help lists the commands\.\n.*> ")
    terminal.type("\x04")
    assert terminal.status() == 0


def test_ctrl_c_stops_an_answer_and_a_second_one_interrupts() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), stoppable() as stop_requested:
        signal.raise_signal(signal.SIGINT)
        assert stop_requested.is_set()
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_completion_refuses_a_system_message(tmp_path: Path) -> None:
    """The model may have a chat template, so the error must not say that it has none."""
    turns = CompletionTurns(with_blank_first(BLANKS[0], tmp_path))
    with pytest.raises(LucidError, match=r"continues one text, which has no system message.* and no --completion"):
        turns.begin("be brief")
