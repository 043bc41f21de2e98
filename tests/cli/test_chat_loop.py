"""What a session in the terminal is made of; the whole is tested beside the command."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path

import pytest

from lucid_deploy.cli._chat_loop import HELP, ChatSession, CompletionTurns, printable
from lucid_deploy.errors import LucidError
from tests.generation.sample_tokenizers import BLANKS, with_blank_first
from tests.patience import PATIENCE

TWICE = """
import signal
from lucid_deploy.cli._chat_loop import StopSwitch
switch, said, before = StopSwitch(), [], signal.getsignal(signal.SIGINT)
with switch.answering():
    signal.raise_signal(signal.SIGINT)
    said.append("asked" if switch.asked else "passed over")
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        said.append("interrupted")
said.append("as before" if signal.getsignal(signal.SIGINT) is before else "changed")
print(*said, sep=", ", end="")
"""

TYPED = """
import signal
from lucid_deploy.cli._chat_loop import StopSwitch
switch, said = StopSwitch(), []
with switch.installed():
    for _ in range(2):
        try:
            with switch.typing():
                signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            said.append("dropped")
            signal.raise_signal(signal.SIGINT)
            said.append("goes on")
print(*said, sep=", ", end="")
"""


def test_the_help_fits_a_terminal_of_80_columns() -> None:
    assert max(map(len, HELP.splitlines())) <= 80 and "\\ " in HELP and '"""' in HELP


def test_a_terminal_gets_no_control_characters() -> None:
    assert printable("a\x1b[2Jb\x07\x9b\tc\n") == "a\ufffd[2Jb\ufffd\ufffd\tc\n"
    assert printable("é漢 🙂") == "é漢 🙂"


def test_a_second_ctrl_c_ends_a_session_that_does_not_stop() -> None:
    """In a process of its own: an interruption that this one hears too late would end it."""
    said = subprocess.run([sys.executable, "-c", TWICE], capture_output=True, text=True, timeout=PATIENCE)
    assert (said.returncode, said.stdout, said.stderr) == (0, "asked, interrupted, as before", "")


def test_a_second_ctrl_c_does_not_end_a_session_that_drops_a_line() -> None:
    """It ended the session when it came while the first one was being answered."""
    said = subprocess.run([sys.executable, "-c", TYPED], capture_output=True, text=True, timeout=PATIENCE)
    assert (said.returncode, said.stdout, said.stderr) == (0, "dropped, goes on, dropped, goes on", "")


class Spoken:
    """A conversation whose answers are given.

    Args:
        answers: Token ids, one list after the other.
    """

    reused, computed, finish_reason, drafts = 0, 0, "length", None

    def __init__(self, *answers: list[int]) -> None:
        self._answers = list(answers)
        self.asked: list[list[int]] = []

    def answer(self, prompt: list[int], progress: Callable[[int, int], None]) -> Iterator[int]:
        self.asked.append(prompt)
        yield from self._answers.pop(0)


@pytest.mark.parametrize("kind", BLANKS)
def test_lines_and_answers_are_one_text(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with a tokenizer that puts a blank before each text, and where a stop string begins within a token."""
    tokenizer = with_blank_first(kind, tmp_path)
    spoken = Spoken(*(tokenizer.encode_behind(text) for text in ("s and", "b ab", " cd")))
    turns = CompletionTurns(tokenizer)
    monkeypatch.setattr(sys, "stdin", StringIO("cup\n. fox\ns\n"))
    ChatSession(spoken, turns, tokenizer, stops=("ab",)).run()  # type: ignore[arg-type]
    texts = ["cup", "cups and. fox", "cups and. foxb s"]
    assert [tokenizer.decode(prompt).lstrip() for prompt in spoken.asked] == texts
    assert turns.saved()["text"].lstrip() == "cups and. foxb s cd"
    assert spoken.asked[1][: len(spoken.asked[0])] == spoken.asked[0]  # so that the cache is kept


def test_a_byte_order_mark_before_the_first_line_is_no_part_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = with_blank_first(BLANKS[0], tmp_path)
    spoken = Spoken(*(tokenizer.encode_behind(text) for text in ("s", "s")))
    monkeypatch.setattr(sys, "stdin", StringIO("\ufeffcup\n"))
    ChatSession(spoken, CompletionTurns(tokenizer), tokenizer).run()  # type: ignore[arg-type]
    assert spoken.asked == [tokenizer.encode("cup")]


def test_one_text_has_no_system_message_whatever_the_model_has(tmp_path: Path) -> None:
    """With --completion it was said that the model had no chat template."""
    turns = CompletionTurns(with_blank_first(BLANKS[0], tmp_path))
    with pytest.raises(LucidError, match=r"continues one text, which has no system message.* and no --completion"):
        turns.begin("be brief")
