"""Objects that installed packages name under an entry point group."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lucid_deploy.errors import LucidError
from lucid_deploy.plug import entry_points, load_plugin

GROUP = "lucid_deploy.tested"
CODE = """
class Named(float):
    name = "first"

FIRST, OTHER, Class = Named(), Named(), Named
"""


class Install:
    """Makes packages that Python finds as installed ones."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, module: str, entry: str, code: str = CODE) -> None:
        (self._folder / f"{module}.py").write_text(code)
        facts = self._folder / f"{module}-1.0.dist-info"
        facts.mkdir()
        (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
        (facts / "entry_points.txt").write_text(f"[{GROUP}]\n{entry}\n")


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    monkeypatch.syspath_prepend(tmp_path)
    return Install(tmp_path)


def test_objects_are_loaded_by_group_and_name(install: Callable[..., None]) -> None:
    install("plugged_well", "first = plugged_well:FIRST\nlost = nowhere:LOST")
    import plugged_well

    assert set(entry_points(GROUP)) == {"first", "lost"}  # without loading any
    assert load_plugin(GROUP, "first", float, "thing") is plugged_well.FIRST
    assert load_plugin(GROUP, "third", float, "thing") is None
    assert load_plugin("lucid_deploy.unheard_of", "first", float, "thing") is None


@pytest.mark.parametrize(
    ("module", "entry", "code", "message"),
    [
        (
            "bad_module",
            "first = nowhere_at_all:X",
            CODE,
            "does not load: ModuleNotFoundError: No module named",
        ),
        (
            "bad_attribute",
            "first = bad_attribute:X",
            CODE,
            "does not load: AttributeError: module 'bad_attribute' has no attribute 'X'",
        ),
        ("bad_syntax", "first = bad_syntax:X", "def (", "does not load: SyntaxError: invalid syntax"),
        ("bad_import", "first = bad_import:X", "1/0", "does not load: ZeroDivisionError: division by zero"),
        ("bad_class", "first = bad_class:Class", CODE, "no thing: it must be an object of a subclass of float"),
        ("no_name", "first = no_name:X", "X = 1.0", "no thing: it must be .* whose name is first"),
        ("bad_name", "second = bad_name:FIRST", CODE, "no thing: it must be .* whose name is second"),
    ],
)
def test_an_object_that_cannot_be_used_gives_one_error_line(
    install: Callable[..., None], module: str, entry: str, code: str, message: str
) -> None:
    install(module, entry, code)
    with pytest.raises(LucidError, match=f"Thing .* of {module} .*{message}") as caught:
        load_plugin(GROUP, entry.split()[0], float, "thing")
    assert "\n" not in str(caught.value)


def test_two_packages_with_one_name_are_refused(install: Callable[..., None]) -> None:
    install("one_plug", "first = one_plug:FIRST")
    install("two_plug", "first = two_plug:FIRST")
    with pytest.raises(LucidError, match=r"Several packages bring a thing first: .*plug \(.*plug:FIRST\). Remove one"):
        load_plugin(GROUP, "first", float, "thing")
