"""Prompts that are longer than the context: refused, or cut where the user says, and counted."""

from __future__ import annotations

from dataclasses import dataclass

from lucid_deploy.errors import LucidError

WAYS = ("left", "middle")


def cut(ids: list[int], room: int, way: str) -> list[int]:
    """Return token ids without those that do not fit.

    Args:
        ids: Of a prompt.
        room: Most tokens to keep, at least 1.
        way: ``left``: the last ones are kept, as lm_eval does it. ``middle``: the first and the last half, as
            LongBench does it.
    """
    if len(ids) <= room:
        return ids
    first = room // 2 if way == "middle" else 0
    return [*ids[:first], *ids[first - room :]]


@dataclass(frozen=True)
class Fit:
    """How long a prompt is, and how long it may be, in tokens."""

    task: str
    tokens: int
    room: int

    @property
    def fits(self) -> bool:
        """Whether nothing has to be cut."""
        return self.tokens <= self.room


def refuse_long(fits: list[Fit], context: int) -> None:
    """Refuse prompts that do not fit.

    Args:
        fits: Of all prompts.
        context: The model's, in tokens.

    Raises:
        LucidError: One of them does not fit; says how many of which task.
    """
    tasks: dict[str, list[Fit]] = {}
    for fit in fits:
        tasks.setdefault(fit.task, []).append(fit)
    long = {name: over for name, group in tasks.items() if (over := [fit for fit in group if not fit.fits])}
    if not long:
        return
    name, over = next(iter(long.items()))
    worst = max(over, key=lambda fit: fit.tokens)
    others = "" if len(long) == 1 else f" So are prompts of {len(long) - 1} other tasks."
    raise LucidError(
        f"{len(over)} of {len(tasks[name])} prompts of {name or 'this request'} are too long: one has {worst.tokens} "
        f"tokens where {worst.room} fit, for the model's context is {context} with the answer.{others} Cut them with "
        "--truncate left (the end is kept) or --truncate middle (both ends are kept); scores are then marked."
    )
