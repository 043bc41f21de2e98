"""An option that is refused says where it comes from, unless that is the command line."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from lucid_deploy.cli import main
from lucid_deploy.cli._command import Command
from lucid_deploy.cli._names import long_name
from lucid_deploy.cli._sources import is_given, origins, source


def run(*words: str, **variables: str) -> Result:
    return CliRunner().invoke(main, list(words), env=variables)


def said(result: Result) -> str:
    assert result.exit_code == 2
    return " ".join(result.output.split())


@pytest.fixture
def options_file(tmp_path: Path) -> Path:
    file = tmp_path / "options.toml"
    file.write_text("[serve]\nidle-timeout = 5\n[export]\nmethod = 'rtn'\n")
    return file


def test_sources_of_options(tmp_path: Path) -> None:
    file = tmp_path / "options.toml"
    file.write_text("[try]\nfrom-file = 'a'\n")
    found: list[tuple[str, bool, str | None]] = []

    @click.command("try", cls=Command)
    @click.option("--from-words")
    @click.option("--from-file")
    @click.option("--from-variable")
    @click.option("--not-given")
    @click.pass_context
    def command(context: click.Context, **_: str | None) -> None:
        ours = [option for option in context.command.params if option.name in context.params]
        found.extend((long_name(item), is_given(context, item.name or ""), source(context, item)) for item in ours)
        alone = [origins(context, [item]) for item in ours]
        assert alone == ["", f" It comes from {file}.", " It comes from the environment variable T_FROM_VARIABLE.", ""]
        together = (
            f" --from-file comes from {file}. --from-variable comes from the environment variable T_FROM_VARIABLE."
        )
        assert origins(context, ours) == together

    words = ["--config", str(file), "--from-words", "a"]
    result = CliRunner().invoke(command, words, env={"T_FROM_VARIABLE": "a"}, auto_envvar_prefix="T")
    assert (result.exception, result.exit_code) == (None, 0)
    assert found == [
        ("--from-words", True, None),
        ("--from-file", True, str(file)),
        ("--from-variable", True, "the environment variable T_FROM_VARIABLE"),
        ("--not-given", False, None),
    ]


def test_an_option_of_another_engine(options_file: Path) -> None:
    start = "--idle-timeout is for --engine local; with ray, Ray's proxies handle the connections."
    words = ("serve", "artifact", "--engine", "ray")
    where = "the environment variable LUCID_DEPLOY_SERVE_IDLE_TIMEOUT"
    assert f"{start} It comes from {where}. Leave it out." in said(run(*words, LUCID_DEPLOY_SERVE_IDLE_TIMEOUT="5"))
    assert f"{start} It comes from {options_file}. Leave it out." in said(run(*words, "--config", str(options_file)))
    assert f"{start} Leave it out." in said(run(*words, "--idle-timeout", "5"))


def test_options_of_quantized_weights_without_any(options_file: Path, tmp_path: Path) -> None:
    start = "--method is for quantized weights."
    words = ("export", "checkpoint", "-o", str(tmp_path / "artifact"))
    where = "the environment variable LUCID_DEPLOY_EXPORT_METHOD"
    assert f"{start} It comes from {where}. Add --quantize" in said(run(*words, LUCID_DEPLOY_EXPORT_METHOD="rtn"))
    assert f"{start} It comes from {options_file}. Add --quantize" in said(run(*words, "--config", str(options_file)))
    both = said(run(*words, "--gptq-damping", "0.1", LUCID_DEPLOY_EXPORT_METHOD="rtn"))
    assert f"--method, --gptq-damping is for quantized weights. --method comes from {where}. Add" in both


@pytest.fixture
def seen() -> tuple[click.Command, list[dict[str, object]]]:
    found: list[dict[str, object]] = []

    @click.command("try", cls=Command, alternatives=((("one",), ("low", "high"), ("several",), ("flag",)),))
    @click.option("--one")
    @click.option("--low")
    @click.option("--high")
    @click.option("--several", multiple=True)
    @click.option("--flag", is_flag=True)
    def command(**given: object) -> None:
        found.append({name: value for name, value in given.items() if value})
        assert given["several"] is not None and given["flag"] is not None

    return command, found


@pytest.mark.parametrize(
    ("words", "variables", "counts"),
    [
        ("--one a", "ONE=b SEVERAL=c LOW=d FLAG=1", {"one": "a"}),
        ("", "SEVERAL=c FLAG=1", {"several": ("c",), "flag": True}),  # the command refuses two of one place
        ("", "ONE=b", {"one": "b"}),
        ("", "", {"low": "1", "high": "2"}),
        ("--high 3", "ONE=b", {"low": "1", "high": "3"}),
        ("--one a --several b", "FLAG=1", {"one": "a", "several": ("b",)}),
    ],
)
def test_of_alternatives_the_nearest_counts(
    words: str, variables: str, counts: dict[str, object], seen: tuple[click.Command, list[object]], tmp_path: Path
) -> None:
    file, (command, found) = tmp_path / "options.toml", seen
    file.write_text("[try]\nlow = 1\nhigh = 2\n")
    environment = dict(f"T_{item}".split("=") for item in variables.split())
    result = CliRunner().invoke(
        command, ["--config", str(file), *words.split()], env=environment, auto_envvar_prefix="T"
    )
    assert (result.exception, found) == (None, [counts])


GIVEN = ("--prompt w1", "--prompt-file x", "--prompt-ids 1,2", "--batch x")


@pytest.mark.parametrize("words", GIVEN)
@pytest.mark.parametrize("other", GIVEN)
@pytest.mark.parametrize("place", ["environment", "file"])
def test_a_prompt_on_the_command_line_goes_before_one_from_elsewhere(
    words: str, other: str, place: str, tmp_path: Path
) -> None:
    name, value = other[2:].split()
    file = tmp_path / "options.toml"
    file.write_text(f"[run]\n{name} = '{value}'\noutput = 'y'\n" if place == "file" else "")
    variables = {f"LUCID_DEPLOY_RUN_{name.replace('-', '_').upper()}": value} if place == "environment" else {}
    command = main.get_command(click.Context(main), "run")
    assert command is not None
    asked = ["a", "--config", str(file), *words.split()]
    with pytest.MonkeyPatch.context() as patch:
        for key, text in variables.items():
            patch.setenv(key, text)
        values = command.make_context("run", asked, auto_envvar_prefix="LUCID_DEPLOY_RUN").params
    prompts = {key: values[key] for key in ("prompt", "prompt_file", "prompt_ids", "batch") if values[key] is not None}
    assert prompts == {words[2:].split()[0].replace("-", "_"): words.split()[1]}
    assert values["output"] == ("y" if words.startswith("--batch") and place == "file" else None)


@pytest.mark.parametrize("words", ["-q", "-v"])
def test_quiet_or_verbose_on_the_command_line_goes_before_the_environment(words: str) -> None:
    other = {"-q": "LUCID_DEPLOY_VERBOSE", "-v": "LUCID_DEPLOY_QUIET"}[words]
    assert run("completion", "bash", words, **{other: "1"}).exit_code == 0
    assert "Give --quiet or --verbose, not both." in said(run("completion", "bash", "-q", "-v"))


def test_prompts_that_are_given_together_say_where(with_tokenizer: Path, options_file: Path) -> None:
    options_file.write_text("[run]\nprompt-ids = '1,2'\nprompt-file = 'x'\n")
    result = run("run", str(with_tokenizer), "--config", str(options_file))
    there = " ".join(f"--prompt-{name} comes from {options_file}." for name in ("file", "ids"))
    assert there in said(result)
