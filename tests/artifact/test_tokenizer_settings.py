"""Tokens that files beside ``tokenizer.json`` name: in an artifact, ids, text and names are as in transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer

from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.artifact.tokenizer_settings import token_names
from lucid_deploy.errors import LucidError
from lucid_deploy.export.companions import write_tokenizer

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
WORDS = ("<s>", "</s>", "<tool>", "<image>", "<pad>", "fox")
TEXT = "the <s> x</s> y <tool> hi<image> <pad>  foxes, fox <|none|>"
TOOL = {"content": "<tool>", "lstrip": False, "rstrip": True, "normalized": False, "single_word": False}


def write(directory: Path, added: list[AddedToken], padding: str | None = None, **files: Any) -> Path:
    """Make a tokenizer of single bytes, with added tokens from id 256 on, and files beside it."""
    tokenizer = Tokenizer(models.BPE({sign: i for i, sign in enumerate(BYTES)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    for token in added:
        tokenizer.add_tokens([token])
    if padding is not None:
        tokenizer.enable_padding(pad_token=padding, pad_id=0)
    directory.mkdir(exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    files.setdefault("tokenizer_config", {})
    files["tokenizer_config"] = {"tokenizer_class": "TokenizersBackend", **files["tokenizer_config"]}
    for name, content in files.items():
        (directory / f"{name}.json").write_text(json.dumps(content))
    return directory


def same_as_transformers(directory: Path) -> None:
    artifact = directory / "artifact"
    artifact.mkdir()
    write_tokenizer(directory, artifact)
    theirs, ours = AutoTokenizer.from_pretrained(str(directory)), TextTokenizer(artifact)
    every = list(range(theirs.backend_tokenizer.get_vocab_size()))
    assert ours.encode(TEXT) == theirs(TEXT).input_ids
    assert ours.decode(every) == theirs.decode(every, skip_special_tokens=True)
    assert ours.decode(every, False) == theirs.decode(every)
    assert token_names(artifact) == theirs.special_tokens_map
    again = AutoTokenizer.from_pretrained(str(artifact))
    assert again(TEXT).input_ids == theirs(TEXT).input_ids and again.special_tokens_map == theirs.special_tokens_map


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config": {"added_tokens_decoder": {"330": TOOL}}},
        {"tokenizer_config": {"added_tokens_decoder": {"256": {**TOOL, "content": "<s>", "special": True}}}},
        {"tokenizer_config": {"additional_special_tokens": ["<tool>", "<s>"]}},
        {"tokenizer_config": {"extra_special_tokens": {"image_token": "<image>", "odd": "<pad>"}}},
        {"tokenizer_config": {"image_token": "<image>", "add_bos_token": True}},
        {"tokenizer_config": {"bos_token": {"__type": "AddedToken", **TOOL}, "image_token": {"content": "<image>"}}},
        {"tokenizer_config": {"split_special_tokens": True}},
        {"added_tokens": {"<tool>": 258, "<image>": 259}, "tokenizer_config": {"eos_token": "<tool>"}},
        {"special_tokens_map": {"bos_token": "<s>", "eos_token": TOOL, "additional_special_tokens": ["<image>"]}},
        {
            "special_tokens_map": {"bos_token": "<tool>", "eos_token": "</s>"},
            "added_tokens": {"<pad>": 258},
            "tokenizer_config": {"bos_token": "<s>", "added_tokens_decoder": {}},
        },
        {"special_tokens_map": {"extra_special_tokens": {"image_token": "<image>"}}},
        {
            "special_tokens_map": {"extra_special_tokens": ["<image>", TOOL]},
            "tokenizer_config": {"extra_special_tokens": ["<pad>"]},
        },
        {"tokenizer_config": {"add_bos_token": "true", "add_eos_token": "<tool>", "bos_token": "<s>"}},
        {"tokenizer_config": {"fast_tokenizer_files": ["tokenizer.json"]}},
        {},
    ],
    ids=str,
)
@pytest.mark.parametrize("padding", [None, "<pad>"])
def test_tokens_are_those_of_transformers(files: dict[str, Any], padding: str | None, tmp_path: Path) -> None:
    added = [AddedToken("<s>", special=True), AddedToken("</s>")]
    same_as_transformers(write(tmp_path, added, padding, **files))


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"tokenizer_config": {"bos_token": TOOL}}, "bos_token"),
        ({"tokenizer_config": {"extra_special_tokens": ["<s>"]}}, "extra_special_tokens"),
        ({"tokenizer_config": {"added_tokens_decoder": {"256": TOOL}}}, "added_tokens_decoder"),
        ({"special_tokens_map": {}}, "special_tokens_map.json"),
        ({"added_tokens": {}}, "added_tokens.json"),
    ],
    ids=str,
)
def test_an_artifact_of_an_earlier_version_is_to_be_exported_again(
    files: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(LucidError, match=rf"has tokens in {said}, .*\. Export the model again\."):
        TextTokenizer(write(tmp_path, [AddedToken("<s>")], **files))


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"tokenizer_config": {"bos_token": 7}}, "is not a readable tokenizer: Special token bos_token has to be"),
        ({"special_tokens_map": []}, "is not a readable tokenizer: "),
    ],
    ids=str,
)
def test_what_transformers_does_not_read_is_refused(files: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(LucidError, match=said):
        write_tokenizer(write(tmp_path, [], **files), tmp_path)
