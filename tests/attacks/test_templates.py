"""Chat templates that would loop or fill memory end with an error."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from lucid_deploy.artifact import chat_process
from lucid_deploy.artifact.chat_process import chat_renderer
from lucid_deploy.bounded_process import Bounds
from lucid_deploy.errors import LucidError

ENDLESS = "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}"


def test_a_template_that_loops_or_fills_memory_gives_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``eval --apply-chat-template`` and ``chat`` render with the same class."""
    monkeypatch.setattr(chat_process, "Bounds", lambda: Bounds(0.5))
    template = (
        "{% if messages[0].content == 'loop' %}" + ENDLESS + "{% elif messages[0].content == 'memory' %}"
        "{{ 'x' * 10 ** 10 }}{% else %}{{ messages[0].content }}{% endif %}"
    )
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    render = chat_renderer(tmp_path)
    assert render is not None
    with render:
        with pytest.raises(LucidError, match=r"took more than 0\.5 s of processor time"):
            render([{"role": "user", "content": "loop"}])
        if sys.platform.startswith("linux"):
            with pytest.raises(LucidError, match="needed more than 256 MiB of memory"):
                render([{"role": "user", "content": "memory"}])
        assert render([{"role": "user", "content": "é"}]) == "é"
