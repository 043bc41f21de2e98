"""The options that say what an answer must be; the command gets them as one ``Constraint``, or None."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from lucid_deploy.artifact.tokenizer import TextTokenizer
    from lucid_deploy.generation.constraint import Constraint
    from lucid_deploy.generation.guide import Guide
    from lucid_deploy.runtimes.session import Session

_OPTIONS: dict[str, dict[str, Any]] = {
    "json_schema": dict(metavar="FILE", help="The answer is JSON that follows the JSON schema in FILE."),
    "regex": dict(metavar="EXPRESSION", help="The whole answer matches a regular expression."),
    "choice": dict(multiple=True, metavar="TEXT", help="The answer is TEXT; given several times, one of them."),
    "grammar": dict(metavar="FILE", help="The answer follows the grammar in FILE, in Lark's syntax or GBNF."),
}
GUIDES = tuple((name,) for name in _OPTIONS)  # of which one is to be given
_FIELDS = {
    "json_schema": "guided_json",
    "regex": "guided_regex",
    "choice": "guided_choice",
    "grammar": "guided_grammar",
}
_FILES = ("json_schema", "grammar")


def guided_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a command; it gets ``constraint``."""

    @functools.wraps(function)
    def command(**given: Any) -> Any:
        chosen = {name: given.pop(name) for name in _OPTIONS}
        return function(constraint=_constraint({name: value for name, value in chosen.items() if value}), **given)

    for name, settings in reversed(_OPTIONS.items()):
        command = click.option("--" + name.replace("_", "-"), name, **settings)(command)
    return command


def open_guides(
    constraint: Constraint | None, session: Session[Any], tokenizer: TextTokenizer | None, may_end: bool
) -> Callable[[], Guide] | None:
    """Return what makes a guide for each answer; None without a constraint.

    Args:
        constraint: What was asked for.
        session: Runs the model.
        tokenizer: The artifact's; to be there with a constraint.
        may_end: Whether an end-of-sequence token ends an answer.

    Raises:
        LucidError: llguidance is not installed, the constraint is too costly, or no token can begin an answer.
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
    value = _read(options[0], value) if name in _FILES else value
    try:
        return constraint_of({_FIELDS[name]: list(value) if name == "choice" else value})
    except FieldError as error:
        raise LucidError(options[0] + str(error).removeprefix(_FIELDS[name])) from error


def _read(option: str, path: str) -> str:
    from lucid_deploy.errors import LucidError

    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise LucidError(f"{option} {path} cannot be read: {error.strerror or error}.") from error
    except UnicodeError as error:
        raise LucidError(f"{option} {path} is not valid UTF-8 text: {error}.") from error
