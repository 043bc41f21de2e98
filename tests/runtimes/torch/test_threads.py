"""A session's number of threads holds during its own runs: the process that opens it keeps the number it had."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lucid_deploy.artifact import Artifact
from lucid_deploy.errors import LucidError
from lucid_deploy.runtimes import Session, open_session
from tests.patience import PATIENCE

Exported = Callable[..., tuple[Path, Artifact]]
PROMPT = np.array([[5, 6, 7]])


def run(session: Session[Any]) -> None:
    cache = session.empty_cache()
    session.prefill(PROMPT, cache)
    session.decode(PROMPT[:, :1], cache)


def watch(session: Any, seen: list[int]) -> None:
    """Note the number of threads in each run of the session's model."""
    session.model.register_forward_pre_hook(lambda *_: seen.append(torch.get_num_threads()))


def test_a_fork_of_a_process_whose_threads_have_run_is_refused(exported: Exported) -> None:
    """In the fork PyTorch would wait for ever, whichever process opened the session."""
    artifact = exported()[1]
    fork = multiprocessing.get_context("fork")
    several, one = (open_session(artifact, "torch", threads=number) for number in (2, 1))
    run(several)

    def child(answers: Any) -> None:
        run(one)
        for session in (several, open_session(artifact, "torch", threads=2)):
            try:
                run(session)
            except LucidError as error:
                answers.put(str(error))

    answers = fork.SimpleQueue()
    process = fork.Process(target=child, args=(answers,))
    process.start()
    process.join(PATIENCE)
    process.kill()
    assert process.exitcode == 0
    for _ in range(2):
        assert "Start processes with spawn instead of fork, or open the model with threads=1" in answers.get()
    run(several)


def in_a_new_thread() -> int:
    """What a thread gets that uses PyTorch for the first time: the process's own number."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(torch.get_num_threads).result()


def test_the_number_holds_in_runs_and_nowhere_else(exported: Exported) -> None:
    torch.set_num_threads(2)
    session = open_session(exported()[1], "torch", threads=3)
    seen: list[int] = []
    watch(session, seen)
    assert (torch.get_num_threads(), in_a_new_thread()) == (2, 2), "opened"
    run(session)
    assert seen == [3, 3]
    assert (torch.get_num_threads(), in_a_new_thread()) == (2, 2), "run"
