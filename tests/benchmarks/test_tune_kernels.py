"""The script that measures the kernels' constants on a GPU, as far as it goes without one."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lucid_deploy.plugins.shared.plan import Choice
from tests.patience import PATIENCE

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "tune_kernels.py"


@pytest.fixture(scope="module")
def tuner():
    spec = importlib.util.spec_from_file_location("tune_kernels", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_it_writes_the_files_as_they_stand(tuner):
    assert len(tuner.TUNED) == 2
    for path in tuner.TUNED.values():
        assert tuner.format_tuned(json.loads(path.read_text())) == path.read_text()


@pytest.mark.parametrize("name", ["100 float32 64", "100 float32 128"])  # the second is kept
def test_what_is_measured_replaces_what_a_model_chose_and_what_was_kept(tuner, name):
    before = json.loads(tuner.TUNED["decode_attention"].read_text())
    tuned, (arch, dtype, width) = copy.deepcopy(before), name.split()
    assert (name in tuned["chosen_by_model"]) != (name in tuned["kept"])
    tuner.enter(tuned, arch, dtype, int(width), Choice(0, 16, 8, 4))
    assert tuned["choices"][arch][dtype][width] == [0, 16, 8, 4]
    assert tuned["chosen_by_model"] == [each for each in before["chosen_by_model"] if each != name]
    assert tuned["kept"] == {each: why for each, why in before["kept"].items() if each != name}


def test_it_takes_the_fastest_of_the_correct(tuner):
    right, fast, wrong = Choice(64, 32, 4, 2), Choice(64, 64, 4, 2), Choice(32, 32, 4, 2)
    times = {right: 2.0, fast: 1.0, wrong: 0.5}

    def measure(choice):
        if choice == wrong:
            raise tuner.WrongResult("error 1")
        return times[choice]

    assert tuner.best(times, measure) == (fast, 1.0)
    with pytest.raises(tuner.WrongResult, match="no candidate"):
        tuner.best([wrong], measure)


def test_it_says_that_it_needs_a_gpu(preloaded):
    command = [preloaded / "python", SCRIPT]
    result = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, timeout=PATIENCE
    )
    assert result.returncode == 2 and "needs an NVIDIA GPU" in result.stderr
    assert subprocess.run([*command, "--help"], capture_output=True, timeout=PATIENCE).returncode == 0
