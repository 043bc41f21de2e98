"""Jobs."""

from __future__ import annotations

import msgspec

from lucid_deploy.generation.sampling import Sampling
from lucid_deploy.serving.jobs import Job


def test_rows_are_prompts_times_n() -> None:
    assert Job(((1,), (2, 3)), n=3).rows == 6


def test_a_job_travels_between_processes() -> None:
    sampling = Sampling(1.0, seed=2**64 - 1, logit_bias=((3, -1.5),), bad_words=((1, 2), (3,)))
    job = Job(((1,), (2, 3)), n=2, sampling=sampling, stops=("é",), top_logprobs=0, cache_owner="o")
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(job), type=Job) == job
