"""What a request of lm_eval says about generation, and by which rules its texts become token ids."""

from __future__ import annotations

from typing import Any, Protocol

from lucid_deploy.errors import LucidError
from lucid_deploy.generation.sampling import Sampling

# The number of the rules by which the adapter makes token ids of texts. Count it up when they change, so that answers
# kept by older ones are not gone on with.
ENCODING = 2
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # the first one given counts
_SAMPLING = ("do_sample", "temperature", "top_k", "top_p", "seed")


class _Default(Protocol):
    max_gen_toks: int


def read_options(options: dict[str, Any], default: _Default) -> tuple[list[str], int, Sampling]:
    """Return stop sequences, most tokens and sampling of a request's generation options.

    Args:
        options: As lm_eval gives them.
        default: Has ``max_gen_toks``, which counts where the options say nothing.

    Raises:
        LucidError: An option that is not known.
    """
    if unknown := sorted(set(options) - {"until", *_LENGTHS, *_SAMPLING}):
        raise LucidError(f"The task asks for generation options that are not supported: {', '.join(unknown)}.")
    until = options.get("until") or []
    ends = [end for end in ([until] if isinstance(until, str) else until) if end]
    most = next((int(options[name]) for name in _LENGTHS if options.get(name) is not None), default.max_gen_toks)
    temperature = float(options.get("temperature") or 0.0)
    if not options.get("do_sample", temperature > 0):
        return ends, most, Sampling()
    sampling = Sampling(
        temperature,
        int(options.get("top_k") or 0),
        float(options.get("top_p") or 1.0),
        int(options.get("seed") or 0),
    )
    return ends, most, sampling
