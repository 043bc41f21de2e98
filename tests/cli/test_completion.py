"""What ``lucid-deploy completion`` prints makes a shell ask the program itself."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from lucid_deploy.cli import COMMANDS, main
from tests.patience import PATIENCE


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_asks_by_the_variable_that_the_program_answers(shell: str) -> None:
    result = CliRunner().invoke(main, ["completion", shell])
    assert result.exit_code == 0 and f"_LUCID_DEPLOY_COMPLETE={shell}_complete" in result.stdout
    words = {"COMP_WORDS": "lucid-deploy insp", "COMP_CWORD": "insp" if shell == "fish" else "1"}
    variables = {**words, "_LUCID_DEPLOY_COMPLETE": f"{shell}_complete"}
    answer = CliRunner(env=variables).invoke(main, prog_name="lucid-deploy", standalone_mode=True)
    assert "inspect" in answer.stdout and "export" not in answer.stdout


def _offered(words: str, monkeypatch: pytest.MonkeyPatch) -> str:
    asked = f"lucid-deploy {words}"
    monkeypatch.setenv("COMP_WORDS", asked)
    monkeypatch.setenv("COMP_CWORD", str(len(asked.split()) - 1))
    monkeypatch.setenv("_LUCID_DEPLOY_COMPLETE", "bash_complete")
    return CliRunner().invoke(main, prog_name="lucid-deploy").output


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("run ./de", "file,./de"),
        ("run demo --prompt-file pro", "file,pro"),
        ("run demo --json out", "file,out"),
        ("run demo --draft sma", "dir,sma"),
        ("export ./check", "dir,./check"),
        ("run demo --runtime onn", "plain,onnxruntime"),
    ],
)
def test_names_of_files_are_left_to_the_shell(words: str, offered: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert offered in _offered(words, monkeypatch).splitlines()


def test_every_option_that_names_a_file_is_completed() -> None:
    lacking = []
    for name in COMMANDS:
        command = main.get_command(click.Context(main), name)
        for each in command.commands.values() if isinstance(command, click.Group) else [command]:
            for item in each.params:
                said = (item.metavar or "").strip("[]") in ("FILE", "DIR", "ARTIFACT") or item.name == "artifact"
                if said and item.shell_complete(click.Context(each), "x")[0].type not in ("file", "dir"):
                    lacking.append(f"{name} {item.opts}")
    assert lacking == []


def test_a_variable_that_is_no_option_does_not_hinder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUCID_DEPLOY_RUN_FOO", "1")
    assert _offered("run demo --runt", monkeypatch) == "plain,--runtime\n"


def _bash_completes(words: list[str], folder: Path) -> list[str]:
    """Return what bash does for its words, of which the last is completed: calls of compopt, then the candidates."""
    if shutil.which("bash") is None:
        pytest.skip("needs bash")
    program = "from lucid_deploy.cli import main; main(prog_name='lucid-deploy')"
    (folder / "lucid-deploy").write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{program}"\n')
    (folder / "lucid-deploy").chmod(0o755)
    script = CliRunner().invoke(main, ["completion", "bash"]).stdout
    asked = f"""
        compopt() {{ local IFS=" "; echo "compopt $*"; }}  # bash has it while readline completes
        COMP_WORDS=({shlex.join(words)}) COMP_CWORD={len(words) - 1}
        _lucid_deploy_completion lucid-deploy {shlex.join(words[:-3:-1])}
        printf "%s\\n" "${{COMPREPLY[@]}}"
    """
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    line = ["bash", "-c", script + asked]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=True, timeout=PATIENCE)
    return done.stdout.split("\n")[:-1]


@pytest.mark.parametrize("between", [[], ["="]])
@pytest.mark.parametrize(("option", "how"), [("--prompt-file", "default"), ("--draft", "dirnames")])
def test_bash_takes_names_of_files_from_readline(option: str, how: str, between: list[str], tmp_path: Path) -> None:
    words = ["lucid-deploy", "run", "demo", option, *between, "pro"]
    assert _bash_completes(words, tmp_path) == [f"compopt -o {how}", ""]


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("--speculate = lo", ["lookup"]),
        ("--speculate =", ["draft", "lookup", "off"]),
        ("--runtime = torch --speculate = lo", ["lookup"]),
        ("--runtime = torch de", ["compopt -o default", ""]),  # torch is no artifact
    ],
)
def test_bash_completes_values_behind_an_equals_sign(words: str, offered: list[str], tmp_path: Path) -> None:
    """At "=", bash takes words apart, and puts what is offered behind it."""
    assert sorted(_bash_completes(["lucid-deploy", "run", *words.split()], tmp_path)) == sorted(offered)


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_values_behind_an_equals_sign_come_alone_and_the_scripts_keep_the_option(shell: str) -> None:
    """zsh and fish complete the whole word: one is told to leave the option's part, the other gets it again."""
    word = "--speculate=lo"
    asked = {"COMP_WORDS": f"lucid-deploy run {word}", "COMP_CWORD": word if shell == "fish" else "2"}
    answer = CliRunner(env={**asked, "_LUCID_DEPLOY_COMPLETE": f"{shell}_complete"}).invoke(
        main, prog_name="lucid-deploy"
    )
    assert answer.stdout.split("\n") == (["plain,lookup", ""] if shell == "fish" else ["plain", "lookup", "_", ""])
    script = CliRunner().invoke(main, ["completion", shell]).stdout
    if shell == "fish":
        assert script.count('printf "$before%s\\n"') == 3 and "'^--[^=]+=' (commandline -ct)" in script
        return
    left, offers = script.index("[[ $PREFIX == --*=* ]] && compset -P 1 '*='"), ("_path_files", "_describe", "compadd")
    assert all(left < script.index(each) for each in offers)
    assert " -U" not in script  # with it, what is offered takes the place of the whole word


def test_bash_can_read_it() -> None:
    if shutil.which("bash") is None:
        pytest.skip("needs bash")
    script = CliRunner().invoke(main, ["completion", "bash"]).stdout
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_another_shell_is_bad_usage() -> None:
    result = CliRunner().invoke(main, ["completion", "tcsh"])
    assert result.exit_code == 2 and "'tcsh' is not one of 'bash', 'zsh', 'fish'" in result.stderr
