"""lm_eval's own tasks are read once; those of others are read each time, and take their place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.remembered_tasks import remembering

pytest.importorskip("lm_eval")


def test_its_own_folder_is_read_once(tmp_path: Path) -> None:
    import lm_eval.tasks

    bundled, other = Path(lm_eval.tasks.__file__).parent, tmp_path / "other"
    asked: list[Path] = []

    def build(paths: list[Path], **options: Any) -> dict[str, Any]:
        asked.extend(paths)
        return {"both": paths[0], paths[0].name: options}

    for first in (True, False):  # another worker reads what the first one has written
        build_again = remembering(build, tmp_path)
        for _ in range(2):
            assert build_again([bundled]) == {"both": bundled, "tasks": {}}
            assert build_again([bundled, other]) == {"both": other, "tasks": {}, "other": {}}
        assert asked == ([bundled] if first else []) + [other, other]
        asked.clear()
    assert build_again([bundled], resolve_includes=False)["tasks"] == {"resolve_includes": False}
    assert asked == [bundled]
