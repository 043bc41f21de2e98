"""What a user may ask of a verification."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from lucid_deploy.parity.measure.extent import FULL, QUICK, VerificationExtent
from lucid_deploy.runtimes.options import RuntimeOptions
from lucid_deploy.runtimes.session import Array


@dataclass(frozen=True)
class VerifyOptions:
    """Options of a verification.

    Attributes:
        checkpoint: The checkpoint to hold the artifact against; None: the one that its manifest names.
        runtime: What runs the artifact, and how.
        steps: Decode steps after each prompt; None: 32, or 8 if it is quick.
        prompt_tokens: Tokens of every prompt that is made up; None: 250, or 140 if it is quick.
        seed: For the random tokens.
        prompt: A real prompt, as text or as token ids ``(P,)``, that the reference continues; None: random tokens.
        tolerance: A gate set by hand for every tensor; None: gates derived from PyTorch.
        explain: Look for causes even if nothing fails.
        text: A text, or its token ids ``(N,)``, to take the perplexity of.
        text_tokens: Most tokens of that text.
        golden: A golden file: what the model's own code recorded.
        against: ``transformers``: hold the artifact against the class of transformers too.
        quick: Run fewer and shorter sequences, see :data:`~lucid_deploy.parity.measure.extent.QUICK`.
    """

    checkpoint: str | Path | None = None
    runtime: RuntimeOptions = field(default_factory=RuntimeOptions)
    steps: int | None = None
    prompt_tokens: int | None = None
    seed: int = 0
    prompt: str | Array | None = None
    tolerance: float | None = None
    explain: bool = False
    text: str | Array | None = None
    text_tokens: int = 512
    golden: str | Path | None = None
    against: str | None = None
    quick: bool = False

    @property
    def extent(self) -> VerificationExtent:
        """How much is run."""
        extent = QUICK if self.quick else FULL
        steps = extent.steps if self.steps is None else self.steps
        prompt_tokens = extent.prompt_tokens if self.prompt_tokens is None else self.prompt_tokens
        return replace(extent, steps=steps, prompt_tokens=prompt_tokens)
