"""Options of ``lucid-deploy eval`` that are for lm_eval's tasks and for suites of them."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import click

from lucid_deploy.errors import LucidError

WAYS = ("left", "middle")  # of evaluation.truncation, which imports too much for a help text


@dataclass(frozen=True)
class SuiteArguments:
    """What was given of these options; None or empty: nothing."""

    suite: str | None = None
    only: str | None = None
    data: str | None = None
    haystack: str | None = None
    truncate: str | None = None
    metadata: str | None = None
    gen_kwargs: str | None = None
    num_fewshot: int | None = None
    apply_chat_template: bool = False
    output_path: str | None = None
    log_samples: bool = False

    def given(self, names: tuple[str, ...]) -> str | None:
        """Return the first of some options that was given, as it is written; None if none was."""
        found = next(
            (name for name in names if not (getattr(self, name) is None or getattr(self, name) is False)), None
        )
        return None if found is None else "--" + found.replace("_", "-")

    def parsed_metadata(self) -> dict[str, Any]:
        """Return ``--metadata``, a JSON object.

        Raises:
            LucidError: It is none.
        """
        return _object("--metadata", self.metadata)

    def parsed_gen_kwargs(self) -> dict[str, Any]:
        """Return ``--gen-kwargs``: a JSON object, or ``name=value,name=value`` as lm_eval takes it.

        Raises:
            LucidError: It is neither.
        """
        text = (self.gen_kwargs or "").strip()
        if not text or text.startswith("{"):
            return _object("--gen-kwargs", text or None)
        pairs = [item.partition("=") for item in text.split(",")]
        if wrong := [name for name, sign, _ in pairs if not sign or not name.strip()]:
            raise LucidError(f"--gen-kwargs takes a JSON object or name=value,name=value, not {wrong[0]!r}.")
        return {name.strip(): _value(value.strip()) for name, _, value in pairs}

    @property
    def folder(self) -> Path | None:
        """Where data lie.

        Raises:
            LucidError: It is no directory.
        """
        if self.data is not None and not Path(self.data).is_dir():
            raise LucidError(f"There are no data at {self.data}: no such directory.")
        return None if self.data is None else Path(self.data)


def suite_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command these options; it gets them as one :class:`SuiteArguments`, ``suites``."""

    @functools.wraps(function)
    def wrapped(**given: Any) -> Any:
        taken = {field.name: given.pop(field.name) for field in fields(SuiteArguments)}
        return function(suites=SuiteArguments(**taken), **given)

    for option in reversed(_OPTIONS):
        wrapped = option(wrapped)
    return wrapped


_OPTIONS = (
    click.option(
        "--suite",
        metavar="NAME",
        help="Instead of --task: ruler, mniah, longbench, scrolls or babilong, with the settings of LUCID's authors.",
    ),
    click.option("--only", metavar="NAME,NAME,...", help="With --suite: run these of its tasks."),
    click.option(
        "--data",
        metavar="DIR",
        type=click.Path(),
        help="With --suite: where data lie.  [default: the Hub]",
    ),
    click.option(
        "--haystack",
        metavar="TEXT",
        type=click.Path(),
        help="With --suite ruler or mniah: bundled, essays (those of RULER) or a text file that needles are hidden in. "
        " [default: bundled]",
    ),
    click.option(
        "--truncate",
        type=click.Choice(WAYS),
        help="Cut prompts of lm_eval that are longer than the context: keep the end, or both ends. "
        " [default: refuse them]",
    ),
    click.option("--metadata", metavar="JSON", help="For lm_eval's tasks, as with lm_eval's own --metadata."),
    click.option(
        "--gen-kwargs", metavar="JSON", help="Generation options instead of the tasks' own; also name=value,name=value."
    ),
    click.option("--num-fewshot", type=click.IntRange(min=0), help="Solved examples in each prompt."),
    click.option("--apply-chat-template", is_flag=True, help="Ask as a chat, with the model's chat template."),
    click.option(
        "--output-path",
        metavar="DIR",
        type=click.Path(),
        help="With --suite: keep results and answers there. The same command again goes on where it was stopped.",
    ),
    click.option("--log-samples", is_flag=True, help="With --output-path: write every prompt and answer too."),
)


def _object(option: str, text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        found = json.loads(text)
    except ValueError as error:
        raise LucidError(f"{option} is not JSON: {error}.") from error
    if not isinstance(found, dict):
        raise LucidError(f"{option} takes a JSON object, not {text!r}.")
    return found


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return {"True": True, "False": False, "None": None}.get(text, text)
