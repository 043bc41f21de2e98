"""lm_eval's list of its own tasks, read once per test run: it names 14,000, and reading their files takes seconds."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.once_per_run import made_once, run_folder

Entries = dict[str, Any]


def remembering(build: Callable[..., Entries], root: Path) -> Callable[..., Entries]:
    """Return ``TaskIndex.build`` of lm_eval, which reads the folder of lm_eval's own tasks once and keeps it in a file.

    Folders of others are read each time, and their tasks take the place of lm_eval's, as they do there.
    """

    @functools.cache
    def own(folder: Path) -> Entries:
        def make(at: Path) -> None:
            (at / "tasks").write_bytes(pickle.dumps(build([folder])))

        return pickle.loads((made_once(root, str(folder), make) / "tasks").read_bytes())

    def remembered(paths: Iterable[Path], **options: Any) -> Entries:
        import lm_eval.tasks

        bundled, found = Path(lm_eval.tasks.__file__).parent, {}
        for path in paths:
            found.update(own(path) if path == bundled and not options else build([path], **options))
        return found

    return remembered


@pytest.fixture(scope="session")
def remembered_tasks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Make lm_eval remember its tasks."""
    from lm_eval.tasks.manager import TaskIndex

    with pytest.MonkeyPatch.context() as patch:
        build = remembering(TaskIndex.build, run_folder(tmp_path_factory, "lm_eval_tasks"))
        patch.setattr(TaskIndex, "build", staticmethod(build))
        yield
