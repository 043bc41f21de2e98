"""Tasks of lm-evaluation-harness are run by name; what cannot be run is refused first."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from lucid_deploy.errors import LucidError
from lucid_deploy.evaluation.harness import HarnessOptions, run_tasks


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"options": HarnessOptions(limit=0)}, "limit must be at least 1 document, not 0"),
        ({"options": HarnessOptions(seed=-1)}, "seed must be 0 or more, and below 2.32, not -1"),
        ({"include_path": Path("nowhere")}, "no tasks at nowhere: no such directory"),
    ],
)
def test_options_without_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(LucidError, match=message):
        run_tasks(None, None, ["anything"], **options)  # type: ignore[arg-type]


def test_without_lm_eval_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(LucidError, match=r'lm_eval is needed to .* pip install "lm[_-]eval'):
        run_tasks(None, None, ["anything"])  # type: ignore[arg-type]
