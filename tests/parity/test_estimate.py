"""Estimates of time: phases that are those which run, and seconds that grow with the work."""

from itertools import groupby

import pytest
import torch
from safetensors.torch import save_file

from lucid_deploy.model.checkpoint import Checkpoint
from lucid_deploy.model.scenarios import ONE_SHOT, SCHEDULES, Scenario, batches, greedy_prompt, synthetic_scenarios
from lucid_deploy.parity import VerifyOptions, verify_artifact
from lucid_deploy.parity.estimate import planned_phases, work_of
from lucid_deploy.parity.measure import phases
from lucid_deploy.parity.measure.extent import FULL, QUICK
from lucid_deploy.parity.measure.speed import Speed
from lucid_deploy.parity.outside import open_references

SPEED = Speed(1e11, 5e10, 1e10, 1e9)
KINDS = [{}, {"cache_dtype": "int8"}, {"attention_type": "llama"}]


def made(exported, **changes):
    checkpoint, artifact = exported(max_position_embeddings=48, **changes)
    return Checkpoint(checkpoint), artifact


@pytest.mark.parametrize("explain", [False, True])
@pytest.mark.parametrize("changes", KINDS, ids=str)
def test_the_phases_that_are_planned_are_those_that_run(exported, changes, explain):
    source, artifact = made(exported, **changes)
    options = VerifyOptions(steps=4, explain=explain)
    planned = [phase.name for phase in planned_phases(artifact, source, options, SPEED)]
    seen = []
    verify_artifact(artifact, options, lambda step: seen.append(step))
    assert [name for name, _ in groupby(step.phase for step in seen)] == planned
    assert {step.phases for step in seen} == {len(planned)}
    assert seen[-1].left < 60


def test_other_references_are_planned_too(exported, tmp_path):
    source, artifact = made(exported, attention_type="llama")
    ids = torch.arange(24).reshape(2, 12)
    tensors = {"input_ids": ids, "logits": torch.zeros(2, 12, 97)}
    save_file(tensors, tmp_path / "g.safetensors", {"golden_version": "1", "computed_in": "bfloat16"})
    options = VerifyOptions(steps=4, golden=tmp_path / "g.safetensors", against="transformers")
    outside = open_references(options.golden, options.against, source, artifact.manifest.layers, artifact)
    planned = [phase.name for phase in planned_phases(artifact, source, options, SPEED, outside)]
    assert {phases.recording("bfloat16"), phases.TRANSFORMERS} < set(planned)
    seen = []
    assert not verify_artifact(artifact, options, lambda step: seen.append(step)).passed  # logits of zeros
    assert [name for name, _ in groupby(step.phase for step in seen)] == planned


@pytest.mark.parametrize("extent", [FULL, QUICK], ids=["full", "quick"])
def test_the_candidates_calls_are_those_that_are_made(exported, extent):
    """Counted as the run counts them."""
    checkpoint, artifact = exported()
    work = work_of(artifact, Checkpoint(checkpoint), extent)
    config = artifact.config
    scenarios = [
        item
        for item in synthetic_scenarios(config, extent.steps, prompt_tokens=extent.prompt_tokens)
        if extent.scenarios is None or item.name in extent.scenarios
    ]
    name, ids, _ = greedy_prompt(config, extent.steps, 0, None, extent.prompt_tokens)
    scenarios.append(Scenario(name, ids, scenarios[0].forced, greedy=True, alone=True))
    calls = sum(s.calls(group[0]) for s in extent.schedules for group in batches(scenarios, s))
    assert len(list(work.one_by_one(extent.schedules))) == calls


def test_a_slower_machine_takes_longer_and_a_quick_run_less(exported):
    checkpoint, artifact = exported()
    source = Checkpoint(checkpoint)

    def seconds(options, speed=SPEED):
        return sum(phase.seconds for phase in planned_phases(artifact, source, options, speed))

    whole = seconds(VerifyOptions())
    assert seconds(VerifyOptions(quick=True)) < whole / 4
    assert seconds(VerifyOptions(), Speed(1e8, 5e7, 1e8, 1e9)) > whole
    assert seconds(VerifyOptions(explain=True)) > whole


def test_a_padded_batch_has_two_rows_for_each_sequence(exported):
    checkpoint, artifact = exported()
    work = work_of(artifact, Checkpoint(checkpoint), FULL)
    padded = SCHEDULES[-1]
    assert next(iter(work.calls(padded, 4)))[1] == 8
    assert next(iter(work.calls(ONE_SHOT, 4))) == (4 * work.prompt, 4)


def test_files_come_first(exported):
    source, artifact = made(exported)
    first = planned_phases(artifact, source, VerifyOptions(), SPEED)[0]
    assert first.name == phases.FILES
    assert first.seconds == pytest.approx(sum(item["size"] for item in artifact.manifest.files.values()) / 1e9)
