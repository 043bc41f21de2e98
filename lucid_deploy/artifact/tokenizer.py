"""Convert text to token ids and back with the tokenizer beside the model; refuse rules that are too costly.

A few rules of a ``tokenizer.json`` can make a short text huge: eleven that each replace a character by twenty need
more memory than there is. A regular expression in its decoder could take any time, and the server decodes in its event
loop.
"""

from __future__ import annotations

import base64
import json
import math
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from lucid_deploy.artifact.tokenizer_settings import splits_special_tokens, token_names
from lucid_deploy.errors import LucidError
from lucid_deploy.json_fields import half_character

MOST_GROWTH = 100.0  # characters that one character may become; in published tokenizers at most 2
MOST_RULES = 64
MOST_TOKEN_CHARACTERS = 1 << 16  # of one token, decoded; in published tokenizers about 1000
_PARTS = {"normalizer": "normalizers", "decoder": "decoders", "post_processor": "processors"}
# Parts of a regular expression that can match nothing at some places and yet not in an empty text.
_PLACES = re.compile(r"\\[bBAzZGKyY]|\(\?<?[=!]|[\^$]")


def check_rules(content: dict[str, Any], longest_piece: int, path: Path) -> None:
    """Check the normalizer, decoder and post-processor of a tokenizer.

    ``longest_piece`` is the number of characters of the longest token; 0: not known yet.
    """
    growth = {}
    for part, key in _PARTS.items():
        rules = list(_rules(content.get(part), key))
        growth[part] = math.prod(map(_growth, rules))
        if growth[part] > MOST_GROWTH or len(rules) > MOST_RULES:
            raise LucidError(
                f"{path}: the {len(rules)} rules of its {part} may make a text {growth[part]:.3g} times as long; "
                f"supported are {MOST_RULES} rules and {MOST_GROWTH:g} times."
            )
        if part == "decoder" and any("Regex" in (rule.get("pattern") or ()) for rule in rules):
            raise LucidError(
                f"{path}: its decoder replaces a regular expression, which may take any time. Replace fixed texts."
            )
    if longest_piece * growth["decoder"] > MOST_TOKEN_CHARACTERS:
        raise LucidError(
            f"{path}: a token of it has up to {longest_piece * growth['decoder']:.3g} characters; at most "
            f"{MOST_TOKEN_CHARACTERS} are supported."
        )


def _rules(part: dict[str, Any] | None, key: str) -> Iterator[dict[str, Any]]:
    """Yield the rules of a part, those of its sequences one by one."""
    if part is None:
        return
    if key not in part:
        yield part
    for each in part.get(key) or ():
        yield from _rules(each, key)


def _growth(rule: dict[str, Any]) -> float:
    """Return how many characters (of a post-processor: tokens) one may become at most.

    Rules are recognized by their fields, as the library does for old files, which have no type.
    """
    if "pattern" in rule and "content" in rule:  # Replace
        pattern, content = rule["pattern"], len(rule["content"])
        text = pattern if isinstance(pattern, str) else pattern.get("String")
        if text is not None:
            return max(1.0, content / len(text)) if text else content + 1
        return content + 1 if _may_match_nothing(pattern["Regex"]) else max(1, content)
    if "prepend" in rule:
        return 1 + len(rule["prepend"])
    if "precompiled_charsmap" in rule:
        charsmap = base64.b64decode(rule["precompiled_charsmap"] or "")
        texts = charsmap[4 + int.from_bytes(charsmap[:4], "little") :]  # behind a trie, whose size comes first
        return max(1, *map(len, texts.split(b"\0")))
    if "single" in rule:  # the template of a post-processor
        return max(1, sum("Sequence" in item for item in rule["single"]))
    if rule.get("type") == "ByteLevel":
        return 2 if "add_prefix_space" not in rule else 1  # the normalizer of that name
    if "suffix" in rule or "word_delimiter_token" in rule:  # decoders that replace these by a space
        return 1 if rule.get("suffix", rule.get("word_delimiter_token")) else 2
    return 1


def _may_match_nothing(expression: str) -> bool:
    try:
        with warnings.catch_warnings(action="ignore"):  # about syntax that other libraries read otherwise
            return bool(_PLACES.search(expression)) or re.search(expression, "") is not None
    except (re.error, RecursionError, OverflowError):  # syntax that Python does not have
        return True


_BEFORE = ("\n", ".", "a")  # texts to put in front; few vocabularies join the last one with what follows
ENCODE_SECONDS = 30.0
_PANIC = "PanicException"  # of the tokenizers library: no Exception, and not importable


def advice(directory: Path) -> str:
    """Say how to get the missing ``tokenizer.json`` of an artifact or checkpoint."""
    return (
        f"{directory} has no tokenizer.json, without which it takes no text. Put the model's tokenizer.json into the "
        "checkpoint, and export again."
    )


class TextTokenizer:
    """The ``tokenizer.json`` of an artifact.

    A tokenizer's regular expressions may take any time, so with ``bound_time`` encoding fails after 30 s, and 1 s more
    for each 100,000 characters.

    Attributes:
        decoder_kinds: Types of the decoder's parts, such as ``ByteLevel``, and the strings that it replaces.
    """

    def __init__(self, directory: str | Path, bound_time: bool = True) -> None:
        from tokenizers import Tokenizer

        self._bound_time = bound_time

        path = Path(directory) / "tokenizer.json"
        if not path.is_file():
            raise LucidError(f"{advice(Path(directory))} Prompts can be token ids: --prompt-ids 1,2,3")
        self._named = token_names(Path(directory))
        try:
            content = json.loads(path.read_bytes())
            check_rules(content, 0, path)  # before the library applies them to added tokens
            self._tokenizer = Tokenizer.from_file(str(path))
            self._tokenizer.encode_special_tokens = splits_special_tokens(Path(directory))
            # Settings of a training batch, stored in some files; they would cut prompts and feed padding as tokens.
            self._tokenizer.no_truncation()
            self._tokenizer.no_padding()
            added = self._tokenizer.get_added_tokens_decoder()
            self._special = frozenset(index for index, token in added.items() if token.special)
            self._added = frozenset(added)
            decoder = self._tokenizer.decoder
            self.decoder_kinds = _decoder_kinds({} if decoder is None else json.loads(decoder.__getstate__()))
            check_rules(content, self.longest_piece, path)
        except LucidError:
            raise
        except Exception as error:
            raise LucidError(f"{path} is not a readable tokenizer: {error}") from error

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Return the token ids of a text, by default with the special tokens of the tokenizer's template."""
        ids: list[int] = self._encoding(text, add_special_tokens).ids
        return ids

    def _encoding(self, text: str, add_special_tokens: bool) -> Any:
        def work() -> Any:
            # Unlike encode, this releases the GIL: otherwise the thread that watches the time would not run.
            return self._tokenizer.encode_batch([text], add_special_tokens=add_special_tokens)[0]

        try:
            if not self._bound_time:
                return self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
            return _within(ENCODE_SECONDS + len(text) / 100_000, work)
        except BaseException as error:
            _explain_panic(error, "this text")
            if isinstance(error, TypeError) and (place := half_character(text)) is not None:
                raise LucidError(f"The text has half a character (a lone surrogate) at {place}.") from error
            raise

    def encode_behind(self, text: str) -> list[int]:
        """Return the token ids of a text that continues another one: without the space that many tokenizers put first.

        If no such ids are found, return those of ``encode`` without special tokens.
        """
        alone = self.encode(text, add_special_tokens=False)
        for before in _BEFORE:
            first = self.encode(before, add_special_tokens=False)
            both = self.encode(before + text, add_special_tokens=False)
            spelled = self.decode(first, skip_special_tokens=False)
            if not spelled.endswith(before):  # a tokenizer that puts a space first may show it
                continue
            for ids in (alone, both[len(first) :] if both[: len(first)] == first else alone):
                if self.decode([*first, *ids], skip_special_tokens=False) == spelled + text:
                    return ids
        return alone

    def unknown_words(self, text: str) -> list[str]:
        """Return the parts of a text that have no token, each once, in order.

        A vocabulary of whole words, such as the bundled model's, reads all of them as one token.
        """
        name = getattr(self._tokenizer.model, "unk_token", None)
        unknown = None if name is None else self._tokenizer.token_to_id(name)
        if unknown is None:
            return []
        found = self._encoding(text, add_special_tokens=False)
        places = zip(found.ids, found.offsets, strict=True)
        words = [text[start:end] for token, (start, end) in places if token == unknown]
        return list(dict.fromkeys(word for word in words if word != name))

    def is_special(self, token: int) -> bool:
        """Whether ``decode`` leaves out a token by default."""
        return token in self._special

    def special_id(self, text: str) -> int | None:
        """Return the id of the special token with this text; None if there is none."""
        found = self._tokenizer.token_to_id(text)
        return found if found is not None and found in self._special else None

    def named_id(self, name: str) -> int | None:
        """Return the id of a named token, such as ``bos_token``; None if no file names one."""
        text = self._named.get(name)
        found: int | None = None if text is None else self._tokenizer.token_to_id(text)
        return found

    def is_added(self, token: int) -> bool:
        """Whether a token was added to the model's vocabulary, so that it is spelled as its text."""
        return token in self._added

    def piece(self, token: int) -> str | None:
        """Return a token as the vocabulary spells it; None if it has no such id."""
        spelled: str | None = self._tokenizer.id_to_token(token)
        return spelled

    @cached_property
    def longest_piece(self) -> int:
        """Characters of the longest token, as the vocabulary spells it."""
        return max(map(len, self._tokenizer.get_vocab(with_added_tokens=True)), default=0)

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        """Return the text of token ids, by default without special tokens."""
        try:
            text: str = self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)
        except BaseException as error:
            _explain_panic(error, "these tokens")
            raise
        return text

    def decode_many(self, rows: Sequence[list[int]]) -> list[str]:
        """Return the text of several lists of token ids, special tokens included."""
        try:
            texts: list[str] = self._tokenizer.decode_batch(list(rows), skip_special_tokens=False)
        except BaseException as error:
            _explain_panic(error, "these tokens")
            raise
        return texts

    def decode_steps(self) -> Callable[[int], str | None]:
        """Return an incremental decoder: a function from the next id to the text that it completes.

        The function returns None while a character is incomplete, and for decoders that change text that was whole.
        """
        from tokenizers.decoders import DecodeStream

        stream = DecodeStream(skip_special_tokens=True)

        def step(token: int) -> str | None:
            try:
                return stream.step(self._tokenizer, token)
            except BaseException as error:
                if type(error) is Exception and "prefix" in str(error):  # the library has no class of its own for it
                    return None
                _explain_panic(error, "these tokens")
                raise

        return step


def _decoder_kinds(decoder: dict[str, Any]) -> frozenset[str]:
    parts = [decoder, *decoder.get("decoders", [])]
    replaced = [part.get("pattern", {}).get("String", "") for part in parts]
    return frozenset(str(kind) for kind in [*(part.get("type", "") for part in parts), *replaced] if kind)


def _within(seconds: float, work: Callable[[], Any]) -> Any:
    """Run a function in a thread and return its result; abandon the thread after ``seconds``."""
    result: list[Any] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            result.append(work())
        except BaseException as error:  # noqa: BLE001 (a panic of the library is no Exception; the caller raises it)
            errors.append(error)

    thread = threading.Thread(target=run, name="lucid-encode", daemon=True)  # the end of the program does not wait
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not result:
        raise LucidError(
            f"The tokenizer took more than {seconds:.0f} s for this text: a rule in its tokenizer.json is too costly."
        )
    return result[0]


def _explain_panic(error: BaseException, what: str) -> None:
    """Raise a LucidError for a panic inside the tokenizers library."""
    if type(error).__name__ == _PANIC:
        raise LucidError(
            f"The tokenizer failed on {what}: {error}. A rule in its tokenizer.json cannot cope with it."
        ) from error
