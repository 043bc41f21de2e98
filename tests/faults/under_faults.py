"""Runs a command again and again in a process with ``faults.c`` preloaded, each time with another call going wrong.

Run by ``test_faults.py``, as ``under_faults.py JOB DIRECTORY EVERY RESULT``; what came of it is written as JSON.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

WRITE, READ, NAME = 1, 2, 4  # as in faults.c
SHORT, KILL = -1, -2
# Which kinds of calls each fault is tried on. Removing is not among them.
FAULTS = {
    "no space": (WRITE | NAME, errno.ENOSPC),
    "input/output error": (WRITE | READ | NAME, errno.EIO),
    "half": (WRITE | READ, SHORT),
    "kill": (WRITE | NAME, KILL),
}


@dataclass
class Outcome:
    """What came of one run.

    Attributes:
        fault: A key of :data:`FAULTS`.
        call: The call that went wrong.
        status: Exit status of the command; None where the process was killed.
        message: Its stderr, or the traceback of an exception that no command should raise.
        left: Temporary names that were left; after a kill there may be some, and none are listed.
        state: What is at the output, in the job's words.
    """

    fault: str
    call: str
    status: int | None
    message: str
    left: list[str]
    state: str


def library() -> ctypes.CDLL:
    """Return the preloaded library."""
    found = ctypes.CDLL(None)
    found.faults_arm.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_int, ctypes.c_int]
    found.faults_last.restype = ctypes.c_char_p
    return found


def invoke(arguments: list[str]) -> tuple[int, str]:
    """Run a command in this process; return its exit status and what it says of errors."""
    import traceback

    from click.testing import CliRunner

    from lucid_deploy.cli import main

    result = CliRunner().invoke(main, arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        return 70, "".join(traceback.format_exception(result.exception))
    return result.exit_code, result.stderr


def faulty_runs(
    root: Path, job: Callable[[], tuple[int, str]], prepare: Callable[[], None], state: Callable[[], str], every: int
) -> Iterator[Outcome]:
    """Run a job with each of its calls going wrong in each way.

    Args:
        root: Calls on files below it count.
        job: Runs the command once.
        prepare: Restores what a run starts from.
        state: Says what is at the output; it may run the command once more.
        every: Try one of this many calls.
    """
    calls = library()
    for fault, (kinds, what) in FAULTS.items():
        prepare()
        calls.faults_arm(os.fsencode(root), kinds, -1, what)
        job()
        count = calls.faults_disarm()
        for number in range(sum(fault.encode()) % every, count, every):
            prepare()
            if what == KILL:
                status, message, last = killed(calls, root, kinds, number, job)
            else:
                calls.faults_arm(os.fsencode(root), kinds, number, what)
                status, message = job()
                calls.faults_disarm()
                last = calls.faults_last().decode()
            left = [path.name for path in temporaries(root)] if what != KILL else []
            yield Outcome(fault, last, status, message, left, state())


def killed(
    calls: ctypes.CDLL, root: Path, kinds: int, number: int, job: Callable[[], tuple[int, str]]
) -> tuple[int | None, str, str]:
    """Run a job in a copy of this process that is killed at a call."""
    child = os.fork()
    if not child:
        calls.faults_arm(os.fsencode(root), kinds, number, KILL)
        status, _ = job()
        os._exit(status)
    _, ended = os.waitpid(child, 0)
    return (None if os.WIFSIGNALED(ended) else os.WEXITSTATUS(ended)), "", f"call {number}"


def temporaries(root: Path) -> list[Path]:
    """Return what has a temporary name below a directory."""
    return [path for path in sorted(root.rglob("*")) if re.search(r"\.(tmp|old)-[0-9a-f]{8}$", path.name)]


def digest(directory: Path) -> str:
    """Return a hash of the files of a directory."""
    whole = hashlib.sha256()
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            whole.update(f"{path.relative_to(directory)} {path.stat().st_size} ".encode() + path.read_bytes())
    return whole.hexdigest()


def export_job(root: Path, every: int) -> Iterator[Outcome]:
    """Export over an older artifact, with stored traces; in the end the old artifact is there, or the new one."""
    from lucid_deploy.export import trace as tracing
    from tests.remembered_traces import KEPT, name_of, unpacked

    traces, original = Path(os.environ[KEPT]), tracing.trace

    def remembered(*arguments: object, **options: object) -> object:
        return unpacked((traces / name_of(*arguments, **options)).read_bytes())

    tracing.trace = functools.wraps(original)(remembered)
    output = root / "artifact"
    arguments = ["export", str(root / "checkpoint"), "--output", str(output), "--overwrite", "--cache", "growing"]
    assert invoke(arguments)[0] == 0
    new = digest(output)

    def prepare() -> None:
        for path in temporaries(root):
            shutil.rmtree(path)
        if not (output / "old").is_file():
            shutil.rmtree(output, ignore_errors=True)
            output.mkdir()
            (output / "old").touch()
            (output / "lucid.json").write_text("{}")

    def state() -> str:
        if not output.is_dir():
            return "nothing"
        return "old" if (output / "old").is_file() else "new" if digest(output) == new else "neither"

    yield from faulty_runs(root, lambda: invoke(arguments), prepare, state, every)


def batch_job(root: Path, every: int) -> Iterator[Outcome]:
    """Answer prompts; then the same command continues, and every prompt has one answer."""
    output = root / "out" / "answers.jsonl"
    arguments = ["run", str(root / "artifact"), "--batch", str(root / "prompts.jsonl"), "--output", str(output)]
    arguments += ["--rows", "2", "--max-new-tokens", "3", "--threads", "1"]

    def prepare() -> None:
        shutil.rmtree(output.parent, ignore_errors=True)
        output.parent.mkdir()

    def answers() -> str:
        return "".join(sorted(output.read_text(encoding="utf-8").splitlines(keepends=True)))

    prepare()
    status, message = invoke(arguments)
    assert status == 0, message
    whole = answers()

    def state() -> str:
        begun = output.is_file() and answers()
        again, said = invoke(arguments)
        if again:
            return f"the second run ended with {again}: {said}"
        return "whole" if answers() == whole else f"other answers after {begun!r}: {answers()}"

    yield from faulty_runs(root, lambda: invoke(arguments), prepare, state, every)


if __name__ == "__main__":
    jobs = {"export": export_job, "batch": batch_job}
    name, place, step, result = sys.argv[1:]
    outcomes = [asdict(outcome) for outcome in jobs[name](Path(place), int(step))]
    Path(result).write_text(json.dumps(outcomes))
