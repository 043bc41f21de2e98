"""The body of ``POST /v1/lucid/solve``, which is an extension."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

MOST_SOLVE_TOKENS = 256  # the answer grows with their square


class SolveRequest(Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """The body of ``POST /v1/lucid/solve``."""

    model: Annotated[str, Meta(description="The name of the served model.")]
    prompt: Annotated[
        str | list[int],
        Meta(
            description=f"A text of at most {MOST_SOLVE_TOKENS} tokens.",
            extra={"expected": "a text, or a list of token ids"},
        ),
    ]
    layer: Annotated[int, Meta(ge=0, le=2**31, description="A layer that solves a system, counted from 0.")]
    head: Annotated[int, Meta(ge=0, le=2**31, description="Its key/value head, counted from 0.")]
