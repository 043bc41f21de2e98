"""The operators' Triton functions, and the sources that compiled code depends on."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from lucid_deploy.errors import LucidError
from lucid_deploy.plugins.hosts.triton.kernel_functions import SOURCES, kernel_functions

PLUGINS = Path(__file__).resolve().parents[4] / "plugins"
PREFIX = "lucid_deploy.plugins."


def with_imports(source: str) -> set[str]:
    """Return a source and all of ours that it imports, as paths below the plugins."""
    tree = ast.parse((PLUGINS / source).read_text())
    wanted = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    ours = [module.removeprefix(PREFIX).replace(".", "/") + ".py" for module in wanted if module.startswith(PREFIX)]
    return {source}.union(*map(with_imports, ours))


def test_every_source_of_the_kernels_is_listed() -> None:
    """Kernels would not be compiled again after a change of a file that is missing in the list."""
    kernels = [path.relative_to(PLUGINS).as_posix() for path in PLUGINS.glob("*/kernel.py")]
    assert len(kernels) > 3
    assert set(SOURCES) == set().union(*map(with_imports, kernels))


def test_a_missing_triton_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(PREFIX) and name.endswith(".kernel")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(LucidError, match=r'triton is needed to test it .*Run: pip install "triton'):
        kernel_functions("test it")
