"""What keeps verifying large models short and small: batches, drafts, weights cast in use, a look at memory."""

import numpy as np
import pytest
import torch

from lucid_deploy.errors import LucidError
from lucid_deploy.model.on_demand import float64_on_demand
from lucid_deploy.model.scenarios import ONE_SHOT, SCHEDULES, Scenario, batches, synthetic_scenarios
from lucid_deploy.parity import prepare
from lucid_deploy.parity.measure.compare import follow, generate, record, record_at_once, record_together
from lucid_deploy.parity.measure.memory import available, check_fits
from lucid_deploy.runtimes.layers import Tokens
from lucid_deploy.runtimes.torch.layers import TorchLayers
from lucid_deploy.runtimes.torch.session import TorchSession
from tests.parity.small_models import VOCAB, in_dtype, session, small_model


@pytest.fixture(scope="module")
def exact(model):
    return session(model, torch.float64)


@pytest.fixture(scope="module")
def scenarios(model):
    return synthetic_scenarios(model.config, steps=6, embeddings=model.model.embed_tokens.weight.numpy())


def assert_same(found, wanted, tolerance=1e-11):
    assert found.tensors.keys() == wanted.tensors.keys()
    for tensor, rows in wanted.tensors.items():
        assert found.tensors[tensor].start == rows.start
        np.testing.assert_allclose(
            found.tensors[tensor].values, rows.values, rtol=0, atol=tolerance, err_msg=str(tensor)
        )


# Feeding


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule.name)
def test_scenarios_of_a_batch_are_recorded_as_each_alone(exact, scenarios, schedule):
    together = record_together(exact, scenarios, schedule)
    for scenario, found in zip(scenarios, together, strict=True):
        assert_same(found, record(exact, scenario, schedule))


def test_one_prefill_of_everything_is_what_decoding_gives(exact, scenarios):
    for scenario in scenarios:
        assert_same(record_at_once(exact, scenario), record(exact, scenario))


def test_the_greedy_scenario_and_one_shot_run_alone(scenarios):
    greedy = Scenario("greedy", scenarios[0].prompt, scenarios[0].forced, greedy=True)
    every = [*scenarios, greedy]
    for schedule in SCHEDULES:
        groups = batches(every, schedule)
        names = sorted(item.name for group in groups for item in group)
        assert names == sorted(item.name for item in every)
        assert [greedy] in groups
        assert max(map(len, groups)) == (1 if schedule == ONE_SHOT else 4)


@pytest.mark.parametrize(("limit", "rows"), [(1, 1), (2, 1), (3, 1), (4, 2), (7, 3), (8, 4)])
def test_batches_keep_to_what_a_runtime_takes(scenarios, limit, rows):
    for schedule in SCHEDULES[1:]:
        most = max(1, rows if schedule.padding else min(limit, 4))
        assert max(map(len, batches(scenarios, schedule, limit))) == most


def test_only_prompts_of_one_length_share_a_batch(scenarios):
    short = Scenario("short", scenarios[0].prompt[:-1], scenarios[0].forced)
    groups = batches([*scenarios, short], SCHEDULES[1])
    assert [short] in groups and len(groups) == 2


# Drafts


@pytest.mark.parametrize("wrong", [set(), {0}, {3}, {7}, {0, 1, 2, 3}, {2, 5, 7}, set(range(8))])
def test_drafts_do_not_change_what_the_reference_generates(exact, wrong):
    prompt = np.array([5, 9, 2, 9, 11])
    wanted = generate(exact, prompt, 8)
    asked = []

    def draft(tokens, count):
        asked.append(count)
        start = len(tokens) - len(prompt)
        return np.array([(wanted[i] + (i in wrong)) % VOCAB for i in range(start, start + count)])

    np.testing.assert_array_equal(follow(exact, prompt, draft, 8), wanted)
    assert len(asked) == 1 + len(wrong - {7})  # behind the last token there is nothing to draft


def test_the_reference_is_asked_once_where_the_baseline_agrees(model):
    class Counting(TorchSession):
        calls = 0

        def _run(self, *arguments, **options):
            Counting.calls += 1
            return super()._run(*arguments, **options)

    prepare(session(model), Counting(in_dtype(model, torch.float64)), steps=6)
    assert Counting.calls <= 5 + 1 + 6  # scenarios, the draft, and at most one more for each token


# Weights


@pytest.mark.parametrize("changes", [{}, {"attention_type": "llama", "attention_bias": True}, {"use_rope": False}])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_weights_cast_in_use_give_what_a_float64_model_gives(changes, stored):
    model = in_dtype(small_model(max_position_embeddings=48, **changes), stored)
    state = model.state_dict()
    cast = float64_on_demand(model.config, state.__getitem__)
    ids = np.random.default_rng(0).integers(VOCAB, size=(1, 20))
    plain, found = (TorchSession(each) for each in (in_dtype(model, torch.float64), cast))
    assert found.dtype == "float64"
    scenario = Scenario("x", ids[0, :14], ids[0, 14:])
    assert_same(record(found, scenario), record(plain, scenario), 1e-12)
    layers = [TorchLayers(each) for each in (cast, in_dtype(model, torch.float64))]
    a, b = (each.run(Tokens.after(ids), each.empty_past()) for each in layers)
    np.testing.assert_allclose(a.values[-1], b.values[-1], atol=1e-12)
    np.testing.assert_allclose(a.logits, b.logits, atol=1e-12)


def test_large_weights_are_cast_in_pieces(monkeypatch):
    model = small_model()
    monkeypatch.setattr("lucid_deploy.model.on_demand.ELEMENTS", 7 * model.config.hidden_size)
    cast = float64_on_demand(model.config, model.state_dict().__getitem__)
    ids = torch.arange(9)[None]
    torch.testing.assert_close(cast(ids)[0], in_dtype(model, torch.float64)(ids)[0], rtol=0, atol=1e-12)
    assert sum(p.numel() for p in cast.parameters()) < 0.02 * sum(p.numel() for p in model.parameters())


# Memory


def write(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_free_memory_is_the_machines_or_the_containers(tmp_path):
    assert available(tmp_path) is None
    write(tmp_path, {"proc/meminfo": "MemTotal: 9000 kB\nMemAvailable:   4000 kB\n"})
    assert available(tmp_path) == 4000 * 1024
    group = tmp_path / "sys/fs/cgroup"
    write(group, {"memory.max": "max\n", "memory.current": "5\n"})
    assert available(tmp_path) == 4000 * 1024
    write(
        group, {"memory.max": "3000000\n", "memory.current": "1000000\n", "memory.stat": "anon 1\ninactive_file 500\n"}
    )
    assert available(tmp_path) == 2000500
    write(group, {"memory/memory.limit_in_bytes": "2000", "memory/memory.usage_in_bytes": "1500"})
    assert available(tmp_path) == 500
    assert (available() or 1) > 0


def test_what_does_not_fit_is_refused_with_its_parts():
    parts = {"one": 3 * 10**9, "crumbs": 1000, "other": 10**9}
    check_fits("It", parts, None, "")
    check_fits("It", parts, 4 * 10**9 + 1000, "")
    with pytest.raises(
        LucidError, match=r"It takes about 4.0 GB of memory \(one 3.0 GB, other 1.0 GB\), and 3.9 GB .* Do"
    ):
        check_fits("It", parts, 3_900_000_000, "Do.")
