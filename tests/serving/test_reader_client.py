"""A reader process for one user: bounds, and that it goes on after an error and after its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lucid_deploy.errors import LucidError
from lucid_deploy.serving import reader_client
from lucid_deploy.serving.reader_client import ChatReader
from tests.serving.reader_tools import write_setup


def test_chats_become_token_ids(tmp_path: Path) -> None:
    with ChatReader(write_setup(tmp_path)) as reader:
        assert reader.has_chat_template and reader.chat_refusal is None
        assert reader.token_ids([{"role": "user", "content": "w7 w8"}]) == [1, 7, 8]
        with pytest.raises(LucidError, match=r"took more than 0\.4 s of processor time"):
            reader.token_ids([{"role": "user", "content": "endless"}])
        with pytest.raises(LucidError, match="half a character"):
            reader.token_ids([{"role": "user", "content": "\ud800"}])
        assert reader.token_ids([{"role": "user", "content": "w9"}]) == [1, 9]


def test_a_process_that_ended_is_started_again(tmp_path: Path) -> None:
    greedy = "{% if messages[0].content == 'w5' %}{{ 'x' * 9999999999 }}{% endif %}w1 {{ messages[0].content }}"
    with ChatReader(write_setup(tmp_path, greedy)) as reader:
        with pytest.raises(LucidError, match="needed more than"):
            reader.token_ids([{"role": "user", "content": "w5"}])
        assert reader.token_ids([{"role": "user", "content": "w6"}]) == [1, 6]
        os.kill(reader.pid, signal.SIGKILL)
        try:  # an error if its end comes while it is asked; if it has ended before, another is started at once
            assert reader.token_ids([{"role": "user", "content": "w6"}]) == [1, 6]
        except LucidError as error:
            assert "was killed" in str(error)
        assert reader.token_ids([{"role": "user", "content": "w6"}]) == [1, 6]


def test_without_a_template(tmp_path: Path) -> None:
    with ChatReader(write_setup(tmp_path, None)) as reader:
        assert not reader.has_chat_template and reader.chat_refusal is None
        with pytest.raises(LucidError, match="no chat template"):
            reader.token_ids([{"role": "user", "content": "w6"}])


def test_a_template_that_is_not_valid(tmp_path: Path) -> None:
    with pytest.raises(LucidError, match="chat template in"):
        ChatReader(write_setup(tmp_path, "{% for"))


def test_a_process_that_does_not_start_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It was a traceback, and "Shorten it", which helps against nothing here."""
    monkeypatch.setattr(reader_client, "COMMAND", (sys.executable, "-c", "raise ImportError('no memory.')"))
    with pytest.raises(LucidError, match=r"did not start \(exit status 1, ImportError: no memory\)") as raised:
        ChatReader(write_setup(tmp_path))
    assert "\n" not in str(raised.value) and "Traceback" in raised.value.__notes__[0]
    assert capfd.readouterr() == ("", "")


def test_a_limit_on_memory_that_is_lower_than_the_reader_s_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader did not start under it, and the text was refused as too long."""
    program = """if True:
        import resource
        from pathlib import Path
        from lucid_deploy.serving.reader_process import main
        bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + (100 << 20)
        resource.setrlimit(resource.RLIMIT_AS, (bytes, bytes))
        main()"""
    monkeypatch.setattr(reader_client, "COMMAND", (sys.executable, "-P", "-c", program))
    with ChatReader(write_setup(tmp_path)) as reader:
        assert reader.token_ids([{"role": "user", "content": "w7"}]) == [1, 7]


def test_ctrl_c_while_it_starts_leaves_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    class Popen(subprocess.Popen[bytes]):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            started.append(self)

    def interrupted(_source: Any) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "Popen", Popen)
    monkeypatch.setattr(reader_client, "read_frame", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ChatReader(write_setup(tmp_path))
    assert [process.returncode for process in started] == [-signal.SIGKILL]
