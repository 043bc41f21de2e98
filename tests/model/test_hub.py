"""Checkpoints of the Hugging Face Hub, against a stand-in of its HTTP API."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from lucid_deploy.errors import LucidError
from lucid_deploy.model.checkpoint import Checkpoint
from lucid_deploy.model.hub import HubOptions, fetch, is_on_hub
from tests.model.hub_stand_in import Hub, serve_hub

MakeCheckpoint = Callable[..., Path]
NAME = "org/tiny-lucid"
TAKEN = {"config.json", "generation_config.json", "tokenizer_config.json", "model.safetensors"}


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve_hub() as running:
        yield running


@pytest.fixture
def published(make_checkpoint: MakeCheckpoint) -> Path:
    """A checkpoint as it lies on the Hub: with files that are no part of it."""
    directory = make_checkpoint("published")
    (directory / "generation_config.json").write_text('{"eos_token_id": [1, 5]}')
    (directory / "tokenizer_config.json").write_text("{}")
    for name in ("README.md", "pytorch_model.bin", "training_args.bin", "consolidated.safetensors", "model.gguf"):
        (directory / name).write_bytes(b"nobody needs this")
    (directory / "original").mkdir()
    (directory / "original" / "model.safetensors").write_bytes(b"nor this")
    return directory


@pytest.fixture
def options(hub: Hub, tmp_path: Path) -> HubOptions:
    return HubOptions(endpoint=hub.endpoint, cache=tmp_path / "cache")


def refusal(name: str, options: HubOptions, **changes: Any) -> str:
    with pytest.raises(LucidError) as caught:
        fetch(name, HubOptions(**{**vars(options), **changes}))
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_checkpoint_and_nothing_else_is_fetched(hub: Hub, published: Path, options: HubOptions) -> None:
    commit = hub.add(NAME, published)
    reports: list[tuple[str, int, int]] = []
    directory, record = fetch(NAME, options, progress=lambda *report: reports.append(report))
    assert hub.fetched() == TAKEN
    assert {path.name for path in directory.iterdir()} == TAKEN
    assert record == {"repository": NAME, "revision": "main", "commit": commit}
    assert Checkpoint(directory).config == Checkpoint(published).config
    size = (published / "model.safetensors").stat().st_size
    assert reports[-1][0] == f"Downloading {NAME}"
    assert reports[-1][1] == reports[-1][2] >= size
    assert {authorization for *_, authorization in hub.requests} == {None}


def test_shards_are_fetched_by_the_index(hub: Hub, published: Path, options: HubOptions) -> None:
    tensors = load_file(published / "model.safetensors")
    files = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    weight_map = {name: files[number % 2] for number, name in enumerate(tensors)}
    for file in files:
        save_file({name: tensors[name] for name in tensors if weight_map[name] == file}, published / file)
    (published / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    hub.add(NAME, published)
    assert f"has model.safetensors and shards, {files[0]} and so on, on the Hub" in refusal(NAME, options)
    assert hub.fetched() == set()
    (published / "model.safetensors").unlink()
    hub.add(NAME, published)
    directory, _ = fetch(NAME, options)
    assert hub.fetched() == {*TAKEN, *files, "model.safetensors.index.json"} - {"model.safetensors"}
    assert Checkpoint(directory).config.num_hidden_layers == 2


def test_an_adapter_is_named_and_costs_no_weights(hub: Hub, published: Path, options: HubOptions) -> None:
    (published / "adapter_config.json").write_text("{}")
    hub.add(NAME, published)
    message = refusal(NAME, options)
    assert f"{NAME} at main on the Hub has an adapter" in message and "--merge-adapter" in message
    assert hub.fetched() == set()


def test_a_configuration_that_is_refused_costs_no_weights(hub: Hub, published: Path, options: HubOptions) -> None:
    config = json.loads((published / "config.json").read_text())
    (published / "config.json").write_text(json.dumps({**config, "zeta_gain": 3}))
    hub.add(NAME, published)
    assert "zeta_gain is 3. This key is not known here" in refusal(NAME, options)
    assert hub.fetched() == {"config.json"}
    directory, _ = fetch(NAME, options, ["zeta_gain"])
    assert Checkpoint(directory, ["zeta_gain"]).assumed_unused == {"zeta_gain": 3}


def test_a_revision_is_a_branch_a_tag_or_a_commit(hub: Hub, published: Path, options: HubOptions) -> None:
    commits = {"main": hub.add(NAME, published)}
    (published / "chat_template.jinja").write_text("{{ messages }}")
    commits["v2"] = hub.add(NAME, published, revision="v2")
    for revision, commit in [("main", commits["main"]), ("v2", commits["v2"]), (commits["v2"], commits["v2"])]:
        directory, record = fetch(NAME, HubOptions(**{**vars(options), "revision": revision}))
        assert record == {"repository": NAME, "revision": revision, "commit": commit}
        assert (directory / "chat_template.jinja").is_file() == (commit == commits["v2"])
    assert f"{NAME} has no revision v3 on {hub.endpoint}" in refusal(NAME, options, revision="v3")


def test_a_private_model_needs_its_token(hub: Hub, published: Path, options: HubOptions) -> None:
    hub.add(NAME, published, token="secret")
    message = refusal(NAME, options)
    assert f"{hub.endpoint} answered 401 when it was asked for {NAME}. Log in" in message
    assert "--token-file" in message
    assert "answered 401" in refusal(NAME, options, token="another")
    fetch(NAME, HubOptions(**{**vars(options), "token": "secret"}))
    assert {authorization for *_, authorization in hub.requests} == {None, "Bearer another", "Bearer secret"}


def test_a_model_that_is_not_there(hub: Hub, options: HubOptions) -> None:
    message = refusal("org/nothing", options)
    assert f"{hub.endpoint} has no model org/nothing, or it is private" in message
    assert "no directory of this machine has it" in message


@pytest.mark.parametrize("how", ["broken", "short"])
def test_half_a_file_is_no_file(
    hub: Hub, published: Path, options: HubOptions, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """The connection ends in the middle each time, or the file is shorter than the Hub's own list says."""
    hub.add(NAME, published, **{how: "model.safetensors"})
    monkeypatch.setattr(time, "sleep", lambda _: None)  # between attempts
    message = refusal(NAME, options)
    assert f"{NAME} could not be downloaded from {hub.endpoint}: " in message
    assert "run the command again, which continues where it broke off" in message
    assert not list((options.cache or Path()).rglob("snapshots/*/model.safetensors"))
    setattr(hub.repositories[NAME], how, None)
    assert Checkpoint(fetch(NAME, options)[0]).config.num_hidden_layers == 2


def test_offline_takes_what_is_there_and_asks_nobody(hub: Hub, published: Path, options: HubOptions) -> None:
    hub.add(NAME, published)
    message = refusal(NAME, options, offline=True)
    assert f"{NAME} at revision main was not downloaded before. Run the command without --offline" in message
    online = fetch(NAME, options)
    hub.requests.clear()
    assert fetch(NAME, HubOptions(cache=options.cache, offline=True)) == online
    assert hub.requests == []
    assert "at revision v2 was not downloaded before" in refusal(NAME, options, offline=True, revision="v2")


def test_a_model_without_safetensors(hub: Hub, published: Path, options: HubOptions) -> None:
    (published / "model.safetensors").unlink()
    hub.add(NAME, published)
    message = refusal(NAME, options)
    assert f"{NAME} at main has neither model.safetensors nor model.safetensors.index.json on the Hub." in message
    assert "pytorch_model.bin" in message
    assert hub.fetched() == set()


def test_names_are_told_from_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "here").mkdir(parents=True)
    plain = HubOptions()
    assert is_on_hub("other/name", plain)
    assert is_on_hub("Meta-Llama/Llama-3.1_8b", plain)
    for path in ("demo", "org/here", "org/slip", "/a/b", "./a", "a", "a/b/c", "../a/b", "a/../b", "a b/c", "a/"):
        assert not is_on_hub(path, plain)
    assert is_on_hub("org/slip", HubOptions(revision="main"))
    for path in ("demo", "org/here", "/a/b", "a"):
        with pytest.raises(LucidError, match=f"The options for the Hugging Face Hub are not for {path}"):
            is_on_hub(path, HubOptions(offline=True))
