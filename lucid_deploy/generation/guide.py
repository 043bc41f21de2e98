"""From a constraint to the tokens that may come next. Masks are computed in a thread, beside the model's step."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.errors import LucidError
from lucid_deploy.generation.constraint import Constraint, library, limits
from lucid_deploy.generation.sampling import NoTokenLeft
from lucid_deploy.generation.token_bytes import token_bytes
from lucid_deploy.runtimes.session import Array
from lucid_deploy.shortages import limit_met

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

_THREADS = 4
COMPILED = 16  # grammars that are kept; each holds its lexer's states


class Guide:
    """Follows one answer through its constraint.

    Args:
        matcher: At the beginning.
        vocabulary: The model's tokens, and their ids in the matcher.
        pool: Where masks are computed.
        may_end: Whether an end-of-sequence token ends the answer.
        renew: Gives a matcher that shares nothing; None: there is none to try.
    """

    def __init__(
        self,
        matcher: LLMatcher,
        vocabulary: _Vocabulary,
        pool: Executor,
        may_end: bool,
        renew: Callable[[], LLMatcher] | None = None,
    ) -> None:
        self._matcher, self._vocabulary, self._pool, self._may_end = matcher, vocabulary, pool, may_end
        self._renew = renew
        self._consumed: list[int] = []  # as the matcher numbers tokens
        self._started = False
        self._mask = pool.submit(self._compute)

    def allowed(self) -> Array | None:
        """Return which tokens may come next, bool ``(vocab,)``; None if the text is complete and nothing may follow.

        An end-of-sequence token is among them exactly when the text so far is complete. Waits for the mask.

        Raises:
            NoTokenLeft: No token may come next, and the text is not complete.
        """
        mask, complete = self._mask.result()
        return None if complete else mask

    @property
    def complete(self) -> bool:
        """Whether the text is complete and nothing may follow; waits as :meth:`allowed`."""
        try:
            return self.allowed() is None
        except NoTokenLeft:
            return False

    def advance(self, token: int) -> None:
        """Add a token that was chosen, and begin to compute the next mask."""
        self._mask.exception()  # waits: the matcher is one thread's at a time
        first, self._started = not self._started, True
        self._mask = self._pool.submit(self._consume, int(self._vocabulary.first[token]) if first else token)

    def _consume(self, token: int) -> tuple[Array, bool]:
        self._consumed.append(token)
        if not self._matcher.consume_token(token):
            return self._alone(f"The constraint was left: {_reason(self._matcher)}.")
        return self._compute()

    def _alone(self, said: str) -> tuple[Array, bool]:
        """Go on with a matcher that shares nothing: copies have one lexer, whose bounds other answers may have used up.

        Raises:
            NoTokenLeft: There is none, or it comes to the same.
        """
        if self._renew is None:
            raise NoTokenLeft(said)
        self._matcher, self._renew = self._renew(), None
        if not all(map(self._matcher.consume_token, self._consumed)):
            raise NoTokenLeft(f"The constraint was left: {_reason(self._matcher)}.")
        return self._compute()

    def _compute(self) -> tuple[Array, bool]:
        """Return the mask, and whether nothing but the end may come."""
        words, matcher = self._vocabulary, self._matcher
        bits = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
        if matcher.is_error():
            return self._alone(f"The constraint allows no token here: {_reason(matcher)}.")
        found = np.unpackbits(bits, count=len(words.tokens), bitorder="little").view(bool)
        mask = found[: words.size] if self._started else found[words.first]
        mask[words.ends] = False
        complete = matcher.is_accepting()
        if complete and not mask.any():
            return mask, True
        if not complete and not mask.any():
            raise NoTokenLeft("The constraint allows no token here: the vocabulary has none that fits.")
        if complete and self._may_end:
            mask[words.ends] = True
        return mask, False


class _Vocabulary:
    """The model's tokens in the form that llguidance's TokenizerWrapper reads.

    Tokens that begin a text otherwise than they continue one have a second id for that, behind the model's own.
    """

    def __init__(self, tokenizer: TextTokenizer, size: int, ends: list[int]) -> None:
        found = token_bytes(tokenizer, size)
        self.tokens = list(found.later)
        self.first = np.arange(size)  # ids of the tokens at the beginning
        for token, data in enumerate(found.first):
            if data != self.tokens[token]:
                self.first[token] = len(self.tokens)
                self.tokens.append(data)
        self.size, self.ends = size, np.array(ends, dtype=np.int64)
        self.eos_token_id, self.bos_token_id = len(self.tokens), None  # one of its own, for models that have none
        self.ends_known = [*ends, self.eos_token_id]
        self.tokens.append(b"")
        for token in self.ends_known:
            self.tokens[token] = b"</end>"
        special = [token for token in range(size) if tokenizer.is_special(token)]
        for token in {*special} - {*ends}:
            self.tokens[token] = f"<{token}>".encode()  # llguidance takes special tokens of equal bytes for one another
        self.special_token_ids = sorted({*special, *self.ends_known})

    def __call__(self, text: str) -> list[int]:
        """Tokenize nothing, because no text is forced."""
        return []


class _Threads(ThreadPoolExecutor):
    """Starts threads as they are needed; where none can be, that is the fault of one answer."""

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        try:
            return super().submit(function, *arguments, **named)
        except RuntimeError as error:
            limit = limit_met(error)
            if limit is None:
                raise
            raise LucidError(limit) from error


class _AtOnce(Executor):
    """Runs what is submitted in the caller's thread."""

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        done: Future[Any] = Future()
        try:
            done.set_result(function(*arguments, **named))
        except LucidError as error:
            done.set_exception(error)
        return done


class GuideFactory:
    """Makes guides for one tokenizer, of any number of answers at once. Thread-safe.

    Args:
        tokenizer: The artifact's.
        vocabulary: Tokens that the model knows.
        ends: The model's end-of-sequence tokens.
        kept: Most compiled grammars that are kept; each may take much memory.

    Raises:
        LucidError: llguidance is not installed, or tokens have no text of their own.
    """

    def __init__(self, tokenizer: TextTokenizer, vocabulary: int, ends: Sequence[int], kept: int = COMPILED) -> None:
        self._library, self._kept = library(), kept
        self._tokenizer, self._size, self._ends = tokenizer, vocabulary, list(ends)
        self._pool = _Threads(min(_THREADS, os.cpu_count() or 1), "lucid-guide")
        self._lock = Lock()  # over the next three
        self._vocabulary: _Vocabulary | None = None
        self._tokens: LLTokenizer | None = None
        self._compiled: OrderedDict[Constraint, LLMatcher] = OrderedDict()  # the most recently used comes last

    def open(self, constraint: Constraint, may_end: bool = True) -> Future[Guide]:
        """Begin to compile a constraint; the future gives a guide of one answer, or raises a LucidError.

        Args:
            constraint: Checked before.
            may_end: Whether an end-of-sequence token may end the answer while more could follow.

        Raises:
            LucidError: There is no thread for it, and none can be started.
        """
        return self._pool.submit(self._open, constraint, may_end)

    def check(self, constraint: Constraint) -> None:
        """Compile a constraint here and now, and compute its first mask.

        Raises:
            NoTokenLeft: It is too costly, or no token can begin an answer.
        """
        with self._lock:
            vocabulary, matcher = self._words(), self._matcher(constraint)
        Guide(matcher, vocabulary, _AtOnce(), True).allowed()

    def _open(self, constraint: Constraint, may_end: bool) -> Guide:
        with self._lock:
            vocabulary, matcher = self._words(), self._matcher(constraint)
        return Guide(matcher, vocabulary, self._pool, may_end, partial(self._compile_anew, constraint))

    def _words(self) -> _Vocabulary:
        if self._vocabulary is None:
            self._vocabulary = _Vocabulary(self._tokenizer, self._size, self._ends)
            self._tokens = self._library.LLTokenizer(
                self._library.TokenizerWrapper(self._vocabulary), eos_token=self._vocabulary.ends_known
            )
        return self._vocabulary

    def _matcher(self, constraint: Constraint) -> LLMatcher:
        """Return a matcher at the beginning of a constraint, compiled once for those that were used last.

        Copies share their lexer: its states, which saves most of the work, and its bounds, see :meth:`Guide._alone`.
        """
        matcher = self._compiled.pop(constraint, None) or self._compile(constraint)
        self._compiled[constraint] = matcher
        if len(self._compiled) > self._kept:
            self._compiled.popitem(last=False)
        return matcher.deep_copy()

    def _compile_anew(self, constraint: Constraint) -> LLMatcher:
        """Return a matcher that shares nothing, and keep none of those that do: their lexer is used up."""
        with self._lock:
            self._compiled.pop(constraint, None)
            return self._compile(constraint)

    def _compile(self, constraint: Constraint) -> LLMatcher:
        matcher: LLMatcher = self._library.LLMatcher(self._tokens, constraint.compiled(), log_level=0, limits=limits())
        if matcher.is_error():
            raise NoTokenLeft(f"The constraint cannot be compiled: {_reason(matcher)}.")
        return matcher


def _reason(matcher: LLMatcher) -> str:
    said = next(iter(matcher.get_error().splitlines()), "no reason is given").rstrip(".")
    return "the vocabulary has none that fits" if said.startswith("NoExtension") else said
