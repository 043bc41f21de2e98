"""What the comparison of a candidate with its targets gave, before anything is explained or shown."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lucid_deploy.parity.measure.compare import TensorId
from lucid_deploy.parity.measure.coverage import Coverage
from lucid_deploy.parity.measure.gate import Comparison, first_failure
from lucid_deploy.parity.measure.metrics import Divergence


@dataclass(frozen=True)
class ScenarioInfo:
    """Name and size of a scenario, in tokens and decode steps."""

    name: str
    prompt_tokens: int
    decode_steps: int


@dataclass(frozen=True)
class FreeRun:
    """A free-running greedy generation.

    Attributes:
        scenario: Whose prompt was continued.
        tokens: How many tokens the reference generated.
        agreed: How many of them the candidate generated too, before the first other one.
    """

    scenario: str
    tokens: int
    agreed: int


@dataclass(frozen=True)
class Reference:
    """What a candidate is held against.

    Attributes:
        kind: Short name, for programs: ``own model``.
        words: For people, to follow "against".
        independent: Whether somebody else wrote it. Ours shares this toolkit's reading of the configuration, so what
            that gets wrong is wrong on both sides and does not show.
        left_out: What of it was not compared, as a sentence; empty if nothing was left out.
    """

    kind: str
    words: str
    independent: bool
    left_out: str = ""


OWN_MODEL = Reference("own model", "this toolkit's own PyTorch model in float64", independent=False)
DEQUANTIZED = Reference(
    "own model, dequantized",
    "this toolkit's own PyTorch model in float64 on the artifact's dequantized weights",
    independent=False,
)


@dataclass(frozen=True)
class Measurement:
    """The result of a comparison.

    Attributes:
        runtime: What ran the candidate.
        dtype: Its precision.
        seed: Seed of the scenarios.
        scenarios: What was run.
        comparisons: Every tensor in every scenario and schedule.
        free_runs: Greedy generations.
        unproven: Tensors that no scenario could test in this precision, since PyTorch itself loses them.
        label: What ran the candidate, for people, such as ``onnxruntime (cuda)``.
        context: Tokens that the model takes at most.
        tolerance: The gate that was set by hand in place of the derived ones, if one was.
        left_out: What more a whole verification does; empty if this is one.
        reference: What the candidate was held against.
        runs_graphs: Whether the candidate ran the artifact's graphs, not its weights alone.
        plainer: How the candidate is run with less code of ours, if it can be, as the end of a sentence.
        outside: What else the candidate was held against; comparisons name its kind in ``against``.
        rounded_cache: Type of its cache, if that is another one than ``dtype``.
        rounded_inputs: Type that inputs of quantized products are rounded to, if they are.
    """

    runtime: str
    dtype: str
    seed: int
    scenarios: tuple[ScenarioInfo, ...]
    comparisons: tuple[Comparison, ...]
    free_runs: tuple[FreeRun, ...]
    unproven: tuple[TensorId, ...]
    label: str
    context: int = 0
    tolerance: float | None = None
    left_out: tuple[str, ...] = ()
    reference: Reference = OWN_MODEL
    runs_graphs: bool = True
    plainer: str | None = None
    outside: tuple[Reference, ...] = ()
    rounded_cache: str | None = None
    rounded_inputs: str | None = None

    @property
    def failure(self) -> Comparison | None:
        """The first failed comparison, in the order layer, tensor, position; None if every gate held.

        One against our own model comes before all others, since what it finds is nearer to the cause.
        """
        return self.own_failure or first_failure(self.comparisons)

    @property
    def own_failure(self) -> Comparison | None:
        """The same of comparisons with our own model alone."""
        return first_failure(self.against())

    def against(self, kind: str = "") -> tuple[Comparison, ...]:
        """Return the comparisons with one reference, by its kind; empty: with our own model."""
        return tuple(item for item in self.comparisons if item.against == kind)

    def coverage_by_reference(self) -> Iterator[tuple[Reference, Coverage]]:
        """Yield every reference with how many of the comparisons with it could have failed, our own model first."""
        yield self.reference, Coverage.of(self.against())
        for reference in self.outside:
            yield reference, Coverage.of(self.against(reference.kind))

    @property
    def passed(self) -> bool:
        """Whether every tensor was within its gate, and none was left without a gate that means something."""
        return self.failure is None and not self.unproven

    @property
    def coverage(self) -> Coverage:
        """How many of the comparisons could have failed."""
        return Coverage.of(self.comparisons)

    @property
    def within_derived(self) -> bool:
        """Whether the gates derived from PyTorch hold, also where one set by hand counts."""
        return all(comparison.within_derived for comparison in self.comparisons)

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence that was run."""
        return max(info.prompt_tokens + info.decode_steps for info in self.scenarios)

    def worst_by_tensor(self, along_positions: bool = False) -> dict[TensorId, Comparison]:
        """Return every tensor's worst comparison with our own model, in the order of computation; judged ones first.

        Args:
            along_positions: Only comparisons of more than one position count.
        """
        worst: dict[TensorId, Comparison] = {}
        for item in self.against():
            if along_positions and len(item.errors) < 2:
                continue
            if item.tensor not in worst or _rank(item) > _rank(worst[item.tensor]):
                worst[item.tensor] = item
        return {tensor: worst[tensor] for tensor in sorted(worst)}

    def divergences(self) -> Iterator[tuple[Comparison, Divergence]]:
        """Yield every position at which another token is preferred than the reference's, real ones first."""
        found = [(c, item) for c in self.comparisons if c.logits is not None for item in c.logits.divergences]
        yield from sorted(found, key=lambda pair: pair[1].near_tie)


def _rank(item: Comparison) -> tuple[bool, float]:
    return item.judged, item.severity
