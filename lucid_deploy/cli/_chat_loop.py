"""``lucid-deploy chat``: answer each text and run each command from stdin, until it ends or ``/exit`` comes."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from lucid_deploy.cli._console import note, write_text
from lucid_deploy.cli._generation_options import drafts_text
from lucid_deploy.errors import LucidError, printable

if TYPE_CHECKING:
    from lucid_deploy.artifact.tokenizer import TextTokenizer
    from lucid_deploy.generation.generate import Conversation
    from lucid_deploy.generation.text_stream import AnswerText

HELP = """\
/help             this list
/reset            forget the conversation
/system TEXT      begin anew with a system message; without TEXT, with none
/save FILE        write the conversation as JSON
/exit             leave, as Ctrl-D does
\"\"\"               begins and ends a text of several lines
\\                 at the end of a line: the text goes on in the next one
//…               a text that begins with /
Ctrl-C            stops the answer; pressed again before it has stopped, it ends
                  the session"""
MULTILINE = '"""'


@dataclass
class ChatTurns:
    """The conversation as messages, which a chat template turns into one text."""

    token_ids: Callable[[list[dict[str, Any]]], list[int]]  # renders and encodes messages
    messages: list[dict[str, Any]] = field(default_factory=list)

    def prompt_ids(self, text: str) -> list[int]:
        """Return the token ids of everything so far and a new text of the user's."""
        return self.token_ids([*self.messages, {"role": "user", "content": text}])

    def keep(self, text: str, answer: str, _ids: list[int]) -> None:
        """Add a text of the user's and its answer; the token ids of both are not needed here."""
        self.messages += [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]

    def begin(self, system: str | None) -> None:
        """Forget all messages; begin with a system message, if one is given."""
        self.messages = [] if system is None else [{"role": "system", "content": system}]

    def saved(self) -> dict[str, Any]:
        """Return the conversation for JSON, as ``/v1/chat/completions`` takes it."""
        return {"messages": self.messages}


@dataclass
class CompletionTurns:
    """The conversation as one text of the user's and the model's turns, for a model without a chat template."""

    tokenizer: TextTokenizer
    ids: list[int] = field(default_factory=list)

    def prompt_ids(self, text: str) -> list[int]:
        ids = [*self.ids, *self.tokenizer.encode_behind(text)] if self.ids else self.tokenizer.encode(text)
        if not ids:
            raise LucidError("The text is empty: it has no tokens.")
        return ids

    def keep(self, _text: str, _answer: str, ids: list[int]) -> None:
        self.ids = ids

    def begin(self, system: str | None) -> None:
        if system is not None:
            raise LucidError(
                "This session continues one text, which has no system message. Use a model with a chat template, and "
                "no --completion."
            )
        self.ids = []

    def saved(self) -> dict[str, Any]:
        return {"text": self.tokenizer.decode(self.ids), "ids": self.ids}


Turns = ChatTurns | CompletionTurns


class _StopRequested(Exception):
    """Ctrl-C came while the prompt ran."""


@contextlib.contextmanager
def stoppable() -> Iterator[Event]:
    """Yield an event that Ctrl-C sets while the block runs; a second Ctrl-C raises KeyboardInterrupt."""
    requested = Event()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        if requested.is_set():
            raise KeyboardInterrupt
        requested.set()

    before = signal.signal(signal.SIGINT, on_signal)
    try:
        yield requested
    finally:
        signal.signal(signal.SIGINT, before)


@dataclass
class ChatSession:
    """Reads texts from stdin; answers each, or runs it if it is a command such as ``/help``."""

    conversation: Conversation  # runs the model
    turns: Turns  # the conversation so far
    tokenizer: TextTokenizer
    stops: tuple[str, ...] = ()  # texts that end an answer
    # Whether somebody types: then mistakes do not end the session, and no control characters reach the terminal.
    interactive: bool = False
    has_read: bool = False  # whether a line was read from a file or pipe

    def run(self) -> None:
        """Answer texts and run commands until the input ends or ``/exit`` comes."""
        while (text := self._read()) is not None and text != "/exit":
            try:
                self._handle(text)
            except LucidError as error:
                if not self.interactive:
                    raise
                note(f"Error: {error}")

    def _read(self) -> str | None:
        """Return the next text, of one or several lines; None at the end of the input."""
        lines: list[str] = []
        try:
            line = self._line("> ")
            block = line.startswith(MULTILINE)
            line = line.removeprefix(MULTILINE)
            while not line.endswith(MULTILINE) if block else line.endswith("\\"):
                lines.append(line if block else line[:-1])
                line = self._line(". ")
            lines.append(line.removesuffix(MULTILINE) if block else line)
        except EOFError:
            if self.interactive:
                click.echo()
            return "\n".join(lines) if lines and not self.interactive else None
        except KeyboardInterrupt:
            if not self.interactive:
                raise
            click.echo()
            note("Ctrl-D leaves; /help lists the commands.")
            return ""
        return "\n".join(lines)

    def _line(self, prompt: str) -> str:
        try:
            if self.interactive:
                return input(prompt)
            line = sys.stdin.readline()
            if not self.has_read:  # a file that was made in Windows may begin with a byte order mark
                line, self.has_read = line.removeprefix("\ufeff"), True
        except OSError as error:  # stdin is not open for reading, or its terminal is gone
            raise LucidError(f"stdin cannot be read: {error.strerror or error}.") from error
        if not line:
            raise EOFError
        return line.removesuffix("\n")

    def _handle(self, text: str) -> None:
        if not text.strip():
            return
        if not text.startswith("/") or text.startswith("//"):
            self._answer(text.removeprefix("/") if text.startswith("//") else text)
            return
        name, _, rest = text.partition(" ")
        rest = rest.strip()
        if name == "/help":
            note(HELP)
        elif name == "/reset":
            self._begin(None)
            note("The conversation is forgotten.")
        elif name == "/system":
            self._begin(rest or None)
            note("A new conversation with this system message." if rest else "A new conversation.")
        elif name == "/save":
            self._save(rest)
        else:
            raise LucidError(f"There is no command {name}; /help lists them. Write // for a text that begins with /.")

    def _begin(self, system: str | None) -> None:
        self.turns.begin(system)
        self.conversation.reset()

    def _save(self, file: str) -> None:
        if not file:
            raise LucidError("Name the file: /save FILE.")
        if Path(file).exists():
            raise LucidError(f"{file} exists. Name another file.")
        write_text(json.dumps(self.turns.saved(), indent=2, ensure_ascii=False) + "\n", file)
        note(f"Saved to {file}.")

    def _answer(self, text: str) -> None:
        from lucid_deploy.generation.text_stream import AnswerText

        try:
            text.encode()
        except UnicodeError as error:
            raise LucidError(f"The text is not valid UTF-8: {error}.") from error
        prompt = self.turns.prompt_ids(text)
        answer, ids = AnswerText(self.tokenizer, self.stops), list(prompt)
        shown = ""
        with stoppable() as stop_requested:
            try:
                for piece in self._pieces(prompt, answer, ids, stop_requested):
                    shown += piece
                    click.echo(printable(piece) if self.interactive else piece, nl=False)
                    sys.stdout.flush()
            except _StopRequested:
                note("Stopped before the answer began; your text was not added to the conversation.")
                return
        click.echo()
        count = len(ids) - len(prompt)
        if answer.stopped:
            ids = [*prompt, *self._ids_of(shown, ids[len(prompt) :])]
        self.turns.keep(text, shown, ids)
        last = self.conversation
        reason = "stop" if answer.stopped else last.finish_reason or "stopped by Ctrl-C"
        drafts = "" if last.drafts is None else f"; {drafts_text(last.drafts)}"
        total = last.reused + last.computed
        note(f"[{count} tokens ({reason}); {last.computed} of {total} prompt tokens were new{drafts}]")

    def _pieces(self, prompt: list[int], answer: AnswerText, ids: list[int], stop_requested: Event) -> Iterator[str]:
        """Yield the answer's text piece by piece, and append its token ids to ``ids``."""

        def progress(_done: int, _total: int) -> None:
            if stop_requested.is_set():
                raise _StopRequested

        with contextlib.closing(self.conversation.answer(prompt, progress)) as tokens:  # type: ignore[type-var]
            for token in tokens:
                ids.append(token)
                yield answer.push(token)
                if answer.stopped or stop_requested.is_set():
                    break
        yield answer.finish()

    def _ids_of(self, shown: str, ids: list[int]) -> list[int]:
        """Return token ids of ``shown``: the longest beginning of ``ids`` that fits it, and its encoded rest."""
        for count in range(len(ids), 0, -1):
            text = self.tokenizer.decode(ids[:count])
            if text and shown.startswith(text):
                rest = shown[len(text) :]
                return [*ids[:count], *(self.tokenizer.encode_behind(rest) if rest else [])]
        return self.tokenizer.encode(shown, add_special_tokens=False)
