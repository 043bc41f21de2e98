"""What a session in the terminal is made of; the whole is tested beside the command."""

from __future__ import annotations

import signal

import pytest

from lucid_deploy.cli._chat_loop import StopSwitch, printable


def test_a_terminal_gets_no_control_characters() -> None:
    assert printable("a\x1b[2Jb\x07\x9b\tc\n") == "a\ufffd[2Jb\ufffd\ufffd\tc\n"
    assert printable("é漢 🙂") == "é漢 🙂"


def test_a_second_ctrl_c_ends_a_session_that_does_not_stop() -> None:
    switch = StopSwitch()
    before = signal.getsignal(signal.SIGINT)
    with switch.armed():
        signal.raise_signal(signal.SIGINT)
        assert switch.asked
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
