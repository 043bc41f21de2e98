"""RULER's documents, made on the spot by lm_eval's own generators with the model's own tokenizer.

lm_eval draws 500 documents for every task and length from one stream of random numbers, so that what a task asks
depends on which tasks came before it. Here each task and length starts from the seed again: as many documents as are
wanted, equal whatever else is run, and equal to lm_eval's where it runs one task at one length.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from lucid_deploy.errors import LucidError, missing_extra
from lucid_deploy.evaluation.suites.haystack import Haystack
from lucid_deploy.evaluation.suites.missing import missing_data
from lucid_deploy.evaluation.suites.needle_words import import_needles
from lucid_deploy.evaluation.suites.settings import SuiteTask
from lucid_deploy.evaluation.task import TokenizerLike

Row = dict[str, Any]
DOCUMENTS = 500  # of a task at one length, as published
_EXAMPLE = 500  # tokens of the solved example of ruler_vt
_SPARE = 40  # tokens by which documents of equal shape differ, their answers included
SQUAD = "squad/dev-v2.0.json"
SQUAD_AT = "https://rajpurkar.github.io/SQuAD-explorer/dataset/dev-v2.0.json"

# What lm_eval's functions of these names pass to its generator of needles.
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


@dataclass(frozen=True)
class _Tokens:
    """What lm_eval's generators take of a tokenizer's answer."""

    input_ids: list[int]


class Generators:
    """Makes documents of RULER's tasks.

    Attributes:
        sentences: What splits the haystack into sentences: ``punkt_tab``, or NLTK's algorithm without its tables.

    Args:
        tokenizer: Measures lengths.
        haystack: What needles are hidden in.
        data: Where data lie: ``nltk_data`` and SQuAD.
        seed: Of Python's and NumPy's random numbers, for each task and length anew.

    Raises:
        LucidError: A package of the extra eval is not installed.
    """

    def __init__(self, tokenizer: TokenizerLike, haystack: Haystack, data: Path | None, seed: int) -> None:
        self._haystack, self._data, self._seed = haystack, data, seed
        self._count: Callable[[str], _Tokens] = lambda text: _Tokens(tokenizer.encode(text))
        self.sentences = import_generators(data)

    def documents(self, task: SuiteTask, count: int) -> list[Row]:
        """Return the first ``count`` documents of a task at its length.

        Raises:
            LucidError: The length leaves no room for the task, or SQuAD cannot be read.
        """
        assert isinstance(task.length, int)
        if needed := self._least(task.task, task.length):
            raise LucidError(
                f"{task.name}: the shortest document has about {needed} of this tokenizer's tokens, too many for "
                f"{task.length}. Take longer --lengths, or leave the task out with --only."
            )
        random.seed(self._seed)
        np.random.seed(self._seed)
        try:
            with _quietly(), self._split_sentences():
                return self._make(task, task.length, count)
        except (ValueError, IndexError) as error:
            raise LucidError(f"{task.name}: no document can be made: {error}") from error

    def _least(self, task: str, length: int) -> int:
        """Return how long the shortest document is if it does not fit, else 0.

        lm_eval's own generators of three tasks would try for ever.
        """
        from lm_eval.tasks.ruler import cwe_utils, fwe_utils, vt_utils

        def tokens(text: str) -> int:
            return len(self._count(text).input_ids) + _SPARE

        if task == "ruler_vt":
            example = tokens(vt_utils.generate_input_output(5, 1, 4, is_icl=True)[0])
            whole = tokens(vt_utils.generate_input_output(10, 1, 4)[0]) + example
            return example if example > _EXAMPLE else whole * (whole > length)
        if task == "ruler_cwe":
            example_text, text, words = cwe_utils.generate_input_output(10, length)
            least = tokens(f"{example_text}\n{text} {' '.join(words)}") + 120
        elif task == "ruler_fwe":
            least = tokens(fwe_utils.TEMPLATE.format(context="", query="")) + 100
        else:
            return 0
        return least * (least > length)

    def _make(self, task: SuiteTask, length: int, count: int) -> list[Row]:
        from lm_eval.tasks.ruler import cwe_utils, fwe_utils, qa_utils, vt_utils

        rows: list[Row]
        if task.task in _NEEDLES:
            return self._needles(task, length, count)
        if task.task == "ruler_vt":
            example = vt_utils.sys_vartrack_w_noise_random(self._count, 1, _EXAMPLE, incremental=5)[0]
            rows = vt_utils.sys_vartrack_w_noise_random(self._count, count, length, icl_example=example)
        elif task.task == "ruler_cwe":
            cwe_utils.RNG.setstate(_state_after_shuffling(len(cwe_utils.WORDS)))
            rows = cwe_utils.sys_word_pair_random(count, length, self._count)
        elif task.task == "ruler_fwe":
            rows = fwe_utils.sys_kwext(self._count, length, count)
        else:
            questions, texts = self._squad()
            rows = qa_utils.generate_samples(self._count, texts, questions, length, min(count, len(questions)))
        return rows

    def _needles(self, task: SuiteTask, length: int, count: int) -> list[Row]:
        from lm_eval.tasks.ruler import niah_utils, prepare_niah

        settings = {"type_needle_k": "words", "type_needle_v": "numbers", **_NEEDLES[task.task]}
        if task.needles is not None:
            settings["num_needle_k"] = task.needles
        essay = settings["type_haystack"] == "essay"
        hay = self._haystack.at_least(length) if essay else prepare_niah.get_haystack(settings["type_haystack"])
        rows: list[Row] = prepare_niah.generate_samples(
            hay,
            TOKENIZER=self._count,
            max_seq_length=length,
            template=niah_utils.TEMPLATE,
            num_samples=count,
            **settings,
        )
        return rows

    @contextlib.contextmanager
    def _split_sentences(self) -> Iterator[None]:
        from lm_eval.tasks.ruler import prepare_niah
        from nltk.tokenize.punkt import PunktSentenceTokenizer

        prepare_niah.cached_sent_tokenize.cache_clear()
        if self.sentences == "punkt_tab":
            yield
            return
        with patch.object(prepare_niah, "sent_tokenize", PunktSentenceTokenizer().tokenize):
            yield

    def _squad(self) -> tuple[list[Row], list[str]]:
        """Return SQuAD's questions and paragraphs as lm_eval reads them, from the data where they are there."""
        from lm_eval.tasks.ruler import qa_utils

        path = None if self._data is None else self._data / SQUAD
        try:
            if path is None or not path.is_file():
                return qa_utils.read_squad()
            content = json.loads(path.read_text(encoding="utf-8"))
            with patch.object(qa_utils, "download_json", lambda _url: content):
                return qa_utils.read_squad.__wrapped__()
        except (OSError, ValueError, KeyError, TypeError) as error:
            if path is not None and path.is_file():
                raise LucidError(f"{path} is not SQuAD 2.0's development file: {error!r}.") from error
            raise missing_data("The questions of ruler_qa_squad", SQUAD, SQUAD_AT, "ruler") from error


def import_generators(data: Path | None) -> str:
    """Import lm_eval's generators without its download of NLTK's tables; return what splits sentences.

    Raises:
        LucidError: A package of the extra eval is not installed.
    """
    try:
        import nltk
        import wonderwords  # noqa: F401 (RULER's words)
    except ImportError as error:
        raise missing_extra(str(error.name), "eval", "make RULER's documents") from error
    folder = None if data is None else str((data / "nltk_data").resolve())
    if folder is not None and folder not in nltk.data.path:
        nltk.data.path.insert(0, folder)
    try:
        nltk.data.find("tokenizers/punkt_tab")
        found = "punkt_tab"
    except LookupError:
        found = "Punkt without tables"
    # Without its tables, lm_eval's module tries to download them whenever it is imported, and goes on without.
    with patch.object(nltk, "download", lambda *_names, **_options: False), _quietly():
        import_needles()
        from lm_eval.tasks.ruler import cwe_utils, fwe_utils, niah_utils, qa_utils, vt_utils  # noqa: F401
    return found


def _state_after_shuffling(words: int) -> tuple[Any, ...]:
    """Return the state in which importing ``cwe_utils`` leaves its own generator of random numbers."""
    fresh = random.Random(42)
    fresh.shuffle(list(range(words)))
    return fresh.getstate()


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keep what lm_eval's generators print and their bars off the terminal."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
