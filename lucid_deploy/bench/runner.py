"""Compare outputs of contenders on the same weights, then time all in rounds in which each contender is timed once."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from lucid_deploy.artifact import open_artifact
from lucid_deploy.bench.contenders import Contender
from lucid_deploy.errors import CheckFailed, LucidError

# Allowed relative L2 error between logits of two implementations of one model in one precision. It only tells a wrong
# model from a right one before timing; `lucid-deploy verify` checks how exact a model is, with derived gates.
_SAME = {"float32": 1e-3, "float16": 5e-2, "bfloat16": 2e-1}
_COMPARED = 150  # tokens: more than one block of the solve, which has 128
_SAME_INT8 = 1e-1  # onnxruntime rounds the inputs of quantized weights to 8 bits, PyTorch does not


@dataclass(frozen=True)
class Plan:
    """What to measure."""

    lengths: tuple[int, ...]  # tokens of a prompt (prefill), or in the cache (decode)
    batches: tuple[int, ...] = (1,)  # rows
    stages: tuple[str, ...] = ("prefill", "decode")  # prefill, decode or both
    repeats: int = 5  # rounds that count; one more warms up
    chunk: int | None = None  # prompt tokens that run in one call; None: the session's prefill_chunk
    steps: int = 8  # decode steps timed in a row

    @property
    def longest(self) -> int:
        """Tokens of the longest context, including those that are decoded after it."""
        return max(self.lengths) + (self.steps + 1 if "decode" in self.stages else 0)


@dataclass(frozen=True)
class Measurement:
    """All rounds of one contender at one stage, batch and length."""

    contender: str  # its name
    stage: str  # prefill (seconds to the first token's logits) or decode (seconds a step)
    batch: int  # rows
    length: int  # prompt tokens, or tokens of context
    seconds: tuple[float, ...]  # one number a round
    peak: int  # most resident memory of its process while it was timed, bytes

    @property
    def median(self) -> float:
        """Median of the rounds, seconds."""
        return statistics.median(self.seconds)

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second of all rows together: prompt tokens in prefill, new tokens in decode."""
        return self.batch * (self.length if self.stage == "prefill" else 1) / self.median


class WorkerProcess:
    """A contender's process. Use as a context manager.

    At the end it is killed, so it cannot remove its temporary files: they are in a folder that this object removes.

    Args:
        contender: The contender that the process opens.
        program: Arguments to Python; they start the program that answers the commands of :meth:`ask`.
    """

    def __init__(self, contender: Contender, program: Sequence[str] = ("-m", "lucid_deploy.bench.worker")) -> None:
        self.contender = contender
        with ExitStack() as stack:
            scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="lucid-bench-"))
            self._process = subprocess.Popen(
                [sys.executable, *program],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env={**os.environ, "TMPDIR": scratch},
            )
            self._scratch = stack.pop_all()

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._scratch.close()

    def ask(self, op: str, **arguments: Any) -> dict[str, Any]:
        """Send one command and return its answer; raise LucidError if it failed or the process died."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"op": op, **arguments}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise LucidError(
                f"The process of {self.contender.name} died in {op} {arguments} (not enough memory?). Use smaller "
                "--lengths or --batches."
            )
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise LucidError(f"{self.contender.name}, {op}: {answer['error']}")
        return answer


def run_plan(
    contenders: list[Contender],
    plan: Plan,
    dtype: str,
    progress: Callable[[str, int, int], None] | None = None,
    measurements: list[Measurement] | None = None,
    opened: dict[str, dict[str, Any]] | None = None,
    prepared: Callable[[str, int], None] | None = None,
) -> tuple[list[Measurement], dict[str, dict[str, Any]]]:
    """Check the contenders' outputs, then time them; raise CheckFailed, before any timing, if outputs disagree.

    Args:
        contenders: What to time. Those with the weights of one artifact are compared with each other first.
        plan: What to measure.
        dtype: Type of the artifacts, which determines how closely outputs must agree.
        progress: Called with (what is being done, timings done, timings in all).
        measurements: A list to fill as they come, so that those of an interrupted run are kept; None: a new list.
        opened: A dictionary to fill likewise: by contender's name, what its process reported when it was opened.
        prepared: Called with name and number of each contender before it is opened.

    Returns:
        ``measurements`` and ``opened``, which has the seconds and memory that opening took, among other facts.
    """
    measurements, opened = [] if measurements is None else measurements, {} if opened is None else opened
    report = progress or (lambda *_: None)
    points = [(s, b, n) for s in plan.stages for b in plan.batches for n in plan.lengths]
    total = len(points) * (plan.repeats + 1) * len(contenders)
    with ExitStack() as stack:
        workers: list[WorkerProcess] = []
        for number, contender in enumerate(contenders, 1):
            if prepared is not None:
                prepared(contender.name, number)
            contender = replace(contender, longest=plan.longest)
            workers.append(stack.enter_context(WorkerProcess(contender)))
            opened[contender.name] = workers[-1].ask("open", **asdict(contender))
        _check_outputs(workers, dtype)
        done = 0
        for stage, batch, length in points:
            rounds: dict[str, list[dict[str, Any]]] = {worker.contender.name: [] for worker in workers}
            for _ in range(plan.repeats + 1):
                for worker in workers:
                    report(f"{stage}, batch {batch}, {length} tokens", done, total)
                    rounds[worker.contender.name].append(_measure(worker, plan, stage, batch, length))
                    done += 1
            for name, (_warm_up, *counted) in rounds.items():
                seconds = tuple(answer["seconds"] for answer in counted)
                peak = max(answer["peak"] for answer in counted)
                measurements.append(Measurement(name, stage, batch, length, seconds, peak))
    return measurements, opened


def _measure(worker: WorkerProcess, plan: Plan, stage: str, batch: int, length: int) -> dict[str, Any]:
    time.sleep(0.05)  # threads of the previous contender spin for a while after their work
    if stage == "prefill":
        return worker.ask("prefill", batch=batch, length=length, chunk=plan.chunk)
    return worker.ask("decode", batch=batch, context=length, steps=plan.steps)


def _check_outputs(workers: list[WorkerProcess], dtype: str) -> None:
    """Compare the logits of contenders that have the same weights; raise CheckFailed where they disagree."""
    first: dict[str, tuple[str, Any]] = {}
    for worker in workers:
        contender = worker.contender
        length = max(2, min(_COMPARED, open_artifact(contender.artifact).config.max_position_embeddings))
        logits = np.asarray(worker.ask("logits", seed=1, length=length)["logits"])
        name, wanted = first.setdefault(contender.artifact, (contender.name, logits))
        error = float(np.linalg.norm(logits - wanted) / np.linalg.norm(wanted))
        if not error <= _allowed(contender, dtype):
            raise CheckFailed(
                f"{contender.name} and {name} disagree by {error:.1e} on the same weights; nothing was timed. "
                f"Run: lucid-deploy verify {contender.artifact}"
            )


def _allowed(contender: Contender, dtype: str) -> float:
    record = open_artifact(contender.artifact).manifest.quantization
    rounds = record is not None and record.activations == "int8"
    return max(_SAME[dtype], _SAME_INT8) if rounds else _SAME[dtype]
