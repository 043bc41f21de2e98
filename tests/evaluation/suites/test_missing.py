"""One line says where data are missing and what fetches them."""

from __future__ import annotations

from lucid_deploy.evaluation.suites.missing import missing_data


def test_one_line() -> None:
    text = str(
        missing_data("The documents", "a/b.jsonl", "someone/set", "longbench", OSError("no\nroute " + "x" * 500))
    )
    assert "\n" not in text and len(text) < 450
    assert "a/b.jsonl" in text and "someone/set (no route" in text and "fetch_suites.py longbench --output DIR" in text
