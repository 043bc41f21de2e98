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
