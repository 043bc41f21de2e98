"""Every module of the product has a file of tests of its own, at the same path below ``tests``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.architecture.imports import FOLDERS, ROOT, modules

EXEMPT = ("__init__.py", "__main__.py")


def place_of_tests(path: Path) -> Path:
    """Return where a module's tests stand, below ``tests``; a private module's have no underscore in their name."""
    folder = next(folder for folder in FOLDERS if path.is_relative_to(ROOT / folder))
    below = Path() if folder == "lucid_deploy" else Path(folder)
    return below / path.relative_to(ROOT / folder).parent / f"test_{path.stem.lstrip('_')}.py"


MODULES = {name: path for name, path in modules().items() if path.name not in EXEMPT}


@pytest.mark.parametrize("name", MODULES)
def test_a_module_has_its_tests(name: str) -> None:
    assert (ROOT / "tests" / place_of_tests(MODULES[name])).is_file(), (
        f"{name} has no tests/{place_of_tests(MODULES[name])}"
    )


def test_no_two_modules_share_a_file() -> None:
    files = [place_of_tests(path) for path in MODULES.values()]
    assert len(files) == len(set(files)) > 200


@pytest.mark.parametrize(
    ("module", "tests"),
    [
        ("lucid_deploy/errors.py", "test_errors.py"),
        ("lucid_deploy/cli/_options.py", "cli/test_options.py"),
        ("export/passes/name_axes.py", "export/passes/test_name_axes.py"),
        ("plugins/hosts/triton/aot.py", "plugins/hosts/triton/test_aot.py"),
    ],
)
def test_where_tests_stand(module: str, tests: str) -> None:
    assert place_of_tests(ROOT / module) == Path(tests)
