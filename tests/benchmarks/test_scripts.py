"""Every benchmark script can say how it is used, so its imports and options hold together."""

from __future__ import annotations

import importlib
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

SCRIPTS = sorted(path.stem for path in (Path(__file__).parents[2] / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_imports_and_has_help(name: str) -> None:
    main = getattr(importlib.import_module(name), "main", None)
    if isinstance(main, click.Command):
        result = CliRunner().invoke(main, ["--help"])
        assert result.exit_code == 0 and result.output.startswith("Usage:")
