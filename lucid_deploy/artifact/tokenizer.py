"""Text to token ids and back, with the tokenizer that lies beside the model."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from lucid_deploy.artifact.tokenizer_rules import check_rules
from lucid_deploy.artifact.tokenizer_settings import read_settings
from lucid_deploy.errors import LucidError
from lucid_deploy.json_fields import half_character

_CONVERTERS = 'Run: pip install "transformers>=5.24,<6" "sentencepiece>=0.2,<1"'
_BEFORE = ("\n", ".", "a")  # texts that another may stand behind; of the last, few vocabularies make one token with it
ENCODE_SECONDS = 30.0
_PANIC = "PanicException"  # of the tokenizers library: no Exception, and not importable


def advice(directory: Path) -> str:
    """Return what to do about an artifact or checkpoint without ``tokenizer.json``, which cannot be given text."""
    missing = f"{directory} has no tokenizer.json, without which it takes no text."
    if (directory / "tokenizer.model").is_file():
        return f"{missing} Export makes it from tokenizer.model. {_CONVERTERS} Then export again."
    if (directory / "vocab.json").is_file() and (directory / "merges.txt").is_file():
        line = "AutoTokenizer.from_pretrained('.').save_pretrained('.')"
        return (
            f"{missing} Make it in the checkpoint, which has vocab.json and merges.txt, and export again: "
            f'python -c "from transformers import AutoTokenizer; {line}"'
        )
    return f"{missing} Put the model's tokenizer.json into the checkpoint, and export again."


class TextTokenizer:
    """The ``tokenizer.json`` of an artifact or checkpoint, with the tokens that the files beside it add.

    Attributes:
        decoder_kinds: Types of the decoder's parts, such as ``ByteLevel``, and the strings that it replaces.

    Args:
        directory: Where it lies.
        bound_time: Whether encoding a text fails after 30 s, and 1 s more for each 100,000 characters: a tokenizer's
            regular expressions may take any time. False in a process that has a limit of its own.
    """

    def __init__(self, directory: str | Path, bound_time: bool = True) -> None:
        from tokenizers import Tokenizer

        self._bound_time = bound_time

        path = Path(directory) / "tokenizer.json"
        if not path.is_file():
            raise LucidError(f"{advice(Path(directory))} Prompts can be token ids: --prompt-ids 1,2,3")
        settings = read_settings(Path(directory))
        try:
            content = json.loads(path.read_bytes())
            check_rules(content, 0, path)  # before the library applies them to added tokens
            self._tokenizer = Tokenizer.from_file(str(path))
            before = self._tokenizer.get_added_tokens_decoder()
            settings.complete(self._tokenizer)
            self._named = settings.texts()
            self._tokenizer.encode_special_tokens = settings.split_special_tokens
            # Settings of a training batch, stored in some files; they would cut prompts and feed padding as tokens.
            self._tokenizer.no_truncation()
            self._tokenizer.no_padding()
            added = self._tokenizer.get_added_tokens_decoder()
            # The library goes on leaving out a token that was special before a file said that it is not.
            special = {token.content for token in (*before.values(), *added.values()) if token.special}
            self._special = frozenset(index for index, token in added.items() if token.content in special)
            self._added = frozenset(added)
            decoder = self._tokenizer.decoder
            self.decoder_kinds = _decoder_kinds({} if decoder is None else json.loads(decoder.__getstate__()))
            check_rules(content, self.longest_piece, path)
        except LucidError:
            raise
        except Exception as error:
            raise LucidError(f"{path} is not a readable tokenizer: {error}") from error

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Return the token ids of a text, special tokens of the tokenizer's template included unless told otherwise."""
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
        """Return the token ids of a text that goes on another one: without the blank that many tokenizers put first.

        Where no ids are known to spell the text so, they are those of :meth:`encode` without special tokens.
        """
        alone = self.encode(text, add_special_tokens=False)
        for before in _BEFORE:
            first = self.encode(before, add_special_tokens=False)
            both = self.encode(before + text, add_special_tokens=False)
            spelled = self.decode(first, skip_special_tokens=False)
            if not spelled.endswith(before):  # a tokenizer that puts a blank first may show it
                continue
            for ids in (alone, both[len(first) :] if both[: len(first)] == first else alone):
                if self.decode([*first, *ids], skip_special_tokens=False) == spelled + text:
                    return ids
        return alone

    def unknown_words(self, text: str) -> list[str]:
        """Return the parts of a text that the tokenizer has no token for, each once, in their order.

        A vocabulary of whole words, such as the bundled model's, reads all of them as one token.
        """
        name, unknown = getattr(self._tokenizer.model, "unk_token", None), self.unknown_id
        if unknown is None:
            return []
        found = self._encoding(text, add_special_tokens=False)
        places = zip(found.ids, found.offsets, strict=True)
        words = [text[start:end] for token, (start, end) in places if token == unknown]
        return list(dict.fromkeys(word for word in words if word != name))

    def is_special(self, token: int) -> bool:
        """Say whether a token is one that :meth:`decode` leaves out."""
        return token in self._special

    def special_id(self, text: str) -> int | None:
        """Return the special token that is spelled so; None if there is none."""
        found = self._tokenizer.token_to_id(text)
        return found if found is not None and found in self._special else None

    def named_id(self, name: str) -> int | None:
        """Return the token that the files beside ``tokenizer.json`` call so, such as ``bos_token``; None if none is."""
        text = self._named.get(name)
        found: int | None = None if text is None else self._tokenizer.token_to_id(text)
        return found

    @property
    def unknown_id(self) -> int | None:
        """The token that stands for all words without one of their own; None if there is none."""
        name = getattr(self._tokenizer.model, "unk_token", None)
        found: int | None = None if name is None else self._tokenizer.token_to_id(name)
        return found

    def is_added(self, token: int) -> bool:
        """Say whether a token was added to the model's vocabulary: its text stands for itself."""
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
        """Return the text of token ids, special tokens left out unless told otherwise."""
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
        """Return the library's incremental decoder: a function from the next id to the text that it makes whole.

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
    """Call a function in a thread and return its result; the thread is left behind when the time is over."""
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
    """Raise a LucidError if an error is a panic inside the tokenizers library."""
    if type(error).__name__ == _PANIC:
        raise LucidError(
            f"The tokenizer failed on {what}: {error}. A rule in its tokenizer.json cannot cope with it."
        ) from error
