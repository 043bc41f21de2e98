"""Convert text to token ids and back with the tokenizer beside the model."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lucid_deploy.artifact.tokenizer_settings import CONFIG, read_tokenizer_file, token_names
from lucid_deploy.errors import LucidError
from lucid_deploy.json_fields import half_character

_BEFORE = ("\n", ".", "a")  # texts to try in front of another text; a vocabulary may merge one with that text
_PANIC = "PanicException"  # of the tokenizers library; it is no subclass of Exception and cannot be imported


def advice(directory: Path) -> str:
    """Say how to get the missing ``tokenizer.json`` of an artifact or checkpoint."""
    return (
        f"{directory} has no tokenizer.json, so it cannot read text. Put the model's tokenizer.json into the "
        "checkpoint, and export again."
    )


class TextTokenizer:
    """The ``tokenizer.json`` of an artifact.

    Attributes:
        decoder_kinds: Types of the decoder's parts, such as ``ByteLevel``, and strings that the decoder replaces.
    """

    def __init__(self, directory: str | Path) -> None:
        from tokenizers import Tokenizer

        path = Path(directory) / "tokenizer.json"
        if not path.is_file():
            raise LucidError(f"{advice(Path(directory))} Prompts can be token ids: --prompt-ids 1,2,3")
        self._named = token_names(Path(directory))
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
            settings = read_tokenizer_file(Path(directory) / CONFIG)
            self._tokenizer.encode_special_tokens = settings.get("split_special_tokens") is True
            # Some files hold settings for training batches, which would truncate prompts and add padding tokens.
            self._tokenizer.no_truncation()
            self._tokenizer.no_padding()
            added = self._tokenizer.get_added_tokens_decoder()
            self._special = frozenset(index for index, token in added.items() if token.special)
            self._added = frozenset(added)
            decoder = self._tokenizer.decoder
            self.decoder_kinds = _decoder_kinds({} if decoder is None else json.loads(decoder.__getstate__()))
        except LucidError:
            raise
        except Exception as error:
            raise LucidError(f"{path} is not a readable tokenizer: {error}") from error

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Return the token ids of a text, by default with the special tokens that the tokenizer adds, such as BOS."""
        ids: list[int] = self._encoding(text, add_special_tokens).ids
        return ids

    def _encoding(self, text: str, add_special_tokens: bool) -> Any:
        try:
            return self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
        except BaseException as error:
            _explain_panic(error, "this text")
            if isinstance(error, TypeError) and (place := half_character(text)) is not None:
                raise LucidError(f"The text has half a character (a lone surrogate) at {place}.") from error
            raise

    def encode_behind(self, text: str) -> list[int]:
        """Return the token ids of a text that continues another, without the space that many tokenizers add in front.

        If no such ids are found, return those of ``encode`` without special tokens.
        """
        alone = self.encode(text, add_special_tokens=False)
        for before in _BEFORE:
            first = self.encode(before, add_special_tokens=False)
            both = self.encode(before + text, add_special_tokens=False)
            spelled = self.decode(first, skip_special_tokens=False)
            if not spelled.endswith(before):  # not ==: a space that the tokenizer puts first may remain
                continue
            for ids in (alone, both[len(first) :] if both[: len(first)] == first else alone):
                if self.decode([*first, *ids], skip_special_tokens=False) == spelled + text:
                    return ids
        return alone

    def unknown_words(self, text: str) -> list[str]:
        """Return the parts of a text that have no token, each once, in order.

        A vocabulary of whole words, such as the bundled model's, encodes every such word as its unknown token.
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
        """Return the id of the token with this name, such as ``bos_token``; None if there is no such token."""
        text = self._named.get(name)
        found: int | None = None if text is None else self._tokenizer.token_to_id(text)
        return found

    def is_added(self, token: int) -> bool:
        """Whether a token was added to the vocabulary: its piece is plain text, even if other pieces encode bytes."""
        return token in self._added

    def piece(self, token: int) -> str | None:
        """Return a token's text in the vocabulary; None if no token has this id."""
        spelled: str | None = self._tokenizer.id_to_token(token)
        return spelled

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

        The function returns None for a special token or an incomplete character, or if text already returned changes.
        """
        from tokenizers.decoders import DecodeStream

        stream = DecodeStream(skip_special_tokens=True)

        def step(token: int) -> str | None:
            try:
                return stream.step(self._tokenizer, token)
            except BaseException as error:
                if type(error) is Exception and "prefix" in str(error):  # the library has no class for this error
                    return None
                _explain_panic(error, "these tokens")
                raise

        return step


def _decoder_kinds(decoder: dict[str, Any]) -> frozenset[str]:
    parts = [decoder, *decoder.get("decoders", [])]
    replaced = [part.get("pattern", {}).get("String", "") for part in parts]
    return frozenset(str(kind) for kind in [*(part.get("type", "") for part in parts), *replaced] if kind)


def _explain_panic(error: BaseException, what: str) -> None:
    """Raise a LucidError if the error is a panic of the tokenizers library; ``what`` was encoded or decoded."""
    if type(error).__name__ == _PANIC:
        raise LucidError(
            f"The tokenizer failed on {what}: {error}. A rule in its tokenizer.json cannot cope with it."
        ) from error
