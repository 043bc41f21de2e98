"""What a session in the terminal is made of; the whole is tested beside the command."""

from __future__ import annotations

import subprocess
import sys

from lucid_deploy.cli._chat_loop import HELP, printable
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
