"""Texts that a verification is given, as token ids of the artifact's tokenizer."""

from __future__ import annotations

import numpy as np

from lucid_deploy.artifact import Artifact
from lucid_deploy.errors import LucidError
from lucid_deploy.runtimes.session import Array


def prompt_ids(prompt: str | Array | None, artifact: Artifact | None) -> Array | None:
    """Return a prompt's token ids, int64 ``(P,)``; None if there is none.

    Raises:
        LucidError: An empty text, or no tokenizer to read it with.
    """
    if prompt is None or not isinstance(prompt, str):
        return prompt
    if not prompt:
        raise LucidError("The prompt to verify with is empty. Give it some text, or leave --prompt out.")
    return _encoded(prompt, artifact, "--prompt", "a prompt")


def text_ids(text: str | Array | None, artifact: Artifact | None, limit: int) -> Array | None:
    """Return the first ``limit`` token ids of a text, int64; None if there is none.

    Raises:
        LucidError: Fewer than two tokens, or no tokenizer to read it with.
    """
    if text is None:
        return None
    ids = (_encoded(text, artifact, "--text", "a text") if isinstance(text, str) else text)[:limit]
    if len(ids) < 2:
        raise LucidError(f"The text has {len(ids)} tokens; a perplexity takes at least 2.")
    return ids


def _encoded(text: str, artifact: Artifact | None, option: str, what: str) -> Array:
    from lucid_deploy.artifact.tokenizer import TextTokenizer

    if artifact is None:
        raise LucidError(f"A session alone has no tokenizer for {option}; give token ids.")
    if not artifact.path("tokenizer.json").is_file():
        raise LucidError(f"{artifact.directory} has no tokenizer.json to read {option} with; verify without {what}.")
    return np.array(TextTokenizer(artifact.directory).encode(text), dtype=np.int64)
