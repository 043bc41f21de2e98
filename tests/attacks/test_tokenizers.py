"""Tokenizers and chat templates that would loop or fill memory end with one line, in every command that reads them."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from lucid_deploy.artifact import chat_process
from lucid_deploy.artifact import tokenizer as tokenizer_module
from lucid_deploy.artifact.chat_process import chat_renderer
from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.bounded_process import Bounds
from lucid_deploy.cli import main
from lucid_deploy.errors import LucidError
from tests.serving.serving_tools import replace_file

ELEVEN = decoders.Sequence([decoders.Replace(letter, "w" * 20) for letter in "w" * 11])
ENDLESS = "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}"


def tokenizer(**parts: Any) -> Tokenizer:
    made = Tokenizer(models.WordLevel({"[UNK]": 0, "w": 1, **{f"w{i}": i for i in range(2, 97)}}, unk_token="[UNK]"))
    for name, part in parts.items():
        setattr(made, name, part)
    return made


def repeated(rule: Any, count: int = 11) -> normalizers.Sequence:
    return normalizers.Sequence([rule] * count)


MULTIPLYING = {
    "decoder, texts": ("decoder", ELEVEN),
    "decoder, nested": ("decoder", decoders.Sequence([decoders.Sequence([ELEVEN])])),
    "decoder, no text": ("decoder", decoders.Sequence([decoders.Replace("", "xxxx")] * 4)),
    "normalizer, texts": ("normalizer", repeated(normalizers.Replace("a", "aaaa"))),
    "normalizer, an expression": ("normalizer", repeated(normalizers.Replace(Regex("."), "aaaa"))),
    "normalizer, between letters": ("normalizer", repeated(normalizers.Replace(Regex("(?=a)|$"), "aa"))),
    "normalizer, before texts": ("normalizer", normalizers.Prepend("a" * 1000)),
    "normalizer, bytes": ("normalizer", repeated(normalizers.ByteLevel())),
    "post_processor": (
        "post_processor",
        processors.Sequence([processors.TemplateProcessing(single=["$A"] * 20, pair="$A $B")] * 6),
    ),
}


@pytest.mark.parametrize("name", MULTIPLYING)
def test_rules_that_multiply_text_are_refused(name: str, tmp_path: Path) -> None:
    part, rule = MULTIPLYING[name]
    tokenizer(**{part: rule}).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(LucidError, match=rf"rules of its {part} may make a text .* times as long; supported are"):
        TextTokenizer(tmp_path)


def test_rules_are_checked_before_the_library_applies_them(tmp_path: Path) -> None:
    """It normalizes added tokens while it loads; rules without a type are those of old files."""
    content = json.loads(tokenizer(normalizer=repeated(normalizers.Replace("a", "a" * 20))).to_str())
    content["added_tokens"] = [dict.fromkeys(("single_word", "lstrip", "rstrip", "special"), False)]
    content["added_tokens"][0] |= {"id": 97, "content": "aaaa", "normalized": True}
    for rule in content["normalizer"]["normalizers"]:
        del rule["type"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(LucidError, match=r"rules of its normalizer may make a text 2\.05e\+14 times as long"):
        TextTokenizer(tmp_path)


def test_a_decoder_with_an_expression_or_huge_tokens_is_refused(tmp_path: Path) -> None:
    tokenizer(decoder=decoders.Replace(Regex("(w+)+$"), "w")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(LucidError, match="its decoder replaces a regular expression"):
        TextTokenizer(tmp_path)
    Tokenizer(models.WordLevel({"[UNK]": 0, "w" * 100_000: 1}, unk_token="[UNK]")).save(
        str(tmp_path / "tokenizer.json")
    )
    with pytest.raises(LucidError, match=r"a token of it has up to 1e\+05 characters"):
        TextTokenizer(tmp_path)


def test_rules_of_published_tokenizers_are_taken(tmp_path: Path) -> None:
    rules = [normalizers.NFKC(), normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    rules += [normalizers.Replace(Regex(" {2,}"), " "), normalizers.Replace(Regex(r"^\s+"), "▁")]
    decoder = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    template = processors.TemplateProcessing(single="w $A w2", pair="w $A $B w2", special_tokens=[("w", 1), ("w2", 2)])
    made = tokenizer(
        normalizer=normalizers.Sequence(rules), decoder=decoders.Sequence(decoder), post_processor=template
    )
    made.save(str(tmp_path / "tokenizer.json"))
    assert TextTokenizer(tmp_path).decode([3, 4]) == "w3w4"


@pytest.mark.parametrize("command", ["run", "chat", "serve"])
def test_commands_end_with_one_line(command: str, with_tokenizer: Path) -> None:
    replace_file(with_tokenizer, "tokenizer.json", tokenizer(decoder=ELEVEN).to_str().encode())
    options = {"run": ["--prompt", "w5 w6"], "chat": [], "serve": ["--port", "0"]}[command]
    result = CliRunner().invoke(main, [command, str(with_tokenizer), *options], input="w5\n")
    assert result.exit_code == 2
    assert "decoder may make a text 2.05e+14 times as long" in result.stderr.splitlines()[-1]


def test_a_prompt_that_takes_too_long_to_encode_ends_with_one_line(
    with_tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Quadratic time in the length of the prompt, which the library does not interrupt."""
    made = Tokenizer.from_file(str(with_tokenizer / "tokenizer.json"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex("a.*b"), "isolated")
    replace_file(with_tokenizer, "tokenizer.json", made.to_str().encode())
    monkeypatch.setattr(tokenizer_module, "ENCODE_SECONDS", 0.5)
    started = time.monotonic()
    result = CliRunner().invoke(main, ["run", str(with_tokenizer), "--prompt", "-"], input="a" * 100_000)
    assert result.exit_code == 2 and "The tokenizer took more than 2 s for this text" in result.stderr
    assert time.monotonic() - started < 20


def test_a_template_that_loops_or_fills_memory_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As ``eval --apply-chat-template`` and ``chat`` render."""
    monkeypatch.setattr(chat_process, "Bounds", lambda: Bounds(0.5))
    template = (
        "{% if messages[0].content == 'loop' %}" + ENDLESS + "{% elif messages[0].content == 'memory' %}"
        "{{ 'x' * 10 ** 10 }}{% else %}{{ messages[0].content }}{% endif %}"
    )
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    render = chat_renderer(tmp_path)
    assert render is not None
    with render:
        with pytest.raises(LucidError, match=r"took more than 0\.5 s of processor time"):
            render([{"role": "user", "content": "loop"}])
        if sys.platform.startswith("linux"):
            with pytest.raises(LucidError, match="needed more than 256 MiB of memory"):
                render([{"role": "user", "content": "memory"}])
        assert render([{"role": "user", "content": "é"}]) == "é"
