"""What a request of lm_eval says about generation, and by which rules its texts become token ids and answers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from lucid_deploy.errors import LucidError
from lucid_deploy.generation.sampling import Sampling

# The number of the rules by which the adapter makes token ids of texts, and answers of token ids. Count it up when they
# change, so that answers kept by older ones are not gone on with.
RULES = 3
TOP_K = 50  # transformers' where nobody says another, and so that of lm_eval's ``HFLM``
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # the first one given counts
_NUMBERS: dict[str, type] = {"temperature": float, "top_k": int, "top_p": float, "seed": int}


class _Default(Protocol):
    max_gen_toks: int


def read_options(options: dict[str, Any], default: _Default) -> tuple[list[str], int, Sampling]:
    """Return stop sequences, most tokens and sampling of a request's generation options.

    Args:
        options: As lm_eval gives them.
        default: Has ``max_gen_toks``, which counts where the options say nothing.

    Raises:
        LucidError: An option that is not known, or a value that makes no sense.
    """
    if unknown := sorted(set(options) - {"until", "do_sample", *_LENGTHS, *_NUMBERS}):
        raise LucidError(f"The task asks for generation options that are not supported: {', '.join(unknown)}.")
    given = {name: value for name, value in options.items() if value is not None}
    length = next((name for name in _LENGTHS if name in given), None)
    most = default.max_gen_toks if length is None else _number(length, given[length], int)
    return _ends(given.get("until", [])), most, _sampling(given)


def cut_at(text: str, ends: Iterable[str]) -> str:
    """Return a text up to its stop sequences, as lm_eval cuts it: at each in turn, of what the ones before have left.

    So of ``"The"`` with ``["e", "he"]`` the rest is ``"Th"``, in which ``"he"`` no longer occurs.
    """
    for end in ends:
        text = text.split(end)[0]
    return text


def _ends(until: Any) -> list[str]:
    ends = until if isinstance(until, list | tuple) else [until]
    if wrong := [end for end in ends if not isinstance(end, str)]:
        raise LucidError(f"The task's until must be texts that end an answer, not {wrong[0]!r}.")
    return [end for end in ends if end]


def _sampling(given: dict[str, Any]) -> Sampling:
    numbers = {name: _number(name, given[name], kind) for name, kind in _NUMBERS.items() if name in given}
    temperature, drawn = numbers.get("temperature", 0.0), given.get("do_sample")
    if not isinstance(drawn, bool | None):
        raise LucidError(f"The task's do_sample must be true or false, not {drawn!r}.")
    if drawn and temperature <= 0:
        raise LucidError(
            f"The task samples (do_sample) at temperature {temperature:g}: it must be above 0. Set a temperature, or "
            "do_sample to false for the likeliest tokens."
        )
    if not (temperature > 0 if drawn is None else drawn):
        return Sampling()
    return Sampling(**{"top_k": TOP_K, "seed": 0, **numbers})


def _number(name: str, value: Any, kind: type) -> Any:
    """Return a number of the options, which lm_eval's command line may have left as text."""
    try:
        found = kind(value)
    except (TypeError, ValueError, OverflowError):
        found = None
    if found is None or isinstance(value, bool) or (not isinstance(value, str) and found != value):
        raise LucidError(f"The task's {name} must be a {'whole ' if kind is int else ''}number, not {value!r}.")
    return found
