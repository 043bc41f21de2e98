"""Options of a verification: the workload that they select, and the inputs that they name."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lucid_deploy.artifact import Artifact
from lucid_deploy.artifact.adapters import BASE
from lucid_deploy.errors import LucidError
from lucid_deploy.model.adapter import Adapter
from lucid_deploy.model.checkpoint import Checkpoint
from lucid_deploy.model.description import LayerDescription
from lucid_deploy.parity.golden import Golden, open_golden
from lucid_deploy.parity.scenarios import FULL, QUICK, Workload
from lucid_deploy.runtimes.options import RuntimeOptions
from lucid_deploy.runtimes.session import Array


@dataclass(frozen=True)
class VerifyOptions:
    """Options of a verification."""

    checkpoint: str | Path | None = None  # None: the one that the artifact's manifest names
    runtime: RuntimeOptions = field(default_factory=RuntimeOptions)
    steps: int | None = None  # number of tokens decoded after each prompt; None: 32, or 8 with `quick`
    prompt_tokens: int | None = None  # length of every synthetic prompt; None: 250
    seed: int = 0  # seed of the random tokens, 0 or more
    prompt: str | Array | None = None  # text or token ids (P,) to generate from greedily; None: random tokens
    explain: bool = False  # search for causes even if nothing fails
    text: str | Array | None = None  # text or token ids (N,) whose perplexity is computed
    text_tokens: int = 2048  # use at most this many tokens of that text
    golden: str | Path | None = None  # golden file with the results of the model's own code
    trust_remote_code: bool = False  # run the Python code in the checkpoint's directory
    quick: bool = False  # run fewer sequences in fewer schedules, see QUICK

    @property
    def workload(self) -> Workload:
        """The workload that these options select."""
        base = QUICK if self.quick else FULL
        steps = base.steps if self.steps is None else self.steps
        prompt_tokens = base.prompt_tokens if self.prompt_tokens is None else self.prompt_tokens
        return replace(base, steps=steps, prompt_tokens=prompt_tokens)


class Given(NamedTuple):
    """The inputs that a verification's options name, read from their files; None if not given."""

    prompt: Array | None
    text: Array | None
    golden: Golden | None
    adapter: Adapter | None


def read_given(
    options: VerifyOptions, source: Checkpoint, layers: tuple[LayerDescription, ...], artifact: Artifact | None
) -> Given:
    """Read the inputs that options name; LucidError if one is missing, unreadable or does not fit the model."""
    adapter = None if artifact is None else _adapter(artifact, options.runtime.adapter)
    if adapter is not None and options.golden is not None:
        raise LucidError(f"--golden is about the model without an adapter; add --adapter {BASE}.")
    prompt, text = prompt_ids(options.prompt, artifact), text_ids(options.text, artifact, options.text_tokens)
    return Given(prompt, text, open_golden(options.golden, source.config, layers, artifact), adapter)


def prompt_ids(prompt: str | Array | None, artifact: Artifact | None) -> Array | None:
    """Return a prompt's token ids, int64 ``(P,)``; None for None."""
    if prompt is None or not isinstance(prompt, str):
        return prompt
    if not prompt:
        raise LucidError("The prompt to verify with is empty. Pass some text, or omit --prompt.")
    return _encoded(prompt, artifact, "--prompt", "a prompt")


def text_ids(text: str | Array | None, artifact: Artifact | None, limit: int) -> Array | None:
    """Return the first ``limit`` token ids of a text, int64; None for None."""
    if text is None:
        return None
    ids = (_encoded(text, artifact, "--text", "a text") if isinstance(text, str) else text)[:limit]
    if len(ids) < 2:
        raise LucidError(f"The perplexity takes at least 2 tokens; the text has {len(ids)}.")
    return ids


def _encoded(text: str, artifact: Artifact | None, option: str, what: str) -> Array:
    from lucid_deploy.artifact.tokenizer import TextTokenizer

    if artifact is None:
        raise LucidError(f"A session without an artifact has no tokenizer for {option}; give token ids.")
    if not artifact.path("tokenizer.json").is_file():
        raise LucidError(f"{artifact.directory} has no tokenizer.json to read {option} with; verify without {what}.")
    return np.array(TextTokenizer(artifact.directory).encode(text), dtype=np.int64)


def _adapter(artifact: Artifact, name: str | None) -> Adapter | None:
    """Open the adapter of this name from the folder where PEFT saved it; None for the base model and for no name."""
    if name in (None, BASE):
        return None
    stored = next((each for each in artifact.adapters() if each.name == name), None)
    if stored is None:
        known = ", ".join((BASE, *(each.name for each in artifact.adapters())))
        raise LucidError(f"{artifact.directory} has no adapter {name!r}; there are {known}.")
    if not Path(stored.source).is_dir():
        raise LucidError(
            f"The adapter {name} was exported from {stored.source}, which is not there any more. Put it back, or "
            f"verify another with --adapter; --adapter {BASE} selects the model without one."
        )
    return Adapter(stored.source)
