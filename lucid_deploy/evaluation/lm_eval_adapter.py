"""Use any session as a model in lm-evaluation-harness.

    import lm_eval
    from lucid_deploy.evaluation.lm_eval_adapter import LucidLM

    lm_eval.simple_evaluate(model=LucidLM("./artifact"), tasks=["arc_easy"])

Importing this module registers the model under the name ``lucid``. It needs lm_eval.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from lucid_deploy.artifact import Artifact, open_artifact
from lucid_deploy.artifact.chat_process import chat_renderer
from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.errors import LucidError
from lucid_deploy.evaluation.batched import generate, log_likelihoods
from lucid_deploy.evaluation.task import TokenizerLike
from lucid_deploy.generation.sampling import Sampling
from lucid_deploy.runtimes.open import open_session
from lucid_deploy.runtimes.options import RuntimeOptions
from lucid_deploy.runtimes.session import Session

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

_log = logging.getLogger(__name__)
BATCH = 8
TRUNCATIONS = ("left", "middle")
_UNLIMITED = 1 << 40  # context in tokens if the session has no limit
_TOP_K = 50  # transformers' default, which lm_eval's HFLM uses too
_SAMPLING = {"temperature", "top_k", "top_p", "seed"}
Ids = list[int]


@register_model("lucid")
class LucidLM(TemplateLM):
    """Any artifact in any runtime, or an opened session, as a model of lm_eval.

    A context that several log-likelihood requests share is run once.

    Args:
        artifact: An artifact or its directory, for the tokenizer, chat template and, without ``session``, the model.
        runtime: As for :func:`~lucid_deploy.runtimes.open_session`; likewise ``device`` and ``options``.
        batch_size: Contexts to run at once; None: 8. lm_eval's ``auto`` and ``max_batch_size`` are refused.
        max_length: Most tokens of a prompt with its answer; None: as many as the session allows. Texts that are scored
            as a whole are split into windows of this length or, if neither sets a limit, of the context's length.
        max_gen_toks: Most tokens to generate if a task sets no limit.
        session: An opened session, with its ``tokenizer`` if there is no artifact.
        truncate: How contexts that are too long are cut: ``left`` keeps the end, as lm_eval does; ``middle`` keeps both
            ends, as LongBench does. None: they are refused. Texts that are scored as a whole are never cut.
        progress: Called with (description, tokens done, total tokens) instead of showing a progress bar.

    Raises:
        LucidError: The session cannot be opened, or an argument is invalid or contradicts another one.
    """

    def __init__(
        self,
        artifact: str | Path | Artifact | None = None,
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
        **options: Any,
    ) -> None:
        super().__init__()
        if (artifact is None) == (tokenizer is None) or (artifact is None and session is None):
            raise LucidError("Give LucidLM an artifact, or a session together with its tokenizer.")
        self._artifact = open_artifact(artifact) if isinstance(artifact, str | Path) else artifact
        if self._artifact is not None:
            tokenizer = TextTokenizer(self._artifact.directory)
            if session is None:
                options = options if device is None else {**options, "device": device}
                try:
                    session = open_session(self._artifact, runtime, **options)
                except TypeError as error:
                    raise LucidError(f"LucidLM does not take these options: {error}.") from error
        assert session is not None and tokenizer is not None
        self.session, self._text = session, tokenizer
        batch_size = BATCH if batch_size is None else batch_size
        if not str(batch_size).isdecimal() or not int(batch_size) or max_batch_size is not None:
            raise LucidError(f"The batch size must be a number of at least 1, not {batch_size}; auto is not supported.")
        self.batch_size = int(batch_size)
        most = session.context_limit or session.config.max_position_embeddings
        self.max_length = most if max_length is None else int(max_length)
        if not 2 <= self.max_length <= most:
            raise LucidError(f"max_length must be 2 to {most}, the model's context, not {max_length}.")
        # Without a limit, only loglikelihood_rolling uses max_length: it splits texts into windows of that length.
        self._most = _UNLIMITED if max_length is None and session.context_limit is None else self.max_length
        self.max_gen_toks = int(max_gen_toks)
        if truncate not in (None, *TRUNCATIONS):
            raise LucidError(f"truncate must be {' or '.join(TRUNCATIONS)}, not {truncate!r}.")
        self._truncate, self._progress = truncate, progress
        self._chat: Callable[[list[dict[str, str]], bool], str] | None = None
        self._warned = False

    @property
    def eot_token_id(self) -> int:
        config = self.session.config
        return self._first(self._named("eos_token"), *config.eos_token_ids[:1], config.bos_token_id)

    @property
    def prefix_token_id(self) -> int:
        config = self.session.config
        named = self._named("bos_token"), self._named("eos_token")
        return self._first(*named, config.bos_token_id, *config.eos_token_ids[:1])

    def _named(self, name: str) -> int | None:
        return self._text.named_id(name) if isinstance(self._text, TextTokenizer) else None

    def _first(self, *candidates: int | None) -> int:
        for token in candidates:
            if token is not None:
                return int(token)
        raise LucidError(
            "Neither the tokenizer's files name a bos_token or eos_token, nor has the model's configuration a "
            "bos_token_id or eos_token_id; lm_eval needs one."
        )

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_kwargs: Any) -> Ids:
        if add_special_tokens is None:  # as in HFLM: no special tokens if the text already begins with the prefix token
            prefix = self._spelled([self.prefix_token_id])
            begins = string.startswith(prefix) if prefix else self._encode(string)[:1] == [self.prefix_token_id]
            add_special_tokens = not begins
        return self._encode(string, add_special_tokens)

    def _encode(self, string: str, add_special_tokens: bool = False) -> Ids:
        return self._text.encode(string, add_special_tokens=add_special_tokens)

    def _spelled(self, ids: Ids) -> str:
        """Return the text of token ids, with special tokens where the tokenizer can spell them."""
        if isinstance(self._text, TextTokenizer):
            return self._text.decode(ids, skip_special_tokens=False)
        return self._text.decode(ids)

    def tok_decode(self, tokens: Ids, **_kwargs: Any) -> str:
        return self._text.decode(tokens)

    def get_model_info(self) -> dict[str, Any]:
        return {"model_runtime": self.session.label, "model_dtype": self.session.dtype, "max_length": self.max_length}

    @property
    def tokenizer_name(self) -> str:
        # The key under which lm_eval may cache rendered chats, so it differs for every model.
        return f"lucid-{id(self)}" if self._artifact is None else f"lucid-{self._artifact.identity}"

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        if self._chat is None:
            self._chat = None if self._artifact is None else chat_renderer(self._artifact.directory)
            if self._chat is None:
                raise LucidError("The model has no chat template: leave apply_chat_template out.")
        return self._chat(chat_history, not add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        if isinstance(chat_template, str):
            raise LucidError(f"Chat templates cannot be chosen by name: pass True, not {chat_template!r}.")
        return None

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm or self._progress is not None)
        return found

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, Ids, Ids]], disable_tqdm: bool = False, **_kwargs: Any
    ) -> list[tuple[float, bool]]:
        contexts = self._fitted([context for _, context, _ in requests], [len(rest) - 1 for _, _, rest in requests])
        pairs = [(context, rest) for context, (_, _, rest) in zip(contexts, requests, strict=True)]
        if any(len(rest) > 1 for _, rest in pairs) and not self.session.gives_all_logits and not self._warned:
            self._warned = True
            _log.warning(
                "This session returns logits for the last token of a run only, so continuations take many runs. "
                "An artifact exported with --logits all is faster in onnxruntime."
            )
        results = [(0.0, False)] * len(pairs)
        with self._bar("Scoring", [len(context) + len(rest) for context, rest in pairs], disable_tqdm) as advance:
            for number, result in log_likelihoods(self.session, pairs, self.batch_size):
                results[number] = result
                if requests[number][0] is not None:
                    self.cache_hook.add_partial("loglikelihood", requests[number][0], result)
                advance(number)
        return results

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        # As in HFLM: windows overlap by one token, the first begins with the prefix token, special tokens are scored.
        pieces: list[tuple[Any, Ids, Ids]] = []
        owners = []
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
        options = [read_options(request.args[1], self.max_gen_toks) for request in requests]
        prompts = [self._prompt(request.args[0]) for request in requests]
        prompts = self._fitted(prompts, [most for _, most, _ in options])
        texts = [""] * len(requests)
        alike: dict[str, list[int]] = {}  # requests with the same options run together
        for number, chosen in enumerate(options):
            alike.setdefault(repr(chosen), []).append(number)
        for numbers in alike.values():
            until, most, sampling = options[numbers[0]]
            eos = self._named("eos_token")  # ends answers even if the configuration has other tokens, as in HFLM
            ends = until if eos is None else [*until, self._spelled([eos])]
            with self._bar("Generating", [len(prompts[i]) + most for i in numbers], disable_tqdm) as advance:

                def stop(ids: Ids, ends: list[str] = ends) -> bool:
                    text = self._spelled(ids)
                    return any(end in text for end in ends)

                groups = [[prompts[i]] for i in numbers]
                answers = generate(self.session, groups, most, self.batch_size, sampling, stop if ends else None)
                for place, _, ids in answers:
                    number = numbers[place]
                    texts[number] = cut_at(self._text.decode(ids), ends)
                    self.cache_hook.add_partial("generate_until", requests[number].args, texts[number])
                    advance(place)
        return texts

    def _prompt(self, text: str) -> Ids:
        return self.tok_encode(text) or [self.prefix_token_id]

    def is_cut(self, request: Instance) -> bool:
        """Return whether the context of a request has more tokens than fit."""
        if request.request_type == "generate_until":
            return len(self._prompt(request.args[0])) + read_options(request.args[1], self.max_gen_toks)[1] > self._most
        if request.request_type != "loglikelihood" or not request.args[0]:
            return False  # a text that is scored in windows, or one without a context
        context, rest = self._encode_pair(*request.args)
        return len(context) + len(rest) - 1 > self._most

    def _fitted(self, prompts: list[Ids], answers: list[int]) -> list[Ids]:
        """Cut prompts to the room that answers leave; LucidError if there is none, or cutting is off but needed."""
        rooms = [self._most - answer for answer in answers]
        if min(rooms, default=1) < 1:
            raise LucidError(
                f"Answers leave no room for a prompt in {self._most} tokens: lower max_gen_toks or raise max_length."
            )
        over = [(len(ids), room) for ids, room in zip(prompts, rooms, strict=True) if len(ids) > room]
        if over and self._truncate is None:
            tokens, room = max(over)
            raise LucidError(
                f"{len(over)} of {len(prompts)} prompts are too long: one has {tokens} tokens, but {room} fit, and "
                f"{self._most} with the answer (the context, or max_length). Cut them with --truncate left (keeps the "
                "end) or --truncate middle (keeps both ends); scores are then marked."
            )
        return [cut(ids, room, self._truncate) for ids, room in zip(prompts, rooms, strict=True)]

    @contextmanager
    def _bar(self, description: str, sizes: list[int], disable: bool) -> Iterator[Callable[[int], None]]:
        """Show progress in tokens; yield a function that marks the request at an index of ``sizes`` as done."""
        done, report = 0, self._progress
        with tqdm(total=sum(sizes), desc=description, disable=disable or report is not None, unit="token") as bar:

            def advance(place: int) -> None:
                nonlocal done
                done += sizes[place]
                bar.update(sizes[place])
                if report is not None:
                    report(description, done, sum(sizes))

            yield advance


def cut(ids: Ids, room: int, truncate: str | None) -> Ids:
    """Return at most ``room`` token ids: the last ones or, with ``middle``, half of them from either end."""
    if len(ids) <= room:
        return ids
    first = room // 2 if truncate == "middle" else 0
    return [*ids[:first], *ids[first - room :]]


def cut_at(text: str, ends: Sequence[str]) -> str:
    """Cut a text at each of the stop sequences in turn, as lm_eval does."""
    for end in ends:
        text = text.split(end)[0]
    return text


def read_options(options: dict[str, Any], max_gen_toks: int) -> tuple[list[str], int, Sampling]:
    """Parse a request's generation options; return its stop sequences, its limit of new tokens and its sampling."""
    given = {name: value for name, value in options.items() if value is not None}
    try:
        known: dict[str, Any] = {**normalize_gen_kwargs(given, max_gen_toks)}
    except (TypeError, ValueError) as error:
        raise LucidError(f"The task's generation options are invalid: {error}.") from error
    ends, most, sampled = known.pop("until"), known.pop("max_gen_toks"), known.pop("do_sample")
    if wrong := [end for end in ends if not isinstance(end, str)]:
        raise LucidError(f"The task's until must be strings that end an answer, not {wrong[0]!r}.")
    if unknown := sorted(set(known) - _SAMPLING):
        raise LucidError(f"The task has generation options that are not supported: {', '.join(unknown)}.")
    if sampled and known.get("temperature", 0.0) <= 0:
        raise LucidError("The task samples (do_sample): its temperature must be above 0.")
    sampling = Sampling(**{"top_k": _TOP_K, "seed": 0, **known}) if sampled else Sampling()
    return [end for end in ends if end], most, sampling
