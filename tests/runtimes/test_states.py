"""A hybrid of gated delta layers and one of LUCID, exported once: caches whose states do not grow."""

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
from lucid_deploy.batching import Batcher, Finished, Request, Token
from lucid_deploy.cli import main
from lucid_deploy.errors import LucidError
from lucid_deploy.export import ExportOptions, export
from lucid_deploy.export.quantize.options import QuantizeOptions
from lucid_deploy.model.huggingface import LucidForGeneration
from lucid_deploy.runtimes import open_session
from lucid_deploy.runtimes.cache_files import load_cache, save_cache
from lucid_deploy.runtimes.session import Session
from tests.hybrid_artifact import write_hybrid
from tests.model.packed.packing import change_tensors
from tests.parity.faults import change_weight

STATES = 2 * 4 * ((2 * 64 + 128) * 3 + 8 * 16 * 16)  # two layers: inputs of the convolutions, and eight heads
ROW = 2 * 16 * 4  # the layer of attention: a key and a value of one head


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


def test_a_fork_goes_its_own_way(session: Session[Any]) -> None:
    cache = session.empty_cache()
    session.prefill(tokens(9), cache)
    fork = session.fork(cache)
    wanted = session.decode(np.array([[2]]), fork).copy()
    session.decode(np.array([[50]]), cache)
    again = session.empty_cache()
    session.prefill(tokens(9), again)
    np.testing.assert_array_equal(session.decode(np.array([[2]]), again), wanted)


def test_truncating_is_refused_with_the_reason(session: Session[Any]) -> None:
    cache = session.empty_cache()
    session.prefill(tokens(9), cache)
    with pytest.raises(LucidError, match="conv_state of layer 0 is a state, into which every token is mixed"):
        session.truncate(cache, 4)
    with pytest.raises(LucidError, match="every token is mixed into a layer's state, and cannot be taken out again"):
        session.evict(cache, 2)
    session.truncate(cache, 9)  # nothing to take back


def test_a_cache_is_saved_and_loaded_and_no_other_models(session: Session[Any], tmp_path: Path) -> None:
    cache, path = session.empty_cache(), tmp_path / "cache.safetensors"
    session.prefill(tokens(9), cache)
    save_cache(session, cache, path, tokens(9)[0].tolist())
    loaded, known = load_cache(session, path)
    assert known == tokens(9)[0].tolist()
    np.testing.assert_array_equal(session.decode(np.array([[7]]), loaded), session.decode(np.array([[7]]), cache))
    model = write_hybrid(tmp_path / "checkpoint")
    change_tensors(model, lambda tensors: tensors["model.norm.weight"].mul_(1.5))  # as many layers, of the same shapes
    other = export(model, tmp_path / "artifact")
    with pytest.raises(LucidError, match="is a cache of another model"):
        load_cache(open_session(other, "torch"), path)


def answers(session: Session[Any], prompts: list[list[int]], rows: int, **options: Any) -> tuple[list[list[int]], int]:
    """Run prompts through a batcher; return the answers, and how many prompt tokens were not run again."""
    batcher = Batcher(session, rows, **options)
    found: dict[int, list[int]] = {}
    for prompt in prompts:
        found[batcher.submit(Request(prompt, 6, stop_at_eos=False))] = []
        while options and not batcher.idle:  # one after the other
            collect(batcher, found)
    while not batcher.idle:
        collect(batcher, found)
    return list(found.values()), batcher.prompt_tokens_reused


def collect(batcher: Batcher, found: dict[int, list[int]]) -> None:
    for event in batcher.step():
        assert not isinstance(event, Finished) or event.reason == "length", event
        if isinstance(event, Token):
            found[event.request].append(event.token)


def test_rows_of_a_batch_join_and_leave(session: Session[Any]) -> None:
    prompts = [tokens(n, seed=n)[0].tolist() for n in (5, 17, 2, 9)]
    alone = [answers(session, [prompt], 1)[0][0] for prompt in prompts]
    assert answers(session, prompts, 2)[0] == alone


def test_beginnings_of_prompts_are_kept_at_doubling_lengths(session: Session[Any]) -> None:
    system = tokens(40, seed=3)[0].tolist()
    prompts = [[*system, 5, 6], [*system[:33], 9, 9], [*system, 5, 6, 7, 8]]
    plain = [answers(session, [prompt], 1)[0][0] for prompt in prompts]
    found, reused = answers(session, prompts, 1, prefill_chunk=8, prefix_tokens=400)
    # The second finds the 32 tokens that the first kept after four chunks; the third all of the first prompt.
    assert (found, reused) == (plain, 32 + 42)


def test_its_states_do_not_grow(artifact: Artifact) -> None:
    shown = json.loads(lucid_deploy("inspect", artifact.directory, "--json").stdout)
    assert shown["memory"]["cache_per_token"] == ROW
    assert shown["memory"]["states"] == STATES
    assert shown["memory"]["cache"] == STATES + 200 * ROW
    said = lucid_deploy("inspect", artifact.directory).stdout
    assert f"({ROW} bytes a token, and states of {STATES / 1024:.1f} KiB that do not grow)" in " ".join(said.split())


def test_what_cannot_take_states_refuses_by_name(artifact: Artifact) -> None:
    with pytest.raises(LucidError, match="layer 0 is of kind gated_delta, which caches conv_state in another form"):
        LucidForGeneration.from_checkpoint(artifact.manifest.source)


def test_verify_judges_states_and_finds_a_fault_in_such_a_layer(artifact: Artifact, tmp_path: Path) -> None:
    passed = lucid_deploy("verify", artifact.directory, "--quick", "--prompt-tokens", 180, "--json", "-")
    facts = json.loads(passed.stdout)
    judged = {item["tensor"] for item in facts["comparisons"]}
    assert {item["prompt_tokens"] for item in facts["scenarios"]} == {180}
    assert passed.exit_code == 0 and {"layer 0 conv_state", "layer 2 recurrent_state", "layer 1 K", "logits"} <= judged
    broken = Path(shutil.copytree(artifact.directory, tmp_path / "broken"))
    change_weight(broken, "model.layers.0.linear_attn.A_log", 1.01)
    failed = lucid_deploy("verify", broken, "--quick")
    assert failed.exit_code == 1 and "layer 0 recurrent_state is beyond its gate" in " ".join(failed.stderr.split())


@pytest.mark.parametrize("cache_dtype", ["int8", "float16"])
def test_verify_judges_rows_that_round_beside_states_that_do_not(
    hybrid: Callable[..., Artifact], tmp_path: Path, cache_dtype: str
) -> None:
    rounding = hybrid(short=True, cache_dtype=cache_dtype)
    layers = json.loads((rounding.directory / "lucid.json").read_text())["layers"]
    types = {tensor["name"]: tensor["dtype"] for layer in layers for tensor in layer["cache"]}
    assert types["key"] == cache_dtype and types["recurrent_state"] == "float32"
    passed = lucid_deploy("verify", rounding.directory, "--quick", "--json", "-")
    assert passed.exit_code == 0, passed.stderr
    found = json.loads(passed.stdout)["comparisons"]
    assert {"one-shot", "chunks"} <= {item["schedule"] for item in found if "recurrent_state" in item["tensor"]}
    assert any("size of decoded rows" in item["schedule"] for item in found)
    # Behind a layer whose cache rounds, gates are wide: what shows 1 % there are the steps from a given cache.
    broken = Path(shutil.copytree(rounding.directory, tmp_path / "broken"))
    change_weight(broken, "model.layers.1.linear_attn.A_log", 1.01, whole=True)
    failed = lucid_deploy("verify", broken, "--quick", "--json", "-")
    outcomes = {(item["schedule"], item["passed"]) for item in json.loads(failed.stdout)["comparisons"]}
    assert failed.exit_code == 1 and ("decode from given rows", False) in outcomes


@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_quantized_weights_beside_states(hybrid: Callable[..., Artifact], scheme: str) -> None:
    quantized = hybrid(quantize=QuantizeOptions(scheme))
    record = quantized.manifest.quantization
    assert record is not None and any("linear_attn" in name for name in record.tensors)
    passed = lucid_deploy("verify", quantized.directory, "--quick", "--json", "-")
    assert passed.exit_code == 0, passed.stderr
    assert {"layer 0 recurrent_state", "logits"} <= {
        item["tensor"] for item in json.loads(passed.stdout)["comparisons"]
    }


def test_states_in_the_models_own_type_are_recorded_and_verified(
    hybrid: Callable[..., Artifact], tmp_path: Path
) -> None:
    narrow = hybrid(short=True, dtype="float16", state_dtype="model")
    assert (narrow.config.state_dtype, narrow.manifest.options["state_dtype"]) == ("float16", "model")
    assert {tensor.dtype for layer in narrow.manifest.layers for tensor in layer.cache} == {"float16"}
    # Each schedule rounds states at other places: without gates of its own, token by token is beyond those of one shot.
    passed = lucid_deploy("verify", narrow.directory, "--quick", "--json", "-")
    assert passed.exit_code == 0, passed.stderr
    assert "prefill behind given rows" in {item["schedule"] for item in json.loads(passed.stdout)["comparisons"]}
    refused = lucid_deploy("export", "demo", "--output", tmp_path / "demo", "--state-dtype", "model")
    assert refused.exit_code == 2 and "keeps a state, so there is no type to choose" in " ".join(refused.stderr.split())
    with pytest.raises(LucidError, match="state_dtype must be float32 or model, not 'int8'"):
        export("demo", tmp_path / "demo", ExportOptions(state_dtype="int8"))
