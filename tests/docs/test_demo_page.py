"""The page of the bundled model shows the commands of ``make demo`` and the plugin of this version."""

from __future__ import annotations

import re
from pathlib import Path

from lucid_deploy.plugins.hosts.tensorrt.build import PLUGIN_ABI

ROOT = Path(__file__).resolve().parents[2]


def printed() -> str:
    page = (ROOT / "docs" / "demo-model.md").read_text(encoding="utf-8")
    return page.split("## What make demo prints", 1)[1].split("```text\n", 1)[1].split("```", 1)[0]


def test_its_commands_are_the_makefiles() -> None:
    makefile = re.sub(r"\\\n\s*", "", (ROOT / "Makefile").read_text(encoding="utf-8"))  # continued lines are one
    variables = dict(re.findall(r"^(\w+) [?:]?= (.*)$", makefile, re.MULTILINE))
    recipes = makefile.split("\ndemo: $(VENV)", 1)[1].split("\ndemo-engines:", 1)[0]
    recipes += makefile.split("\ndemo-build:", 1)[1].split("\n\n", 1)[0]
    commands = [line.strip() for line in recipes.splitlines() if line.startswith("\t$(BIN)/lucid-deploy")]
    while any("$(" in command for command in commands):
        commands = [re.sub(r"\$\((\w+)\)", lambda found: variables[found[1]], command) for command in commands]
    assert len(commands) == 5
    assert [line for line in printed().splitlines() if "/lucid-deploy" in line and line[0] == "."] == commands


def test_the_plugin_is_of_this_version() -> None:
    assert re.findall(r"ABI (\d+)", printed()) == [str(PLUGIN_ABI)]


def test_readme_shows_its_end() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = readme.split("`make demo` ends like this", 1)[1].split("```text\n", 1)[1].split("```", 1)[0]
    lines = [line for line in shown.splitlines() if not line.startswith("Prompt:")]  # which is shortened
    assert len(lines) == 3
    assert not set(lines) - set(printed().splitlines())
