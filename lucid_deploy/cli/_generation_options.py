"""The options of commands that generate: sampling, constraints of the answer, speculative decoding."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lucid_deploy.cli._console import note
from lucid_deploy.errors import LucidError
from lucid_deploy.json_fields import FieldError

if TYPE_CHECKING:
    from lucid_deploy.artifact import Artifact
    from lucid_deploy.artifact.tokenizer import TextTokenizer
    from lucid_deploy.batching.prompt_file import PromptDefaults
    from lucid_deploy.generation.constraint import Constraint
    from lucid_deploy.generation.drafting import MakeDrafter
    from lucid_deploy.generation.guide import Guide
    from lucid_deploy.generation.sampling import Sampling
    from lucid_deploy.generation.speculation import DraftCounts
    from lucid_deploy.runtimes.options import RuntimeOptions
    from lucid_deploy.runtimes.session import Session

_SAMPLING: dict[str, tuple[type, float, str]] = {
    "temperature": (float, 0.0, "0 is greedy; above 0, tokens are sampled."),
    "top_k": (int, 0, "Sample among the K most likely; 0 is all."),
    "top_p": (float, 1.0, "Sample among the most likely, up to this total probability."),
    "min_p": (float, 0.0, "Sample among tokens with at least this share of the likeliest one's probability."),
    "presence_penalty": (float, 0.0, "Subtracted from the logits of tokens that the answer contains."),
    "frequency_penalty": (float, 0.0, "Subtracted from a token's logit for each time that the answer contains it."),
    "repetition_penalty": (float, 1.0, "0.01 to 100; above 1, tokens in the prompt or the answer become less likely."),
}
_GUIDED = ("json_schema", "regex", "choice", "grammar")
_TEXTS: dict[str, dict[str, Any]] = {
    "--stop": dict(multiple=True, metavar="TEXT", help="End the answer before this text; may be repeated."),
    "--ignore-eos": dict(is_flag=True, help="Go on after an end-of-sequence token."),
    "--seed": dict(type=int, help="Makes sampling repeatable."),
    "--logit-bias": dict(multiple=True, metavar="ID=BIAS", help="Add -100 to 100 to a token's logit; may be repeated."),
    "--bad-word": dict(multiple=True, metavar="TEXT", help="No answer contains this text; may be given several times."),
    "--json-schema": dict(metavar="FILE", help="The answer is JSON that follows the JSON schema in FILE."),
    "--regex": dict(metavar="EXPRESSION", help="The whole answer matches a regular expression."),
    "--choice": dict(multiple=True, metavar="TEXT", help="The answer is TEXT; given several times, one of them."),
    "--grammar": dict(metavar="FILE", help="The answer follows the grammar in FILE, in Lark's syntax or GBNF."),
}


def answer_options(max_new_tokens: int, prefill_chunk: int | None, chunk_help: str) -> Callable[..., Any]:
    """Return a decorator: it adds options for answers to a command, which gets ``answers`` and ``prefill_chunk``."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def command(**given: Any) -> Any:
            from lucid_deploy.batching.prompt_file import PromptDefaults
            from lucid_deploy.generation.sampling import Sampling

            chosen = {name: given.pop(name) for name in (*_SAMPLING, "seed")}
            constraint = _constraint({name: value for name in _GUIDED if (value := given.pop(name))})
            sampling = Sampling(logit_bias=_biases(given.pop("logit_bias")), **chosen)
            length, stop, bad_words = (given.pop(name) for name in ("max_new_tokens", "stop", "bad_word"))
            answers = PromptDefaults(length, sampling, stop, not given.pop("ignore_eos"), bad_words, constraint)
            return function(answers=answers, **given)

        bound = "Most tokens of an answer; a full context ends it earlier."
        length: dict[str, Any] = dict(type=int, default=max_new_tokens, help=bound)
        chunk: dict[str, Any] = dict(type=int, default=prefill_chunk, metavar="N", help=chunk_help)
        options = [
            click.option("-n", "--max-new-tokens", show_default=True, **length),
            click.option("--prefill-chunk", show_default=prefill_chunk is not None, **chunk),
        ]
        for name, (kind, default, text) in _SAMPLING.items():
            flag = "--" + name.replace("_", "-")
            options.append(click.option(flag, type=kind, default=default, show_default=True, help=text))
        options += [click.option(name, **settings) for name, settings in _TEXTS.items()]
        return _with_options(command, *options)

    return decorate


def speculation_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of speculative decoding to a command, which gets them as ``speculation``."""

    @functools.wraps(function)
    def command(speculate: str, draft: str | None, **given: Any) -> Any:
        return function(speculation=SpeculationOptions(speculate, draft), **given)

    return _with_options(
        command,
        click.option(
            "--speculate",
            type=click.Choice(["off", "lookup", "draft"]),
            default="off",
            show_default=True,
            help="Verify several guessed tokens a step: from earlier text (lookup) or a smaller model (draft).",
        ),
        click.option("--draft", metavar="ARTIFACT", help="With --speculate draft: the smaller model, same tokenizer."),
    )


def _with_options(command: Callable[..., Any], *options: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(options):
        command = option(command)
    return command


def as_token_ids(answers: PromptDefaults, tokenizer: TextTokenizer | None) -> Sampling:
    """Return sampling options with bad words as token ids; note on stderr which options have no effect."""
    from lucid_deploy.generation.sampling import bad_word_ids

    note_greedy(answers.sampling)
    if tokenizer is None:
        return answers.sampling
    return replace(answers.sampling, bad_words=bad_word_ids(answers.bad_words, tokenizer))


def note_greedy(sampling: Sampling) -> None:
    """Note on stderr if sampling options are given that do nothing because the temperature is 0."""
    given = sampling.top_k or sampling.top_p < 1 or sampling.min_p or sampling.seed is not None
    if given and not sampling.temperature:
        note("Note: --top-k, --top-p, --min-p and --seed do nothing at temperature 0; give --temperature to sample.")


def _biases(given: tuple[str, ...]) -> tuple[tuple[int, float], ...]:
    """Return the values of ``--logit-bias`` as pairs: a token id and its bias."""
    from lucid_deploy.generation.sampling import logit_bias

    pairs: dict[str, float] = {}
    for text in given:
        token, _, bias = text.partition("=")
        try:
            pairs[token.strip()] = float(bias)
        except ValueError as error:
            raise LucidError(f"--logit-bias takes a token id and a number, such as 15=-100, not {text!r}.") from error
    if len(pairs) < len(given):
        raise LucidError("--logit-bias names a token twice.")
    return logit_bias(pairs)


def open_tokenizer(artifact: Artifact, required: bool = False) -> TextTokenizer | None:
    """Return an artifact's tokenizer; None if it has none and none is required."""
    from lucid_deploy.artifact.tokenizer import TextTokenizer

    return TextTokenizer(artifact.directory) if required or artifact.path("tokenizer.json").is_file() else None


def note_unknown_words(tokenizer: TextTokenizer, text: str) -> None:
    """Note on stderr a text's words that a tokenizer encodes as its unknown token: they look alike to the model."""
    if unknown := tokenizer.unknown_words(text):
        more = " …" if len(unknown) > 8 else ""
        note(f"Note: the model's tokenizer does not know {', '.join(unknown[:8])}{more}.")


def open_guides(
    answers: PromptDefaults, session: Session[Any], tokenizer: TextTokenizer | None
) -> Callable[[], Guide] | None:
    """Return a function that makes a guide for each answer; None without a constraint. A guide needs a tokenizer."""
    from lucid_deploy.generation.guide import GuideFactory

    constraint = answers.constraint
    if constraint is None:
        return None
    assert tokenizer is not None
    factory = GuideFactory(tokenizer, session.config.vocab_size, session.config.eos_token_ids)
    factory.check(constraint)
    return lambda: factory.open(constraint, answers.stop_at_eos).result()


def _constraint(chosen: dict[str, Any]) -> Constraint | None:
    from lucid_deploy.generation.constraint import constraint_of

    if not chosen:
        return None
    options = ["--" + name.replace("_", "-") for name in chosen]
    if len(options) > 1:
        raise LucidError(f"{options[1]} cannot be combined with {options[0]}.")
    ((name, value),) = chosen.items()
    field = "guided_json" if name == "json_schema" else f"guided_{name}"
    value = read_file(options[0], value) if name in ("json_schema", "grammar") else value
    try:
        return constraint_of({field: list(value) if name == "choice" else value})
    except FieldError as error:
        raise LucidError(options[0] + str(error).removeprefix(field)) from error


def read_file(option: str, path: str) -> str:
    """Return the text of a file that an option names, without the byte order mark that Windows programs add."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise LucidError(f"{option} {path} cannot be read: {error.strerror or error}.") from error
    except UnicodeError as error:
        raise LucidError(f"{option} {path} is not valid UTF-8 text: {error}.") from error


@dataclass(frozen=True)
class SpeculationOptions:
    """How tokens are drafted."""

    mode: str  # off, lookup or draft
    draft: str | None  # artifact of the draft model

    def open(self, artifact: Artifact, runtime: RuntimeOptions) -> MakeDrafter | None:
        """Return a function that makes a drafter for each text; None without speculation."""
        from lucid_deploy.generation.drafting import open_drafters

        return open_drafters(self.mode, artifact, self.draft, runtime)

    def open_session(self, artifact: Artifact, runtime: RuntimeOptions) -> tuple[Session[Any], MakeDrafter | None]:
        """Open a session, prepared to verify drafts if speculation is on; return it and what :meth:`open` returns."""
        from lucid_deploy.generation.speculation import prepare_speculation
        from lucid_deploy.runtimes import open_session

        drafters = self.open(artifact, runtime)
        session = open_session(artifact, runtime)
        if drafters is not None:
            prepare_speculation(session)
        return session, drafters

    def check(self, artifact: Artifact) -> None:
        """Refuse, before a model is loaded, a mode or draft model that the artifact's layers or tokenizer rule out."""
        from lucid_deploy.generation.drafting import check_drafters

        check_drafters(self.mode, artifact, self.draft)


def drafts_text(counts: DraftCounts) -> str:
    """Return how many drafted tokens were accepted, with near ties and failed drafters, as part of a line."""
    near = f", {counts.near_ties} near ties" if counts.near_ties else ""
    failed = f", {counts.failures} drafters failed" if counts.failures else ""
    return f"{counts.accepted} of {counts.proposed} drafted tokens accepted{near}{failed}"
