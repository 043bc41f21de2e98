"""Prompts that find too little memory, and what the session says after each. Run as ``little_memory.py ARTIFACT``."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

import numpy as np

from lucid_deploy.artifact import open_artifact
from lucid_deploy.runtimes import RuntimeOptions, open_session
from lucid_deploy.runtimes.session import Array

session = open_session(open_artifact(sys.argv[1]), RuntimeOptions("openvino", threads=1))
random = np.random.default_rng(0)
prompt, long_prompt = random.integers(0, 97, (1, 20)), random.integers(0, 97, (64, 90))


def answered() -> list[Array]:
    """Return the logits of a prompt and of two tokens behind it."""
    cache = session.empty_cache()
    return [np.array(session.prefill(prompt, cache)), *(session.decode(np.array([[t]]), cache) for t in (7, 9))]


alone, (soft, hard) = np.concatenate(answered()), resource.getrlimit(resource.RLIMIT_AS)
said = []
for more in (1, 2, 4, 8, 16):  # MiB
    cache = session.empty_cache(len(long_prompt))
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + more * 2**20, hard))
    try:
        session.prefill(long_prompt, cache)
    except Exception as error:  # noqa: BLE001 (what it says is looked at)
        said.append(f"{type(error).__name__}: {error}")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    np.testing.assert_array_equal(np.concatenate(answered()), alone)
sys.stdout.write(json.dumps(said))
