"""lm-evaluation-harness drives a session: the model ``lucid`` of its registry.

    import lm_eval
    from lucid_deploy.evaluation.lm_eval_adapter import LucidLM

    lm_eval.simple_evaluate(model=LucidLM("./artifact"), tasks=["arc_easy"])

Only this module needs lm_eval to be imported.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from lucid_deploy.argument_types import check_arguments
from lucid_deploy.artifact import open_artifact
from lucid_deploy.artifact.chat_process import chat_renderer
from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.errors import LucidError
from lucid_deploy.evaluation.answer_log import AnswerLog
from lucid_deploy.evaluation.greedy import generate
from lucid_deploy.evaluation.likelihood import log_likelihoods
from lucid_deploy.evaluation.lm_eval_arguments import known_options, record_name
from lucid_deploy.evaluation.lm_eval_requests import cut_at, read_options
from lucid_deploy.evaluation.task import TokenizerLike
from lucid_deploy.evaluation.truncation import WAYS, Fit, cut, refuse_long
from lucid_deploy.runtimes.open import open_session
from lucid_deploy.runtimes.options import RuntimeOptions
from lucid_deploy.runtimes.session import Session

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

_log = logging.getLogger(__name__)
_UNLIMITED = 1 << 40  # tokens: where contexts beyond the model's are permitted
BATCH = 8

_NUMBERS = {"max_length": "int | None", "max_gen_toks": "int"}
Chat = Callable[[list[dict[str, str]], bool], str]


@register_model("lucid")
class LucidLM(TemplateLM):
    """Any artifact in any runtime, or an opened session, as a model of lm_eval.

    Requests with the same context run it once. Contexts that are too long are refused unless ``truncate`` is given.

    Attributes:
        truncated: By task, how many of its requests' contexts were cut.

    Args:
        artifact: An artifact's directory; left out if a session is given.
        runtime: As for :func:`~lucid_deploy.runtimes.open_session`.
        device: As there; None is what ``runtime`` says.
        batch_size: Contexts to run at once; None: 8.
        max_length: Most tokens of a context; None: as many as the session takes, and windows of the model's context.
        max_gen_toks: Most tokens to generate where a task does not say.
        session: An opened session, with its tokenizer.
        tokenizer: The session's.
        truncate: What contexts that are too long lose: ``left``, as lm_eval does it, or ``middle``, as LongBench does
            it. None: they are refused. Windows of a text that is scored as a whole are never cut.
        progress: Called with (what is done, tokens of prompts done, tokens in all) instead of a bar.
        answers: Where answers are kept, and taken from.
        chat: From messages, and whether to go on with the last one, the text of a chat. None: the artifact's template.
        options: Further fields of :class:`~lucid_deploy.runtimes.options.RuntimeOptions`, such as ``threads=2``.

    Raises:
        LucidError: As for opening an artifact; neither artifact nor session, or numbers that make no sense.
    """

    def __init__(
        self,
        artifact: str | Path | None = None,
        runtime: str | RuntimeOptions = "auto",
        device: str | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        session: Session[Any] | None = None,
        tokenizer: TokenizerLike | None = None,
        truncate: str | None = None,
        progress: Callable[[str, int, int], None] | None = None,
        answers: AnswerLog | None = None,
        chat: Chat | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if (artifact is None) == (session is None) or (session is None) != (tokenizer is None):
            raise LucidError("Give LucidLM an artifact, or a session together with its tokenizer.")
        options = known_options(options if device is None else {**options, "device": device})
        numbers = check_arguments({"max_length": max_length, "max_gen_toks": max_gen_toks}, _NUMBERS)
        self._directory = None
        if artifact is not None:
            opened = open_artifact(artifact)
            self._directory, tokenizer = opened.directory, TextTokenizer(opened.directory)
            session = open_session(opened, runtime, **options)
        assert session is not None and tokenizer is not None
        self.session, self._text = session, tokenizer
        batch_size = BATCH if batch_size is None else batch_size
        if not str(batch_size).isdecimal() or not int(batch_size) or max_batch_size is not None:
            raise LucidError(f"The batch size must be a number of at least 1, not {batch_size}; none is found for you.")
        self.batch_size = int(batch_size)
        most = session.context_limit or session.config.max_position_embeddings
        self.max_length = most if max_length is None else numbers["max_length"]
        if not 2 <= self.max_length <= most:
            raise LucidError(f"max_length must be 2 to {most}, the model's context, not {max_length}.")
        # Without a limit only windows of long texts end with the model's context, as they must end somewhere.
        self._most = _UNLIMITED if max_length is None and session.context_limit is None else self.max_length
        self.max_gen_toks = numbers["max_gen_toks"]
        if truncate not in (None, *WAYS):
            raise LucidError(f"truncate must be {' or '.join(WAYS)}, not {truncate!r}.")
        self._truncate, self._progress, self._answers, self._chat = truncate, progress, answers, chat
        self.truncated: Counter[str] = Counter()
        self._warned, self._name = False, record_name(self._directory if chat is None else None)

    @property
    def eot_token_id(self) -> int:
        """The end-of-sequence token of the tokenizer's files, else of the model's configuration, else its first token.

        Raises:
            LucidError: None of them names a token.
        """
        config, named = self.session.config, self._named("eos_token")
        known = [named, *config.eos_token_ids[:1], config.bos_token_id]
        return self._first(known)

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has no context.

        As in lm_eval's ``HFLM``: the tokenizer's ``bos_token``, else its ``eos_token``. Where its files name neither,
        the configuration's ``bos_token_id``, else its first ``eos_token_id``.

        Raises:
            LucidError: None of them names a token.
        """
        config = self.session.config
        known = [self._named("bos_token"), self._named("eos_token"), config.bos_token_id, *config.eos_token_ids[:1]]
        return self._first(known)

    def _named(self, name: str) -> int | None:
        return self._text.named_id(name) if isinstance(self._text, TextTokenizer) else None

    def _first(self, known: list[int | None]) -> int:
        found = next((token for token in known if token is not None), None)
        if found is None:
            raise LucidError(
                "Neither the tokenizer's files name a bos_token or eos_token, nor has the model's configuration a "
                "bos_token_id or eos_token_id; lm_eval needs one."
            )
        return int(found)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_kwargs: Any) -> list[int]:
        """Return the token ids of a text.

        Those that the tokenizer's template adds are included unless told otherwise or, as in lm_eval's ``HFLM``, the
        text begins with :attr:`prefix_token_id`, spelled out.
        """
        if add_special_tokens is None:  # a rule that RULES counts, as that of prefix_token_id is
            add_special_tokens = not self._begins_with_prefix(string)
        return self._text.encode(string, add_special_tokens=add_special_tokens)

    def _begins_with_prefix(self, string: str) -> bool:
        if self._prefix:
            return string.startswith(self._prefix)
        # The tokenizer does not spell the token, but may still read it.
        return self._text.encode(string, add_special_tokens=False)[:1] == [self.prefix_token_id]

    @cached_property
    def _prefix(self) -> str:
        return self._spelled([self.prefix_token_id])

    def _spelled(self, ids: list[int]) -> str:
        """Return a text with its special tokens, where the tokenizer spells them."""
        if isinstance(self._text, TextTokenizer):
            return self._text.decode(ids, skip_special_tokens=False)
        return self._text.decode(ids)

    def tok_decode(self, tokens: list[int], **_kwargs: Any) -> str:
        """Return the text of token ids, without special tokens."""
        return self._text.decode(tokens)

    def get_model_info(self) -> dict[str, Any]:
        """Return what the results should say about the model."""
        return {"model_runtime": self.session.label, "model_dtype": self.session.dtype, "max_length": self.max_length}

    @property
    def tokenizer_name(self) -> str:
        """A name for lm_eval's records of requests, in which chats are texts already: each model has one of its own."""
        return self._name

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return a chat as text, opened for an answer or with the last message to be gone on with.

        Raises:
            LucidError: The model has no chat template, or its template refuses the messages.
        """
        if self._chat is None:
            if self._directory is None:
                raise LucidError("A session has no chat template: give LucidLM chat, or an artifact with a template.")
            if (found := chat_renderer(self._directory)) is None:
                raise LucidError(f"{self._directory} has no chat template: leave apply_chat_template out.")
            self._chat = found
        return self._chat(chat_history, not add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Return nothing: the template lies beside the artifact.

        Raises:
            LucidError: A template is asked for by name.
        """
        if isinstance(chat_template, str):
            raise LucidError(f"No chat template is chosen by name, not {chat_template!r} either: say True.")
        return None

    def fit(self, request: Instance) -> Fit:
        """Return how long the context of a request is and may be.

        Raises:
            LucidError: The task asks for what cannot be generated.
        """
        task = str(request.task_name or "")
        if request.request_type == "generate_until":
            return Fit(task, len(self._context(request.args[0])), self._room(read_options(request.args[1], self)[1]))
        context, continuation = request.args
        pair = self._encode_pair(context, continuation) if context else ([0], self.tok_encode(continuation, False))
        left, right = pair
        if not context and not right:
            raise LucidError("A continuation without a token follows no context: there is nothing to score.")
        return Fit(task, len(left), self._most + 1 - len(right))

    def _check(self, requests: list[Instance]) -> None:
        """Refuse contexts that are too long if they may not be cut; count those that will be."""
        fits = [self.fit(request) for request in requests]
        if self._truncate is None:
            refuse_long(fits, self._most)
        self.truncated.update(fit.task for fit in fits if not fit.fits)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """See lm_eval's class; refuses contexts that are too long first."""
        self._check(requests)
        found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        return found

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str] | None, list[int], list[int]]],
        disable_tqdm: bool = False,
        **_kwargs: Any,
    ) -> list[tuple[float, bool]]:
        pairs = [self._fitted(context, continuation, text) for text, context, continuation in requests]
        if any(len(continuation) > 1 for _, continuation in pairs):
            self._say_if_slow()
        known = [self._known("loglikelihood", pair) for pair in pairs]
        results = [(0.0, False) if row is None else (float(row[0]), bool(row[1])) for row in known]
        wanted = [number for number, row in enumerate(known) if row is None]
        with self._bar("Scoring", [sum(map(len, pairs[i])) for i in wanted], disable_tqdm) as advance:

            def answered(place: int, result: tuple[float, bool]) -> None:
                results[wanted[place]] = result
                self._keep("loglikelihood", pairs[wanted[place]], result)
                advance(place)

            log_likelihoods(self.session, [pairs[i] for i in wanted], self.batch_size, answered=answered)
        for (text, *_), result in zip(requests, results, strict=True):
            if text is not None:
                self.cache_hook.add_partial("loglikelihood", text, result)
        return results

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of each text, in windows of the model's context, one token overlapping.

        As in lm_eval's ``HFLM``, :attr:`prefix_token_id` stands before a text, and the tokens that the tokenizer adds
        to it belong to the text: a tokenizer that begins with that token has it twice, and the second one is scored.
        """
        pieces, owners = [], []
        for number, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0])
            windows = get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, context_len=1)
            for window in map(make_disjoint_window, windows):
                pieces.append((None, *window))
                owners.append(number)
        totals = [0.0] * len(requests)
        for owner, (value, _) in zip(owners, self._loglikelihood_tokens(pieces, disable_tqdm), strict=True):
            totals[owner] += value
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return what the model goes on with after each context, up to a stop sequence, which is left out."""
        self._check(requests)
        texts = [""] * len(requests)
        alike: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            known = self._known("generate_until", request.args)
            if known is None:
                alike.setdefault(repr(sorted(request.args[1].items())), []).append(number)
            else:
                texts[number] = known
        for numbers in alike.values():
            self._generate(requests, numbers, texts, disable_tqdm)
        return texts

    def _generate(self, requests: list[Instance], numbers: list[int], texts: list[str], disable_tqdm: bool) -> None:
        """Fill in the texts of the requests of some numbers, which have the same options."""
        until, most, sampling = read_options(requests[numbers[0]].args[1], self)
        room = self._room(most)
        groups = [[cut(self._context(requests[i].args[0]), room, self._truncate or "left")] for i in numbers]
        eos = self._named("eos_token")  # ends answers of HFLM whatever the configuration says, as a token and spelled
        if eos is not None:
            until = [*until, self._spelled([eos])]

        def stop(ids: list[int]) -> bool:
            text = self._spelled(ids)  # as for HFLM, special tokens end an answer too, though it is cut without them
            return any(end in text for end in until)

        with self._bar("Generating", [len(prompt) + most for (prompt,) in groups], disable_tqdm) as advance:

            def answered(place: int, _member: int, ids: list[int]) -> None:
                text, arguments = cut_at(self._text.decode(ids), until), requests[numbers[place]].args
                texts[numbers[place]] = text
                self._keep("generate_until", arguments, text)
                self.cache_hook.add_partial("generate_until", arguments, text)
                advance(place)

            ends = stop if until else None
            generate(self.session, groups, most, self.batch_size, sampling, ends, answered=answered)

    def _room(self, most: int) -> int:
        """Return how many tokens a context may have before so many are generated."""
        if self._most - most < 1:
            raise LucidError(
                f"The task generates up to {most} tokens, which leaves no room for a context: the model's is "
                f"{self._most}. Set a smaller max_gen_toks for the task."
            )
        return self._most - most

    def _known(self, kind: str, arguments: Any) -> Any:
        return None if self._answers is None else self._answers.get(kind, arguments)

    def _keep(self, kind: str, arguments: Any, answer: Any) -> None:
        if self._answers is not None:
            self._answers.add(kind, arguments, answer)

    def _context(self, text: str) -> list[int]:
        return self.tok_encode(text) or [self.prefix_token_id]

    def _fitted(self, context: list[int], continuation: list[int], text: Any) -> tuple[list[int], list[int]]:
        """Cut a context so that it fits with its continuation, whose last token is not run."""
        shown = "a window of a text" if text is None else repr(text[1])
        if not continuation:
            raise LucidError(
                f"The continuation {shown} has no tokens of its own: its tokens merge with those of its context."
            )
        room = self._most + 1 - len(continuation)
        if room < 1:
            raise LucidError(
                f"The continuation {shown[:80]} has {len(continuation)} tokens, the model's context {self._most}."
            )
        return cut(context, room, self._truncate or "left"), continuation

    def _say_if_slow(self) -> None:
        if self.session.gives_all_logits or self._warned:
            return
        self._warned = True
        _log.warning(
            "This session gives the logits of a run's last token only, so continuations are run token by token. An "
            "artifact exported with --logits all is faster in onnxruntime."
        )

    @contextmanager
    def _bar(self, description: str, sizes: list[int], disable: bool) -> Iterator[Callable[[int], None]]:
        """Yield a function that counts a request as done by its size in tokens, so that the rest can be estimated."""
        done, total = 0, sum(sizes)
        if self._progress is not None:
            self._progress(description, 0, total)
        with tqdm(total=total, desc=description, disable=disable or self._progress is not None, unit="token") as bar:

            def advance(place: int) -> None:
                nonlocal done
                done += sizes[place]
                bar.update(sizes[place])
                if self._progress is not None:
                    self._progress(description, done, total)

            yield advance
