"""The options that say how tokens are chosen; the command gets them as one ``Sampling``, and bad words as texts."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from lucid_deploy.generation.sampling import Sampling

_OPTIONS: dict[str, dict[str, Any]] = {
    "temperature": dict(type=float, default=0.0, show_default=True, help="0 is greedy; above, sampling."),
    "top_k": dict(type=int, default=0, show_default=True, help="Sample among the K most likely; 0 is all."),
    "top_p": dict(type=float, default=1.0, show_default=True, help="Sample among the most likely up to this sum."),
    "min_p": dict(
        type=float,
        default=0.0,
        show_default=True,
        help="Sample among tokens with at least this share of the likeliest one's probability.",
    ),
    "presence_penalty": dict(
        type=float, default=0.0, show_default=True, help="Taken off the logits of tokens that the answer has."
    ),
    "frequency_penalty": dict(
        type=float, default=0.0, show_default=True, help="Taken off for each time that the answer has the token."
    ),
    "repetition_penalty": dict(
        type=float,
        default=1.0,
        show_default=True,
        help="0.01 to 100; divides positive logits of tokens that prompt or answer have, multiplies negative ones.",
    ),
    "logit_bias": dict(
        multiple=True, metavar="ID=BIAS", help="Add BIAS, -100 to 100, to a token's logit; may be given several times."
    ),
    "bad_word": dict(multiple=True, metavar="TEXT", help="No answer contains this text; may be given several times."),
    "seed": dict(type=int, help="Makes sampling repeatable."),
}


def sampling_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a command; it gets ``sampling`` and ``bad_words``, a tuple of texts."""

    @functools.wraps(function)
    def command(**given: Any) -> Any:
        from lucid_deploy.generation.sampling import Sampling

        chosen = {name: given.pop(name) for name in _OPTIONS}
        bad_words = chosen.pop("bad_word")
        sampling = Sampling(**{**chosen, "logit_bias": _biases(chosen["logit_bias"])})
        return function(sampling=sampling, bad_words=bad_words, **given)

    for name, settings in reversed(_OPTIONS.items()):
        command = click.option("--" + name.replace("_", "-"), name, **settings)(command)
    return command


def note_greedy(sampling: Sampling) -> None:
    """Say on stderr when options of sampling are given and nothing is sampled."""
    from lucid_deploy.cli._console import console_err

    if sampling.top_k or sampling.top_p < 1 or sampling.min_p or sampling.seed is not None:
        console_err.print(
            "Note: --top-k, --top-p, --min-p and --seed do nothing at temperature 0; give --temperature to sample."
        )


def _biases(given: tuple[str, ...]) -> tuple[tuple[int, float], ...]:
    """Return pairs of token ids and biases."""
    from lucid_deploy.errors import LucidError
    from lucid_deploy.generation.sampling import logit_bias

    pairs: dict[str, float] = {}
    for text in given:
        token, _, bias = text.partition("=")
        try:
            pairs[token.strip()] = float(bias)
        except ValueError as error:
            raise LucidError(f"--logit-bias takes a token id and a number, such as 15=-100, not {text!r}.") from error
    if len(pairs) < len(given):
        raise LucidError("--logit-bias names a token twice.")
    return logit_bias(pairs)
