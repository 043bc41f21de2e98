"""What ``lucid-deploy completion`` prints makes a shell ask the program itself."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from click.testing import CliRunner

from lucid_deploy.cli import main


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_asks_by_the_variable_that_the_program_answers(shell: str) -> None:
    result = CliRunner().invoke(main, ["completion", shell])
    assert result.exit_code == 0 and f"_LUCID_DEPLOY_COMPLETE={shell}_complete" in result.stdout
    words = {"COMP_WORDS": "lucid-deploy insp", "COMP_CWORD": "insp" if shell == "fish" else "1"}
    variables = {**words, "_LUCID_DEPLOY_COMPLETE": f"{shell}_complete"}
    answer = CliRunner(env=variables).invoke(main, prog_name="lucid-deploy", standalone_mode=True)
    assert "inspect" in answer.stdout and "export" not in answer.stdout


def test_bash_can_read_it() -> None:
    if shutil.which("bash") is None:
        pytest.skip("needs bash")
    script = CliRunner().invoke(main, ["completion", "bash"]).stdout
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_another_shell_is_bad_usage() -> None:
    result = CliRunner().invoke(main, ["completion", "tcsh"])
    assert result.exit_code == 2 and "'tcsh' is not one of 'bash', 'zsh', 'fish'" in result.stderr
