"""The vocabulary of the recall task, and a tokenizer of its words."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from lucid_deploy.demo import recall

PAD, BOS, EOS, UNK = SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
VOCABULARY = {word: i for i, word in enumerate((*SPECIAL, *recall.vocabulary()))}
SPECIAL_IDS = {"pad_token_id": VOCABULARY[PAD], "bos_token_id": VOCABULARY[BOS], "eos_token_id": VOCABULARY[EOS]}


def build_tokenizer() -> Tokenizer:
    """Return a tokenizer of whole words and signs that puts ``<bos>`` first and decodes to readable text."""
    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token=UNK))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # splits off signs too: "lamp, owl" is three tokens
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)  # spaces between words, none before signs
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, VOCABULARY[BOS])]
    )
    return tokenizer


def tokenizer_config(longest: int) -> dict[str, Any]:
    """Return ``tokenizer_config.json``, for a model of ``longest`` tokens of context."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": longest,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        **dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), SPECIAL, strict=True)),
    }
