"""The argument and options that several commands share, and the types of options' values."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lucid_deploy.runtimes.options import ABLATIONS, KERNELS, PROVIDERS, RuntimeOptions, flag
from lucid_deploy.runtimes.registry import AUTO, BUILT_IN, runtime_names

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

SHORT_TYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def choice_option(name: str, choices: Sequence[str], *, help: str) -> Decorator:
    """Return an option whose value is one of several words; the first one is the default."""
    return click.option(name, type=click.Choice(choices), default=choices[0], show_default=True, help=help)


def json_option(what: str) -> Decorator:
    """Return ``--json [FILE]``, parameter ``json_target``: a file to write beside the usual output, or ``-``."""
    text = f"Write {what} as JSON to FILE. Without FILE, or with -, JSON is all that goes to stdout."
    return click.option("--json", "json_target", metavar="[FILE]", is_flag=False, flag_value="-", help=text)


def trust_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--trust-remote-code``."""
    text = "Run the code beside the checkpoint's weights, with your rights, if transformers has no class for the model."
    return click.option("--trust-remote-code", is_flag=True, help=text)(command)


class TypeName(click.Choice):
    """A number type, such as ``float16``; short names, such as ``fp16``, are accepted too."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return super().convert(SHORT_TYPES.get(value, value), param, ctx)


class NumberRange(click.FloatRange):
    """A number within bounds. NaN, which is neither below nor above any bound, is refused."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number: float = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value!r} is not a number.", param, ctx)
        return number


class NumberList(click.ParamType):
    """Whole numbers separated by commas; ``4k`` is 4096. Error messages show ``example``, such as ``512,4k``."""

    name = "numbers"

    def __init__(self, example: str) -> None:
        self.example = example

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        found = [re.fullmatch(r"\s*(\d{1,18})(k?)\s*", item) for item in str(value).split(",")]
        numbers = [-1 if item is None else int(item[1]) * (1024 if item[2] else 1) for item in found]
        if min(numbers) < 1:
            self.fail(f"{value!r} is not a list of whole numbers from 1 up such as {self.example}.", param, ctx)
        return tuple(dict.fromkeys(numbers))


class NamedFolder(click.ParamType):
    """A name and a folder, ``NAME=DIR``."""

    name = "name=dir"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Path]:
        if isinstance(value, tuple):
            return value
        name, equals, folder = str(value).partition("=")
        if not (name and equals):
            self.fail(f"{value!r} is not NAME=DIR with the folder of an adapter.", param, ctx)
        if not Path(folder).is_dir():
            self.fail(f"There is no folder {folder!r}.", param, ctx)
        return name, Path(folder)


def type_option(name: str, types: Sequence[str], *, help: str) -> Decorator:
    """Return an option whose value is one of several number types; the first one is the default."""
    text = f"{help} Also: {', '.join(short for short, full in SHORT_TYPES.items() if full in types)}."
    return click.option(name, type=TypeName(types), default=types[0], show_default=True, help=text)


class RuntimeName(click.ParamType):
    """The name of a runtime. Installed packages may add runtimes; they are searched only if the name is not ours."""

    name = "runtime"

    def get_metavar(self, *arguments: Any, **named: Any) -> str | None:
        return click.Choice(runtime_names()).get_metavar(*arguments, **named)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value in (AUTO, *BUILT_IN):
            return str(value)
        return str(click.Choice(runtime_names()).convert(value, param, ctx))

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return click.Choice(runtime_names()).shell_complete(ctx, param, incomplete)


_RUNTIME_OPTIONS: dict[str, dict[str, Any]] = {
    "runtime": dict(type=RuntimeName(), help="What runs the model; auto is onnxruntime."),
    "device": dict(help="Where the model runs: cpu, or cuda, cuda:1, … if the runtime supports it."),
    "provider": dict(
        type=click.Choice(PROVIDERS),
        help="With onnxruntime: the execution provider; if it cannot start, the command fails.",
    ),
    "kernels": dict(
        type=click.Choice(KERNELS),
        help="With onnxruntime on the CPU: our library, or the graph's functions; auto: the library if built.",
    ),
    "ablate": dict(
        type=click.Choice(ABLATIONS),
        help="With --runtime torch: leave out the preconditioner (Y = V).",
    ),
    "adapter": dict(metavar="NAME", help="Run with this adapter; lucid-deploy adapters list shows the names."),
    "threads": dict(type=int, help="Threads within an operator; default: the runtime's choice."),
    "allow_extrapolation": dict(is_flag=True, help="Allow prompts longer than max_position_embeddings."),
}


def runtime_options(*fields: str, help: str | None = None) -> Decorator:
    """Return a decorator that adds options for fields of RuntimeOptions, which the command gets as ``runtime``.

    ``help`` replaces the help text of ``--runtime``.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def command(**given: Any) -> Any:
            chosen = RuntimeOptions(**{field: given.pop(field) for field in fields})
            return function(runtime=chosen, **given)

        for field in reversed(fields):
            settings = dict(_RUNTIME_OPTIONS[field])
            if field == "runtime" and help is not None:
                settings["help"] = help
            default = getattr(RuntimeOptions(), field)
            shown = default is not None and "is_flag" not in settings
            command = click.option(flag(field), field, default=default, show_default=shown, **settings)(command)
        return command

    return decorate


artifact_argument = click.argument("artifact", type=click.Path())
