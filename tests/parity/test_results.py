"""The result: what counts as passed, what was judged, which checks are listed, and the same as JSON."""

import importlib.metadata
import json
from dataclasses import replace

import numpy as np
import pytest

from lucid_deploy.errors import CheckFailed, NotProvenError
from lucid_deploy.parity.causes import Explanation
from lucid_deploy.parity.compare import check
from lucid_deploy.parity.gate import Coverage, Gate, compare_rows
from lucid_deploy.parity.metrics import LogitMetrics
from lucid_deploy.parity.own_errors import WorstOwnError
from lucid_deploy.parity.record import TensorId, TensorRows
from lucid_deploy.parity.results import Check, ScenarioInfo, Verification
from lucid_deploy.parity.scenarios import FREE_RUNNING, QUICK
from tests.parity.small_models import LAYERS, session

K0, Y0, LOGITS = TensorId(0, 0), TensorId(0, 1), TensorId(2, 2)


def comparison(tensor, error=0.0, gate=1e-3, scenario="random", schedule="one-shot", rows=(1.0, 1.0, 1.0)):
    reference = np.array(rows)[None, :, None]
    actual = TensorRows(reference * (1 + error))
    return compare_rows(actual, TensorRows(reference), tensor, Gate(gate, gate / 4), scenario, schedule)


def logits(gate, agreed):
    """Logits of 100 positions, of which some have the reference's most likely token."""
    return replace(comparison(LOGITS, gate=gate), logits=LogitMetrics(0.0, 0.0, 100, agreed, 100 - agreed, 0))


def verification(*comparisons):
    scenarios = (ScenarioInfo("random", 3, 0), ScenarioInfo("greedy", 5, 2))
    return Verification(comparisons=comparisons, scenarios=scenarios, runtime="torch", label="torch", dtype="float32")


@pytest.fixture(scope="module")
def result(model, targets):
    return replace(check(session(model), targets), left_out=())  # fewer steps are taken to save time


# Passed


def test_passing_takes_every_gate_and_gates_that_mean_something():
    good = comparison(K0, 1e-4)
    assert verification(good).passed
    assert not verification(good, comparison(Y0, gate=2.0)).passed
    failed = verification(good, comparison(Y0, 0.5))
    assert not failed.passed and failed.first_failure.tensor == Y0
    assert not verification().passed, "nothing was compared"


def test_a_failed_check_of_the_artifact_fails_it():
    files = Check("files", "failed", "sha256 of weights.bin differs")
    found = replace(verification(comparison(K0)), artifact_checks=(files,))
    assert not found.passed and not found.to_dict()["passed"]
    assert files.detail in found.failure and files.detail in found.verdict()
    with pytest.raises(CheckFailed, match="sha256"):
        found.raise_if_failed()


def test_a_failure_against_another_implementation_fails_it():
    other = replace(comparison(K0, 0.5), against="golden file")
    found = verification(comparison(K0), other)
    assert not found.passed and found.own_failure is None and found.first_failure is other


def test_a_tensor_that_every_gate_lets_through_is_unproven():
    items = [comparison(K0, gate=1.0), comparison(K0, gate=1.0, scenario="correlated"), comparison(Y0, gate=1.0)]
    found = verification(*items, comparison(Y0, gate=0.5, scenario="correlated"))
    assert found.unproven == (K0,) and not found.passed
    assert found.checks[2].outcome == "reported" and "Use a wider type" in found.verdict()
    with pytest.raises(NotProvenError, match="is not proven") as raised:
        found.raise_if_failed()
    assert raised.value.exit_code == 3
    many = verification(*(comparison(TensorId(layer, 0), gate=1.0) for layer in range(6)))
    assert "loses layer 0 K, layer 1 K, layer 2 K and 3 more tensors. No gate" in many.verdict()


@pytest.mark.parametrize(
    ("items", "words"),
    [
        ([logits(0.11, 100)], "an error of 11% of the logits would have passed"),
        ([logits(0.3, 100), logits(0.02, 100), logits(0.03, 100)], ""),
        ([comparison(K0, gate=2.0), *[comparison(K0, gate=0.1)] * 9], ""),
        ([comparison(K0, gate=2.0), *[comparison(K0, gate=0.1)] * 8], "1 of 9 comparisons could not be judged"),
        ([logits(0.1, 95)], ""),
        ([logits(0.1, 94)], "6 of 100 most likely tokens are not those"),
    ],
)
def test_gates_that_no_user_would_accept_prove_too_little(items, words):
    found = verification(*items)
    assert found.passed == (not words) and words in found.verdict() and not found.failed


def test_where_inputs_are_rounded_each_layer_by_itself_is_proof_enough():
    found = replace(verification(comparison(K0, gate=2.0), logits(0.3, 90)), rounded_inputs="int8")
    own = WorstOwnError("random", K0, "decode", 7, 1e-5, Gate(1e-3, 1e-4), False)
    proven = replace(found, explanation=Explanation(("random",), (own,)))
    assert proven.passed and not proven.cause() and not found.passed
    assert "loses layer 0 K; an error of 30% of the logits would have passed. Each layer" in proven.verdict()
    assert "by itself, on the reference's inputs, is within its gate; after export with --acti" in proven.verdict()
    for wrong in (replace(own, failed=True), replace(own, gate=Gate(2.0, 0.5))):
        unproven = replace(proven, explanation=Explanation(("random",), (wrong,)))
        assert not unproven.passed and ("one of a single layer did" in unproven.verdict()) == wrong.failed
    other = replace(proven, comparisons=(comparison(K0), logits(0.1, 89)))
    assert other.not_proven == ("11 of 100 most likely tokens are not those of PyTorch in float64",)
    assert not replace(proven, rounded_inputs=None).passed
    assert "loses layer 0 K" in replace(proven, rounded_inputs=None, rounded_cache="int8").verdict()


def test_each_schedule_must_be_judged_in_some_scenario():
    items = [comparison(K0, gate=0.5), comparison(K0, gate=2.0, schedule="by token"), comparison(Y0, gate=0.5)]
    assert verification(*items).unproven == (K0,)
    assert verification(comparison(K0, gate=0.1, scenario="correlated", schedule="by token"), *items).unproven == ()
    for schedule in (FREE_RUNNING, "in turns"):  # of a single scenario
        assert verification(comparison(K0, gate=0.5), comparison(K0, gate=2.0, schedule=schedule)).unproven == ()


# Judged


def test_comparisons_that_could_not_fail_are_not_counted_as_judged():
    items = [comparison(K0), comparison(K0, gate=2.0), comparison(Y0, gate=0.1, rows=(10.0, 0.5, 2.0))]
    found = Coverage.of(items)
    assert (found.total, found.judged, found.unjudged) == (3, 2, 1)
    assert (found.blind_positions, found.positions) == (1, 6)  # of those that were judged


def test_the_worst_of_a_tensor_is_judged_and_measured_by_its_gate():
    judged, vacuous = comparison(K0, 1e-4), comparison(K0, 9e7, gate=1e8, schedule="by token")
    assert verification(vacuous, judged).worst_by_tensor() == {K0: judged}
    assert verification(vacuous).worst_by_tensor() == {K0: vacuous}
    near, far = comparison(K0, 9e-4), comparison(K0, 5e-3, gate=1e-1)
    assert verification(far, near).worst_by_tensor()[K0] is near
    size = comparison(K0, 9e-4, rows=(1.0,))
    assert verification(judged, size).worst_by_tensor(along_positions=True) == {K0: judged}


@pytest.mark.parametrize(
    ("gate", "passed", "outcome"), [(0.1, False, "failed"), (0.9, True, "passed"), (1.5, None, "not judged")]
)
def test_a_comparison_that_was_not_judged_has_not_passed(gate, passed, outcome):
    reference, actual = np.array([[[2.0, 1.0, 0.0]]]), np.array([[(1.0, 2.0, 0.0)]])
    item = compare_rows(
        TensorRows(actual, 7), TensorRows(reference, 7), LOGITS, Gate(gate, gate / 4), "random", "chunks"
    )
    data = verification(comparison(K0), item).to_dict()
    found = data["comparisons"][1]
    assert (found["passed"], found["outcome"], found["judged"]) == (passed, outcome, passed is not None)


# JSON


def test_the_result_is_plain_data(result):
    data = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert data["passed"] is True and data["first_failure"] is None and data["runtime"] == "torch"
    assert data["environment"]["versions"]["torch"] == importlib.metadata.version("torch")
    assert {"lucid-deploy", "python", "numpy"} <= data["environment"]["versions"].keys()
    assert [s["name"] for s in data["scenarios"]] == ["random", "one token", "pattern", "correlated", "greedy"]
    first = data["comparisons"][0]
    assert (first["tensor"], first["layer"], first["schedule"]) == ("layer 0 K", 0, "one-shot")
    assert first["gate"] >= 4 * first["baseline_error"]
    names = [*(f"layer {i} {kind}" for i in range(LAYERS) for kind in "KY"), "logits"]
    for schedule in ("one-shot", "chunks", "by token", "in turns", "padded", "drafts"):
        scenario = "greedy" if schedule == "in turns" else "correlated"
        found = [i["tensor"] for i in data["comparisons"] if (i["scenario"], i["schedule"]) == (scenario, schedule)]
        assert found == names, schedule
    for key in ("max_abs", "relative_l2", "worst_position_error", "worst_position"):
        assert all(item[key] is not None for item in data["comparisons"])


# Checks


def test_every_check_is_listed_whether_it_was_made_or_not(result):
    found = replace(result, left_out=tuple(QUICK.left_out()), no_drafts="runtime x decodes one token at a time")
    assert list(dict.fromkeys((item.name, item.outcome) for item in found.checks)) == [
        ("files", "not done"),
        ("weights", "not done"),
        ("tensors", "passed"),
        ("free generation", "reported"),
        ("causes", "not done"),
        ("text", "not done"),
        ("full verification", "not done"),
        ("verification of drafts", "not done"),
        ("longer contexts", "not done"),
        ("another implementation", "not done"),
    ]
    details = {item.name: item.detail for item in found.checks}
    assert all(details.values())
    assert details["longer contexts"] == "the longest sequence had 43 of 48 tokens"
    missing = [item.detail for item in found.checks if item.name == "full verification"]
    assert missing == list(QUICK.left_out()) == found.to_dict()["left_out"]
