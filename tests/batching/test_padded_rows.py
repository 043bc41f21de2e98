"""Padded batches of unequal prompts: every row gets what it gets alone, on every path, within the parity gate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lucid_deploy.artifact import Artifact
from lucid_deploy.runtimes import open_session
from tests.batching.lone_runs import CASES, FORCED, NAMES, TEXTS, run_alone

Exported = Callable[..., tuple[Path, Artifact]]


def padded(side: str) -> tuple[np.ndarray, np.ndarray]:
    """The prompts of TEXTS as one batch, padded on the left, the right, or both, with a token like any other."""
    prompts = [ids[:-FORCED] for ids in TEXTS]
    longest = max(map(len, prompts))
    ids, mask = np.full((len(prompts), longest), 11), np.zeros((len(prompts), longest), dtype=bool)
    for row, prompt in enumerate(prompts):
        room = longest - len(prompt)
        start = {"left": room, "right": 0, "both": room // 2}[side]
        ids[row, start : start + len(prompt)] = prompt
        mask[row, start : start + len(prompt)] = True
    return ids, mask


@pytest.mark.parametrize("attention", ["lucid", "llama"])
@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_rows_get_what_they_get_alone(case: tuple[str, str], attention: str, exported: Exported) -> None:
    checkpoint, artifact = exported(cache=case[0], attention_type=attention)
    lone, session = run_alone(checkpoint), open_session(artifact, case[1])
    for side in ("left", "right", "both"):
        for chunk in (None, 7):
            ids, mask = padded(side)
            cache = session.empty_cache(len(TEXTS))
            steps = [session.prefill(ids, cache, mask, chunk)]
            for token in np.array([text[-FORCED:] for text in TEXTS]).T:
                steps.append(session.decode(token[:, None], cache))
            for row in range(len(TEXTS)):
                lone.check(row, session, cache, row, [logits[row, -1] for logits in steps])


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_rows_that_wait_while_others_decode(case: tuple[str, str], exported: Exported) -> None:
    """A masked decode step is padding in the middle of a row."""
    checkpoint, artifact = exported(cache=case[0])
    lone, session = run_alone(checkpoint), open_session(artifact, case[1])
    ids, mask = padded("left")
    cache = session.empty_cache(len(TEXTS))
    first = session.prefill(ids, cache, mask)
    logits: list[list[Any]] = [[first[row, -1]] for row in range(len(TEXTS))]
    done = np.zeros(len(TEXTS), dtype=int)
    rng = np.random.default_rng(0)
    while (done < FORCED).any():
        go = (rng.random(len(TEXTS)) < 0.6) & (done < FORCED)
        column = [TEXTS[row][len(TEXTS[row]) - FORCED + done[row]] if go[row] else 0 for row in range(len(TEXTS))]
        step = session.decode(np.array(column)[:, None], cache, go[:, None])
        for row in np.flatnonzero(go):
            logits[row].append(step[row, -1])
        done += go
    for row in range(len(TEXTS)):
        lone.check(row, session, cache, row, logits[row])
