"""What tests share is made once, and made again where making it failed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.once_per_run import made_once


def test_it_is_made_once_per_key(tmp_path: Path) -> None:
    made: list[Path] = []
    folders = [made_once(tmp_path, key, made.append) for key in ("a", "b", "a")]
    assert folders[0] == folders[2] != folders[1]
    assert made == folders[:2]


def test_what_failed_is_made_again_in_an_empty_folder(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise OSError

    with pytest.raises(OSError):
        made_once(tmp_path, "a", fail)
    folder = made_once(tmp_path, "a", lambda folder: (folder / "whole").touch())
    assert (folder / "whole").is_file() and not (folder / "half").exists()
