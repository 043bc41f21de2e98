"""What is said where transformers' AutoTokenizer splits texts otherwise than the artifact."""

from __future__ import annotations

import json
import string
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.export.tokenizer import copy_companions
from lucid_deploy.export.tokenizer_comparison import SAVE, compare_with_transformers

NAMES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
CHAT = "{% for m in messages %}{{ bos_token + '[INST] ' + m.content + ' [/INST]' }}{% endfor %}"


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


def checkpoint(directory: Path, tokenizer: Tokenizer, model_type: str = "llama", **settings: Any) -> Path:
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
    source = checkpoint(tmp_path / "source", make(), **settings)
    before, (note,) = exported(source, "before")
    theirs = AutoTokenizer.from_pretrained(source)
    assert type(theirs).__name__ in note and "which the artifact follows" in note
    texts = ["<s>start", "a</s> b", "once <s> upon", "<s></s>time", "1234 5678", "the end"]
    assert any(TextTokenizer(before).encode(text) != theirs(text).input_ids for text in texts)
    assert f'python -c "{SAVE}"' in note
    if kind == "llama":
        subprocess.run([sys.executable, "-c", SAVE], cwd=source, check=True)
    else:  # the same, without a process that imports transformers again
        monkeypatch.chdir(source)
        exec(SAVE, {})
    after, notes = exported(source, "after")
    assert notes == ()
    for text in texts:
        assert TextTokenizer(after).encode(text) == theirs(text).input_ids


def test_both_encodings_of_the_shortest_text_are_shown(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "source", llama_2(), tokenizer_class="LlamaTokenizer", chat_template=CHAT)
    _, (note,) = exported(source, "artifact")
    assert "'<s>start' is [<s> ▁ st ar t] (5 tokens) here and [<s> st ar t] (4 tokens) there" in note


def test_a_chat_template_is_not_run(tmp_path: Path) -> None:
    """An endless one would end this test at the suite's limit of time."""
    endless = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    source = checkpoint(tmp_path / "source", llama_2(), tokenizer_class="LlamaTokenizer", chat_template=endless)
    assert "texts otherwise" in exported(source, "artifact")[1][0]


@pytest.mark.parametrize(("model_type", "name"), [("llama", None), ("mistral", "PreTrainedTokenizerFast")])
def test_what_transformers_loads_as_it_is_needs_no_comparison(
    model_type: str, name: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = {} if name is None else {"tokenizer_class": name}
    source = checkpoint(tmp_path / "source", llama_2(), model_type, **named)
    theirs = AutoTokenizer.from_pretrained(source)
    assert type(theirs).__name__ == "TokenizersBackend"
    for text in ("<s>start", "a</s> b", "the end"):
        assert theirs(text).input_ids == TextTokenizer(source).encode(text)
    monkeypatch.setitem(sys.modules, "transformers", None)  # not imported: it takes seconds
    assert compare_with_transformers(source, source) == ()


def test_errors_of_transformers_are_said(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "source", by_bytes(r"\w+"), tokenizer_class="T5Tokenizer")
    _, (note,) = exported(source, "artifact")
    assert note.startswith("AutoTokenizer of transformers 5") and "nothing was compared" in note
    code = {"auto_map": {"AutoTokenizer": ["theirs.Slow", "theirs.Fast"]}}
    source = checkpoint(tmp_path / "code", llama_2(), tokenizer_class="NotOurs", **code)
    (note,) = compare_with_transformers(source, source)
    assert "nothing was compared" in note and "contains custom code" in note
