"""Checkpoints of the Hugging Face Hub, against a stand-in of its HTTP API."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from lucid_deploy.errors import LucidError
from lucid_deploy.model.checkpoint import Checkpoint
from lucid_deploy.model.hub import fetch, is_on_hub
from tests.model.hub_stand_in import Hub, serve_hub

MakeCheckpoint = Callable[..., Path]
NAME = "org/tiny-lucid"
TAKEN = {"config.json", "generation_config.json", "tokenizer_config.json", "model.safetensors"}


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with serve_hub(tmp_path / "cache") as running:
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


def refusal(name: str, revision: str | None = None) -> str:
    with pytest.raises(LucidError) as caught:
        fetch(name, revision)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_checkpoint_and_nothing_else_is_fetched(hub: Hub, published: Path) -> None:
    commit = hub.add(NAME, published)
    reports: list[tuple[str, int, int]] = []
    directory, record = fetch(NAME, progress=lambda *report: reports.append(report))
    assert hub.fetched() == TAKEN
    assert {path.name for path in directory.iterdir()} == TAKEN
    assert record == {"repository": NAME, "revision": "main", "commit": commit}
    assert Checkpoint(directory).config == Checkpoint(published).config
    size = (published / "model.safetensors").stat().st_size
    assert reports[-1][0] == f"Downloading {NAME}"
    assert reports[-1][1] == reports[-1][2] >= size
    assert {authorization for *_, authorization in hub.requests} == {None}


def test_shards_are_fetched_by_the_index(hub: Hub, published: Path) -> None:
    tensors = load_file(published / "model.safetensors")
    files = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    weight_map = {name: files[number % 2] for number, name in enumerate(tensors)}
    for file in files:
        save_file({name: tensors[name] for name in tensors if weight_map[name] == file}, published / file)
    (published / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (published / "model.safetensors").unlink()
    hub.add(NAME, published)
    directory, _ = fetch(NAME)
    assert hub.fetched() == {*TAKEN, *files, "model.safetensors.index.json"} - {"model.safetensors"}
    assert Checkpoint(directory).config.num_hidden_layers == 2


def test_an_adapter_costs_no_weights(hub: Hub, published: Path) -> None:
    (published / "adapter_config.json").write_text("{}")
    hub.add(NAME, published)
    assert "has an adapter" in refusal(NAME)
    assert hub.fetched() == {"config.json", "adapter_config.json"}


def test_a_configuration_that_is_refused_costs_no_weights(hub: Hub, published: Path) -> None:
    config = json.loads((published / "config.json").read_text())
    (published / "config.json").write_text(json.dumps({**config, "zeta_gain": 3}))
    hub.add(NAME, published)
    assert "zeta_gain is 3. This key is not known here" in refusal(NAME)
    assert hub.fetched() == {"config.json"}
    directory, _ = fetch(NAME, assume_unused=["zeta_gain"])
    assert Checkpoint(directory, ["zeta_gain"]).assumed_unused == {"zeta_gain": 3}


def test_a_revision_is_a_branch_a_tag_or_a_commit(hub: Hub, published: Path) -> None:
    commits = {"main": hub.add(NAME, published)}
    (published / "chat_template.jinja").write_text("{{ messages }}")
    commits["v2"] = hub.add(NAME, published, revision="v2")
    for revision, commit in [("main", commits["main"]), ("v2", commits["v2"]), (commits["v2"], commits["v2"])]:
        directory, record = fetch(NAME, revision)
        assert record == {"repository": NAME, "revision": revision, "commit": commit}
        assert (directory / "chat_template.jinja").is_file() == (commit == commits["v2"])
    assert f"{NAME} at v3 could not be downloaded: " in refusal(NAME, "v3")


def test_a_private_model_needs_its_token(hub: Hub, published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(NAME, published, token="secret")
    assert "401" in refusal(NAME)
    monkeypatch.setenv("HF_TOKEN", "another")
    message = refusal(NAME)
    assert "401" in message and "another" not in message
    monkeypatch.setenv("HF_TOKEN", "secret")
    fetch(NAME)
    assert {authorization for *_, authorization in hub.requests} == {None, "Bearer another", "Bearer secret"}


@pytest.mark.parametrize("how", ["broken", "short"])
def test_half_a_file_is_no_file(
    hub: Hub, published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """The connection ends in the middle each time, or the file is shorter than the Hub's own list says."""
    hub.add(NAME, published, **{how: "model.safetensors"})
    monkeypatch.setattr(time, "sleep", lambda _: None)  # between attempts
    assert "could not be downloaded: " in refusal(NAME)
    assert not list((tmp_path / "cache").rglob("snapshots/*/model.safetensors"))
    setattr(hub.repositories[NAME], how, None)
    assert Checkpoint(fetch(NAME)[0]).config.num_hidden_layers == 2


def test_offline_takes_what_is_there_and_asks_nobody(
    hub: Hub, published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(NAME, published)
    online = fetch(NAME)
    hub.requests.clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert fetch(NAME) == online
    assert f"{NAME} at v2 could not be downloaded: Cannot find an appropriate cached snapshot" in refusal(NAME, "v2")
    assert hub.requests == []


def test_names_are_told_from_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "here").mkdir(parents=True)
    assert is_on_hub("other/name", None)
    assert is_on_hub("Meta-Llama/Llama-3.1_8b", None)
    for path in ("demo", "org/here", "org/slip", "/a/b", "./a", "a", "a/b/c", "../a/b", "a/../b", "a b/c", "a/"):
        assert not is_on_hub(path, None)
    assert is_on_hub("org/slip", "main")
    for path in ("demo", "org/here", "/a/b", "a"):
        with pytest.raises(LucidError, match=f"--revision is for a model of the Hugging Face Hub.*{path} is not"):
            is_on_hub(path, "main")
