"""Tokens that files beside ``tokenizer.json`` name: ids, text and names as in transformers."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer

from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.artifact.tokenizer_settings import padding_token, read_settings
from lucid_deploy.errors import LucidError

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
    theirs, ours = AutoTokenizer.from_pretrained(str(directory)), TextTokenizer(directory)
    every = list(range(theirs.backend_tokenizer.get_vocab_size()))
    assert ours.encode(TEXT) == theirs(TEXT).input_ids
    assert ours.decode(every) == theirs.decode(every, skip_special_tokens=True)
    assert ours.decode(every, False) == theirs.decode(every)
    assert read_settings(directory).texts(padding_token(directory)) == theirs.special_tokens_map


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


TEMPLATED = {"bos_token": "<s>", "chat_template": "a"}


@pytest.mark.parametrize(
    ("stored_map", "said"),
    [
        ({"add_bos_token": True}, "takes add_bos_token from there too"),
        ({"add_bos_token": "true"}, "takes add_bos_token from there too"),
        ({"chat_template": "b"}, "takes chat_template from there too"),
    ],
)
def test_what_transformers_takes_from_the_map_unasked_is_refused(
    stored_map: dict[str, Any], said: str, tmp_path: Path
) -> None:
    write(tmp_path, [AddedToken("<s>", special=True)], tokenizer_config=TEMPLATED)
    before = AutoTokenizer.from_pretrained(str(tmp_path))
    assert TextTokenizer(tmp_path).encode(TEXT) == before(TEXT).input_ids
    write(tmp_path, [AddedToken("<s>", special=True)], tokenizer_config=TEMPLATED, special_tokens_map=stored_map)
    after = AutoTokenizer.from_pretrained(str(tmp_path))
    assert (after(TEXT).input_ids, after.chat_template) != (before(TEXT).input_ids, before.chat_template)
    with pytest.raises(LucidError, match=rf"special_tokens_map\.json: transformers {said}"):
        TextTokenizer(tmp_path)
    decided = {**TEMPLATED, "added_tokens_decoder": {}}  # then the map does not count
    same_as_transformers(write(tmp_path, [AddedToken("<s>")], tokenizer_config=decided))


def test_a_tokenizer_for_another_version_of_transformers_is_refused(tmp_path: Path) -> None:
    files = ["tokenizer.json", "tokenizer.5.0.0.json"]
    write(tmp_path, [AddedToken("<s>")], tokenizer_config={"fast_tokenizer_files": files})
    other = Tokenizer(models.BPE({sign: i for i, sign in enumerate(reversed(BYTES))}, []))
    other.save(str(tmp_path / files[1]))
    assert len(AutoTokenizer.from_pretrained(str(tmp_path))) == 256  # without <s>
    with pytest.raises(LucidError, match="fast_tokenizer_files has transformers take another file"):
        TextTokenizer(tmp_path)


def rules(random: Random) -> dict[str, bool]:
    names = ("lstrip", "rstrip", "normalized", "single_word", "special")
    return {name: random.random() < 0.5 for name in names if random.random() < 0.5}


def drawn_token(random: Random, *kinds: str) -> Any:
    kind, word = random.choice(kinds), random.choice(WORDS)
    written = {"content": word, **rules(random)}
    return {"text": word, "null": None, "object": written, "typed": {"__type": "AddedToken", **written}}[kind]


def drawn_files(random: Random) -> dict[str, Any]:
    names = ("bos_token", "eos_token", "pad_token", "image_token")
    config = {name: drawn_token(random, "text", "null", "typed") for name in names if random.random() < 0.4}
    for name in ("additional_special_tokens", "extra_special_tokens"):
        if random.random() < 0.3:
            config[name] = random.choice([[], None, [drawn_token(random, "text") for _ in range(2)]])
    if random.random() < 0.4:
        ids = random.sample(range(250, 266), 3)
        config["added_tokens_decoder"] = {str(index): drawn_token(random, "object") for index in ids}
    files = {"tokenizer_config": config}
    if random.random() < 0.5:
        kinds = ("text", "null", "object")
        files["special_tokens_map"] = {name: drawn_token(random, *kinds) for name in names if random.random() < 0.4}
        if random.random() < 0.4:
            files["special_tokens_map"]["additional_special_tokens"] = [drawn_token(random, "text")]
    if random.random() < 0.5:
        files["added_tokens"] = {random.choice(WORDS): random.randint(250, 265) for _ in range(3)}
    return files


def test_drawn_files(tmp_path: Path) -> None:
    random = Random(7)
    for number in range(30):
        added = [AddedToken(word, **rules(random)) for word in random.sample(WORDS, random.randint(0, 4))]
        same_as_transformers(write(tmp_path / str(number), added, **drawn_files(random)))


def test_a_token_that_was_special_is_still_left_out(tmp_path: Path) -> None:
    """The library does so, and what says which tokens are special agrees."""
    decoder = {"256": {**TOOL, "content": "<s>", "special": False}}
    write(tmp_path, [AddedToken("<s>", special=True)], tokenizer_config={"added_tokens_decoder": decoder})
    text = TextTokenizer(tmp_path)
    assert text.decode([256]) == "" and text.is_special(256)


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("tokenizer_config", {"bos_token": 7}, "bos_token must be a text, or an object"),
        ("tokenizer_config", {"bos_token": {"content": "\ud800"}}, "bos_token has a token that cannot be read"),
        ("tokenizer_config", {"extra_special_tokens": "<s>"}, "must be a list of tokens"),
        ("tokenizer_config", {"model_specific_special_tokens": [1]}, "must be an object of named tokens"),
        ("tokenizer_config", {"added_tokens_decoder": None}, "must be an object of tokens by id"),
        ("tokenizer_config", {"split_special_tokens": 1}, "split_special_tokens must be true or false"),
        ("tokenizer_config", [], "is not a readable tokenizer configuration"),
        ("special_tokens_map", {"eos_token": ["<s>"]}, r"map\.json: eos_token must be a text"),
        ("added_tokens", {"<tool>": "5"}, "the id of '<tool>' must be a whole number"),
    ],
)
def test_what_is_no_token_is_refused(file: str, content: Any, said: str, tmp_path: Path) -> None:
    write(tmp_path, [])
    (tmp_path / f"{file}.json").write_text(json.dumps(content))
    with pytest.raises(LucidError, match=said):
        TextTokenizer(tmp_path)
