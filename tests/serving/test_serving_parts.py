"""Chat templates, token texts, and text with stop strings and log-probabilities, without a server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lucid_deploy.batching import Finished, Token
from lucid_deploy.errors import LucidError
from lucid_deploy.serving.backend import _Row
from lucid_deploy.serving.chat import ChatTemplate, load_chat_template
from lucid_deploy.serving.engine import Broken
from lucid_deploy.serving.jobs import Job, Piece, RowEnd
from lucid_deploy.serving.security import ApiKeys, host_allowed, is_loopback
from lucid_deploy.serving.text import ServingTokenizer
from tests.serving.serving_tools import TEMPLATE

MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "  Be brief. "},
    {"role": "user", "content": "1 < 2 & 'é'?"},
    {"role": "assistant", "content": "Yes."},
    {"role": "user", "content": "Why?"},
]
TEMPLATES = [
    TEMPLATE,
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] | trim }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
    "{%- set ns = namespace(count=0) -%}\n{%- for m in messages %}\n"
    "    {%- if m.role == 'system' %}{% continue %}{% endif %}\n"
    "    {%- set ns.count = ns.count + 1 %}\n{{ ns.count }}: {{ m | tojson }}\n{% endfor %}{{ ns.count }}",
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}{% endgeneration %}"
    "{% else %}[{{ m.content.strip().upper() }}]{% endif %}{% endfor %}",
    "{% if tools %}tools{% endif %}{% if messages[0].name is defined %}named{% else %}nameless{% endif %}",
]


def settings(directory: Path, **more: Any) -> Path:
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": {"content": "<s>"}, "eos_token": "</s>", **more})
    )
    return directory


@pytest.mark.parametrize("source", TEMPLATES)
def test_a_template_renders_as_in_transformers(source: str, tmp_path: Path) -> None:
    backend = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    theirs = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", chat_template=source)
    expected = theirs.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    ours = load_chat_template(settings(tmp_path, chat_template=source))
    assert ours is not None
    assert ours.render(MESSAGES) == expected


def test_where_a_template_comes_from(tmp_path: Path) -> None:
    assert load_chat_template(tmp_path) is None
    assert load_chat_template(settings(tmp_path)) is None
    named = [{"name": "rag", "template": "no"}, {"name": "default", "template": "yes {{ bos_token }}"}]
    found = load_chat_template(settings(tmp_path, chat_template=named))
    assert found is not None and found.render(MESSAGES) == "yes <s>"
    (tmp_path / "chat_template.jinja").write_text("from the file")
    found = load_chat_template(tmp_path)
    assert found is not None and found.render(MESSAGES) == "from the file"


@pytest.mark.parametrize("source", ["{% for", "{{ ", 7, {"a": 1}])
def test_a_template_that_is_none(source: Any, tmp_path: Path) -> None:
    with pytest.raises(LucidError, match=r"chat template in .*tokenizer_config\.json"):
        load_chat_template(settings(tmp_path, chat_template=source))


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__()[0] }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].content.undefined.more }}",
        "{{ 'x' * 5 + 5 }}",
        "{{ raise_exception('no') }}",
        "{{ range(10 ** 9) | list }}",
        "{{ 1 // (messages | length - messages | length) }}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
        "{{ 'a b'.split()[7].upper() }}",
    ],
)
def test_a_template_that_fails_or_wants_out(source: str) -> None:
    with pytest.raises(LucidError, match="chat template refuses these messages"):
        ChatTemplate(source, {}, "a test").render(MESSAGES)


@pytest.fixture
def byte_level(tmp_path: Path) -> ServingTokenizer:
    """Every byte is a token of its own: id = place in the byte-level alphabet."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return ServingTokenizer(tmp_path)


def test_bytes_of_byte_level_tokens(byte_level: ServingTokenizer) -> None:
    for text in ("a é 漢\n", "".join(map(chr, range(256)))):
        tokens = [byte_level.token(token, -1.0) for token in byte_level.encode(text)]
        assert b"".join(token.data or b"" for token in tokens) == text.encode()
    half = byte_level.token(byte_level.encode("é")[0], -1.0)
    assert (half.text, half.data) == ("\ufffd", b"\xc3")
    assert byte_level.token(10**6, -1.0).data is None


def test_bytes_of_tokens_that_fall_back_to_bytes(tmp_path: Path) -> None:
    words = {"<unk>": 0, "▁a": 1, "b": 2, **{f"<0x{i:02X}>": 3 + i for i in range(256)}}
    tokenizer = Tokenizer(models.BPE(words, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    served = ServingTokenizer(tmp_path)
    assert [served.token(token, 0.0).data for token in (1, 2, 3 + 0xE2)] == [b" a", b"b", b"\xe2"]
    assert served.token(1, 0.0).text == " a"


def run_row(tokenizer: ServingTokenizer, text: str, reason: str, *stops: str) -> tuple[list[Any], Job]:
    job = Job(((1,),), stops=stops, top_logprobs=1)
    row, out = _Row(0, job, tokenizer), []
    for token in tokenizer.encode(text):
        events, done = row.take(Token(5, token, -0.5, ((token, -0.5),)))
        out += events
        if done:
            return out, job
    events, done = row.take(Finished(5, reason, "why" if reason == "error" else None))
    assert done
    return out + events, job


@pytest.mark.parametrize("text", ["abcdef", "aé漢b", "漢字"])
def test_pieces_together_are_the_text(byte_level: ServingTokenizer, text: str) -> None:
    events, _ = run_row(byte_level, text, "eos")
    pieces = [event for event in events if isinstance(event, Piece)]
    assert "".join(piece.text for piece in pieces) == text
    assert sum(piece.tokens for piece in pieces) == len(text.encode())
    logprobs = [item for piece in pieces for item in piece.logprobs]
    assert b"".join(item.chosen.data or b"" for item in logprobs) == text.encode()
    assert [item.offset for item in logprobs] == [i for i, letter in enumerate(text) for _ in letter.encode()]
    assert events[-1] == RowEnd(0, "stop")


@pytest.mark.parametrize(
    ("stop", "shown"), [("cd", "ab"), ("é", "abcd"), ("f", "abcdé"), ("a", ""), ("zz", "abcdéfg"), ("gh", "abcdéfg")]
)
def test_a_stop_string_takes_its_logprobs_with_it(byte_level: ServingTokenizer, stop: str, shown: str) -> None:
    events, _ = run_row(byte_level, "abcdéfg", "length", stop)
    pieces = [event for event in events if isinstance(event, Piece)]
    assert "".join(piece.text for piece in pieces) == shown
    assert b"".join(item.chosen.data or b"" for piece in pieces for item in piece.logprobs) == shown.encode()
    assert events[-1] == RowEnd(0, "stop" if len(shown) < 7 else "length")


def test_ends_that_are_errors(byte_level: ServingTokenizer) -> None:
    assert run_row(byte_level, "a", "error")[0][-1] == RowEnd(0, "error", "why")
    assert run_row(byte_level, "a", "context")[0][-1] == RowEnd(0, "length")
    row = _Row(0, Job(((1,),)), byte_level)
    assert row.take(Broken("invalid", "too long")) == ([RowEnd(0, "invalid", "too long")], True)
    assert row.take(Broken("down", "gone")) == ([RowEnd(0, "error", "gone")], True)


def test_hosts() -> None:
    assert all(map(is_loopback, ["127.0.0.1", "127.9.9.9", "::1", "[::1]", "LOCALHOST"]))
    assert not any(map(is_loopback, ["0.0.0.0", "::", "10.0.0.1", "localhost.example", ""]))
    names = frozenset({"a.example"})
    assert host_allowed("A.example:80", names) and host_allowed("[::1]", names) and host_allowed(None, names)
    assert not host_allowed("b.example", names) and not host_allowed("", names)


def test_no_keys_let_everyone_in() -> None:
    assert ApiKeys().allow(None)
    assert not ApiKeys((b"x" * 32,)).allow(None)
