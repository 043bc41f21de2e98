"""The files beside the weights are written; notes say what transformers would do differently with them."""

from __future__ import annotations

import json
import shutil
import string
import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.errors import LucidError
from lucid_deploy.export.companions import SAVE, check_tokenizer, compare_with_transformers, copy_companions


@pytest.fixture
def checkpoint(with_tokenizer: Path, tmp_path: Path) -> Path:
    source = tmp_path / "source"
    source.mkdir()
    shutil.copy(with_tokenizer / "tokenizer.json", source)
    (source / "config.json").write_text('{"model_type": "llama"}')
    return source


def made(checkpoint: Path) -> tuple[Path, tuple[str, ...]]:
    building = checkpoint.parent / "building"
    building.mkdir()
    return building, copy_companions(checkpoint, building)


@pytest.mark.parametrize("cleans", [None, False, True])
def test_a_note_says_if_transformers_cleans_up_texts(cleans: bool | None, tmp_path: Path) -> None:
    source, building = tmp_path / "source", tmp_path / "building"
    source.mkdir()
    building.mkdir()
    spaced = ["it", "isn", "'t", "so", "."]
    words = {word: index for index, word in enumerate([*spaced, "[UNK]"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(source / "tokenizer.json"))
    (source / "config.json").write_text('{"model_type": "llama"}')
    (source / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": cleans})
    )
    notes = copy_companions(source, building)
    ids = [words[word] for word in spaced]
    theirs = AutoTokenizer.from_pretrained(str(source)).decode(ids)
    assert (theirs != TextTokenizer(building).decode(ids)) == len(notes) == bool(cleans)
    assert all("by removing blanks (clean_up_tokenization_spaces in" in note for note in notes)


def test_added_tokens_are_written_into_tokenizer_json(checkpoint: Path) -> None:
    size = Tokenizer.from_file(str(checkpoint / "tokenizer.json")).get_vocab_size()
    (checkpoint / "added_tokens.json").write_text(json.dumps({"<tool>": size, "<odd>": 900}))
    check_tokenizer(checkpoint)
    building, notes = made(checkpoint)
    assert notes == () and not (building / "added_tokens.json").exists()
    theirs = AutoTokenizer.from_pretrained(str(checkpoint))
    assert TextTokenizer(building).encode("fox <tool> <odd>") == theirs("fox <tool> <odd>").input_ids


def test_settings_that_cannot_be_read_are_refused_at_once(checkpoint: Path) -> None:
    (checkpoint / "special_tokens_map.json").write_text('{"eos_token": 7}')
    with pytest.raises(LucidError, match="or a file beside it, is not a readable tokenizer: "):
        check_tokenizer(checkpoint)


@pytest.mark.parametrize("name", ["tokenizer.model", "vocab.json"])
def test_a_tokenizer_without_tokenizer_json_is_refused(tmp_path: Path, name: str) -> None:
    check_tokenizer(tmp_path)  # having no tokenizer at all is allowed
    (tmp_path / name).write_text("")
    with pytest.raises(LucidError, match=rf"has {name} and no tokenizer\.json\. To make it, .*save_pretrained"):
        check_tokenizer(tmp_path)


NAMES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def llama_2() -> Tokenizer:
    """Return a tokenizer with the rules of Llama 2's file: ``▁`` comes before each part of a text."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(parts)
    return trained(tokenizer, [*string.printable, *"▁ßé日本"])


def by_bytes(pattern: str) -> Tokenizer:
    """Return a tokenizer of bytes, as Qwen's, with a pattern of its own."""
    from tokenizers import Regex

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, whole])
    tokenizer.decoder = decoders.ByteLevel()
    return trained(tokenizer, sorted(pre_tokenizers.ByteLevel.alphabet()))


def trained(tokenizer: Tokenizer, alphabet: list[str]) -> Tokenizer:
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["once upon a time a start [INST] Hello 1234 5678 12 34 the end"] * 9, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def write_source(directory: Path, tokenizer: Tokenizer, model_type: str = "llama", **settings: Any) -> Path:
    directory.mkdir(parents=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "config.json").write_text(json.dumps({"model_type": model_type}))
    (directory / "tokenizer_config.json").write_text(json.dumps({**NAMES, **settings}))
    return directory


def exported(source: Path, name: str) -> tuple[Path, tuple[str, ...]]:
    building = source.parent / name
    building.mkdir()
    return building, copy_companions(source, building)


REBUILT = {
    "llama": (llama_2, {"tokenizer_class": "LlamaTokenizer", "legacy": False}),
    "qwen2": (lambda: by_bytes(r"\d{1,3}|\w+"), {"tokenizer_class": "PreTrainedTokenizerFast", "model_type": "qwen2"}),
}


@pytest.mark.parametrize("kind", REBUILT)
def test_a_difference_is_shown_and_its_remedy_gives_transformers_ids(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, settings = REBUILT[kind]
    source = write_source(tmp_path / "source", make(), **settings)
    before, (note,) = exported(source, "before")
    theirs = AutoTokenizer.from_pretrained(source)
    assert type(theirs).__name__ in note and "which the artifact follows" in note
    texts = ["<s>start", "a</s> b", "once <s> upon", "<s></s>time", "1234 5678", "the end"]
    assert any(TextTokenizer(before).encode(text) != theirs(text).input_ids for text in texts)
    assert f'python -c "{SAVE}"' in note
    monkeypatch.chdir(source)
    exec(SAVE, {})
    after, notes = exported(source, "after")
    assert notes == ()
    for text in texts:
        assert TextTokenizer(after).encode(text) == theirs(text).input_ids


@pytest.mark.parametrize(("model_type", "name"), [("llama", None), ("mistral", "PreTrainedTokenizerFast")])
def test_what_transformers_loads_as_it_is_needs_no_comparison(
    model_type: str, name: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = {} if name is None else {"tokenizer_class": name}
    source = write_source(tmp_path / "source", llama_2(), model_type, **named)
    theirs = AutoTokenizer.from_pretrained(source)
    assert type(theirs).__name__ == "TokenizersBackend"
    for text in ("<s>start", "a</s> b", "the end"):
        assert theirs(text).input_ids == TextTokenizer(source).encode(text)
    monkeypatch.setitem(sys.modules, "transformers", None)  # not imported: it takes seconds
    assert compare_with_transformers(source) == ()
