"""Faults in how an artifact rounds or reads its int8 cache, each smaller than the rounding itself, are caught.

Those in rounding by the sizes of K and Y, those in reading by steps from given rows.
"""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from lucid_deploy.artifact import open_artifact
from lucid_deploy.errors import LucidError
from lucid_deploy.model.checkpoint import Checkpoint, load_model
from lucid_deploy.parity import rounded_cache
from lucid_deploy.parity.compare import check
from lucid_deploy.parity.gate import VACUOUS
from lucid_deploy.parity.record import TensorRows, Trace
from lucid_deploy.parity.rounded_targets import Rounding
from lucid_deploy.parity.scenarios import Scenario, Workload
from lucid_deploy.parity.targets import prepare
from lucid_deploy.runtimes import open_session
from lucid_deploy.runtimes.torch.session import TorchSession
from tests.families.small import saved, small_config
from tests.parity.cache_faults import coarser_levels, read_scale, stored_scale, swapped_scales, towards_zero
from tests.parity.faults import edit_graphs
from tests.parity.small_models import VOCAB, in_dtype, record, session, small_model

CONTEXT, STEPS = 64, 6


def short(session):
    """Let a session say that its context is short, so that verification takes few tokens."""
    session.config = replace(session.config, max_position_embeddings=CONTEXT)
    return session


@pytest.fixture(scope="module")
def targets_of():
    """Return a function giving the targets of a checkpoint, derived once; growing and static caches share them."""
    done = {}

    def get(checkpoint, dtype, cache_dtype):
        if (dtype, cache_dtype) not in done:
            source = Checkpoint(checkpoint)

            def session(kind, cache):
                return short(TorchSession(load_model(source, getattr(torch, kind)).store_cache_as(cache)))

            done[dtype, cache_dtype] = prepare(
                session(dtype, cache_dtype),
                session("float64", "auto"),
                workload=Workload(steps=STEPS),
                embeddings=source.tensor("model.embed_tokens.weight").float().numpy(),
                rounded=session("float64", cache_dtype),
            )
        return done[dtype, cache_dtype]

    return get


@pytest.fixture
def int8_copy(exported, tmp_path):
    """Return a function giving the checkpoint of a small int8 artifact, and a copy to damage."""

    def make(cache, dtype="float32"):
        checkpoint, artifact = exported(dtype, cache=cache, cache_dtype="int8")
        return checkpoint, shutil.copytree(artifact.directory, tmp_path / "artifact")

    return make


@pytest.mark.parametrize("cache_dtype", ["int8", "fp8"])
def test_what_is_right_passes_with_room(exported, targets_of, cache_dtype):
    checkpoint, artifact = exported("float32", cache="static", cache_dtype="int8")
    candidate = (
        open_session(artifact) if cache_dtype == "int8" else TorchSession(load_model(checkpoint).store_cache_as("fp8"))
    )
    report = check(short(candidate), targets_of(checkpoint, "float32", cache_dtype))
    sizes = [item for item in report.comparisons if "size of" in item.schedule]
    assert report.passed and len(sizes) == (4 * 5 + 2) * 2 * 2 * 2  # scenarios by schedules, writers, layers, K and Y
    assert {item.schedule.partition("size of ")[2] for item in sizes} == {
        "prefilled rows",
        "decoded rows",
        "drafted rows",
    }
    assert (report.rounded_cache, report.rounded_inputs) == (cache_dtype, None)
    given = [item for item in report.comparisons if "given rows" in item.schedule]
    assert len(given) == 5 * 2  # scenarios, graphs
    assert max(item.severity for item in report.comparisons) < 0.7


FAULTS = {
    "scale over 128, K": (stored_scale(1, "key", 127 / 128), "layer 1 K", "growing"),
    "levels 128, K": (coarser_levels(1, "key", 128), "layer 1 K", "growing"),
    "towards zero, Y": (towards_zero(0, "value"), "layer 0 Y", "growing"),
    "swapped scales": (swapped_scales(1), "layer 1 K", "growing"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_wrong_rounding_fails_in_its_tensor(int8_copy, targets_of, fault):
    edit, tensor, cache = FAULTS[fault]
    checkpoint, directory = int8_copy(cache)
    edit_graphs(directory, edit)
    report = check(short(open_session(open_artifact(directory))), targets_of(checkpoint, "float32", "int8"))
    failure = report.first_failure
    assert not report.passed and str(failure.tensor) == tensor
    if "swapped" not in fault:
        plain = [
            item for item in report.comparisons if "size of" not in item.schedule and item.tensor == failure.tensor
        ]
        assert all(item.failed_at is None for item in plain)  # the gates of positions alone would not have seen it


@pytest.mark.parametrize("stage", ["prefill", "decode"])
def test_either_graph_alone_is_seen(int8_copy, targets_of, stage):
    checkpoint, directory = int8_copy("static")
    edit_graphs(directory, stored_scale(1, "value", 127 / 128), (stage,))
    report = check(short(open_session(open_artifact(directory))), targets_of(checkpoint, "float32", "int8"))
    failed = {item.schedule for item in report.comparisons if item.failed_at is not None and "size of" in item.schedule}
    part = {"prefill": "one-shot, size of prefilled rows", "decode": "by token, size of decoded rows"}[stage]
    assert part in failed and str(report.first_failure.tensor) == "layer 1 Y"


@pytest.mark.parametrize(
    ("stage", "seen", "suffix", "layer"),
    [
        ("prefill", "prefill behind given rows", "key", 0),
        ("decode", "decode from given rows", "key", 1),
        ("decode", "decode from given rows", "value", 0),
    ],
)
def test_wrong_reading_is_far_beyond_the_gate_of_its_graph(int8_copy, targets_of, stage, seen, suffix, layer):
    """Keys that are read 1 % too small change no size, and scores by less than rounding: only this check sees them."""
    checkpoint, directory = int8_copy("static")
    edit_graphs(directory, read_scale(layer, suffix, 127 / 128), (stage,))
    report = check(short(open_session(open_artifact(directory))), targets_of(checkpoint, "float32", "int8"))
    given = [item for item in report.comparisons if "given rows" in item.schedule]
    assert {item.schedule for item in given if item.failed_at is not None} == {seen}
    assert max(item.severity for item in given) > 30


@pytest.mark.parametrize("window", [9, CONTEXT])
def test_a_window_that_drops_rounded_rows_is_refused_before_anything_runs(window):
    """The rows that are given to a step were dropped: it once ended with numpy's words about shapes."""
    kinds = ("lucid", "window", "lucid")
    model = small_model(layer_kinds=kinds, sliding_window=window, max_position_embeddings=2 * CONTEXT)
    baseline, exact, rounded = (
        TorchSession(in_dtype(model, dtype).store_cache_as(cache))
        for dtype, cache in ((torch.float32, "int8"), (torch.float64, "float64"), (torch.float64, "int8"))
    )
    progress = []
    with pytest.raises(LucidError, match="cache of int8 in layers over a window cannot be verified yet"):
        prepare(
            baseline, exact, workload=Workload(steps=2), rounded=rounded, progress=lambda *said: progress.append(said)
        )
    assert progress == []


def test_what_cancels_to_nothing_is_not_judged_by_its_size():
    """One token over and over without positions: Y is next to nothing, and its size a factor between two roundings.

    A gate of 1e9 was once held by an error of 4e8, and called passed.
    """
    model = small_model(use_rope=False, max_position_embeddings=2 * CONTEXT, num_hidden_layers=2)

    def rounding(dtype, cache_dtype):
        return TorchSession(in_dtype(model, dtype).store_cache_as(cache_dtype))

    targets = prepare(
        rounding(torch.float32, "int8"),
        rounding(torch.float64, "auto"),
        workload=Workload(steps=STEPS),
        rounded=rounding(torch.float64, "int8"),
    )
    report = check(rounding(torch.float32, "int8"), targets)
    unjudged = [item for item in report.comparisons if not item.judged]
    assert not report.failed and report.coverage.unjudged == len(unjudged) > 0
    assert "one token" in {item.scenario for item in unjudged} <= {"one token", "pattern"}  # both repeat tokens
    assert all("ed rows" in item.schedule and str(item.tensor).endswith("Y") for item in unjudged)
    assert max(item.gate.limit for item in unjudged) > VACUOUS  # one was derived, and is as wide
    assert f"{len(unjudged)} more could not be judged" in report.verdict()


def test_an_echo_of_roundings_fails_no_correct_candidate():
    """With this seed, sizes of such rows once failed the dense formulas, and the blocked ones in another batch."""
    changes = {"use_rope": False, "max_position_embeddings": 48, "seed": 3}
    model, dense = small_model(**changes), small_model(implementation="reference", **changes)

    def rounding(model, dtype, cache_dtype):
        return TorchSession(in_dtype(model, dtype).store_cache_as(cache_dtype))

    targets = prepare(
        rounding(model, torch.float32, "int8"),
        rounding(model, torch.float64, "auto"),
        workload=Workload(steps=8),
        rounded=rounding(model, torch.float64, "int8"),
    )
    for candidate in (model, dense):
        report = check(rounding(candidate, torch.float32, "int8"), targets)
        assert not report.failed, report.verdict()
        assert max(item.severity for item in report.comparisons if item.judged) < 0.7


# Reading


SCENARIO = Scenario("some", np.arange(20) % VOCAB, np.arange(6) % VOCAB)


def read_back(model, rows, dtype=torch.float32):
    ticks = []
    found = rounded_cache.read_back(session(model, dtype), SCENARIO, rows, lambda: ticks.append(0))
    assert len(ticks) == rounded_cache.read_calls(session(model, dtype), SCENARIO)
    return found


@pytest.mark.parametrize("widths", [1, 2])
def test_stored_rows_are_read_within_the_gates_of_arithmetic_and_smaller_keys_are_found(widths, tmp_path):
    saved(small_config("gemma4_text", sliding_window=64, global_head_dim=24), tmp_path)
    model = small_model() if widths == 1 else load_model(tmp_path)
    rows = record(session(model, torch.float64), SCENARIO)
    exact, own = read_back(model, rows, torch.float64), read_back(model, rows)
    gates = rounded_cache.derive_read_gates([exact], [own], "float32")
    rounding = Rounding(SCENARIO, answers=exact, answer_gates=gates)
    found = rounding.compare_answers(own)
    assert {item.schedule for item in found} == {"decode from given rows", "prefill behind given rows"}
    assert all(item.failed_at is None for item in found)
    smaller = Trace(
        {name: TensorRows(r.values * (0.99 if name.word == "K" else 1), r.start) for name, r in rows.tensors.items()}
    )
    found = rounding.compare_answers(read_back(model, smaller))
    assert all(item.failed_at is not None for item in found)
