"""What an export learns from: whole rows of the right text, chosen the same way each time; or one line says why not."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.errors import LucidError
from lucid_deploy.export.calibration import calibration_rows, held_out_rows, read_tokens
from lucid_deploy.model.checkpoint import DEMO, Checkpoint, resolve
from tests.number_words import write_number_words, write_numbers

LINE = "fox has red lamp, owl has blue cup. fox has red lamp"


def test_text_is_read_by_the_checkpoints_tokenizer(tmp_path: Path) -> None:
    path, demo = tmp_path / "text", Checkpoint(DEMO)
    path.write_text(f"{LINE}\n\n{LINE} .\n", encoding="utf-8")
    tokenizer = TextTokenizer(resolve(DEMO))
    wanted = tokenizer.encode(path.read_text())
    assert read_tokens(demo, path).tolist() == wanted
    found = calibration_rows(demo, path, most=1000)
    assert found.rows[0].tolist() == [wanted]
    assert found.facts == {
        "file": "text",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "tokens": found.tokens,
        "rows": 1,
        "row_tokens": 512,
        "seed": 0,
        "held_out": [],
    }


def test_rows_of_a_long_file_are_drawn(tmp_path: Path, make_checkpoint: Any) -> None:
    checkpoint = Checkpoint(make_checkpoint())
    write_number_words(checkpoint.directory, 97)
    ids = np.random.default_rng(1).integers(0, 97, 512 * 9 + 5)
    path = write_numbers(tmp_path / "text", np.array_split(ids, 13))
    whole = [ids[start : start + 512].tolist() for start in range(0, len(ids), 512)]
    few = calibration_rows(checkpoint, path, most=1536)
    (rows,) = few.rows
    assert rows.shape == (3, 512) and few.facts["tokens"] == 1536
    cut = calibration_rows(checkpoint, path, most=1500)
    assert [part.shape for part in cut.rows] == [(2, 512), (1, 476)] and cut.tokens == cut.facts["tokens"] == 1500
    assert np.array_equal(cut.rows[0], rows[:2]) and np.array_equal(cut.rows[1][0], rows[2][:476])
    places = [whole.index(row.tolist()) for row in rows]
    assert places == sorted(set(places)) and max(places) > 2, "not the first rows only, and none twice"
    again = calibration_rows(checkpoint, path, most=1536)
    assert np.array_equal(again.rows[0], rows)
    every = calibration_rows(checkpoint, path, most=10**6)
    assert every.tokens == len(ids) - 512 and [part.shape for part in every.rows] == [(8, 512), (1, 5)]
    (kept,) = held_out_rows(checkpoint, path, every.facts)
    learned = [row.tolist() for part in every.rows for row in part]
    assert sorted([kept.tolist(), *learned]) == sorted(whole), "one row in eight is never learned from"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty", b" \n", "has no text"),
        ("binary", b"\xff\xfe\x00", "no UTF-8"),
        ("missing", None, "cannot be read"),
    ],
)
def test_bad_text_is_named(name: str, content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(LucidError, match=message) as caught:
        calibration_rows(Checkpoint(DEMO), tmp_path / name, 1000)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path, make_checkpoint: Any) -> None:
    """The small checkpoint's vocabulary ends just before the largest token of the text."""
    import shutil

    largest = max(TextTokenizer(resolve(DEMO)).encode(LINE))
    directory = make_checkpoint(vocab_size=largest)
    (tmp_path / "text").write_text(LINE)
    with pytest.raises(LucidError, match=r"no tokenizer\.json to read --calibration with"):
        calibration_rows(Checkpoint(directory), tmp_path / "text", 1000)
    shutil.copy(resolve(DEMO) / "tokenizer.json", directory)
    with pytest.raises(
        LucidError, match=rf"id {largest}, outside the vocabulary \(0 to {largest - 1}\): the tokenizer is"
    ):
        calibration_rows(Checkpoint(directory), tmp_path / "text", 1000)
