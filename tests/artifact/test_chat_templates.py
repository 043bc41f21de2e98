"""Chat templates as text: those that transformers finds, or a refusal that names the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer

from lucid_deploy.artifact.chat_templates import read_chat_templates
from lucid_deploy.errors import LucidError


def write(directory: Path, given: Any = None, **files: str) -> Path:
    """Write ``chat_template`` of the configuration, and files of the folder; ``alone`` is the one beside it."""
    config = {"tokenizer_class": "TokenizersBackend", "chat_template": given}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    for name, text in files.items():
        path = directory / ("chat_template.jinja" if name == "alone" else f"additional_chat_templates/{name}.jinja")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, newline="")
    return directory


@pytest.mark.parametrize(
    ("given", "files"),
    [
        (None, {}),
        ("text", {}),
        ("", {}),
        ({"default": "a", "tool_use": "b"}, {}),
        ([{"name": "rag", "template": "a", "more": 1}, {"name": "rag", "template": "b"}], {}),
        ([], {}),
        ("text", {"alone": "b"}),
        ("text", {"tool_use": "b"}),
        ({"default": "a"}, {"alone": "c", "tool_use": "b", "a.b": "d"}),
        (None, {"alone": "a", "default": "b", "tool_use": "c"}),
        (None, {"alone": "a\r\nb", "": "{{ é }}"}),
    ],
)
def test_templates_are_those_of_transformers(given: Any, files: dict[str, str], tmp_path: Path) -> None:
    Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(write(tmp_path, given, **files) / "tokenizer.json"))
    theirs = AutoTokenizer.from_pretrained(str(tmp_path)).chat_template
    found = read_chat_templates(tmp_path)
    ours = None if found is None else {name: template.text for name, template in found.items()}
    assert ours == ({"default": theirs} if isinstance(theirs, str) else theirs)


def test_a_name_that_transformers_takes_for_the_default_is_refused(tmp_path: Path) -> None:
    Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    write(tmp_path, alone="a", file="b")
    assert AutoTokenizer.from_pretrained(str(tmp_path)).chat_template == "b"
    with pytest.raises(LucidError, match=r"additional_chat_templates/file\.jinja: transformers takes .*Rename it"):
        read_chat_templates(tmp_path)


@pytest.mark.parametrize("given", [7, False, ["a"], [{"name": "a"}], [{"name": 7, "template": "a"}], {"a": None}])
def test_what_is_no_template_is_refused(given: Any, tmp_path: Path) -> None:
    with pytest.raises(LucidError, match=r"chat template in .*tokenizer_config\.json must be a text, a list"):
        read_chat_templates(write(tmp_path, given))


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (write(tmp_path) / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(LucidError, match=r"chat_template\.jinja is no text in UTF-8"):
        read_chat_templates(tmp_path)
