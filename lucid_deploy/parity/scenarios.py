"""The inputs of a verification: token sequences, and the ways to feed them."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from lucid_deploy.cache.storage import Array
from lucid_deploy.errors import LucidError
from lucid_deploy.model.config import LucidConfig
from lucid_deploy.model.synthetic_tokens import CORRELATED, ONE_TOKEN, synthetic_tokens

# Prompt and decode steps together cross the block boundaries 128 and 256 and end inside a block. Decode steps cross 256
# or, where a schedule decodes only the last FEW_STEPS tokens, the prefill of the tokens before these does.
PROMPT_TOKENS = 250
DECODE_STEPS = 32
# Tokens decoded at the end of most schedules; for the exceptions see `Schedule.fed`. That is enough: a decode step
# depends only on its token and the cache, and the cache that a schedule produces is compared too.
FEW_STEPS = 8
PADDING = 5  # columns of padding in the padded schedule, no multiple of a block: 3 in its first call, 2 in its second
DRAFTS = (3, 5)  # numbers of drafts that the steps of the drafts schedule verify, used in turn
REJECTED = 2  # wrong drafts appended to the first step, then removed from the cache; at most PADDING, so that they fit
MIN_PROMPT = 8  # in a short context, decode steps are dropped before the prompt gets shorter than this
# Chunk lengths, in order: one token, two, half a block, up to near 128, chunks of 7 across it, half a block and one, up
# to near 256, chunks of 7 across it, then the rest, at most 129 (5 of the 274 tokens that are prefilled by default).
AWKWARD_CHUNKS = (1, 2, 64, 44, 7, 7, 7, 7, 65, 44, 7, 7, 7, 129)
# Turns of a conversation, (tokens prefilled, tokens decoded). Decoding starts after the first token, crosses 64 and
# 128, and starts again after 256; the last prefill, of 129 tokens, is one token longer than a block.
TURNS = ((1, 16), (43, 8), (56, 8), (129, 8))
EVERY = sys.maxsize  # decode all tokens that are left
FREE_RUNNING = "free-running"  # name of the schedule of free generation; its logits are taken from the forced run


@dataclass(frozen=True)
class Scenario:
    """One token sequence: a prompt, and the tokens forced on the model after it."""

    name: str  # short name for reports
    prompt: Array  # int64 (P,), P ≥ 1
    forced: Array  # int64 (S,), the tokens after the prompt; the schedule decides which are decoded or prefilled
    # True if `forced` are the tokens that the baseline itself generates, so that a free run can be compared too
    greedy: bool = False
    # True if only the one-shot schedule feeds it, since the others already feed another scenario of the same tokens
    one_shot_only: bool = False
    # True if nearly all tokens are the same, so that too few different rounding errors occur to derive a gate from
    few_draws: bool = False
    alone: bool = False  # True if schedules that batch scenarios skip it: a full run has another with random tokens

    @property
    def length(self) -> int:
        """Number of tokens, forced ones included."""
        return len(self.prompt) + len(self.forced)

    @property
    def ids(self) -> Array:
        """All tokens, int64 ``(P + S,)``."""
        return np.concatenate([self.prompt, self.forced])


class Part(NamedTuple):
    """Consecutive tokens of a prompt: decoded one by one, or prefilled in one call."""

    tokens: slice
    decoded: bool = False

    @property
    def calls(self) -> int:
        """Number of session calls: one, or one per token if the part is decoded."""
        return self.tokens.stop - self.tokens.start if self.decoded else 1


@dataclass(frozen=True)
class Schedule:
    """One way to feed a prompt and the forced tokens after it."""

    name: str  # short name for reports
    chunks: tuple[int, ...] = ()  # lengths of the prefill calls, used in turn; empty: prefill in one call
    answers: tuple[int, ...] = ()  # numbers of tokens decoded after the prefill calls, used in turn; empty: none
    # If not 0, run each scenario as two batch rows, in two prefill calls with this many padded columns in total: one
    # row is padded on the left and then on the right, the other on the right and then on the left.
    padding: int = 0
    # Verify the forced tokens as drafts in groups of these lengths, used in turn; the first group is followed by wrong
    # drafts, which are then removed from the cache. Empty: decode the tokens one by one.
    drafts: tuple[int, ...] = ()
    # Decode at most this many of the forced tokens, the last ones; feed those before as part of the prompt. None: all.
    steps: int | None = None
    greedy_only: bool = False  # feed only the greedy scenario in this way

    @property
    def one_shot(self) -> bool:
        """Whether the whole prompt is prefilled in one call without padding, and all other tokens are decoded."""
        return not (self.chunks or self.padding or self.drafts)

    @property
    def token_by_token(self) -> bool:
        """Whether all tokens but the first are decoded."""
        return (self.chunks, self.answers) == ((1,), (EVERY,))

    def takes(self, scenario: Scenario) -> bool:
        """Whether a scenario is fed in this way."""
        if self.one_shot:
            return True
        return scenario.greedy if self.greedy_only else not (scenario.one_shot_only or scenario.alone)

    def fed(self, scenario: Scenario) -> Scenario:
        """Return the scenario with the forced tokens that this schedule does not decode moved into its prompt.

        The one-shot schedule decodes all forced tokens of greedy scenarios, whose free generation is taken from that
        run, and of scenarios that only it feeds.
        """
        full = self.one_shot and (scenario.greedy or scenario.one_shot_only)
        if self.steps is None or full or len(scenario.forced) <= self.steps:
            return scenario
        ids, prompt = scenario.ids, scenario.length - self.steps
        return replace(scenario, prompt=ids[:prompt], forced=ids[prompt:])

    def parts(self, tokens: int) -> list[Part]:
        """Split a prompt of ``tokens`` tokens into the parts that are fed in turn."""
        if self.padding:
            half = (tokens + 1) // 2
            return [Part(slice(0, half)), *([Part(slice(half, tokens))] if half < tokens else [])]
        parts: list[Part] = []
        start, call = 0, 0
        while start < tokens:
            chunk = self.chunks[call % len(self.chunks)] if self.chunks else tokens
            answer = self.answers[call % len(self.answers)] if self.answers else 0
            for length, decoded in ((chunk, False), (answer, True)):
                stop = min(start + length, tokens)
                if stop > start:
                    parts.append(Part(slice(start, stop), decoded))
                start = stop
            call += 1
        return parts

    def groups(self, forced: int) -> list[slice]:
        """Split ``forced`` tokens into those of each call: one token, or several drafts."""
        groups: list[slice] = []
        start = 0
        while start < forced:
            length = self.drafts[len(groups) % len(self.drafts)] if self.drafts else 1
            groups.append(slice(start, min(start + length, forced)))
            start += length
        return groups

    def calls(self, scenario: Scenario) -> int:
        """Return the number of session calls that feed a scenario, for progress bars."""
        scenario = self.fed(scenario)
        return sum(part.calls for part in self.parts(len(scenario.prompt))) + len(self.groups(len(scenario.forced)))


ONE_SHOT = Schedule("one-shot")
SCHEDULES = (
    replace(ONE_SHOT, steps=FEW_STEPS),
    Schedule("chunks", chunks=AWKWARD_CHUNKS, steps=FEW_STEPS),
    Schedule("by token", chunks=(1,), answers=(EVERY,)),
    Schedule(
        "in turns",
        chunks=tuple(turn for turn, _ in TURNS),
        answers=tuple(answer for _, answer in TURNS),
        steps=FEW_STEPS,
        greedy_only=True,
    ),
    Schedule("padded", padding=PADDING, steps=FEW_STEPS),
    Schedule("drafts", drafts=DRAFTS, steps=FEW_STEPS),
)


@dataclass(frozen=True)
class Workload:
    """Which token sequences are run, how long they are (shorter in a short context), and how they are fed."""

    prompt_tokens: int = PROMPT_TOKENS  # tokens of every synthetic prompt
    steps: int = DECODE_STEPS  # forced tokens after each prompt
    schedules: tuple[Schedule, ...] = SCHEDULES  # ways to feed a prompt
    scenarios: tuple[str, ...] | None = None  # names of the synthetic sequences; None: all. The greedy one always runs.
    explained: int = 3  # causes are searched for in at most this many sequences

    @property
    def has_all_sequences(self) -> bool:
        """Whether all synthetic sequences are run, with prompts of at least the default length."""
        return self.scenarios is None and self.prompt_tokens >= PROMPT_TOKENS

    def with_all_steps(self) -> Workload:
        """Return this workload with every forced token decoded in every schedule.

        A cache that rounds needs this: schedules then compute different functions, and more decoded rows make the gate
        for their size narrower.
        """
        return replace(self, schedules=tuple(replace(schedule, steps=None) for schedule in self.schedules))

    def left_out(self) -> Iterator[str]:
        """Yield a sentence for each part of a full verification that this workload leaves out."""
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

# A wrong solve shows with repeated and correlated tokens; the greedy sequence adds random ones. Prompts are as long as
# in a full run, so that they cross the same block boundaries. Schedules of many small calls are left out.
QUICK = Workload(
    steps=8,
    schedules=tuple(schedule for schedule in SCHEDULES if schedule.name not in ("by token", "in turns")),
    scenarios=(ONE_TOKEN, CORRELATED),
    explained=1,
)


def batches(scenarios: Sequence[Scenario], schedule: Schedule, limit: int | None = None) -> list[list[Scenario]]:
    """Group the scenarios that a schedule feeds into batches; fewer calls save time, since each reads all weights.

    The one-shot schedule runs every scenario alone, and "in turns" runs only the greedy one, so prefill (into an empty
    and a filled cache) and decode are also tried with one batch row. The other schedules batch scenarios of equal
    lengths. ``limit`` is the largest batch that the runtime takes.
    """
    rows = 2 if schedule.padding else 1
    most = len(scenarios) if limit is None else max(1, limit // rows)
    most = 1 if schedule.one_shot else most
    taken = [scenario for scenario in scenarios if schedule.takes(scenario)]
    return [group[start : start + most] for group in equal_lengths(taken) for start in range(0, len(group), most)]


def equal_lengths(scenarios: Sequence[Scenario]) -> list[list[Scenario]]:
    """Group scenarios with equally long prompts and equally many forced tokens, which can share a batch."""
    groups: dict[tuple[int, int], list[Scenario]] = {}
    for scenario in scenarios:
        groups.setdefault((len(scenario.prompt), len(scenario.forced)), []).append(scenario)
    return list(groups.values())


def fit_lengths(limit: int, steps: int = DECODE_STEPS, prompt_tokens: int = PROMPT_TOKENS) -> tuple[int, int]:
    """Return the numbers of prompt tokens and decode steps that fit a context of ``limit`` tokens with padding.

    A short context cuts the prompt to MIN_PROMPT, then steps to 1, then the prompt. LucidError for no steps or no room.
    """
    if steps < 1:
        raise LucidError(f"Verification needs at least one decode step, not {steps}.")
    room = limit - PADDING
    if room < 2:
        raise LucidError(
            f"max_position_embeddings is {limit}; verification needs a context of at least {PADDING + 2} tokens."
        )
    prompt = min(prompt_tokens, max(room - steps, min(MIN_PROMPT, room - 1)))
    return prompt, min(steps, room - prompt)


def all_scenarios(
    config: LucidConfig, workload: Workload, seed: int, prompt: Array | None, embeddings: Array | None
) -> list[Scenario]:
    """Return all scenarios of a workload; the greedy one is last, and its forced tokens are not known yet."""
    made = synthetic_scenarios(config, workload, seed, embeddings)
    chosen = [scenario for scenario in made if workload.scenarios is None or scenario.name in workload.scenarios]
    return [*chosen, _greedy_scenario(config, workload, seed, prompt)]


def synthetic_scenarios(
    config: LucidConfig, workload: Workload = FULL, seed: int = 0, embeddings: Array | None = None
) -> list[Scenario]:
    """Return the scenarios that need only a vocabulary: random tokens, one token, a pattern, correlated tokens.

    Correlated tokens are a few that repeat; given ``embeddings`` ``(vocab, hidden)``, those close in cosine distance.
    """
    prompt, steps = fit_lengths(config.max_position_embeddings, workload.steps, workload.prompt_tokens)
    sequences = synthetic_tokens(config.vocab_size, prompt + steps, prompt, seed, embeddings)
    return [Scenario(name, ids[:prompt], ids[prompt:], few_draws=name == ONE_TOKEN) for name, ids in sequences.items()]


def _greedy_scenario(config: LucidConfig, workload: Workload, seed: int, prompt: Array | None) -> Scenario:
    """Return the scenario that the baseline continues: ``prompt``, int ``(P,)``, or random tokens, then zeros."""
    limit = config.max_position_embeddings
    length, steps = fit_lengths(limit, workload.steps, workload.prompt_tokens)
    forced = np.zeros(steps, dtype=np.int64)
    if prompt is None:
        rng = np.random.default_rng([seed, 1])  # another stream than that of the random scenario
        return Scenario("greedy", rng.integers(config.vocab_size, size=length), forced, greedy=True, alone=True)
    ids = np.asarray(prompt, dtype=np.int64)
    if ids.size == 0:
        raise LucidError("The prompt to verify with is empty.")
    room = limit - PADDING - len(ids)
    if room < 1:
        raise LucidError(
            f"The prompt has {len(ids)} tokens; verification takes at most {limit - PADDING - 1}, since padding and "
            f"new tokens must fit into the model's {limit} (max_position_embeddings), too."
        )
    return Scenario("prompt", ids, forced[:room], greedy=True)
