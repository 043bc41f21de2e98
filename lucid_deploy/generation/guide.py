"""Turn a constraint into masks of allowed tokens, computed in threads while the model runs."""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.errors import LucidError
from lucid_deploy.generation.constraint import Constraint, library, limits
from lucid_deploy.generation.sampling import NoTokenLeft
from lucid_deploy.generation.text_stream import byte_alphabet
from lucid_deploy.runtimes.session import Array

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

_THREADS = 4
COMPILED = 16  # compiled grammars that are cached; each has its lexer's states
# CPU time in seconds that the masks of one answer may take. A JSON schema takes 0.01 to 1 ms per token; the time of an
# ambiguous grammar, which parses one text in many ways, grows with the square of the text's length.
MASK_SECONDS = 2.0
MASK_SECONDS_PER_TOKEN = 0.002
SLOW_SHARE = 0.1  # of that time; after it, an answer's masks are computed by a single thread of low priority
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_TRIALS, _TRIAL_LENGTH = 64, 6  # number of random texts, and of tokens in each, that _check decodes


class Guide:
    """Follows one answer through its constraint and computes masks of the tokens that may come next.

    Masks are computed in ``pool`` (llguidance releases the GIL), or in ``slow_pool`` if earlier ones took long.
    ``renew`` creates a matcher with its own lexer if the shared lexer has reached its limits; None: no retry.

    Attributes:
        mask: Future of the next mask, bool ``(vocab,)``, and of whether the text is complete and nothing may follow.
    """

    def __init__(
        self,
        matcher: LLMatcher,
        vocabulary: _Vocabulary,
        pool: Executor,
        slow_pool: Executor,
        may_end: bool,
        renew: Callable[[], LLMatcher] | None = None,
    ) -> None:
        self._matcher, self._vocabulary, self._may_end, self._renew = matcher, vocabulary, may_end, renew
        self._pool, self._slow_pool = pool, slow_pool
        self._consumed: list[int] = []  # token ids, in the matcher's numbering
        self._seconds = 0.0  # CPU time of all masks so far
        self.mask: Future[tuple[Array, bool]] = pool.submit(self._next_mask, None)

    def wait(self, seconds: float) -> bool:
        """Wait at most ``seconds`` for the next mask; return whether it is ready."""
        return self.mask.done() or bool(wait([self.mask], seconds).done)

    def allowed(self) -> Array | None:
        """Return a mask of the tokens that may come next, bool ``(vocab,)``; None if the text is complete and final.

        It includes end-of-sequence tokens if and only if the text so far is complete and ``may_end`` is set. Waits for
        the mask; raises NoTokenLeft if no token is allowed or the constraint is too costly.
        """
        mask, complete = self.mask.result()
        return None if complete else mask

    @property
    def complete(self) -> bool:
        """Whether the text is complete and nothing may follow; waits for the mask."""
        try:
            return self.allowed() is None
        except NoTokenLeft:
            return False

    def advance(self, token: int) -> None:
        """Add a token that the mask allows, and start to compute the next mask."""
        self.mask.exception()  # waits: the matcher is used by one thread at a time
        is_slow = self._seconds > SLOW_SHARE * self._most_seconds
        pool = self._slow_pool if is_slow else self._pool
        self.mask = pool.submit(self._next_mask, int(token if self._consumed else self._vocabulary.first[token]))

    @property
    def _most_seconds(self) -> float:
        return MASK_SECONDS + MASK_SECONDS_PER_TOKEN * len(self._consumed)

    def _next_mask(self, token: int | None) -> tuple[Array, bool]:
        """Return the mask after a token; NoTokenLeft if this answer's masks have taken too much CPU time."""
        started = time.thread_time()
        found = self._compute() if token is None else self._consume(token)
        self._seconds += time.thread_time() - started
        if self._seconds > self._most_seconds:
            raise NoTokenLeft(
                f"The constraint is too costly: after {len(self._consumed)} tokens it had taken more than "
                f"{self._most_seconds:.1f} s of processor time. Simplify it, or make its grammar less ambiguous."
            )
        return found

    def _consume(self, token: int) -> tuple[Array, bool]:
        self._consumed.append(token)
        if not self._matcher.consume_token(token):
            return self._with_own_lexer(f"The answer broke its constraint: {_reason(self._matcher)}.")
        return self._compute()

    def _with_own_lexer(self, error: str) -> tuple[Array, bool]:
        """Compute the mask with a new lexer, as the shared one may be at its limits; on a second call, NoTokenLeft."""
        if self._renew is None:
            raise NoTokenLeft(error)
        self._matcher, self._renew = self._renew(), None
        if not all(map(self._matcher.consume_token, self._consumed)):
            raise NoTokenLeft(f"The answer broke its constraint: {_reason(self._matcher)}.")
        return self._compute()

    def _compute(self) -> tuple[Array, bool]:
        words, matcher = self._vocabulary, self._matcher
        bits = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
        if matcher.is_error():
            return self._with_own_lexer(f"The constraint allows no token here: {_reason(matcher)}.")
        found = np.unpackbits(bits, count=len(words.tokens), bitorder="little").view(bool)
        mask = found[: words.size] if self._consumed else found[words.first]
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

    Tokens whose bytes differ at the beginning of a text have a second id for that case, after the model's own ids.
    """

    def __init__(self, tokenizer: TextTokenizer, size: int, ends: list[int]) -> None:
        found = token_bytes(tokenizer, size)
        self.tokens = list(found.later)
        self.first = np.arange(size)  # ids that stand for the tokens at the beginning of a text
        for token, data in enumerate(found.first):
            if data != self.tokens[token]:
                self.first[token] = len(self.tokens)
                self.tokens.append(data)
        self.size, self.ends = size, np.array(ends, dtype=np.int64)
        self.eos_token_id, self.bos_token_id = len(self.tokens), None  # a new id for EOS: a model may have none
        self.ends_known = [*ends, self.eos_token_id]
        self.tokens.append(b"")
        for token in self.ends_known:
            self.tokens[token] = b"</end>"
        special = [token for token in range(size) if tokenizer.is_special(token)]
        for token in {*special} - {*ends}:
            self.tokens[token] = f"<{token}>".encode()  # llguidance confuses special tokens with equal bytes
        self.special_token_ids = sorted({*special, *self.ends_known})

    def __call__(self, text: str) -> list[int]:
        """Return no tokens: only text that a grammar forces is tokenized, and ``no_forcing`` disables that."""
        return []


class _AtOnce(Executor):
    """An executor that runs tasks in the caller's thread."""

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        done: Future[Any] = Future()
        try:
            done.set_result(function(*arguments, **named))
        except LucidError as error:
            done.set_exception(error)
        return done


class GuideFactory:
    """Makes a guide for each answer, with one tokenizer; many answers may be generated at once. Thread-safe.

    Args:
        vocabulary: The model's vocabulary size.
        ends: The model's end-of-sequence tokens.
        kept: How many compiled grammars are cached; each may take much memory.
    """

    def __init__(self, tokenizer: TextTokenizer, vocabulary: int, ends: Sequence[int], kept: int = COMPILED) -> None:
        self._library, self._kept = library(), kept
        self._tokenizer, self._size, self._ends = tokenizer, vocabulary, list(ends)
        self._pool = ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1), "lucid-guide")
        self._slow_pool = ThreadPoolExecutor(1, "lucid-guide-slow", _lower_priority)
        self._compiler = ThreadPoolExecutor(1, "lucid-guide-compile")  # separate: no mask waits for a compilation
        self._lock = threading.Lock()  # protects the three attributes below
        self._vocabulary: _Vocabulary | None = None
        self._tokens: LLTokenizer | None = None
        self._compiled: OrderedDict[Constraint, LLMatcher] = OrderedDict()  # the most recently used comes last

    def open(self, constraint: Constraint, may_end: bool = True) -> Future[Guide]:
        """Start to compile a constraint; return a future whose result is a guide for one answer, or a LucidError.

        ``may_end``: whether an end-of-sequence token may end the answer where more could follow.
        """
        return self._compiler.submit(self._open, constraint, may_end)

    def check(self, constraint: Constraint) -> None:
        """Compile a constraint and compute its first mask in this thread; raise a LucidError if that fails."""
        with self._lock:
            vocabulary, matcher = self._words(), self._matcher(constraint)
        Guide(matcher, vocabulary, _AtOnce(), _AtOnce(), True).allowed()

    def _open(self, constraint: Constraint, may_end: bool) -> Guide:
        with self._lock:
            vocabulary, matcher = self._words(), self._matcher(constraint)
        renew = partial(self._compile_anew, constraint)
        return Guide(matcher, vocabulary, self._pool, self._slow_pool, may_end, renew)

    def _words(self) -> _Vocabulary:
        if self._vocabulary is None:
            self._vocabulary = _Vocabulary(self._tokenizer, self._size, self._ends)
            self._tokens = self._library.LLTokenizer(
                self._library.TokenizerWrapper(self._vocabulary), eos_token=self._vocabulary.ends_known
            )
        return self._vocabulary

    def _matcher(self, constraint: Constraint) -> LLMatcher:
        """Return a copy of the compiled constraint; copies share the lexer, whose states take longest to compute."""
        matcher = self._compiled.pop(constraint, None) or self._compile(constraint)
        self._compiled[constraint] = matcher
        if len(self._compiled) > self._kept:
            self._compiled.popitem(last=False)
        return matcher.deep_copy()

    def _compile_anew(self, constraint: Constraint) -> LLMatcher:
        """Compile the constraint again, and drop the cached matcher, whose shared lexer has reached its limits."""
        with self._lock:
            self._compiled.pop(constraint, None)
            return self._compile(constraint)

    def _compile(self, constraint: Constraint) -> LLMatcher:
        matcher: LLMatcher = self._library.LLMatcher(self._tokens, constraint.compiled(), log_level=0, limits=limits())
        if matcher.is_error():
            raise NoTokenLeft(f"The constraint cannot be compiled: {_reason(matcher)}.")
        return matcher


def _lower_priority() -> None:
    """Lower this thread's priority on Linux, where each thread has a nice value of its own."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)


def _reason(matcher: LLMatcher) -> str:
    said = next(iter(matcher.get_error().splitlines()), "no reason is given").rstrip(".")
    return "the vocabulary has none that fits" if said.startswith("NoExtension") else said


class TokenBytes(NamedTuple):
    """The bytes that each token adds to a text; empty for special tokens and tokens whose bytes cannot be found.

    Attributes:
        first: At the start of an answer, where many decoders drop a space.
        later: After other tokens.
    """

    first: list[bytes]
    later: list[bytes]


def token_bytes(tokenizer: TextTokenizer, vocabulary: int) -> TokenBytes:
    """Return the bytes of tokens 0 to ``vocabulary − 1``; raise a LucidError if they depend on later tokens."""
    kinds = tokenizer.decoder_kinds
    alphabet = byte_alphabet() if "ByteLevel" in kinds else {}
    first, later = [b""] * vocabulary, [b""] * vocabulary
    by_text = []
    for token in range(vocabulary):
        piece = tokenizer.piece(token)
        if piece is None or tokenizer.is_special(token):
            continue
        if "ByteFallback" in kinds and (match := _BYTE.fullmatch(piece)):
            first[token] = later[token] = bytes([int(match[1], 16)])
        elif alphabet and not tokenizer.is_added(token) and alphabet.keys() >= set(piece):
            first[token] = later[token] = bytes(alphabet[letter] for letter in piece)
        else:
            by_text.append(token)
    _by_decoding(tokenizer, by_text, first, later)
    found = TokenBytes(first, later)
    _check(tokenizer, found)
    return found


def _by_decoding(tokenizer: TextTokenizer, tokens: Sequence[int], first: list[bytes], later: list[bytes]) -> None:
    """Set the bytes of tokens in ``first`` and ``later`` by decoding them alone and after another token."""
    alone = tokenizer.decode_many([[token] for token in tokens])
    anchors = [token for token, text in zip(tokens, alone, strict=True) if text.isalpha() and text.isascii()]
    if not anchors:
        anchors = [token for token, data in enumerate(later) if data.isalpha()]
    if not anchors:
        return
    anchor = anchors[0]
    start = tokenizer.decode([anchor])
    for token, text, pair in zip(tokens, alone, tokenizer.decode_many([[anchor, t] for t in tokens]), strict=True):
        if pair.startswith(start) and "\ufffd" not in pair and "\ufffd" not in text:
            first[token], later[token] = text.encode(), pair[len(start) :].encode()
    _space_by_byte(tokenizer, anchor, first, later)


def _space_by_byte(tokenizer: TextTokenizer, anchor: int, first: list[bytes], later: list[bytes]) -> None:
    """Remove the bytes of space tokens in ``first`` if the decoder drops them at the beginning of a text."""
    spaces = [token for token, data in enumerate(first) if data == b" "]
    for token, text in zip(spaces, tokenizer.decode_many([[token, anchor] for token in spaces]), strict=True):
        if text.encode() == later[anchor]:
            first[token] = b""


def _check(tokenizer: TextTokenizer, found: TokenBytes) -> None:
    """Compare the bytes with the decoded text of random tokens; raise a LucidError if they differ."""
    rng = np.random.default_rng(0)
    whole = [token for token, data in enumerate(found.later) if data and _is_text(data)]
    if not whole:
        return
    trials = [[int(token) for token in rng.choice(whole, _TRIAL_LENGTH)] for _ in range(_TRIALS)]
    for ids, text in zip(trials, tokenizer.decode_many(trials), strict=True):
        if b"".join([found.first[ids[0]], *(found.later[token] for token in ids[1:])]).decode() != text:
            raise LucidError(
                "Answers of this model cannot be constrained: the decoder in its tokenizer.json changes a token's text "
                "depending on the tokens after it."
            )


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
