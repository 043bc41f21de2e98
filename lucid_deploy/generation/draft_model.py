"""Drafts of a second, smaller model: its own greedy continuation of the text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from lucid_deploy.artifact import Artifact
from lucid_deploy.errors import LucidError, reading
from lucid_deploy.generation.drafting import Drafter, DraftLength
from lucid_deploy.runtimes.session import Array, Session
from lucid_deploy.runtimes.several import layers_obstacle
from lucid_deploy.runtimes.take_back import make_room, take_back

_FIRST_LENGTH = 4
_TOKENIZER = "tokenizer.json"
_NOT_TOKENS = ("version", "truncation", "padding")  # of that file: what does not say which token is which


class ModelDrafter(Drafter):
    """Runs a model of its own beside the one that answers, one token after the other, over a cache of its own.

    Args:
        session: What runs it; several drafters may share one.
        vocabulary: Tokens that the answering model knows.
    """

    def __init__(self, session: Session[Any], vocabulary: int) -> None:
        self._session = session
        self._known = min(vocabulary, session.config.vocab_size)
        self._cache = session.empty_cache(1)
        self._held: list[int] = []  # tokens in the cache
        self._ids: list[int] = []  # the text
        self._is_lost = False  # whether the text has a token that the model does not know
        self._length = DraftLength(_FIRST_LENGTH)

    def add(self, tokens: Sequence[int]) -> None:
        """See :meth:`Drafter.add`."""
        self._ids += tokens
        self._is_lost |= max(tokens, default=0) >= self._session.config.vocab_size

    def propose(self, most: int) -> list[int]:
        """See :meth:`Drafter.propose`: what is likeliest, token by token; nothing until the text has run, in chunks."""
        limit = self._session.context_limit
        room = most if limit is None else limit - len(self._ids)
        count = min(self._length.now(), most, room)
        if count < 1 or self._is_lost:
            return []
        self._go_back()
        logits = self._catch_up(count)
        if len(self._held) < len(self._ids):
            return []
        drafts: list[int] = []
        while (token := int(logits[0, -1, : self._known].argmax())) not in self.ends:
            drafts.append(token)
            if len(drafts) == count:
                break
            logits = self._session.decode(np.array([[token]], dtype=np.int64), self._cache)
            self._held.append(token)
        return drafts

    def learn(self, proposed: int, accepted: int) -> None:
        """See :meth:`Drafter.learn`."""
        self._length.learn(proposed, accepted)

    def _catch_up(self, ahead: int) -> Array:
        """Run the text's next tokens, at most a chunk; return the logits behind them, with room for some more."""
        new = np.array([self._ids[len(self._held) :][: self.chunk]], dtype=np.int64)
        make_room(self._session, self._cache, new.shape[1] + ahead)
        logits = (self._session.decode if new.shape[1] == 1 else self._session.prefill)(new, self._cache)
        self._held += new[0].tolist()
        return logits

    def _go_back(self) -> None:
        """Drop what is in the cache and not in the text, and the text's last token, which gives the logits."""
        pairs = zip(self._held, self._ids[:-1], strict=False)
        shared = next(
            (i for i, (held, said) in enumerate(pairs) if held != said), min(len(self._held), len(self._ids) - 1)
        )
        if shared < len(self._held):
            take_back(self._session, self._cache, len(self._held) - shared, np.array([0]))
            del self._held[shared:]


class ModelDrafters:
    """Makes drafters that share a session.

    Args:
        session: See :class:`ModelDrafter`, as the next.
        vocabulary: As there.
    """

    def __init__(self, session: Session[Any], vocabulary: int) -> None:
        self.session, self._vocabulary = session, vocabulary

    def __call__(self) -> ModelDrafter:
        """Return a drafter for one text."""
        return ModelDrafter(self.session, self._vocabulary)

    def close(self) -> None:
        """End the session; its drafters cannot be used any more."""
        self.session.close()


def check_draft(artifact: Artifact, draft: Artifact) -> None:
    """Check that an artifact can draft for another one: token ids must mean the same.

    Raises:
        LucidError: They have different tokenizers, or the draft's layers cannot go back over rejected tokens.
    """
    if _tokens(artifact) != _tokens(draft):
        raise LucidError(
            f"--draft {draft.directory} has another tokenizer than {artifact.directory}, so that its token ids mean "
            "other words. Choose a draft model of the same family, or --speculate lookup, which needs none."
        )
    if _tokens(artifact) is None and artifact.config.vocab_size != draft.config.vocab_size:
        raise LucidError(
            f"--draft {draft.directory} has a vocabulary of {draft.config.vocab_size} tokens and {artifact.directory} "
            f"one of {artifact.config.vocab_size}, and neither has a tokenizer to compare. Choose another draft model."
        )
    obstacle = layers_obstacle(draft.manifest.layers)
    if obstacle is not None:
        raise LucidError(f"--draft {draft.directory} cannot draft: {obstacle}. Choose another draft model.")


def _tokens(artifact: Artifact) -> dict[str, Any] | None:
    """Return what an artifact's tokenizer says; None if it has none."""
    path = artifact.path(_TOKENIZER)
    if not path.is_file():
        return None
    with reading(path):
        content = path.read_bytes()
    try:
        return {key: value for key, value in json.loads(content).items() if key not in _NOT_TOKENS}
    except (ValueError, AttributeError, RecursionError) as error:
        raise LucidError(f"{path} is not a tokenizer: {error}. Export it again.") from error
