"""Say before a verification whether it fits into memory, rather than being killed in the middle of it.

The figures are upper estimates of what a verification takes beyond mapped files, which the system drops when it must.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from lucid_deploy.errors import LucidError
from lucid_deploy.model.config import LucidConfig
from lucid_deploy.model.description import describe, layout_of
from lucid_deploy.model.scenarios import DECODE_STEPS, PROMPT_TOKENS, SCHEDULES, fit_lengths
from lucid_deploy.parity.measure.compare import STATES
from lucid_deploy.processors import control_groups, read_text

SCENARIOS = 5  # sequences that are run
EXPLAINED = 3  # sequences that are looked into, at most
FIXED = 1500 << 20  # PyTorch, a runtime, pieces of weights that are cast
Parts = dict[str, int]  # what takes memory, and how many bytes


def record_bytes(config: LucidConfig, tokens: int, steps: int, rounds: bool) -> Parts:
    """Return what the recorded tensors take.

    Args:
        config: The model.
        tokens: Of a sequence.
        steps: Of them decoded: these have logits.
        rounds: Whether the cache rounds; then every schedule has a reference of its own.
    """
    rows = _values(config, tokens, STATES)  # K and Y, and states after several tokens
    logits = (steps + 1) * config.vocab_size
    of_schedules = len(SCHEDULES) * rows * 4 if rounds else 0
    batch = 2 * SCENARIOS * (rows + logits) * 4  # the candidate's, padded: two rows each
    work = 2 * SCENARIOS * (tokens * 4 * config.intermediate_size + logits) * 8  # float64, all sequences in one batch
    recorded = SCENARIOS * ((rows + logits) * (8 + 4) + of_schedules)  # the reference's and the baseline's
    return {"recorded tensors": recorded + batch + work}


def explain_bytes(config: LucidConfig, tokens: int) -> Parts:
    """Return what looking into the layers takes: the reference's states of all sequences, and of one call."""
    rows = 3 * tokens * config.num_key_value_heads * config.head_dim + tokens * config.hidden_size  # K, V, Y, residual
    states = (config.num_hidden_layers + 1) * rows * 8 + _values(config, 0, 1) * 8
    return {"states of all layers": (EXPLAINED + 4) * states}


def _values(config: LucidConfig, tokens: int, states: int) -> int:
    """Return how many values all layers cache of so many tokens, each state counted so many times."""
    tensors = [tensor for layer in layout_of(describe(config, "float32")) for tensor in layer]
    return sum(math.prod(tensor.batch_shape(1, tokens)) * (1 if tensor.has_tokens else states) for tensor in tensors)


def sequence_tokens(
    config: LucidConfig, steps: int = DECODE_STEPS, prompt_tokens: int = PROMPT_TOKENS
) -> tuple[int, int]:
    """Return tokens and decode steps of a sequence."""
    prompt, fitted = fit_lengths(config.max_position_embeddings, steps, prompt_tokens)
    return prompt + fitted, fitted


def available(root: Path = Path("/")) -> int | None:
    """Return how many bytes can still be taken: of the machine, and of the control group (a container's limit).

    Args:
        root: Where ``proc`` and ``sys`` are.

    Returns:
        None where the system does not say.
    """
    found = []
    for line in read_text(root / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            found.append(int(line.split()[1]) * 1024)
    groups = [(folder, ("memory.max", "memory.current")) for folder in control_groups("memory", root)]
    groups += [(folder, ("memory.limit_in_bytes", "memory.usage_in_bytes")) for folder, _ in groups]
    for folder, (limit, usage) in groups:
        most, used = read_text(folder / limit).strip(), read_text(folder / usage).strip()
        if most.isdigit() and used.isdigit():
            lines = map(str.split, read_text(folder / "memory.stat").splitlines())
            files = {line[0]: line[1] for line in lines if len(line) == 2}
            # Of what is used, pages of files can be dropped.
            dropped = int(files.get("total_inactive_file", files.get("inactive_file", "0")))
            found.append(int(most) - int(used) + dropped)
    return min(found, default=None)


def check_fits(what: str, parts: Mapping[str, int], free: int | None, remedy: str) -> None:
    """Refuse what does not fit.

    Args:
        what: What is to be done, for the message.
        parts: What takes memory.
        free: Bytes that can be taken; None: not known, anything goes.
        remedy: For the message.

    Raises:
        LucidError: The parts are more than what is free; all are named.
    """
    needed = sum(parts.values())
    if free is None or needed <= free:
        return
    listed = ", ".join(f"{name} {size / 1e9:.1f} GB" for name, size in parts.items() if size >= 5e7)
    raise LucidError(
        f"{what} takes about {needed / 1e9:.1f} GB of memory ({listed}), and {max(free, 0) / 1e9:.1f} GB are free. "
        f"{remedy}"
    )
