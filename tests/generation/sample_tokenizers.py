"""Tokenizers of every common kind, and token ids for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from lucid_deploy.artifact.tokenizer import TextTokenizer

TEXT = "The fox 🦊 naïve — 漢字 and 漢語, 👩‍👩‍👧 \n\n  two  spaces\tтекст é é! don't stop.  "
BLANKS = ["a normalizer, as Llama's was", "first", "always", "never", "bytes behind a blank", "bytes"]
KINDS = ["byte-level bpe", "bytes alone", "word level", "word piece", "byte fallback"]


def make(kind: str, directory: Path) -> TextTokenizer:
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if kind == "byte-level bpe":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, special_tokens=["<s>"])
        tokenizer.train_from_iterator([TEXT] * 3, trainer)
    elif kind == "bytes alone":
        tokenizer = Tokenizer(models.BPE({sign: i for i, sign in enumerate(sorted(alphabet))}, []))
        tokenizer.decoder = decoders.ByteLevel()
    elif kind == "byte fallback":  # pieces with ▁ for a space, single bytes for the rest
        vocabulary = {"<s>": 0, **{f"<0x{i:02X}>": i + 1 for i in range(256)}}
        for piece in ["▁", "▁The", "▁fox", "▁and", "▁two", "s", "▁▁", ".", "\n", "fox", "漢"]:
            vocabulary[piece] = len(vocabulary)
        tokenizer = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True))
        tokenizer.add_special_tokens(["<s>"])
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
    else:
        words = ["[UNK]", "the", "fox", "##es", ".", ",", "'", "s", "漢字", "é", "##s", "n't", "!", "?"]
        tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
        if kind == "word piece":
            tokenizer.decoder = decoders.WordPiece(cleanup=True)
    path = directory / "tokenizer.json"
    tokenizer.save(str(path))
    return TextTokenizer(directory)


def ids_of(kind: str, tokenizer: TextTokenizer) -> list[int]:
    """Return token ids whose text does not end within a character."""
    if kind == "byte-level bpe":
        return tokenizer.encode(TEXT * 3)
    if kind == "bytes alone":
        signs = sorted(pre_tokenizers.ByteLevel.alphabet())
        encoded = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(TEXT)
        return [signs.index(sign) for piece, _ in encoded for sign in piece]
    rng = np.random.default_rng(0)
    if kind == "byte fallback":
        characters = [[byte + 1 for byte in sign.encode()] for sign in "🦊é漢a"]
        pieces = [*([index] for index in range(257, 268)), *characters, [0]]
        chosen = rng.integers(len(pieces), size=200)
        return [0, 0, 257, 258, *(token for index in chosen for token in pieces[index]), 265]
    return [int(token) for token in rng.integers(14, size=200)]


def byte_ids(tokenizer: TextTokenizer, data: bytes) -> list[int]:
    """Return the token ids of single bytes, for tokenizers with a token for each byte."""
    signs = sorted(pre_tokenizers.ByteLevel.alphabet())
    if tokenizer.decoder_kinds == {"ByteLevel"}:
        printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
        others = [byte for byte in range(256) if byte not in printable]
        letters = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
        return [signs.index(letters[byte]) for byte in data]
    return [byte + 1 for byte in data]


def with_blank_first(kind: str, directory: Path) -> TextTokenizer:
    """Return a tokenizer of bytes and a few pieces; most kinds put a blank before a text."""
    if "bytes" in kind:
        signs = {sign: index for index, sign in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        tokenizer = Tokenizer(models.BPE(signs, []))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=kind == "bytes behind a blank")
        tokenizer.decoder = decoders.ByteLevel()
    else:
        pieces = {f"<0x{byte:02X}>": byte for byte in range(256)}
        pieces |= {
            piece: 256 + index for index, piece in enumerate(["▁", *"abcdefghijklmnopqrstuvwxyz.,'", "▁a", "▁."])
        }
        tokenizer = Tokenizer(models.BPE(pieces, [("▁", "a"), ("▁", ".")], byte_fallback=True))
        if kind == "a normalizer, as Llama's was":
            tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        else:
            tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=kind, split=False)
        parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        tokenizer.decoder = decoders.Sequence(parts)
    tokenizer.save(str(directory / "tokenizer.json"))
    return TextTokenizer(directory)
