"""Every finished answer follows its constraint, with random logits and every kind of tokenizer."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models

from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.errors import LucidError
from lucid_deploy.generation.constraint import Constraint, from_choices, from_grammar, from_json_schema, from_regex
from lucid_deploy.generation.guide import Guide, GuideFactory, token_bytes
from lucid_deploy.generation.sampling import NoTokenLeft
from tests.generation.guided_walks import END, KINDS, SIZE, WORDS, tokenizer_of, walk
from tests.generation.sample_tokenizers import KINDS as ALL_KINDS
from tests.generation.sample_tokenizers import ids_of, make

Setup = tuple[TextTokenizer, GuideFactory]


@pytest.fixture(scope="module")
def setups(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Setup]:
    made: dict[str, Setup] = {}

    def get(kind: str) -> Setup:
        if kind not in made:
            tokenizer = tokenizer_of(kind, tmp_path_factory.mktemp("tokenizer"))
            made[kind] = tokenizer, GuideFactory(tokenizer, SIZE, [END])
        return made[kind]

    return get


@pytest.mark.parametrize("kind", KINDS)
def test_answers_follow_expressions_choices_and_grammars(kind: str, setups: Callable[[str], Setup]) -> None:
    tokenizer, guides = setups(kind)
    words = kind == "word level"
    cases: list[tuple[Constraint, Callable[[str], object]]] = [
        (from_regex("[0-9]{1,2}( [0-9]{1,2}){2,5}"), re.compile("[0-9]{1,2}( [0-9]{1,2}){2,5}").fullmatch),
        (from_choices(["true", "true false", "null", "{ }"]), ["true", "true false", "null", "{ }"].__contains__),
        (
            from_grammar('start: "[" " "? x " "? "]"\nx: "1" | "5" | "[" " "? x " "? "]"'),
            lambda t: nested(json.loads(t)),
        ),
    ]
    if not words:
        cases.append(
            (from_choices([" two  spaces", "漢字", "a\nb\\"]), [" two  spaces", "漢字", "a\nb\\"].__contains__)
        )
        cases.append((from_regex("(\\d|é|🦊){3,9}"), re.compile("([0-9]|é|🦊|\\d){3,9}").fullmatch))
        cases.append((from_grammar('root ::= "x" [a-c]+ "\\n"'), re.compile("x[a-c]+\n").fullmatch))
    for constraint, is_right in cases:
        finished = [
            text for text, complete in (walk(guides, tokenizer, constraint, seed) for seed in range(6)) if complete
        ]
        assert len(finished) >= 3
        assert all(is_right(text) for text in finished), finished


def nested(value: object) -> bool:
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    return value in (1, 5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_end_is_allowed_exactly_where_the_text_is_complete(kind: str, setups: Callable[[str], Setup]) -> None:
    tokenizer, guides = setups(kind)
    expression = "7( 7){1,3}"
    guide, ids = guides.open(from_regex(expression)).result(), []
    for _ in range(30):
        allowed = guide.allowed()
        if allowed is None:
            break
        assert allowed[END] == bool(re.fullmatch(expression, tokenizer.decode(ids)))
        specials = [token for token in np.flatnonzero(allowed) if tokenizer.is_special(int(token)) and token != END]
        assert not specials
        ids.append(int(next(token for token in np.flatnonzero(allowed) if token != END)))
        guide.advance(ids[-1])
    assert re.fullmatch(expression, tokenizer.decode(ids)) and guide.allowed() is None and guide.complete


def test_without_an_end_token_an_answer_goes_on_while_it_can(setups: Callable[[str], Setup]) -> None:
    _, guides = setups("word level")
    guide = guides.open(from_choices(["true", "true false"]), may_end=False).result()
    for word in ("true", "false"):
        allowed = guide.allowed()
        assert allowed is not None and list(np.flatnonzero(allowed)) == [WORDS.index(word)]
        guide.advance(WORDS.index(word))
    assert guide.allowed() is None


def test_a_constraint_that_no_token_fits_is_refused(setups: Callable[[str], Setup]) -> None:
    _, guides = setups("word level")
    for refuses in (guides.check, lambda constraint: guides.open(constraint).result().allowed()):
        with pytest.raises(NoTokenLeft, match="allows no token here"):
            refuses(from_regex("zebra"))
    guide = guides.open(from_regex("true zebra")).result()  # later on
    guide.advance(WORDS.index("true"))
    with pytest.raises(NoTokenLeft):
        guide.allowed()
    assert not guide.complete


HARMFUL = ["(a|a)*b", "(.*a){30}b", "(a?){200}a{200}", "((a{1000}){1000}){1000}"]


@pytest.mark.parametrize("expression", HARMFUL)
def test_expressions_that_ruin_backtracking_are_harmless(expression: str, setups: Callable[[str], Setup]) -> None:
    tokenizer, guides = setups("byte-level bpe")
    guides.check(from_regex(expression))
    walk(guides, tokenizer, from_regex(expression), 0, most=50)


def test_a_recursion_that_cannot_end_is_cut_by_length(setups: Callable[[str], Setup]) -> None:
    tokenizer, guides = setups("byte-level bpe")
    endless = {"type": "object", "properties": {"c": {"$ref": "#"}}, "required": ["c"], "additionalProperties": False}
    text, complete = walk(guides, tokenizer, from_json_schema(endless), 0, most=200)
    assert not complete and '"c"' in text
    with pytest.raises(LucidError):
        guides.check(from_json_schema({"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}))


def test_an_answer_that_uses_up_a_lexer_ends_no_other_of_the_same_constraint(setups: Callable[[str], Setup]) -> None:
    tokenizer, guides = setups("byte-level bpe")
    constraint = from_regex("((a{0,50}){0,50}){0,50}")  # each further letter costs the lexer more expressions
    letter = next(token for token in range(SIZE) if tokenizer.piece(token) == "a")

    def letters(guide: Guide, most: int) -> int:
        for count in range(most):
            try:
                allowed = guide.allowed()
            except NoTokenLeft:
                return count
            assert allowed is not None and allowed[letter]
            guide.advance(letter)
        return most

    def opened() -> Guide:
        return guides.open(constraint, may_end=False).result()

    beside = opened()
    assert letters(beside, 3) == 3
    alone = letters(opened(), 100)
    assert 10 < alone < 100, "the bound was not reached"
    assert letters(beside, alone) == alone - 3  # a running answer goes as far as it does alone …
    assert letters(opened(), 10) == 10  # … and so do later ones
    assert letters(opened(), 100) == alone


@pytest.mark.parametrize("count", [3, 2_100, 10_000])  # llguidance's parser takes 2000 items at a time
def test_choices_allow_exactly_the_tokens_that_continue_one_of_them(count: int, setups: Callable[[str], Setup]) -> None:
    tokenizer, guides = setups("byte-level bpe")
    rng = np.random.default_rng(count)
    drawn = ["a" + "".join(rng.choice(list('ab\n"é漢 '), 12)) for _ in range(count - 3)]
    choices = ["a", 'ab"', 'ab"\n', *drawn]
    spelled, written = token_bytes(tokenizer, SIZE).later, [choice.encode() for choice in choices]
    for _ in range(3):
        guide, text = guides.open(from_choices(choices)).result(), b""
        while (allowed := guide.allowed()) is not None:
            left = {choice[len(text) :] for choice in written if choice.startswith(text)}
            starts = {rest[:size] for rest in left for size in range(1, len(rest) + 1)}
            assert [bool(data) and data in starts for data in spelled[1:]] == allowed[1:].tolist()
            assert allowed[END] == (text in written)
            token = int(rng.choice(np.flatnonzero(allowed)))
            if token == END:
                break
            text += spelled[token]
            guide.advance(token)
        assert text in written


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_token_bytes_together_are_the_text(kind: str, tmp_path: Path) -> None:
    tokenizer = make(kind, tmp_path)
    found = token_bytes(tokenizer, 340)
    assert len(found.first) == len(found.later) == 340 and found.later[339] == b""
    ids = [token for token in ids_of(kind, tokenizer) if not tokenizer.is_special(token)]
    for start in range(0, len(ids), 7):
        part = ids[start:]
        data = b"".join([found.first[part[0]], *(found.later[token] for token in part[1:])])
        text = tokenizer.decode(part)
        if "\ufffd" not in text and b"\xff" not in data:
            assert data.decode("utf-8", "replace") == text


def test_a_decoder_that_looks_ahead_is_refused(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({"fox</w>": 0, "red</w>": 1, "un": 2}, unk_token="un"))
    tokenizer.decoder = decoders.BPEDecoder()  # adds a space after every word but the last
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(LucidError, match="cannot be constrained: the decoder"):
        token_bytes(TextTokenizer(tmp_path), 3)
