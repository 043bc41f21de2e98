"""Errors a user can cause: their exit status, and what they say about packages that are missing."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from lucid_deploy.errors import CheckFailed, LucidError, missing_extra, missing_package

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def test_whoever_catches_errors_catches_failed_checks_too() -> None:
    assert (LucidError.exit_code, CheckFailed.exit_code) == (2, 1)
    with pytest.raises(LucidError):
        raise CheckFailed("sha256 differs")


def test_a_missing_package_is_one_line_that_ends_in_a_command() -> None:
    message = str(missing_extra("onnxruntime", "cpu", "run an artifact"))
    assert message == (
        "The package onnxruntime is needed to run an artifact and is not installed. "
        'Run: pip install "lucid-deploy[cpu]"'
    )
    assert str(missing_package("huggingface_hub", "huggingface_hub>=1", "download")).endswith('"huggingface_hub>=1"')


def test_extras_that_messages_name_are_those_of_the_package() -> None:
    sources = [path for folder in ("lucid_deploy", "export", "plugins") for path in (ROOT / folder).rglob("*.py")]
    texts = [path.read_text() for path in sources]
    named = {name for text in texts for name in re.findall(r'missing_extra\(\s*"[^"]+",\s*"([^"]+)"', text)}
    named |= {name for text in texts for name in re.findall(r"lucid-deploy\[(\w+)\]", text)}
    assert len(named) > 3 and named <= set(EXTRAS)
