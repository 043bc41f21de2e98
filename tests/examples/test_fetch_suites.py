"""examples/fetch_suites.py writes what ``--data`` reads."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from lucid_deploy.evaluation.suites import plan
from lucid_deploy.evaluation.suites.documents import open_haystack, read_documents

pytest.importorskip("datasets")
SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "fetch_suites.py"
ROW = {
    name: name for name in ("context", "question", "answers", "all_classes", "input", "target", "id", "pid", "output")
}


def test_what_is_fetched_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import nltk

    asked = []

    def load(*arguments: Any, **options: Any) -> Any:
        asked.append((arguments, options))
        return datasets.Dataset.from_list([{**ROW, "text": "An essay."}])

    squad = tmp_path / "squad.json"
    squad.write_text("{}")
    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(nltk, "download", lambda *_names, **_options: True)
    spec = importlib.util.spec_from_file_location("fetch_suites", SCRIPT)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(script, "SQUAD_AT", squad.as_uri())
    words = ["ruler", "longbench", "scrolls", "babilong", "--output", str(tmp_path / "data"), "--lengths", "0k"]
    monkeypatch.setattr(sys, "argv", ["fetch_suites.py", *words])
    script.main()
    count = len(asked)
    for task in (*plan("longbench"), *plan("scrolls"), *plan("babilong", [0])):
        assert len(read_documents(task, tmp_path / "data")) == 1
    assert open_haystack("essays", tmp_path / "data").words == ("An", "essay.")
    assert (tmp_path / "data/squad/dev-v2.0.json").read_text() == "{}"
    script.main()  # everything is there
    assert len(asked) == count == 1 + 4 + 2 + 10
