"""lm-evaluation-harness drives a session: the model ``lucid`` of its registry.

    import lm_eval
    from lucid_deploy.evaluation.lm_eval_adapter import LucidLM

    lm_eval.simple_evaluate(model=LucidLM("./artifact"), tasks=["arc_easy"])

Only this module needs lm_eval to be imported.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from lucid_deploy.artifact import open_artifact
from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.errors import LucidError
from lucid_deploy.evaluation.greedy import generate
from lucid_deploy.evaluation.likelihood import log_likelihoods
from lucid_deploy.evaluation.task import TokenizerLike
from lucid_deploy.generation.sampling import Sampling
from lucid_deploy.runtimes.open import open_session
from lucid_deploy.runtimes.options import RuntimeOptions
from lucid_deploy.runtimes.session import Session

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

_log = logging.getLogger(__name__)

_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # the first one given counts
_SAMPLING = ("do_sample", "temperature", "top_k", "top_p", "seed")


@register_model("lucid")
class LucidLM(TemplateLM):
    """Any artifact in any runtime, or an opened session, as a model of lm_eval.

    Requests with the same context run it once. Contexts that are too long lose tokens on the left, as lm_eval does it.

    Args:
        artifact: An artifact's directory; left out if a session is given.
        runtime: As for :func:`~lucid_deploy.runtimes.open_session`.
        device: As there; None is what ``runtime`` says.
        batch_size: Contexts to run at once.
        max_length: Most tokens of a context; None: as many as the session takes.
        max_gen_toks: Most tokens to generate where a task does not say.
        session: An opened session, with its tokenizer.
        tokenizer: The session's.
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
        **options: Any,
    ) -> None:
        super().__init__()
        if (artifact is None) == (session is None) or (session is None) != (tokenizer is None):
            raise LucidError("Give LucidLM an artifact, or a session together with its tokenizer.")
        if artifact is not None:
            opened = open_artifact(artifact)
            tokenizer = TextTokenizer(opened.directory)
            session = open_session(opened, runtime, **options, **({} if device is None else {"device": device}))
        assert session is not None and tokenizer is not None
        self.session, self._text = session, tokenizer
        if not str(batch_size or 8).isdecimal() or max_batch_size is not None:
            raise LucidError(f"The batch size must be a number, not {batch_size}; none is found automatically.")
        self.batch_size = int(batch_size or 8)
        most = session.context_limit or session.config.max_position_embeddings
        self.max_length = most if max_length is None else int(max_length)
        if not 2 <= self.max_length <= most:
            raise LucidError(f"max_length must be 2 to {most}, the model's context, not {max_length}.")
        self.max_gen_toks = int(max_gen_toks)
        self._warned = False

    @property
    def eot_token_id(self) -> int:
        """The model's first end-of-sequence token, or its first token of all: what text without context follows."""
        config = self.session.config
        if config.eos_token_ids:
            return int(config.eos_token_ids[0])
        if config.bos_token_id is not None:
            return int(config.bos_token_id)
        raise LucidError("The model's configuration has neither bos_token_id nor eos_token_id; lm_eval needs one.")

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has no context: the model's first token, else its end-of-sequence token."""
        first = self.session.config.bos_token_id
        return self.eot_token_id if first is None else int(first)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_kwargs: Any) -> list[int]:
        """Return the token ids of a text; special tokens are added unless told otherwise or the text has them."""
        ids = self._text.encode(string, add_special_tokens=add_special_tokens is not False)
        first = self.session.config.bos_token_id
        twice = first is not None and ids[:2] == [first, first]
        return ids[1:] if add_special_tokens is None and twice else ids

    def tok_decode(self, tokens: list[int], **_kwargs: Any) -> str:
        """Return the text of token ids."""
        return self._text.decode(tokens)

    def get_model_info(self) -> dict[str, Any]:
        """Return what the results should say about the model."""
        return {"model_runtime": self.session.label, "model_dtype": self.session.dtype, "max_length": self.max_length}

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str] | None, list[int], list[int]]],
        disable_tqdm: bool = False,
        **_kwargs: Any,
    ) -> list[tuple[float, bool]]:
        pairs = [self._fitted(context, continuation, text) for text, context, continuation in requests]
        if any(len(continuation) > 1 for _, continuation in pairs):
            self._say_if_slow()
        with _bar("Running loglikelihood requests", len(pairs), disable_tqdm) as progress:
            results = log_likelihoods(self.session, pairs, self.batch_size, progress)
        for (text, *_), result in zip(requests, results, strict=True):
            if text is not None:
                self.cache_hook.add_partial("loglikelihood", text, result)
        return results

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return log p(text | first token) of each text, in windows of the model's context, one token overlapping."""
        pieces, owners = [], []
        for number, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0], add_special_tokens=False)
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
        texts = [""] * len(requests)
        alike: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            alike.setdefault(repr(sorted(request.args[1].items())), []).append(number)
        for numbers in alike.values():
            options = requests[numbers[0]].args[1]
            contexts = [requests[i].args[0] for i in numbers]
            for i, text in zip(numbers, self._generate(contexts, options, disable_tqdm), strict=True):
                texts[i] = text
                self.cache_hook.add_partial("generate_until", requests[i].args, text)
        return texts

    def _generate(self, contexts: list[str], options: dict[str, Any], disable_tqdm: bool) -> list[str]:
        until, most, sampling = self._options(options)
        room = self.max_length - most
        if room < 1:
            raise LucidError(
                f"The task generates up to {most} tokens, which leaves no room for a context: the model's is "
                f"{self.max_length}. Set a smaller max_gen_toks for the task."
            )
        prompts = [self._context(context)[-room:] for context in contexts]

        def stop(ids: list[int]) -> bool:
            text = self._text.decode(ids)
            return any(end in text for end in until)

        with _bar("Running generate_until requests", len(prompts), disable_tqdm) as progress:
            answers = generate(
                self.session, [[p] for p in prompts], most, self.batch_size, sampling, stop if until else None, progress
            )
        texts = [self._text.decode(row[0]) for row in answers]
        return [text[: min((text.find(end) for end in until if end in text), default=None)] for text in texts]

    def _options(self, options: dict[str, Any]) -> tuple[list[str], int, Sampling]:
        """Return stop sequences, most tokens and sampling of a task's generation options."""
        if unknown := sorted(set(options) - {"until", *_LENGTHS, *_SAMPLING}):
            raise LucidError(f"The task asks for generation options that are not supported: {', '.join(unknown)}.")
        until = options.get("until") or []
        until = [until] if isinstance(until, str) else list(until)
        most = next((int(options[name]) for name in _LENGTHS if options.get(name) is not None), self.max_gen_toks)
        temperature = float(options.get("temperature") or 0.0)
        if not options.get("do_sample", temperature > 0):
            return [end for end in until if end], most, Sampling()
        sampling = Sampling(
            temperature,
            int(options.get("top_k") or 0),
            float(options.get("top_p") or 1.0),
            int(options.get("seed") or 0),
        )
        return [end for end in until if end], most, sampling

    def _context(self, text: str) -> list[int]:
        return self.tok_encode(text) or [self.prefix_token_id]

    def _fitted(self, context: list[int], continuation: list[int], text: Any) -> tuple[list[int], list[int]]:
        """Cut a context on the left so that it fits with its continuation, whose last token is not run."""
        shown = "a window of a text" if text is None else repr(text[1])
        if not continuation:
            raise LucidError(
                f"The continuation {shown} has no tokens of its own: its tokens merge with those of its context."
            )
        room = self.max_length + 1 - len(continuation)
        if room < 1:
            raise LucidError(
                f"The continuation {shown[:80]} has {len(continuation)} tokens, the model's context {self.max_length}."
            )
        return context[-room:], continuation

    def _say_if_slow(self) -> None:
        if self.session.gives_all_logits or self._warned:
            return
        self._warned = True
        _log.warning(
            "This session gives the logits of a run's last token only, so continuations are run token by token. An "
            "artifact exported with --logits all is faster in onnxruntime."
        )


@contextmanager
def _bar(description: str, total: int, disable: bool) -> Iterator[Callable[[int, int], None]]:
    with tqdm(total=total, desc=description, disable=disable) as bar:
        yield lambda done, _total: bar.update(done - bar.n) and None
