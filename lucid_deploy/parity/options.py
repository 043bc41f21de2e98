"""Options of a verification, and the workload that they ask for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from lucid_deploy.artifact import Artifact
from lucid_deploy.errors import LucidError
from lucid_deploy.model.synthetic_tokens import CORRELATED, ONE_TOKEN
from lucid_deploy.parity.scenarios import DECODE_STEPS, PROMPT_TOKENS, SCHEDULES, Schedule
from lucid_deploy.runtimes.options import RuntimeOptions
from lucid_deploy.runtimes.session import Array


@dataclass(frozen=True)
class Workload:
    """Which token sequences are run, how long they are (shorter in a short context), and how they are fed."""

    prompt_tokens: int = PROMPT_TOKENS  # of every synthetic prompt
    steps: int = DECODE_STEPS  # decoded after each prompt
    schedules: tuple[Schedule, ...] = SCHEDULES  # ways to feed a prompt
    scenarios: tuple[str, ...] | None = None  # names of the synthetic sequences; None: all. The greedy one always runs.
    explained: int = 3  # most sequences in which causes are looked for

    @property
    def has_all_sequences(self) -> bool:
        """Whether all synthetic sequences are run, with prompts of at least the default length."""
        return self.scenarios is None and self.prompt_tokens >= PROMPT_TOKENS

    def with_all_steps(self) -> Workload:
        """Return this workload, but with every forced token decoded in every schedule.

        A cache that rounds needs this: schedules are then different functions, and with more decoded rows the gate for
        their size is narrower.
        """
        return replace(self, schedules=tuple(replace(schedule, steps=None) for schedule in self.schedules))

    def left_out(self) -> Iterator[str]:
        """Yield what a full verification does beyond this workload, a sentence each."""
        if self.prompt_tokens < PROMPT_TOKENS:
            yield f"Prompts have {self.prompt_tokens} tokens at most, not {PROMPT_TOKENS}."
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


FULL = Workload()

# Correlated and repeated tokens are where a wrong solve shows; the greedy sequence has random ones. Prompts are as long
# as in a full run, so that they cross the same blocks. Schedules of many small calls are left out.
QUICK = Workload(
    steps=8,
    schedules=tuple(schedule for schedule in SCHEDULES if schedule.name not in ("by token", "in turns")),
    scenarios=(ONE_TOKEN, CORRELATED),
    explained=1,
)


@dataclass(frozen=True)
class VerifyOptions:
    """Options of a verification."""

    checkpoint: str | Path | None = None  # None: the one that the artifact's manifest names
    runtime: RuntimeOptions = field(default_factory=RuntimeOptions)
    steps: int | None = None  # decoded after each prompt; None: 32, or 8 with `quick`
    prompt_tokens: int | None = None  # of every synthetic prompt; None: 250
    seed: int = 0  # of the random tokens
    prompt: str | Array | None = None  # text or token ids (P,) to generate from greedily; None: random tokens
    explain: bool = False  # look for causes even if nothing fails
    text: str | Array | None = None  # text or token ids (N,) to compute the perplexity of
    text_tokens: int = 2048  # of that text, at most
    golden: str | Path | None = None  # a file of what the model's own code computed
    trust_remote_code: bool = False  # run code that lies beside the checkpoint's weights
    quick: bool = False  # run fewer sequences in fewer schedules, see QUICK

    @property
    def workload(self) -> Workload:
        """The workload that these options ask for."""
        base = QUICK if self.quick else FULL
        steps = base.steps if self.steps is None else self.steps
        prompt_tokens = base.prompt_tokens if self.prompt_tokens is None else self.prompt_tokens
        return replace(base, steps=steps, prompt_tokens=prompt_tokens)


def prompt_ids(prompt: str | Array | None, artifact: Artifact | None) -> Array | None:
    """Return a prompt's token ids, int64 ``(P,)``; None if there is none."""
    if prompt is None or not isinstance(prompt, str):
        return prompt
    if not prompt:
        raise LucidError("The prompt to verify with is empty. Give it some text, or leave --prompt out.")
    return _encoded(prompt, artifact, "--prompt", "a prompt")


def text_ids(text: str | Array | None, artifact: Artifact | None, limit: int) -> Array | None:
    """Return the first ``limit`` token ids of a text, int64; None if there is none."""
    if text is None:
        return None
    ids = (_encoded(text, artifact, "--text", "a text") if isinstance(text, str) else text)[:limit]
    if len(ids) < 2:
        raise LucidError(f"A perplexity takes at least 2 tokens; the text has {len(ids)}.")
    return ids


def _encoded(text: str, artifact: Artifact | None, option: str, what: str) -> Array:
    from lucid_deploy.artifact.tokenizer import TextTokenizer

    if artifact is None:
        raise LucidError(f"A session alone has no tokenizer for {option}; give token ids.")
    if not artifact.path("tokenizer.json").is_file():
        raise LucidError(f"{artifact.directory} has no tokenizer.json to read {option} with; verify without {what}.")
    return np.array(TextTokenizer(artifact.directory).encode(text), dtype=np.int64)
