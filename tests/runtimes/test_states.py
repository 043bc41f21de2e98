"""Caches with states, whose size is fixed: a hybrid of gated delta layers and one LUCID layer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from lucid_deploy.artifact import Artifact
from lucid_deploy.cli import main
from lucid_deploy.runtimes import open_session
from lucid_deploy.runtimes.session import Session
from tests.parity.faults import change_weight


@pytest.fixture(scope="module")
def artifact(hybrid: Callable[..., Artifact]) -> Artifact:
    return hybrid()


@pytest.fixture(scope="module")
def session(artifact: Artifact) -> Session[Any]:
    return open_session(artifact, "onnxruntime", kernels="functions")


def tokens(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 61, (1, n))


def lucid_deploy(*arguments: Any) -> Any:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


def test_a_fork_decodes_as_a_cache_of_its_own(session: Session[Any]) -> None:
    cache = session.empty_cache()
    session.prefill(tokens(9), cache)
    fork = session.fork(cache)
    wanted = session.decode(np.array([[2]]), fork).copy()
    session.decode(np.array([[50]]), cache)
    again = session.empty_cache()
    session.prefill(tokens(9), again)
    np.testing.assert_array_equal(session.decode(np.array([[2]]), again), wanted)


def test_verify_judges_states_and_finds_a_fault_in_a_layer_with_states(artifact: Artifact, tmp_path: Path) -> None:
    passed = lucid_deploy("verify", artifact.directory, "--quick", "--prompt-tokens", 180, "--json", "-")
    facts = json.loads(passed.stdout)
    judged = {item["tensor"] for item in facts["comparisons"]}
    assert {item["prompt_tokens"] for item in facts["scenarios"]} == {180}
    assert passed.exit_code == 0 and {"layer 0 conv_state", "layer 0 recurrent_state", "layer 1 K", "logits"} <= judged
    broken = Path(shutil.copytree(artifact.directory, tmp_path / "broken"))
    change_weight(broken, "model.layers.0.linear_attn.A_log", 1.01)
    failed = lucid_deploy("verify", broken, "--quick")
    assert failed.exit_code == 1 and "layer 0 recurrent_state is beyond its gate" in " ".join(failed.stderr.split())
