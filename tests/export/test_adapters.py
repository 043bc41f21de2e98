"""Adapters that are kept apart: every row of a batch computes what PEFT's model with its adapter does."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from click.testing import CliRunner

from lucid_deploy.artifact import Artifact, check_hashes, open_artifact
from lucid_deploy.artifact.adapters import read_matrices, write_adapters
from lucid_deploy.batching.batcher import Batcher
from lucid_deploy.batching.request import Request, Token
from lucid_deploy.cli import main
from lucid_deploy.errors import CheckFailed, LucidError
from lucid_deploy.export import ExportOptions, adapters, export
from lucid_deploy.export.adapters import change_adapters
from lucid_deploy.export.quantize.options import QuantizeOptions
from lucid_deploy.generation.drafting import LookupDrafter
from lucid_deploy.model.checkpoint import load_model
from lucid_deploy.runtimes import open_session
from lucid_deploy.runtimes.cache_rows import select_rows
from tests.conftest import write_checkpoint
from tests.families.small import saved, small_config

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"]
IDS = np.random.default_rng(0).integers(5, 40, (1, 12)).repeat(3, 0)
IDS[:, 6:9] = IDS[:, 3:6]  # repeated tokens


def train(checkpoint: Path, path: Path, seed: int, **settings: Any) -> None:
    adapted = peft.get_peft_model(load_model(checkpoint), peft.LoraConfig(**settings))
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in adapted.parameters():
            if value.requires_grad:
                value.copy_(0.1 * torch.randn(value.shape, generator=draw))
    adapted.save_pretrained(path)


def of_peft(checkpoint: Path, adapter: Path | None) -> np.ndarray:
    """Return the logits of one row in float64, with the adapter beside the weights as PEFT has it."""
    model = load_model(checkpoint, torch.float64)
    if adapter is not None:
        model = peft.PeftModel.from_pretrained(model, adapter, autocast_adapter_dtype=False).double()
    with torch.no_grad():
        return (model if adapter is None else model.base_model)(torch.from_numpy(IDS[:1]))[0][0].numpy()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A LUCID checkpoint, two adapters of it, its artifact, and PEFT's logits for the base and both."""
    root = tmp_path_factory.mktemp("adapters")
    checkpoint = write_checkpoint(root / "checkpoint", num_hidden_layers=4)
    train(checkpoint, root / "one", 1, target_modules=ALL, r=4, lora_alpha=24, rank_pattern={"k_proj": 2})
    train(
        checkpoint, root / "two", 2, target_modules=["q_proj", "v_proj"], r=3, use_rslora=True, layers_to_transform=[2]
    )
    options = ExportOptions(adapters=(("one", root / "one"),), max_adapters=3, max_adapter_rank=5)
    artifact = export(checkpoint, root / "artifact", options)
    change_adapters(artifact, {"two": root / "two"})
    wanted = np.stack([of_peft(checkpoint, each) for each in (None, root / "one", root / "two")])
    assert min(np.abs(wanted[0] - other).max() for other in wanted[1:]) > 0.1
    adapters = tuple((name, root / name) for name in ("one", "two"))
    return {"root": root, "checkpoint": checkpoint, "artifact": artifact, "adapters": adapters, "wanted": wanted}


def errors(artifact: Artifact, wanted: np.ndarray, **options: Any) -> np.ndarray:
    """Return each row's error: a prompt in two chunks, single tokens, and drafts where the graphs verify them."""
    session = open_session(artifact, **options)
    cache = session.empty_cache(3, np.arange(3))
    found = [session.prefill(IDS[:, :6], cache, chunk=4)]
    found += [session.decode(IDS[:, place : place + 1], cache) for place in (6, 7)]
    if session.multi_token_unsupported_reason is None:
        found.append(session.decode_several(IDS[:, 8:], cache))
    found = np.concatenate(found, axis=1)
    reference = wanted[:, 5 : 5 + found.shape[1]]
    return np.abs(found - reference).max((1, 2)) / np.abs(reference).max((1, 2))


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime", "openvino"])
def test_each_row_of_a_batch_computes_pefts_model(made: dict[str, Any], runtime: str) -> None:
    assert (errors(made["artifact"], made["wanted"], runtime=runtime) < 1e-5).all()


def test_the_library_computes_each_row_as_if_it_were_alone(made: dict[str, Any], built_library: Path) -> None:
    artifact = made["artifact"].form("growing")
    assert (errors(artifact, made["wanted"], kernels="library") < 1e-5).all()
    session = open_session(artifact, kernels="library")
    assert b"AdapterMatMul" in session._changed_graph("decode")


def test_adapters_fit_a_quantized_and_equalized_base(made: dict[str, Any], tmp_path: Path) -> None:
    quantize = QuantizeOptions("int8", equalize=True)
    slots: dict[str, Any] = {"adapters": made["adapters"], "max_adapters": 3, "max_adapter_rank": 5}
    options = ExportOptions("float16", cache="growing", quantize=quantize, **slots)
    artifact = export(made["checkpoint"], tmp_path / "artifact", options)
    found = errors(artifact, made["wanted"])
    assert found[0] < 2e-2 and found.max() < 2 * found[0], "adapters add little to what rounding costs"


def test_classes_of_transformers_have_an_adapter_in_each_row(tmp_path: Path) -> None:
    checkpoint = tmp_path / "phi3"
    saved(small_config("phi3", num_hidden_layers=1, tie_word_embeddings=True), checkpoint).float().save_pretrained(
        checkpoint
    )
    train(checkpoint, tmp_path / "one", 1, target_modules=["qkv_proj", "o_proj", "gate_up_proj"], r=2)
    options = ExportOptions(cache="growing", adapters=(("one", tmp_path / "one"),))
    artifact = export(checkpoint, tmp_path / "artifact", options)
    wanted = np.stack([of_peft(checkpoint, each) for each in (None, tmp_path / "one", None)])
    session = open_session(artifact)
    found = session.prefill(IDS, session.empty_cache(3, np.array([0, 1, 0])))[:, 0]
    assert np.abs(found - wanted[:, -1]).max() < 1e-4 * np.abs(wanted[0] - wanted[1]).max()


@pytest.mark.parametrize("cache", ["growing", "static"])
def test_requests_with_different_adapters_share_a_batch(made: dict[str, Any], cache: str) -> None:
    session = open_session(made["artifact"].form(cache))
    names, prompt = ("one", "base", "two", "one", None), IDS[0].tolist() * 3  # of 36 tokens, a block is stored
    alone: dict[str | None, list[float]] = {}
    for name in {*names}:
        row, alone[name] = session.empty_cache(1, np.array([session.adapter_id(name)])), []
        logits = session.prefill(np.array([prompt]), row)
        for _ in range(6):
            chances = torch.from_numpy(logits[0, -1]).log_softmax(-1)
            alone[name].append(float(chances.max()))
            logits = session.decode(chances.argmax().numpy().reshape(1, 1), row)
    assert np.abs(np.subtract(alone["base"], [alone["one"], alone["two"]])).max(1).min() > 1e-2
    for drafters in (None, LookupDrafter):
        batcher = Batcher(session, rows=3, prefix_tokens=1000, drafters=drafters)
        wanted, found = {}, {}
        for name in (*names, *names):  # the second time their prefixes are stored
            request = Request(prompt, 6, stop_at_eos=False, top_logprobs=0, adapter=name)
            wanted[batcher.submit(request)] = alone[name]
        while not batcher.idle:
            for event in batcher.step():
                if isinstance(event, Token):
                    found.setdefault(event.request, []).append(event.logprob)
        assert batcher.prompt_tokens_reused > 0 and found.keys() == wanted.keys()
        np.testing.assert_allclose([found[each] for each in wanted], [*wanted.values()], atol=1e-4)


def test_verify_compares_every_adapter(made: dict[str, Any], tmp_path: Path) -> None:
    artifact = open_artifact(shutil.copytree(made["artifact"].directory, tmp_path / "artifact"))
    command = ["verify", str(artifact.directory), "--quick", "--json", "-"]
    found = CliRunner().invoke(main, command)
    assert found.exit_code == 0, found.output
    assert {*json.loads(found.stdout)["runs"]} == {"base", "one", "two"}
    slots = artifact.manifest.adapters
    data = read_matrices(artifact.directory, slots)
    np.frombuffer(data, np.float32)[:] *= 1.01
    write_adapters(artifact.directory, data, artifact.adapters())
    assert CliRunner().invoke(main, [*command, "--adapter", "base"]).exit_code == 0
    assert CliRunner().invoke(main, [*command, "--adapter", "one"]).exit_code == 1
    for name, said in (("three", "there are base, one, two"), ("one", "--golden is about the model")):
        found = CliRunner().invoke(main, [*command, "--adapter", name, "--golden", "g.safetensors"])
        assert found.exit_code == 2 and said in found.stderr


def test_rows_keep_their_adapters(made: dict[str, Any]) -> None:
    session = open_session(made["artifact"], adapter="two")
    assert session.empty_cache(2).adapter_ids.tolist() == [2, 2]
    cache = session.empty_cache(3, np.array([1, 0, 2]))
    session.prefill(IDS, cache)
    assert select_rows(session, cache, [2, 0]).adapter_ids.tolist() == [2, 1]


def test_unknown_adapters_are_refused(made: dict[str, Any], exported: Any) -> None:
    session = open_session(made["artifact"])
    with pytest.raises(LucidError, match="no adapter 'three'; there are base, one, two"):
        session.adapter_id("three")
    for wrong in (3, -1, 4):
        with pytest.raises(LucidError, match="the model has 0 for base, 1 for one, 2 for two"):
            session.prefill(IDS, session.empty_cache(3, np.array([0, 1, wrong])))
    with pytest.raises(LucidError, match="has no adapters, so there is no 'one'"):
        open_session(exported()[1], adapter="one")


def test_removed_adapters_free_their_slots(made: dict[str, Any], tmp_path: Path) -> None:
    artifact = open_artifact(shutil.copytree(made["artifact"].directory, tmp_path / "artifact"))
    before = {path.name: path.read_bytes() for path in artifact.directory.iterdir() if path.name != "adapters.bin"}
    change_adapters(artifact, {}, ("one", "two"))
    change_adapters(artifact, {"again": made["root"] / "two", "one": made["root"] / "one"})
    assert [(each.name, each.slot, each.rank) for each in artifact.adapters()] == [("again", 1, 3), ("one", 2, 4)]
    check_hashes(artifact)
    assert (errors(artifact, made["wanted"][[0, 2, 1]]) < 1e-5).all()
    assert before == {
        path.name: path.read_bytes() for path in artifact.directory.iterdir() if path.name != "adapters.bin"
    }


def test_two_changes_at_once_are_both_kept(
    made: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = open_artifact(shutil.copytree(made["artifact"].directory, tmp_path / "artifact"))
    write = adapters._Editor.write
    other = threading.Thread(target=change_adapters, args=(artifact, {"later": made["root"] / "two"}))

    def wait_before(editor: Any) -> None:
        if threading.current_thread() is not other:
            other.start()
            other.join(1.0)
            assert other.is_alive(), "the other change waits"
        write(editor)

    monkeypatch.setattr(adapters._Editor, "write", wait_before)
    change_adapters(artifact, {}, ("two",))
    other.join()
    assert {each.name for each in artifact.adapters()} == {"one", "later"}


def test_a_damaged_file_is_refused(made: dict[str, Any], tmp_path: Path) -> None:
    artifact = open_artifact(shutil.copytree(made["artifact"].directory, tmp_path / "artifact"))
    path = artifact.path("adapters.bin")
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckFailed, match="damaged: its matrices"):
        check_hashes(open_artifact(artifact.directory))
    for cut in (data[:-30], data[:5000], b""):
        path.write_bytes(cut)
        with pytest.raises(CheckFailed, match=r"adapters\.bin"):
            open_artifact(artifact.directory)


def test_adapters_that_do_not_fit_are_refused_and_nothing_changes(made: dict[str, Any], tmp_path: Path) -> None:
    root, artifact = made["root"], open_artifact(shutil.copytree(made["artifact"].directory, tmp_path / "artifact"))
    content = artifact.path("adapters.bin").read_bytes()
    train(made["checkpoint"], tmp_path / "large", 3, target_modules=["q_proj"], r=6)
    train(made["checkpoint"], tmp_path / "whole", 3, target_modules=["q_proj"], r=2, modules_to_save=["lm_head"])
    train(made["checkpoint"], tmp_path / "table", 3, target_modules=["embed_tokens"], r=2)
    shutil.copytree(root / "two", tmp_path / "cut")
    weights = tmp_path / "cut" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    for given, said in (
        ({"one": root / "one"}, "an adapter one already"),
        ({"base": root / "one"}, "cannot be called 'base'"),
        ({"a b": root / "one"}, "cannot be called 'a b'"),
        ({"three": tmp_path / "large"}, "rank 6, and 5 is reserved"),
        ({"three": root / "one", "four": root / "one"}, "room for 3 adapters"),
        ({"three": tmp_path / "whole"}, "replaces lm_head.weight.*--merge-adapter"),
        ({"three": tmp_path / "table"}, "changes model.embed_tokens.weight.*--merge-adapter"),
        ({"three": tmp_path / "cut"}, "adapter_model.safetensors"),
    ):
        with pytest.raises(LucidError, match=said):
            change_adapters(artifact, given)
    with pytest.raises(LucidError, match="no adapter three; there are: one, two"):
        change_adapters(artifact, {}, ("three",))
    assert artifact.path("adapters.bin").read_bytes() == content


def test_export_refuses_what_it_cannot_keep_apart(made: dict[str, Any], tmp_path: Path, exported: Any) -> None:
    root = made["root"]
    one, two = ("one", root / "one"), ("two", root / "two")
    for options, said in (
        ({"adapters": (one, ("one", root / "two"))}, "Two adapters are called one"),
        ({"adapters": (one, two), "max_adapters": 1}, "--max-adapters 1 is too small"),
        ({"adapters": (one,), "max_adapter_rank": 2}, "--max-adapter-rank 2 is too small"),
        ({"max_adapter_rank": 2}, "add --adapter or --max-adapters"),
    ):
        with pytest.raises(LucidError, match=said):
            export(made["checkpoint"], tmp_path / "artifact", ExportOptions(**options))
    assert not (tmp_path / "artifact").exists()
    artifact = exported()[1]
    assert json.loads(artifact.path("lucid.json").read_text())["adapters"] is None
    with pytest.raises(LucidError, match="without room for adapters"):
        change_adapters(artifact, {"one": root / "one"})


def test_parts_of_a_mixture_are_refused_by_name(tmp_path: Path) -> None:
    checkpoint = tmp_path / "qwen2_moe"
    saved(small_config("qwen2_moe", tie_word_embeddings=True), checkpoint).float().save_pretrained(checkpoint)
    train(checkpoint, tmp_path / "one", 1, target_modules=["shared_expert.up_proj"], r=2)
    with pytest.raises(LucidError, match=r"shared_expert\.up_proj\.weight.*mixtures of experts"):
        export(checkpoint, tmp_path / "artifact", ExportOptions(adapters=(("one", tmp_path / "one"),)))
