"""Which files of a checkpoint are the tokenizer's."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from lucid_deploy.model.tokenizer_files import is_tokenizer_file, named_templates, tokenizer_files

TEMPLATES = {"default": "a", "tool_use": "b", "rag.v2": "c"}


def test_what_transformers_writes_is_found(tmp_path: Path) -> None:
    backend = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    written = PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=TEMPLATES).save_pretrained(str(tmp_path))
    names = {Path(path).relative_to(tmp_path).as_posix() for path in written}
    assert set(tokenizer_files(tmp_path)) == names and all(map(is_tokenizer_file, names))
    found = {name: path.read_text() for name, path in named_templates(tmp_path).items()}
    assert found == {"tool_use": "b", "rag.v2": "c"}


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "tool_use.jinja",
        "additional_chat_templates/notes.txt",
        "additional_chat_templates/more/tool_use.jinja",
        "more/additional_chat_templates/tool_use.jinja",
        "more/tokenizer.json",
    ],
)
def test_other_files_are_none(name: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
    (tmp_path / name).write_text("{}")
    assert not is_tokenizer_file(name) and tokenizer_files(tmp_path) == []


def test_a_folder_of_that_name_is_no_template(tmp_path: Path) -> None:
    (tmp_path / "additional_chat_templates" / "more.jinja").mkdir(parents=True)
    assert named_templates(tmp_path) == {} and tokenizer_files(tmp_path) == []
