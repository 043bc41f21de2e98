"""How long a verification may take, phase by phase, from the model's size and this machine's speed.

A call reads all weights once and does two operations per weight and token; it takes the longer of both, and a little
for every layer. That is right within a factor of two or three. :class:`~.measure.plan.PhaseTracker` corrects it while
the verification runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lucid_deploy.artifact import Artifact
from lucid_deploy.model.checkpoint import Checkpoint
from lucid_deploy.model.scenarios import ONE_SHOT, Schedule, fit_lengths, synthetic_scenarios
from lucid_deploy.parity.measure import phases
from lucid_deploy.parity.measure.extent import VerificationExtent
from lucid_deploy.parity.measure.plan import Phase
from lucid_deploy.parity.measure.speed import Speed
from lucid_deploy.parity.options import VerifyOptions
from lucid_deploy.parity.outside import OutsideReferences, needs_run, recording_type
from lucid_deploy.runtimes import find_runtime

PER_LAYER = 1e-3  # seconds of a call beside its products: attention, norms, and what calls them
CAST = 3  # times the memory of a float32 weight that is moved when it is cast to float64 and read
Rates = tuple[float, float, int]  # operations and bytes a second, and bytes of a weight
DEVICE = 0.1  # share of the CPU's time that an accelerator takes, so that its phase is not the longest


@dataclass(frozen=True)
class VerificationWork:
    """The model and the sequences that a verification runs.

    Attributes:
        weights: Elements of all weights that a token goes through, the head left out.
        head: Elements of the head.
        layers: Number of layers.
        sequences: Token sequences.
        shared: Those of them that share batches.
        prompt: Tokens of a prompt.
        steps: Tokens decoded after it.
    """

    weights: int
    head: int
    layers: int
    sequences: int
    shared: int
    prompt: int
    steps: int

    def seconds(self, calls: Sequence[tuple[int, int]], rate: float, memory: float, width: int) -> float:
        """Return what calls take: (tokens, tokens with logits) each, at operations and bytes a second."""
        total = 0.0
        for tokens, rows in calls:
            operations = 2 * (self.weights * tokens + self.head * rows)
            total += max(operations / rate, (self.weights + self.head) * width / memory) + PER_LAYER * self.layers
        return total

    def calls(self, schedule: Schedule, rows: int) -> Iterator[tuple[int, int]]:
        """Yield the calls of sequences fed as rows of one batch."""
        rows *= 2 if schedule.padding else 1
        steps = self.steps if schedule.steps is None else min(self.steps, schedule.steps)
        for part in schedule.parts(self.prompt + self.steps - steps):
            length = part.tokens.stop - part.tokens.start
            for _ in range(part.calls):
                yield rows * length // part.calls, rows
        for _ in range(steps):
            yield rows, rows

    def one_by_one(self, schedules: Sequence[Schedule]) -> Iterator[tuple[int, int]]:
        """Yield the candidate's calls: one-shot every sequence alone, the greedy one in full, else one batch."""
        for schedule in schedules:
            if schedule.one_shot:
                yield from self.calls(ONE_SHOT, 1)
                for _ in range(self.sequences - 1):
                    yield from self.calls(schedule, 1)
            else:
                yield from self.calls(schedule, 1 if schedule.greedy_only else self.shared)


def work_of(
    artifact: Artifact,
    source: Checkpoint,
    extent: VerificationExtent,
    outside: OutsideReferences | None = None,
    prompt_given: bool = False,
) -> VerificationWork:
    """Return what a verification of an artifact runs; sequences of a golden file count as those that are made up.

    Args:
        artifact: What is verified.
        source: Its checkpoint.
        extent: How much is run.
        outside: What else it is verified against.
        prompt_given: Whether the greedy sequence's prompt is the user's, which is fed in every way.
    """
    config = artifact.config
    counts = {name: math.prod(shape) for name, shape in source.stored_shapes().items()}
    table = config.vocab_size * config.hidden_size
    tables = table if config.tie_word_embeddings else 2 * table
    made = synthetic_scenarios(config, extent.steps, prompt_tokens=extent.prompt_tokens)
    chosen = [item for item in made if extent.scenarios is None or item.name in extent.scenarios]
    prompt, steps = fit_lengths(config.max_position_embeddings, extent.steps, extent.prompt_tokens)
    weights = max(sum(counts.values()) - tables, 1)
    more = [] if outside is None else outside.scenarios(config, extent)
    shared = len(chosen) + len(more)
    return VerificationWork(weights, table, config.num_hidden_layers, shared + 1, shared + prompt_given, prompt, steps)


def planned_phases(
    artifact: Artifact,
    source: Checkpoint,
    options: VerifyOptions,
    speed: Speed,
    outside: OutsideReferences | None = None,
) -> list[Phase]:
    """Return the phases of a verification with estimates; causes are among them only if they are looked for anyway.

    Args:
        artifact: What is verified.
        source: Its checkpoint.
        options: What was asked for.
        speed: Of this machine.
        outside: What else it is verified against.
    """
    outside = outside or OutsideReferences()
    extent, dtype, cache_dtype = options.extent, artifact.manifest.dtype, artifact.manifest.cache_dtype
    rounds = cache_dtype != dtype or artifact.config.has_narrow_states
    extent = extent.with_all_steps() if rounds else extent
    runtime = find_runtime(options.runtime.runtime).name
    work = work_of(artifact, source, extent, outside, options.prompt is not None)
    size = (work.weights + work.head) * 4 / speed.memory
    double, single = (speed.float64, speed.memory, 8), (speed.float32, speed.memory, 4)
    at_once = [(work.sequences * (work.prompt - 1), work.sequences), (work.sequences * (work.steps + 1),) * 2]
    reference = work.seconds(at_once, *double) + len(at_once) * CAST * size
    own = work.seconds(list(work.one_by_one(extent.schedules)), *single)
    own *= 1.0 if options.runtime.device == "cpu" else DEVICE
    quantized = artifact.manifest.quantization is not None
    stored = sum(int(item["size"]) for item in artifact.manifest.files.values())
    found = [Phase(phases.FILES, stored / speed.sha256)]
    found.append(Phase(phases.WEIGHTS, (4 if quantized else 2) * size))
    found += [] if quantized else [Phase(phases.loading(dtype), size)]
    found += [
        Phase(phases.baseline(dtype), work.seconds(list(work.calls(ONE_SHOT, work.sequences)), *single)),
        Phase(phases.REFERENCE, reference),
    ]
    if rounds:
        every = [call for schedule in extent.schedules for call in work.calls(schedule, work.sequences)]
        found += [] if quantized else [Phase(phases.loading("float64"), 3 * size)]
        found += [
            Phase(phases.rounded(cache_dtype), work.seconds(every, *double)),
            Phase(phases.schedules(dtype, cache_dtype), work.seconds(every, *single)),
        ]
    found += _outside_phases(outside, work, dtype, double, single)
    found.append(Phase(phases.candidate(runtime, dtype), own))
    solving = sum(layer.solves for layer in artifact.manifest.layers)
    if solving:
        heads = artifact.config.num_key_value_heads * solving * min(2, extent.explained)
        found.append(Phase(phases.CONDITIONING, 0.02 * heads))
    if quantized:
        alone = [call for _ in range(work.sequences) for call in work.calls(ONE_SHOT, 1)]
        found.append(Phase(phases.COST, reference + work.seconds(alone, *single)))
    if options.explain:
        inside = [call for _ in range(extent.explained) for call in work.calls(ONE_SHOT, 1)]
        found += [
            Phase(phases.INSIDE_REFERENCE, reference),
            *([] if quantized else [Phase(phases.loading(dtype), size)]),
            Phase(phases.inside_baseline(dtype), 2 * work.seconds(inside, *single)),
            Phase(phases.INSIDE_CANDIDATE, 4 * work.seconds(inside, *single)),
        ]
    return found


def _outside_phases(
    outside: OutsideReferences, work: VerificationWork, dtype: str, double: Rates, single: Rates
) -> list[Phase]:
    """Return the phases in which other references, and what rounding cost them, are computed."""
    found = []
    if outside.golden is not None and needs_run(outside.golden, dtype):
        precision = recording_type(outside.golden)
        calls = list(work.calls(ONE_SHOT, len(outside.golden.ids)))
        found += [
            Phase(phases.loading(precision), (work.weights + work.head) * 4 / single[1]),
            Phase(phases.recording(precision), work.seconds(calls, *single)),
        ]
    if outside.model is not None:
        calls = [(work.prompt + work.steps,) * 2] * work.sequences
        load = (work.weights + work.head) * 8 * CAST / double[1]
        found.append(Phase(phases.TRANSFORMERS, load + work.seconds(calls, *double)))
    return found
