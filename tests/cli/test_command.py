"""What every command has: options from the command line or the environment, output options, and JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.core import ParameterSource
from click.testing import CliRunner, Result

from lucid_deploy.artifact import Artifact, open_artifact
from lucid_deploy.cli import COMMANDS, main

Exported = Callable[..., tuple[Path, Artifact]]
COMMON = {"quiet", "verbose", "no_color"}
WITHOUT_RESULTS = {"adapters add", "adapters remove", "chat", "serve"}


def run(*arguments: Any, **environment: str) -> Result:
    return CliRunner(env=environment).invoke(main, [*map(str, arguments)])


def find_commands() -> Iterator[tuple[str, click.Command]]:
    context = click.Context(main)
    for name in COMMANDS:
        command = main.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from ((f"{name} {inner}", item) for inner, item in command.commands.items())
        else:
            yield name, command


ALL = list(find_commands())


def test_every_command_has_the_common_options_and_json() -> None:
    for name, command in ALL:
        found = {item.name: item for item in command.params if isinstance(item, click.Option)}
        assert found.keys() >= COMMON, name
        if name not in WITHOUT_RESULTS:
            assert (found["json_target"].opts, found["json_target"].flag_value) == (["--json"], "-"), name


def context_above(name: str) -> click.Context:
    """Return the context of the program, or of the group that the command belongs to."""
    context = click.Context(main, info_name="lucid-deploy")
    for group in name.split()[:-1]:
        context = click.Context(main.get_command(context, group) or main, context, info_name=group)
    return context


def sample(option: click.Option) -> str:
    """Return a value that the option takes and that is not its default."""
    if option.is_flag:
        return "false" if option.default is True else "true"
    choices = list(getattr(option.type, "choices", ()))
    for value in (*choices[::-1], "torch", "3", "0.5", "3,4", ".", "name=."):
        try:
            if option.type.convert(value, option, None) != option.default:
                return value
        except click.BadParameter:
            continue
    raise AssertionError(f"no value for {option.opts}")


def test_the_environment_sets_every_option_as_the_command_line_does(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, command in ALL:
        above, last = context_above(name), name.split()[-1]
        for option in command.params:
            if not isinstance(option, click.Option):
                continue
            longest, word = max(option.opts, key=len), sample(option)
            typed = [longest, word]
            if option.is_flag:
                typed = [longest] if word == "true" else [option.secondary_opts[0]]
            wanted = command.make_context(last, typed, above, resilient_parsing=True)
            prefix = "" if option.name in COMMON else f"{name} "
            variable = f"{prefix}{longest[2:]}".upper().replace(" ", "_").replace("-", "_")
            with monkeypatch.context() as patch:
                patch.setenv(f"LUCID_DEPLOY_{variable}", word)
                found = command.make_context(last, [], above, resilient_parsing=True)
            assert found.get_parameter_source(str(option.name)) is ParameterSource.ENVIRONMENT, variable
            assert found.params == wanted.params, variable


@pytest.mark.parametrize(
    ("line", "variable", "hint"),
    [
        ("inspect x", "LUCID_DEPLOY_INSPECT_CONTXT", "Did you mean LUCID_DEPLOY_INSPECT_CONTEXT?"),
        ("plugin build", "LUCID_DEPLOY_PLUGIN_BUILD_ARCHS", "Did you mean LUCID_DEPLOY_PLUGIN_BUILD_ARCH?"),
        ("inspect x", "LUCID_DEPLOY_INSPECT_ARTIFACT", "is no option of"),
    ],
)
def test_an_unknown_variable_is_refused(line: str, variable: str, hint: str) -> None:
    said = run(*line.split(), **{variable: "1"})
    assert said.exit_code == 2 and variable in said.stderr and hint in said.stderr


def test_an_unknown_command_gets_a_suggestion() -> None:
    assert "'serv'. Did you mean 'serve'?" in run("serv").stderr


def test_the_command_line_wins_over_the_environment(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def export(_checkpoint: str, output: str, options: Any, *_: Any) -> Artifact:
        seen.append((output, options))
        return exported()[1]

    monkeypatch.setattr("lucid_deploy.export.export", export)
    variables = {"OUTPUT": "here", "DTYPE": "bf16", "CACHE": "static", "ASSUME_UNUSED": "a b", "OVERWRITE": "true"}
    given = {f"LUCID_DEPLOY_EXPORT_{name}": value for name, value in variables.items()}
    result = run("export", "demo", "--cache", "growing", **given)
    assert result.exit_code == 0, result.stderr
    [(output, options)] = seen
    assert (str(output), options.dtype, options.overwrite) == ("here", "bfloat16", True)
    assert (options.cache, options.assume_unused) == ("growing", ("a", "b"))


def test_a_wrong_value_says_which_variable_it_comes_from() -> None:
    said = run("inspect", "x", LUCID_DEPLOY_INSPECT_CONTEXT="many")
    assert "It comes from the environment variable LUCID_DEPLOY_INSPECT_CONTEXT." in said.stderr


def test_quiet_keeps_results_and_errors(exported: Exported) -> None:
    artifact = exported()[1].directory
    words = ("run", artifact, "--prompt-ids", "5,9", "-n", 3, "--ignore-eos", "--top-k", 3)
    loud, quiet = run(*words), run(*words, "-q")
    assert "Note: " in loud.stderr and " prompt tokens, " in loud.stderr
    assert (quiet.stderr, quiet.stdout) == ("", loud.stdout)
    assert "Error: " in run("run", artifact, "-q").stderr
    assert run("run", artifact, "-q", "-v").stderr == "Error: Give --quiet or --verbose, not both.\n"
    assert "Note: " in run(*words).stderr  # the next command of this process is not quiet


def test_too_little_memory_is_one_line(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    def describe(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("lucid_deploy.runtimes.inspection.describe", describe)
    said = run("inspect", exported()[1].directory)
    assert said.exit_code == 2 and said.stderr.startswith("Error: There is too little memory for this command.")


def test_json_means_the_same_everywhere(exported: Exported, tmp_path: Path) -> None:
    artifact, target = exported()[1].directory, tmp_path / "facts.json"
    words = ("run", artifact, "--prompt-ids", "5,9", "-n", 3, "--ignore-eos")
    text = run(*words).stdout
    beside = run(*words, "--json", target)
    alone, dash = run(*words, "--json"), run(*words, "--json", "-")
    assert beside.stdout == text
    assert json.loads(target.read_text())["ids"] == json.loads(alone.stdout)["ids"] == json.loads(dash.stdout)["ids"]
    facts = json.loads(run("inspect", artifact, "--json", "--check", "--batch", 2, "--context", 100).stdout)
    assert facts["hashes_checked"] is True
    assert facts["model"] == json.loads(json.dumps(open_artifact(artifact).config.to_dict()))
    # Rows, tokens, K and Y, layers, key/value heads, width, bytes.
    assert facts["memory"]["cache"] == 2 * 100 * 2 * 2 * 2 * 36 * 4


def test_completion_knows_commands_options_and_values(monkeypatch: pytest.MonkeyPatch) -> None:
    for words, wanted in (("exp", "export"), ("export --dty", "--dtype"), ("run x --runtime to", "torch")):
        environment = {
            "COMP_WORDS": f"lucid-deploy {words}",
            "COMP_CWORD": str(len(words.split())),
            "_LUCID_DEPLOY_COMPLETE": "bash_complete",
        }
        result = CliRunner(env=environment).invoke(main, [], prog_name="lucid-deploy")
        assert f"plain,{wanted}" in result.stdout.splitlines(), words
