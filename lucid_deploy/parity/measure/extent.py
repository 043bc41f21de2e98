"""How much a verification runs: everything, or what fits into a minute."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from lucid_deploy.model.scenarios import CORRELATED, DECODE_STEPS, ONE_TOKEN, PROMPT_TOKENS, SCHEDULES, Schedule

BLOCK = 256  # the largest of the blocks that graphs and kernels go by


@dataclass(frozen=True)
class VerificationExtent:
    """What is run, in length and in number.

    Attributes:
        prompt_tokens: Tokens of every prompt that is made up; fewer where the model's context is short.
        steps: Decode steps after each prompt; fewer likewise.
        schedules: Ways to feed a prompt.
        scenarios: Names of the token sequences that are made up; None: all. The greedy one always runs.
        explained: Most token sequences in which causes are looked for.
    """

    prompt_tokens: int = PROMPT_TOKENS
    steps: int = DECODE_STEPS
    schedules: tuple[Schedule, ...] = SCHEDULES
    scenarios: tuple[str, ...] | None = None
    explained: int = 3

    @property
    def has_all_sequences(self) -> bool:
        """Whether every token sequence is run, in its whole length."""
        return self.scenarios is None and self.prompt_tokens >= PROMPT_TOKENS

    def with_all_steps(self) -> VerificationExtent:
        """Return the same with all steps decoded in every way of feeding.

        A cache that rounds asks for it: the ways of feeding are then different functions, and the size of the rows that
        decoding wrote has a gate that is the narrower the more rows there are.
        """
        return replace(self, schedules=tuple(replace(schedule, steps=None) for schedule in self.schedules))

    def left_out(self) -> Iterator[str]:
        """Yield what more a whole verification does, one sentence each; nothing if this is one."""
        if self.prompt_tokens < PROMPT_TOKENS:
            crosses = self.prompt_tokens + self.steps > BLOCK
            lost = "" if crosses else f": no block of {BLOCK} is crossed"
            yield f"Prompts have {self.prompt_tokens} tokens at most, not {PROMPT_TOKENS}{lost}."
        if self.steps < DECODE_STEPS:
            yield f"{self.steps} tokens are decoded after each prompt, not {DECODE_STEPS}."
        if self.scenarios is not None:
            yield f"Of the token sequences, only {', '.join(self.scenarios)} and the greedy one are run."
        run = [schedule.name for schedule in self.schedules]
        missing = [schedule.name for schedule in SCHEDULES if schedule.name not in run]
        if missing:
            yield f"Prompts are not fed {' or '.join(missing)}."
        if not any(schedule.token_by_token for schedule in self.schedules):
            yield f"Decoding is tried after {self.prompt_tokens} tokens and more, not after fewer."


FULL = VerificationExtent()

# 140 tokens end inside the second block of 128. Correlated and repeated tokens are where a wrong solve shows; the
# greedy sequence has random ones. What is fed in many small calls takes a whole verification most of its time.
QUICK = VerificationExtent(
    prompt_tokens=140,
    steps=8,
    schedules=tuple(schedule for schedule in SCHEDULES if schedule.name in ("one-shot", "chunks", "padded")),
    scenarios=(ONE_TOKEN, CORRELATED),
    explained=1,
)
