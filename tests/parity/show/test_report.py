"""Reports as plain data, and what they say was checked."""

import importlib.metadata
import json
from dataclasses import replace

import pytest

from lucid_deploy.parity import check
from lucid_deploy.parity.measure.compare import TensorId
from lucid_deploy.parity.measure.extent import QUICK
from lucid_deploy.parity.measure.gate import Gate
from lucid_deploy.parity.show.checks import Check
from tests.parity.small_models import LAYERS, session


@pytest.fixture(scope="module")
def report(model, targets):
    return replace(check(session(model), targets), left_out=())  # fewer steps are taken to save time


def test_the_report_is_plain_data(report):
    data = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert data["passed"] is True
    assert data["first_failure"] is None
    assert data["runtime"] == "torch"
    assert data["environment"]["versions"]["torch"] == importlib.metadata.version("torch")
    assert {"lucid-deploy", "python", "numpy"} <= data["environment"]["versions"].keys()
    assert [s["name"] for s in data["scenarios"]] == ["random", "one token", "pattern", "correlated", "greedy"]
    first = data["comparisons"][0]
    assert (first["tensor"], first["layer"], first["schedule"]) == ("layer 0 K", 0, "one-shot")
    assert first["gate"] >= 4 * first["baseline_error"]
    logits = [item for item in data["comparisons"] if item["tensor"] == "logits"]
    assert all(item["logits"]["agreed"] + item["logits"]["near_ties"] == item["logits"]["positions"] for item in logits)


def test_every_metric_is_there_for_every_tensor_and_schedule(report):
    data = report.to_dict()["comparisons"]
    names = [*(f"layer {i} {kind}" for i in range(LAYERS) for kind in "KY"), "logits"]
    for schedule in ("one-shot", "chunks", "by token", "in turns", "padded"):
        scenario = "greedy" if schedule == "in turns" else "correlated"
        found = [item["tensor"] for item in data if (item["scenario"], item["schedule"]) == (scenario, schedule)]
        assert found == names
    for key in ("max_abs", "relative_l2", "cosine", "worst_position_error", "worst_position"):
        assert all(item[key] is not None for item in data)
    assert all(item["logits"].keys() >= {"kl_mean", "kl_max", "agreed"} for item in data if item["tensor"] == "logits")


def by_name(report):
    return {item.name: item for item in report.checks}


def test_every_check_is_listed_whether_it_was_made_or_not(report):
    assert [(item.name, item.outcome) for item in report.checks] == [
        ("files", "not done"),
        ("memory", "not done"),
        ("weights", "not done"),
        ("tensors", "passed"),
        ("free generation", "reported"),
        ("causes", "not done"),
        ("text", "not done"),
        ("cost of quantization", "not done"),
        ("longer contexts", "not done"),
        ("another implementation", "not done"),
    ]
    assert all(item.detail for item in report.checks)
    assert by_name(report)["longer contexts"].detail == "the longest sequence had 43 of 48 tokens"


def test_checks_made_before_the_comparison_are_kept(report):
    files = Check("files", "passed", "sha256 and size of 8 files")
    assert by_name(replace(report, before=(files,)))["files"] is files


def test_what_a_quick_verification_left_out_is_not_checked(report):
    quick = replace(report, left_out=tuple(QUICK.left_out()))
    missing = [item.detail for item in quick.checks if item.name == "whole verification"]
    assert missing == list(QUICK.left_out())
    assert quick.to_dict()["left_out"] == missing


def test_what_was_not_judged_is_neither_passed_nor_failed(report):
    first = replace(report.comparisons[0], gate=Gate(2.0, 0.5), blind_positions=len(report.comparisons[0].errors))
    data = replace(report, comparisons=(first, *report.comparisons[1:])).to_dict()
    assert (data["comparisons"][0]["passed"], data["comparisons"][0]["outcome"]) == (None, "not judged")
    assert data["coverage"]["judged"] == data["coverage"]["total"] - 1 == len(report.comparisons) - 1
    assert data["coverage"]["reference"]["kind"] == "own model"
    assert data["coverage"]["reference"]["independent"] is False
    assert data["passed"] is True and data["comparisons"][1]["passed"] is True


def test_a_tensor_without_any_judgement_fails_the_check(report):
    unproven = replace(report, unproven=(TensorId(1, 1),))
    check = by_name(unproven)["tensors"]
    assert check.outcome == "failed" and "layer 1 Y" in check.detail
    assert "Use a wider type" in unproven.verdict()


@pytest.mark.parametrize(
    ("rounded", "words", "remedy"),
    [
        ({"rounded_cache": "int8"}, "with a cache in int8, PyTorch", ": --cache-dtype auto."),
        ({"rounded_inputs": "int8"}, "with inputs rounded to int8, PyTorch", ": --activations float."),
        (
            {"rounded_cache": "fp8", "rounded_inputs": "int8"},
            "with a cache in fp8 and inputs rounded to int8, PyTorch",
            ": --cache-dtype auto, --activations float.",
        ),
    ],
)
def test_what_rounds_is_named_where_it_loses_a_tensor(report, rounded, words, remedy):
    verdict = replace(report, unproven=(TensorId(1, 1),), **rounded).verdict()
    assert words in verdict and f"Export with less rounding{remedy}" in verdict and "wider type" not in verdict
