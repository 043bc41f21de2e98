"""What every command has: output options, near names of unknown ones, and where options come from."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.core import ParameterSource
from click.testing import CliRunner, Result

from lucid_deploy.artifact import Artifact, open_artifact
from lucid_deploy.cli import COMMANDS, main
from lucid_deploy.cli._config_file import read_defaults
from lucid_deploy.cli._console import console_err, console_out
from tests.patience import PATIENCE

Exported = Callable[..., tuple[Path, Artifact]]
COMMON = {"config", "quiet", "verbose", "no_color"}
WITHOUT_RESULTS = {"chat", "serve", "completion"}


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


@pytest.mark.parametrize(("name", "command"), ALL)
def test_every_command_has_the_options_of_all(name: str, command: click.Command) -> None:
    found = {item.name: item for item in command.params if isinstance(item, click.Option)}
    assert found.keys() >= COMMON
    if name in WITHOUT_RESULTS:
        return
    assert (found["json_target"].opts, found["json_target"].flag_value) == (["--json"], "-")


@pytest.mark.parametrize(("name", "command"), ALL)
def test_the_help_names_the_environment(name: str, command: click.Command) -> None:
    said = " ".join(run(*name.split(), "--help").stdout.split())
    if name != "completion":
        assert f"LUCID_DEPLOY_{name.upper().replace(' ', '_')}_" in said
    assert "--config FILE" in said


def context_above(name: str) -> click.Context:
    """The context of the program, or of the group that the command belongs to."""
    context = click.Context(main, info_name="lucid-deploy", auto_envvar_prefix="LUCID_DEPLOY")
    for group in name.split()[:-1]:
        context = click.Context(main.get_command(context, group) or main, context, info_name=group)
    return context


def sample(option: click.Option) -> str:
    """A value that the option takes and that is not its default."""
    if option.is_flag:
        return "false" if option.default is True else "true"
    choices = list(getattr(option.type, "choices", ()))
    for value in (*choices[::-1], "torch", "3", "0.5", "3,4"):
        try:
            taken = option.type.convert(value, option, None)
        except click.BadParameter:
            continue
        if taken != option.default:
            return value
    raise AssertionError(f"no value for {option.opts}")


@pytest.mark.parametrize(("name", "command"), ALL)
def test_every_option_is_set_by_the_environment_and_a_file_under_its_own_name(
    name: str, command: click.Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    above, last = context_above(name), name.split()[-1]
    file = tmp_path / "options.toml"
    for option in command.params:
        if not isinstance(option, click.Option):
            continue
        longest, common = max(option.opts, key=len), option.name in COMMON
        word, typed = sample(option), [longest]
        if option.is_flag:
            typed = [longest] if word == "true" else [option.secondary_opts[0]]
        else:
            typed.append(word)
        variable = f"{'' if common else name} {longest[2:]}".strip().upper().replace(" ", "_").replace("-", "_")
        wanted = command.make_context(last, typed, above, resilient_parsing=True)
        with monkeypatch.context() as patch:
            patch.setenv(f"LUCID_DEPLOY_{variable}", word)
            found = command.make_context(last, [], above, resilient_parsing=True)
        assert found.get_parameter_source(str(option.name)) is ParameterSource.ENVIRONMENT, variable
        assert found.params == wanted.params
        if not common:
            assert found.params[str(option.name)] not in (None, (), option.default), variable
        if option.name != "config":
            file.write_text(f"[{name.replace(' ', '.')}]\n{longest[2:]} = {word if option.is_flag else repr(word)}\n")
            defaults = read_defaults(str(file), found)
            found = command.make_context(last, [], above, resilient_parsing=True, default_map=defaults)
            assert found.params == wanted.params, longest


@pytest.mark.parametrize(
    ("line", "given", "meant"),
    [
        ("verify x", "LUCID_DEPLOY_VERIFY_PAGE", "LUCID_DEPLOY_VERIFY_REPORT"),
        ("verify x", "LUCID_DEPLOY_VERIFY_JSON_TARGET", "LUCID_DEPLOY_VERIFY_JSON"),
        ("bench x", "LUCID_DEPLOY_BENCH_PLOT_DIRECTORY", "LUCID_DEPLOY_BENCH_PLOT"),
        ("plugin build", "LUCID_DEPLOY_PLUGIN_BUILD_ARCHS", "LUCID_DEPLOY_PLUGIN_BUILD_ARCH"),
        ("run x", "LUCID_DEPLOY_RUN_PREFIX_TOKENS", "LUCID_DEPLOY_RUN_PREFIX_CACHE_TOKENS"),
        ("run x", "LUCID_DEPLOY_RUN_QUIET", "LUCID_DEPLOY_QUIET"),
    ],
)
def test_other_names_of_an_option_are_refused_with_its_own(line: str, given: str, meant: str) -> None:
    said = run(*line.split(), **{given: "1"})
    assert said.exit_code == 2 and f"{given} is no option of" in said.stderr
    assert said.stderr.endswith(f"Did you mean {meant}?\n")


def test_a_variable_named_after_an_argument_is_refused() -> None:
    said = run("inspect", "x", LUCID_DEPLOY_INSPECT_ARTIFACT="y")
    assert said.exit_code == 2 and "LUCID_DEPLOY_INSPECT_ARTIFACT is no option of" in said.stderr


def test_the_help_names_the_variable_of_an_option_s_own_name() -> None:
    said = " ".join(run("doctor", "--help").stdout.split())
    assert "as in LUCID_DEPLOY_DOCTOR_JSON for --json" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("exprot",), "No such command 'exprot'. Did you mean export?"),
        (("plugin", "biuld"), "No such command 'biuld'. Did you mean build?"),
        (("zzz",), "No such command 'zzz'.\n"),
        (("export", "demo", "--overwriet"), "'--overwrite'"),
    ],
)
def test_near_names(arguments: tuple[str, ...], said: str) -> None:
    result = run(*arguments)
    assert (result.exit_code, said in result.stderr) == (2, True), result.stderr


@pytest.mark.parametrize(("short", "full"), [("fp16", "float16"), ("bf16", "bfloat16"), ("fp32", "float32")])
def test_short_names_of_types(short: str, full: str) -> None:
    command = dict(ALL)["export"]
    assert command.make_context("export", ["demo", "-o", "x", "--dtype", short]).params["dtype"] == full
    assert run("export", "demo", "-o", "x", "--dtype", "half").exit_code == 2


@pytest.fixture
def seen(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The options that ``export`` was called with, in place of an export."""
    calls: list[Any] = []

    def export(_checkpoint: str, _output: str, options: Any, *_: Any) -> Artifact:
        calls.append((_output, options))
        return exported()[1]

    monkeypatch.setattr("lucid_deploy.export.export", export)
    return calls


def test_the_command_line_the_environment_and_a_file(seen: list[Any], tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(
        '[export]\noutput = "here"\ndtype = "bf16"\nlogits = "all"\ncache = "static"\nassume-unused = ["a", "b"]\n'
        "overwrite = true\nquantize = 'int8'\nblock_size = 64\n[run]\nstop = ['.']\n"
    )
    result = run("export", "demo", "--config", file, "--cache", "growing", LUCID_DEPLOY_EXPORT_LOGITS="last")
    assert result.exit_code == 0, result.stderr
    [(output, options)] = seen
    assert (output, options.dtype, options.overwrite) == ("here", "bfloat16", True)
    assert (options.cache, options.logits) == ("growing", "last")  # the command line's, and the environment's
    assert options.assume_unused == ("a", "b")
    assert (options.quantize.scheme, options.quantize.block_size) == ("int8", 64)
    run("export", "demo", LUCID_DEPLOY_CONFIG=str(file))
    assert seen[1][1].logits == "all"
    said = run("export", "demo", "-v", "--config", file, LUCID_DEPLOY_EXPORT_LOGITS="last").stderr
    assert f"--dtype is bfloat16, from {file}\n" in said
    assert "--logits is last, from the environment variable LUCID_DEPLOY_EXPORT_LOGITS\n" in said


def test_numbers_of_a_file_are_as_exact_as_words(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("[run]\nmax-new-tokens = 1.5\n")
    assert "run.max-new-tokens: '1.5' is not a valid integer." in run("run", "x", "--config", file).stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[exprot]\n", "exprot is no command; options stand in a table of one. Did you mean export?"),
        ("dtype = 'fp16'\n", "dtype is no command"),
        ("[export]\ndtpye = 'fp16'\n", "export has no option dtpye. Did you mean dtype?"),
        ("[export]\nconfig = 'x'\n", "export has no option config."),
        ("[export]\ndtype = 'half'\n", "export.dtype: 'half' is not one of 'float32', 'float16', 'bfloat16'."),
        ("[export]\ndtype = true\n", "export.dtype: must be a text or a number, not true."),
        ("[export]\ndtype = ['fp16']\n", "export.dtype: must be a text or a number, not a list."),
        ("[export]\noverwrite = 'yes'\n", 'export.overwrite: must be true or false, not "yes".'),
        ("[export]\nkeep-float = [[1]]\n", "export.keep-float: must be a text or a number, not a list."),
        ("export = 5\n", "export must be a table of options: [export]"),
        ("[export\n", "is not a TOML file: "),
        ("[plugin]\nbuild = 1\n", None),
    ],
)
def test_a_file_that_is_wrong_is_one_line(tmp_path: Path, text: str, said: str | None) -> None:
    file = tmp_path / "run.toml"
    file.write_text(text)
    if said is None:
        result, said = run("plugin", "build", "--config", file), "build must be a table: [plugin.build]"
    else:
        result = run("export", "demo", "-o", tmp_path / "artifact", "--config", file)
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1), result.stderr
    assert str(file) in result.stderr and said in result.stderr
    assert not (tmp_path / "artifact").exists()


def test_no_file_and_no_text(tmp_path: Path) -> None:
    assert "nothing.toml cannot be read: No such file" in run("doctor", "--config", tmp_path / "nothing.toml").stderr
    (tmp_path / "bytes").write_bytes(b"\xff")
    assert "is not a TOML file" in run("doctor", "--config", tmp_path / "bytes").stderr


def test_variables_that_are_no_options() -> None:
    said = run("inspect", "x", LUCID_DEPLOY_INSPECT_CONTXT="5")
    assert said.exit_code == 2
    assert "LUCID_DEPLOY_INSPECT_CONTXT is no option of" in said.stderr
    assert "Did you mean LUCID_DEPLOY_INSPECT_CONTEXT?" in said.stderr
    said = run("inspect", "x", LUCID_DEPLOY_INSPECT_CONTEXT="many")
    assert "It comes from the environment variable LUCID_DEPLOY_INSPECT_CONTEXT." in said.stderr


def test_the_manifest_records_the_options(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("[export]\ncache = 'static'\n")
    checkpoint, target = make_checkpoint(num_hidden_layers=1), tmp_path / "artifact"
    result = run("export", checkpoint, "-o", target, "--config", file, "-q", LUCID_DEPLOY_EXPORT_LOGITS="all")
    assert (result.exit_code, result.stderr) == (0, "")
    recorded = open_artifact(target).manifest.options
    assert (recorded["cache"], recorded["logits"], recorded["dtype"]) == ("static", "all", "float32")
    assert json.loads(run("inspect", target, "--json").stdout)["options"] == recorded
    assert not {"hub", "overwrite"} & recorded.keys()  # the first may hold a token


def test_quiet_keeps_results_and_errors(exported: Exported) -> None:
    artifact = exported()[1].directory
    asked = ("run", artifact, "--prompt-ids", "5,9", "-n", 3, "--ignore-eos", "--top-k", 3)
    loud, quiet = run(*asked), run(*asked, "-q")
    assert "Note: " in loud.stderr and " prompt tokens, " in loud.stderr
    assert (quiet.stderr, quiet.stdout) == ("", loud.stdout)
    assert "Error: " in run("run", artifact, "-q").stderr
    assert run("run", artifact, "-q", "-v").stderr == "Error: Give --quiet or --verbose, not both.\n"
    assert not console_err.quiet  # the next command of this process is not quiet


def test_verbose_says_where_an_error_was_raised(tmp_path: Path) -> None:
    said = run("inspect", tmp_path / "none", "--verbose").stderr
    assert said.startswith("Traceback") and "in read_manifest" in said
    assert said.splitlines()[-1].startswith("Error: There is no artifact at ")


@pytest.mark.parametrize(
    ("options", "environment"), [(("--no-color",), {}), ((), {"NO_COLOR": "1"}), ((), {}), ((), {"NO_COLOR": ""})]
)
def test_no_colours(options: tuple[str, ...], environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    colours: list[bool] = []
    monkeypatch.setattr("lucid_deploy.cli._console.write_json", lambda *_: colours.append(console_out.no_color))
    monkeypatch.setattr("lucid_deploy.doctor.diagnosis.CHECKS", ())
    monkeypatch.setattr("lucid_deploy.doctor.gpu.CHECKS", ())
    run("doctor", "--json", *options, **{"NO_COLOR": "", **environment})
    assert colours == [bool(options) or environment.get("NO_COLOR") == "1"]


def test_json_means_the_same_everywhere(exported: Exported, tmp_path: Path) -> None:
    artifact, target = exported()[1].directory, tmp_path / "facts.json"
    asked = ("run", artifact, "--prompt-ids", "5,9", "-n", 3, "--ignore-eos")
    text = run(*asked).stdout
    beside = run(*asked, "--json", target)
    alone, dash = run(*asked, "--json"), run(*asked, "--json", "-")
    assert beside.stdout == text
    ids = json.loads(target.read_text())["ids"]
    assert ids == json.loads(alone.stdout)["ids"] == json.loads(dash.stdout)["ids"]
    assert json.loads(run("inspect", artifact, "--json").stdout)["artifact"] == str(artifact)


def test_a_prompt_from_a_file(with_tokenizer: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text("w5 w9 w2\n")
    asked = ("run", with_tokenizer, "-n", 3, "--ignore-eos", "--json")
    assert (
        run(*asked, "--prompt-file", file).stdout.splitlines()[:4]
        == (run(*asked, "--prompt", "w5 w9 w2").stdout.splitlines()[:4])
    )
    assert "Give the prompt once" in run(*asked, "--prompt-file", file, "--prompt", "w5").stderr
    assert "none.txt cannot be read: No such file" in run(*asked, "--prompt-file", tmp_path / "none.txt").stderr
    file.write_bytes(b"w5 \xff")
    assert "The prompt is not valid UTF-8 text" in run(*asked, "--prompt-file", file).stderr


def test_run_help_describes_the_file_of_prompts_where_it_says() -> None:
    said = " ".join(run("run", "--help").stdout.split())
    above, below = said.split("Options:")
    assert "see below" not in said and "as described above" in below
    assert '"prompt" or "prompt_ids"' in above


@pytest.mark.parametrize(("shell", "words"), [("bash", "complete -o"), ("zsh", "compdef"), ("fish", "complete --no")])
def test_completion_prints_a_script(shell: str, words: str) -> None:
    said = run("completion", shell).stdout
    assert words in said and "_LUCID_DEPLOY_COMPLETE" in said


def test_the_script_asks_for_what_can_come_next() -> None:
    def complete(*words: str) -> list[str]:
        asked = {"_LUCID_DEPLOY_COMPLETE": "bash_complete", "COMP_WORDS": " ".join(words), "COMP_CWORD": "1"}
        code = "from lucid_deploy.cli import main; main(prog_name='lucid-deploy')"
        asked["COMP_CWORD"] = str(len(words) - 1)
        command = [sys.executable, "-c", code]
        done = subprocess.run(
            command, env={**os.environ, **asked}, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        return [line.partition(",")[2] for line in done.stdout.splitlines()]

    assert complete("lucid-deploy", "ex") == ["export"]
    assert complete("lucid-deploy", "export", "--dt") == ["--dtype"]
    assert complete("lucid-deploy", "export", "--dtype", "fl") == ["float32", "float16"]


@pytest.mark.parametrize(
    "number", [errno.EIO, errno.ESTALE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG], ids=errno.errorcode.get
)
def test_a_disk_that_fails_is_one_line_also_where_no_file_is_named(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    @click.command("any")
    def command() -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(main, "get_command", lambda *_: command)
    result = run("any")
    assert result.exit_code == 2 and os.strerror(number) in result.stderr and result.stderr.count("\n") == 1
