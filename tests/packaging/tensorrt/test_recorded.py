"""Recorded inputs have similar keys, golden outputs come from float64, and tolerances tell wrong from rounded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch

from lucid_deploy.artifact import Artifact
from lucid_deploy.errors import LucidError
from lucid_deploy.packaging.tensorrt.recorded import CASES, Recorded, record
from lucid_deploy.runtimes.tensorrt.limits import Limits

Exported = Callable[..., tuple[Path, Artifact]]


@pytest.fixture(scope="module")
def recorded(exported: Exported) -> dict[str, Recorded]:
    return record(exported()[1], Limits(2, 64, 16))


def test_the_cases_have_padding_and_similar_keys(recorded: dict[str, Recorded]) -> None:
    assert list(recorded) == list(CASES)
    shapes = {
        case: (each.inputs["input_ids"].shape, each.inputs["attention_mask"].shape) for case, each in recorded.items()
    }
    assert shapes == {"prefill": ((2, 16), (2, 16)), "prefill_past": ((2, 7), (2, 23)), "decode": ((2, 1), (2, 24))}
    mask = recorded["decode"].inputs["attention_mask"]
    assert mask[0].all() and mask[1].tolist() == [0, 0, 0] + [1] * 21
    assert recorded["prefill"].inputs["position_ids"][1].tolist() == [0, 0, 0, *range(13)]
    ids = torch.cat([each.inputs["input_ids"] for each in recorded.values()], 1)
    assert len(ids.unique()) <= 5 and torch.equal(ids[:, 12:], ids[:, :12]), "few tokens, in a text that repeats itself"
    keys = recorded["decode"].inputs["past_key_values.0.key"][0, 0].double()
    unit = keys / keys.norm(dim=-1, keepdim=True)
    assert float((unit @ unit.T).mean()) > 0.5, "keys resemble each other"


def test_each_call_continues_from_the_cache_of_the_one_before(recorded: dict[str, Recorded]) -> None:
    for before, after in (("prefill", "prefill_past"), ("prefill_past", "decode")):
        for name, value in recorded[before].outputs.items():
            if name.startswith("present."):
                assert torch.equal(value, recorded[after].inputs[name.replace("present", "past_key_values")])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_artifact_is_within_the_tolerances_and_a_wrong_one_is_not(dtype: str, exported: Exported) -> None:
    artifact = exported(dtype)[1]
    for case, each in record(artifact, Limits(2, 64, 16)).items():
        session = ort.InferenceSession(str(artifact.graph_path(CASES[case])))
        names = [output.name for output in session.get_outputs()]
        results = session.run(names, {name: value.numpy() for name, value in each.inputs.items()})
        for name, result in zip(names, results, strict=True):
            golden = each.outputs[name].numpy()
            assert result.dtype == golden.dtype
            assert np.abs(result.astype(np.float64) - golden.astype(np.float64)).max() <= each.tolerances[name], name
        values = each.outputs["present.1.value"]
        without_solve = values.roll(1, 2) - values  # an error as large as that of leaving out the solve
        assert float(without_solve.double().abs().max()) > 20 * each.tolerances["present.1.value"]


def test_limits_too_small_for_the_cases_are_refused(exported: Exported) -> None:
    artifact = exported()[1]
    recorded = record(artifact, Limits(1, 3, 1))
    assert [tuple(each.inputs["attention_mask"].shape) for each in recorded.values()] == [(1, 1), (1, 2), (1, 3)]
    with pytest.raises(LucidError, match=r"--max-context 2 there is no room for recorded inputs.*Take 3 or more"):
        record(artifact, Limits(1, 2, 1))
