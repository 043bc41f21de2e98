"""What the adapter for lm_eval is made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lucid_deploy.errors import LucidError
from lucid_deploy.evaluation.lm_eval_arguments import known_options, record_name


def test_options_of_the_runtime() -> None:
    assert known_options({"threads": 2, "kernels": "functions"}) == {"threads": 2, "kernels": "functions"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float16"}, "LucidLM takes no dtype; of a runtime it takes ablate, .*threads"),
        ({"pretrained": "x", "add_bos_token": True}, "takes no add_bos_token, pretrained"),
        ({"threads": "2"}, "threads must be a whole number or None, not '2'"),
    ],
)
def test_options_that_no_runtime_has_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(LucidError, match=message):
        known_options(options)


def test_a_records_name_goes_with_the_tokenizers_files(tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.json").write_text("{}")
    (tmp_path / "three" / "chat_template.jinja").write_text("x")
    names = [record_name(tmp_path / name) for name in ("one", "two", "three")]
    assert names[0] == names[1] != names[2]
    assert record_name(None) != record_name(None)
