"""RULER's documents, made on the spot by lm_eval's own generators with the model's own tokenizer.

lm_eval draws 500 documents for every task and length from one stream of random numbers. Here each task and length
starts from the seed again, and only the requested number of documents is made.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lucid_deploy.errors import LucidError, missing_extra
from lucid_deploy.evaluation.suites import SuiteTask
from lucid_deploy.evaluation.suites.documents import Haystack, Row, missing_data
from lucid_deploy.evaluation.task import TokenizerLike

DOCUMENTS = 500  # of a task at one length, as published
_EXAMPLE = 500  # tokens of the solved example of ruler_vt
_SPARE = 40  # tokens by which documents of equal shape differ, their answers included
SQUAD = "squad/dev-v2.0.json"
SQUAD_AT = "https://rajpurkar.github.io/SQuAD-explorer/dataset/dev-v2.0.json"
# Arguments that lm_eval's functions of these names pass to its generator of needles.
_NEEDLES: dict[str, dict[str, Any]] = {
    "niah_single_1": {"type_haystack": "repeat"},
    "niah_single_2": {"type_haystack": "essay"},
    "niah_single_3": {"type_haystack": "essay", "type_needle_v": "uuids"},
    "niah_multikey_1": {"type_haystack": "essay", "num_needle_k": 4},
    "niah_multikey_2": {"type_haystack": "needle"},
    "niah_multikey_3": {"type_haystack": "needle", "type_needle_k": "uuids", "type_needle_v": "uuids"},
    "niah_multivalue": {"type_haystack": "essay", "num_needle_v": 4},
    "niah_multiquery": {"type_haystack": "essay", "num_needle_q": 4},
}
_PUNKT = ("abbrev_types.txt", "collocations.tab", "ortho_context.tab", "sent_starters.txt")


@dataclass(frozen=True)
class _Tokens:
    """A tokenizer's answer as lm_eval's generators read it."""

    input_ids: list[int]


class Generators:
    """Makes documents of RULER's tasks.

    ``sentences`` says what splits the haystack: ``punkt_tab``, or NLTK's algorithm without its tables. ``data`` is a
    directory with ``nltk_data`` and SQuAD. Python's and NumPy's random numbers start from ``seed`` for each task.
    """

    def __init__(self, tokenizer: TokenizerLike, haystack: Haystack, data: Path | None, seed: int) -> None:
        self._tokenizer, self._haystack, self._data, self._seed = tokenizer, haystack, data, seed
        self.sentences = prepare_nltk(data)

    def _count(self, text: str) -> _Tokens:
        return _Tokens(self._tokenizer.encode(text))

    def documents(self, task: SuiteTask, count: int) -> list[Row]:
        """Return the first ``count`` documents of a task at its length."""
        assert isinstance(task.length, int)
        # lm_eval's generators print, and show bars
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            needed = self._least(task.task, task.length)
            if needed > task.length:
                raise LucidError(
                    f"{task.name}: the shortest document has about {needed} of this tokenizer's tokens, too many for "
                    f"{task.length}. Take longer --lengths, or leave the task out with --only."
                )
            random.seed(self._seed)
            np.random.seed(self._seed)
            try:
                rows = self._make(task, task.length, count)
            except (ValueError, IndexError) as error:
                raise LucidError(f"{task.name}: no document can be made: {error}") from error
        if not rows:
            raise LucidError(f"{task.name}: none of the documents fits in {task.length} tokens. Take longer --lengths.")
        return rows

    def _least(self, task: str, length: int) -> int:
        """Return the length of a task's shortest document: a generator never ends if none fits into the context."""
        from lm_eval.tasks.ruler import cwe_utils, fwe_utils, vt_utils

        if task == "ruler_vt":
            example = self._size(vt_utils.generate_input_output(5, 1, 4, is_icl=True)[0])
            whole = self._size(vt_utils.generate_input_output(10, 1, 4)[0]) + example
            return whole if example <= _EXAMPLE else max(example, length + 1)
        if task == "ruler_cwe":
            state = cwe_utils.RNG.getstate()  # the module's own random numbers, which documents are drawn from
            example, text, words = cwe_utils.generate_input_output(10, length)
            cwe_utils.RNG.setstate(state)
            return self._size(f"{example}\n{text} {' '.join(words)}") + 120
        return self._size(fwe_utils.TEMPLATE.format(context="", query="")) + 100 if task == "ruler_fwe" else 0

    def _size(self, text: str) -> int:
        return len(self._tokenizer.encode(text)) + _SPARE

    def _make(self, task: SuiteTask, length: int, count: int) -> list[Row]:
        from lm_eval.tasks.ruler import cwe_utils, fwe_utils, niah_utils, prepare_niah, qa_utils, vt_utils

        rows: list[Row]
        if task.task in _NEEDLES:
            settings = {"type_needle_k": "words", "type_needle_v": "numbers", **_NEEDLES[task.task]}
            if task.needles is not None:
                settings["num_needle_k"] = task.needles
            kind = settings["type_haystack"]
            hay = self._haystack.at_least(length) if kind == "essay" else prepare_niah.get_haystack(kind)
            rows = prepare_niah.generate_samples(
                hay,
                TOKENIZER=self._count,
                max_seq_length=length,
                template=niah_utils.TEMPLATE,
                num_samples=count,
                **settings,
            )
        elif task.task == "ruler_vt":
            example = vt_utils.sys_vartrack_w_noise_random(self._count, 1, _EXAMPLE, incremental=5)[0]
            rows = vt_utils.sys_vartrack_w_noise_random(self._count, count, length, icl_example=example)
        elif task.task == "ruler_cwe":
            rows = cwe_utils.sys_word_pair_random(count, length, self._count)
        elif task.task == "ruler_fwe":
            rows = fwe_utils.sys_kwext(self._count, length, count)
        else:
            questions, texts = self._squad()
            rows = qa_utils.generate_samples(self._count, texts, questions, length, min(count, len(questions)))
        return rows

    def _squad(self) -> tuple[list[Row], list[str]]:
        """Return SQuAD's questions and paragraphs in the form of lm_eval's ``read_squad``."""
        path = None if self._data is None else self._data / SQUAD
        if path is None or not path.is_file():
            from lm_eval.tasks.ruler.qa_utils import read_squad

            try:
                found: tuple[list[Row], list[str]] = read_squad()
                return found
            except OSError as error:  # requests' errors are
                raise missing_data("The questions of ruler_qa_squad", SQUAD, SQUAD_AT, "ruler", error) from error
        try:
            articles = [each["paragraphs"] for each in json.loads(path.read_text(encoding="utf-8"))["data"]]
            texts = sorted({part["context"] for parts in articles for part in parts})
            place = {text: number for number, text in enumerate(texts)}
            questions = [
                {
                    "query": question["question"],
                    "outputs": [answer["text"] for answer in question["answers"]],
                    "context": [place[part["context"]]],
                    "more_context": [place[other["context"]] for other in parts if other["context"] != part["context"]],
                }
                for parts in articles
                for part in parts
                for question in part["qas"]
                if not question["is_impossible"]
            ]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise LucidError(f"{path} is not SQuAD 2.0's development file: {error!r}.") from error
        return questions, texts


def prepare_nltk(data: Path | None) -> str:
    """Put tables for splitting sentences on NLTK's search path, and return what they are.

    lm_eval's module would download tables when it is imported. Where there are none, NLTK's algorithm gets empty ones,
    which it understands.
    """
    try:
        import nltk
        import wonderwords  # noqa: F401 (RULER's words)
    except ImportError as error:
        raise missing_extra(str(error.name), "eval", "make RULER's documents") from error
    if data is not None and (folder := str((data / "nltk_data").resolve())) not in nltk.data.path:
        nltk.data.path.insert(0, folder)
    with contextlib.suppress(LookupError):
        found = Path(nltk.data.find("tokenizers/punkt_tab/english"))
        return "punkt_tab" if (found / _PUNKT[0]).stat().st_size else "Punkt without tables"
    empty = Path(tempfile.mkdtemp(prefix="lucid-nltk-"))
    tables = empty / "tokenizers/punkt_tab/english"
    tables.mkdir(parents=True)
    for name in _PUNKT:
        (tables / name).touch()
    nltk.data.path.append(str(empty))
    return "Punkt without tables"
