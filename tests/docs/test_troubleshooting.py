"""Every message in the troubleshooting page is one that the code can print."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.code_strings import strings

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/troubleshooting.md").read_text()
MESSAGES = re.findall(r"^- `([^`]+)`", PAGE, re.M)

FOLDERS = ("lucid_deploy", "conformance", "export", "plugins")


def test_there_are_messages() -> None:
    assert len(MESSAGES) > 30


@pytest.mark.parametrize("message", MESSAGES)
def test_the_code_prints_it(message: str) -> None:
    for piece in message.split("…"):
        assert piece.strip(" :") in strings(*FOLDERS)
