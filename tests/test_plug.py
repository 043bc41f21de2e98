"""Objects that installed packages name under an entry point group."""

from __future__ import annotations

from pathlib import Path

import pytest

from lucid_deploy.plug import entry_points

GROUP = "lucid_deploy.tested"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install a package, as far as Python can tell, that names two objects and one that cannot be imported."""
    (tmp_path / "plugged_objects.py").write_text("FIRST, SECOND = object(), object()\n")
    facts = tmp_path / "plugged_objects-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: plugged-objects\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text(
        f"[{GROUP}]\nfirst = plugged_objects:FIRST\nsecond = plugged_objects:SECOND\n"
        "[lucid_deploy.other]\nfirst = plugged_objects:THIRD\n"
    )
    monkeypatch.syspath_prepend(tmp_path)


def test_objects_are_loaded_by_group_and_name(installed: None) -> None:
    import plugged_objects

    assert set(entry_points(GROUP)) == {plugged_objects.FIRST, plugged_objects.SECOND}
    assert entry_points(GROUP, "second") == [plugged_objects.SECOND]
    assert entry_points(GROUP, "third") == entry_points("lucid_deploy.unheard_of") == []


def test_what_cannot_be_loaded_is_no_silence(installed: None) -> None:
    with pytest.raises(AttributeError, match="THIRD"):
        entry_points("lucid_deploy.other", "first")


def test_nothing_is_loaded_that_was_not_asked_for(installed: None) -> None:
    assert entry_points("lucid_deploy.other", "second") == []
