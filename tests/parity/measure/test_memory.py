"""A look at memory before a long run."""

import pytest

from lucid_deploy.errors import LucidError
from lucid_deploy.model.config import parse_config
from lucid_deploy.parity.measure.memory import available, check_fits, explain_bytes, record_bytes, sequence_tokens
from tests.model.families.flash_model import MODELS, SMALL
from tests.parity.small_models import small_config


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


def test_more_tokens_and_a_cache_that_rounds_take_more():
    config = small_config()
    plain = record_bytes(config, 100, 10, rounds=False)["recorded tensors"]
    assert plain < record_bytes(config, 100, 10, rounds=True)["recorded tensors"]
    assert 1.5 * plain < record_bytes(config, 200, 20, rounds=False)["recorded tensors"]
    assert explain_bytes(config, 100)["states of all layers"] > 0


def test_states_are_counted_as_often_as_they_are_kept_and_do_not_grow_with_the_text():
    config, state = parse_config({**SMALL, **MODELS["plain"]}, "config.json"), 4 * 12 * 12 + 3 * 48 * 3
    lone = explain_bytes(config, 100)["states of all layers"] - explain_bytes(config, 0)["states of all layers"]
    assert (
        explain_bytes(config, 200)["states of all layers"]
        == explain_bytes(config, 0)["states of all layers"] + 2 * lone
    )
    assert explain_bytes(config, 0)["states of all layers"] == 7 * 3 * state * 8
    work, logits = 10 * 4 * config.intermediate_size * 8, 11 * config.vocab_size
    found = record_bytes(config, 100, 10, rounds=False)["recorded tensors"]
    kept = found - 100 * work - logits * (5 * 12 + 10 * 4 + 10 * 8)
    assert kept == 3 * 4 * state * (5 * 12 + 10 * 4)  # three layers, after four tokens


def test_a_short_context_has_short_sequences():
    assert sequence_tokens(small_config(), 32) == (282, 32)
    assert sequence_tokens(small_config(), 8, 140) == (148, 8)
    assert sequence_tokens(small_config(max_position_embeddings=48), 8) == (43, 8)
