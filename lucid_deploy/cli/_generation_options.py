"""The options of commands that generate: sampling, constraints of the answer, speculative decoding."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from lucid_deploy.artifact import Artifact
    from lucid_deploy.artifact.tokenizer import TextTokenizer
    from lucid_deploy.generation.constraint import Constraint
    from lucid_deploy.generation.drafting import MakeDrafter
    from lucid_deploy.generation.guide import Guide
    from lucid_deploy.generation.sampling import Sampling
    from lucid_deploy.generation.speculation import DraftCounts
    from lucid_deploy.runtimes.options import RuntimeOptions
    from lucid_deploy.runtimes.session import Session

_SAMPLING: dict[str, dict[str, Any]] = {
    "temperature": dict(type=float, default=0.0, show_default=True, help="0 is greedy; above, sampling."),
    "top_k": dict(type=int, default=0, show_default=True, help="Sample among the K most likely; 0 is all."),
    "top_p": dict(type=float, default=1.0, show_default=True, help="Sample among the most likely up to this sum."),
    "min_p": dict(
        type=float,
        default=0.0,
        show_default=True,
        help="Sample among tokens with at least this share of the likeliest one's probability.",
    ),
    "presence_penalty": dict(
        type=float, default=0.0, show_default=True, help="Taken off the logits of tokens that the answer has."
    ),
    "frequency_penalty": dict(
        type=float, default=0.0, show_default=True, help="Taken off for each time that the answer has the token."
    ),
    "repetition_penalty": dict(
        type=float,
        default=1.0,
        show_default=True,
        help="0.01 to 100; divides positive logits of tokens that prompt or answer have, multiplies negative ones.",
    ),
    "logit_bias": dict(
        multiple=True, metavar="ID=BIAS", help="Add BIAS, -100 to 100, to a token's logit; may be given several times."
    ),
    "bad_word": dict(multiple=True, metavar="TEXT", help="No answer contains this text; may be given several times."),
    "seed": dict(type=int, help="Makes sampling repeatable."),
}
_GUIDED: dict[str, dict[str, Any]] = {
    "json_schema": dict(metavar="FILE", help="The answer is JSON that follows the JSON schema in FILE."),
    "regex": dict(metavar="EXPRESSION", help="The whole answer matches a regular expression."),
    "choice": dict(multiple=True, metavar="TEXT", help="The answer is TEXT; given several times, one of them."),
    "grammar": dict(metavar="FILE", help="The answer follows the grammar in FILE, in Lark's syntax or GBNF."),
}
_SPECULATION: dict[str, dict[str, Any]] = {
    "speculate": dict(
        type=click.Choice(["off", "lookup", "draft"]),
        default="off",
        show_default=True,
        help="Verify several tokens in one step: lookup guesses them from what prompt and answer repeat, draft asks a "
        "smaller model. Answers stay the same except where rounding decides between tokens.",
    ),
    "draft": dict(metavar="ARTIFACT", help="With --speculate draft: a smaller model with the same tokenizer."),
}


def sampling_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of sampling to a command; it gets ``sampling`` and ``bad_words``, a tuple of texts."""

    @functools.wraps(function)
    def command(**given: Any) -> Any:
        from lucid_deploy.generation.sampling import Sampling

        chosen = {name: given.pop(name) for name in _SAMPLING}
        bad_words = chosen.pop("bad_word")
        sampling = Sampling(**{**chosen, "logit_bias": _biases(chosen["logit_bias"])})
        return function(sampling=sampling, bad_words=bad_words, **given)

    return _with_options(command, _SAMPLING)


def guided_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that constrain the answer to a command; it gets ``constraint``."""

    @functools.wraps(function)
    def command(**given: Any) -> Any:
        chosen = {name: given.pop(name) for name in _GUIDED}
        return function(constraint=_constraint({name: value for name, value in chosen.items() if value}), **given)

    return _with_options(command, _GUIDED)


def speculation_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of speculative decoding to a command; it gets ``speculation``."""

    @functools.wraps(function)
    def command(speculate: str, draft: str | None, **given: Any) -> Any:
        return function(speculation=SpeculationOptions(speculate, draft), **given)

    return _with_options(command, _SPECULATION)


def _with_options(command: Callable[..., Any], options: dict[str, dict[str, Any]]) -> Callable[..., Any]:
    for name, settings in reversed(options.items()):
        command = click.option("--" + name.replace("_", "-"), name, **settings)(command)
    return command


def note_greedy(sampling: Sampling) -> None:
    """Say on stderr when options of sampling are given and nothing is sampled."""
    from lucid_deploy.cli._console import console_err

    if sampling.temperature:
        return
    if sampling.top_k or sampling.top_p < 1 or sampling.min_p or sampling.seed is not None:
        console_err.print(
            "Note: --top-k, --top-p, --min-p and --seed do nothing at temperature 0; give --temperature to sample."
        )


def _biases(given: tuple[str, ...]) -> tuple[tuple[int, float], ...]:
    """Return pairs of token ids and biases."""
    from lucid_deploy.errors import LucidError
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


def open_guides(
    constraint: Constraint | None, session: Session[Any], tokenizer: TextTokenizer | None, may_end: bool
) -> Callable[[], Guide] | None:
    """Return what makes a guide for each answer; None without a constraint.

    Args:
        constraint: What was asked for.
        session: Runs the model.
        tokenizer: The artifact's; to be there with a constraint.
        may_end: Whether an end-of-sequence token ends an answer.
    """
    from lucid_deploy.generation.guide import GuideFactory

    if constraint is None:
        return None
    assert tokenizer is not None
    factory = GuideFactory(tokenizer, session.config.vocab_size, session.config.eos_token_ids)
    factory.check(constraint)
    return lambda: factory.open(constraint, may_end).result()


def _constraint(chosen: dict[str, Any]) -> Constraint | None:
    from lucid_deploy.errors import LucidError
    from lucid_deploy.generation.constraint import constraint_of
    from lucid_deploy.json_fields import FieldError

    if not chosen:
        return None
    options = ["--" + name.replace("_", "-") for name in chosen]
    if len(options) > 1:
        raise LucidError(f"{options[1]} cannot be combined with {options[0]}.")
    ((name, value),) = chosen.items()
    field = "guided_json" if name == "json_schema" else f"guided_{name}"
    value = _read(options[0], value) if name in ("json_schema", "grammar") else value
    try:
        return constraint_of({field: list(value) if name == "choice" else value})
    except FieldError as error:
        raise LucidError(options[0] + str(error).removeprefix(field)) from error


def _read(option: str, path: str) -> str:
    from lucid_deploy.errors import LucidError

    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise LucidError(f"{option} {path} cannot be read: {error.strerror or error}.") from error
    except UnicodeError as error:
        raise LucidError(f"{option} {path} is not valid UTF-8 text: {error}.") from error


@dataclass(frozen=True)
class SpeculationOptions:
    """What was asked for.

    Attributes:
        mode: ``off``, ``lookup`` or ``draft``.
        draft: Artifact of the draft model.
    """

    mode: str
    draft: str | None

    def open(self, artifact: Artifact, runtime: RuntimeOptions) -> MakeDrafter | None:
        """Return what makes drafters; None without speculation."""
        from lucid_deploy.generation.drafting import open_drafters

        return open_drafters(self.mode, artifact, self.draft, runtime)

    def open_session(self, artifact: Artifact, runtime: RuntimeOptions) -> tuple[Session[Any], MakeDrafter | None]:
        """Open an artifact, ready to verify drafts if that is asked for, and what makes drafters."""
        from lucid_deploy.generation.speculation import prepare_speculation
        from lucid_deploy.runtimes import open_session

        drafters = self.open(artifact, runtime)
        session = open_session(artifact, runtime)
        if drafters is not None:
            prepare_speculation(session)
        return session, drafters

    def draft_artifacts(self) -> list[Artifact]:
        """Return the artifact of the draft model, if there is one."""
        from lucid_deploy.artifact import open_artifact

        return [] if self.draft is None else [open_artifact(self.draft)]

    def check(self, artifact: Artifact) -> None:
        """Refuse what cannot work, before anything is loaded."""
        from lucid_deploy.generation.drafting import check_drafters

        check_drafters(self.mode, artifact, self.draft)


def drafts_text(counts: DraftCounts) -> str:
    """Say how far drafts were right, within a line."""
    near = f", {counts.near_ties} near ties" if counts.near_ties else ""
    failed = f", {counts.failures} drafters failed" if counts.failures else ""
    return f"{counts.accepted} of {counts.proposed} drafted tokens accepted{near}{failed}"
