"""Options that several commands share become one ``RuntimeOptions``, and wrong values are refused by name."""

from __future__ import annotations

from dataclasses import asdict, fields

import click
import pytest
from click.testing import CliRunner, Result

from lucid_deploy.cli import COMMANDS, main
from lucid_deploy.cli._options import choice_option, json_option, runtime_options
from lucid_deploy.runtimes.options import RuntimeOptions

FIELDS = [item.name for item in fields(RuntimeOptions)]
seen: list[RuntimeOptions] = []


@click.command()
@runtime_options(*FIELDS)
@choice_option("--form", ["round", "flat"], help="Which.")
@json_option("facts")
def command(runtime: RuntimeOptions, form: str, json_target: str | None) -> None:
    seen.append(runtime)
    click.echo(f"{form} {json_target}")


def run(*arguments: str) -> Result:
    seen.clear()
    return CliRunner().invoke(command, arguments)


def test_nothing_given_is_the_default() -> None:
    assert run().stdout == "round None\n" and seen == [RuntimeOptions()]


def test_every_field_has_its_option() -> None:
    wanted = RuntimeOptions("torch", "cuda:1", 3, True, "cuda", "functions", "preconditioner", "one")
    assert all(value != getattr(RuntimeOptions(), name) for name, value in asdict(wanted).items())
    words = "--runtime torch --device cuda:1 --threads 3 --allow-extrapolation --provider cuda --kernels functions"
    words += " --ablate preconditioner --adapter one"
    result = run(*words.split(), "--form", "flat", "--json", "-")
    assert (result.exit_code, result.stdout) == (0, "flat -\n") and seen == [wanted]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--runtime mxnet", "'mxnet' is not one of 'auto', 'torch', 'onnxruntime', 'openvino', 'tensorrt'"),
        ("--threads many", "'many' is not a valid integer"),
        ("--form square", "'square' is not one of 'round', 'flat'"),
    ],
)
def test_wrong_values_are_refused_by_name(words: str, message: str) -> None:
    result = run(*words.split())
    assert result.exit_code == 2 and words.split()[0] in result.stderr
    assert message in " ".join(result.stderr.split()) and seen == []


@pytest.mark.parametrize("command", COMMANDS)
def test_every_range_of_numbers_refuses_nan(command: str) -> None:
    found = main.get_command(click.Context(main), command)
    inner = found.commands.values() if isinstance(found, click.Group) else [found]
    parameters = [parameter for each in inner if each is not None for parameter in each.params]
    assert all(type(parameter.type) is not click.FloatRange for parameter in parameters)
