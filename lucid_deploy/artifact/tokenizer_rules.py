"""Refuse a ``tokenizer.json`` whose rules could make a short text huge, or decode it without a limit on time.

Text is decoded token by token in the server's event loop, and prompts are encoded where the user waits. Eleven rules
that each replace a character by twenty would need more memory than there is.
"""

from __future__ import annotations

import base64
import math
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lucid_deploy.errors import LucidError

MOST_GROWTH = 100.0  # characters that one character may become; in published tokenizers at most 2
MOST_RULES = 64
MOST_TOKEN_CHARACTERS = 1 << 16  # of one token, decoded; in published tokenizers about 1000
_PARTS = {"normalizer": "normalizers", "decoder": "decoders", "post_processor": "processors"}
# Parts of a regular expression that can match nothing at some places and yet not in an empty text.
_PLACES = re.compile(r"\\[bBAzZGKyY]|\(\?<?[=!]|[\^$]")


def check_rules(content: dict[str, Any], longest_piece: int, path: Path) -> None:
    """Check the normalizer, decoder and post-processor of a tokenizer.

    Args:
        content: The whole file.
        longest_piece: Characters of the longest token; 0: not known yet.
        path: The file, for messages.

    Raises:
        LucidError: They may multiply a text beyond the limits above, or the decoder has a regular expression.
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

    Rules are told by their fields: the library reads rules of old files, which have no type, in the same way.
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
