"""The words of RULER's needles, put in order in 2 seconds where lm_eval's module takes 9 when it is imported."""

from __future__ import annotations

import importlib.util
import itertools
import sys
from collections.abc import Iterable

MODULE = "lm_eval.tasks.ruler.prepare_niah"


def import_needles() -> None:
    """Import lm_eval's generator of needles; its ``WORDS`` are those that it makes itself.

    It sorts a set of six million pairs of words, which forgets that their list is nearly in order: that takes
    8 of the 9 seconds. Sorting them first and then leaving out what is there twice gives the same list.
    """
    if MODULE in sys.modules:
        return
    spec = importlib.util.find_spec(MODULE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    module.__dict__["set"] = _in_order
    sys.modules[MODULE] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[MODULE]
        raise
    del module.__dict__["set"]


def _in_order(words: Iterable[str]) -> list[str]:
    """Return each word once, in ascending order."""
    return [word for word, _ in itertools.groupby(sorted(words))]
