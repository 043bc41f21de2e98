"""Adapters over HTTP and on the command line: clients ask for an adapter as a model, commands take its name."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import peft
import pytest
import torch
from click.testing import CliRunner

from lucid_deploy.artifact import check_hashes, open_artifact
from lucid_deploy.cli import main
from lucid_deploy.export import ExportOptions, export
from lucid_deploy.model.checkpoint import load_model
from tests.serving.serving_tools import MODEL, PROMPT, Reference, Start

KILLED = """
import os, signal, sys
os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
from lucid_deploy.cli import main
main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two adapters of the bundled model, and its artifact with one of them."""
    root = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(("one", "two")):
        adapted = peft.get_peft_model(load_model("demo"), peft.LoraConfig(target_modules=["q_proj", "down_proj"], r=2))
        draw = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for value in (each for each in adapted.parameters() if each.requires_grad):
                value.copy_(0.3 * torch.randn(value.shape, generator=draw))
        adapted.save_pretrained(root / name)
    options = ExportOptions(cache="static", adapters=(("one", root / "one"),), max_adapters=2)
    export("demo", root / "artifact", options)
    return root


def test_each_adapter_is_served_as_a_model(made: Path, start: Start) -> None:
    directory = made / "artifact"
    reference, wanted = Reference(directory), {}
    for name in (MODEL, "one"):
        reference.session.default_adapter = reference.session.adapter_id("base" if name == MODEL else name)
        wanted[name] = reference.text(PROMPT, 12, eos=False)
    assert wanted[MODEL] != wanted["one"]
    server = start(directory, "--prefix-cache-tokens", 500)
    listed = httpx.get(f"{server.url}/v1/models").json()["data"]
    assert [(each["id"], each.get("parent")) for each in listed] == [(MODEL, None), ("one", MODEL)]

    def ask(model: str) -> httpx.Response:
        body = {"model": model, "prompt": PROMPT, "max_tokens": 12, "temperature": 0, "ignore_eos": True}
        return httpx.post(f"{server.url}/v1/completions", json=body, timeout=60)

    with ThreadPoolExecutor(6) as pool:
        for model, answer in zip([MODEL, "one"] * 4, pool.map(ask, [MODEL, "one"] * 4), strict=True):
            assert (answer.json()["model"], answer.json()["choices"][0]["text"]) == (model, wanted[model])
    refused = ask("two")
    assert refused.status_code == 404 and f"this server has {MODEL}, one." in refused.json()["error"]["message"]


def test_commands_add_list_use_and_remove_adapters_by_name(made: Path, tmp_path: Path) -> None:
    directory = str(shutil.copytree(made / "artifact", tmp_path / "artifact"))
    invoke, two = CliRunner().invoke, f"two={made / 'two'}"
    found = invoke(main, ["adapters", "add", directory, two])
    assert found.exit_code == 0 and "two: rank 2, from" in found.stdout
    listed = json.loads(invoke(main, ["adapters", "list", directory, "--json", "-"]).stdout)
    assert [each["name"] for each in listed["adapters"]] == ["one", "two"] and listed["room"]["count"] == 2
    ask = ["run", directory, PROMPT, "--max-new-tokens", "8", "--ignore-eos", "--quiet"]
    alone = [invoke(main, [*ask, *more]).stdout for more in ((), ("--adapter", "one"), ("--adapter", "two"))]
    assert len({*alone}) == 3
    lines = ({"prompt": PROMPT, "adapter": name} if name else {"prompt": PROMPT} for name in (None, "one", "two"))
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    batch = ["run", directory, "--batch", str(tmp_path / "prompts.jsonl"), "--output", str(tmp_path / "answers.jsonl")]
    assert invoke(main, [*batch, "--max-new-tokens", "8", "--ignore-eos"]).exit_code == 0
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [each["text"] for each in sorted(answers, key=lambda each: each["line"])] == [each[:-1] for each in alone]
    for words, said in (
        ([*ask, "--adapter", "three"], "there are base, one, two"),
        ([*batch, "--max-new-tokens", "8", "--ignore-eos", "--adapter", "one"], "begun with other options"),
        (["adapters", "add", directory, two], "an adapter two already"),
        (["adapters", "add", directory, "x=/nowhere"], "There is no folder '/nowhere'"),
        (["adapters", "remove", directory, "three"], "there are: one, two"),
    ):
        refused = invoke(main, words)
        assert refused.exit_code == 2 and said in " ".join(refused.stderr.split())
    assert invoke(main, ["adapters", "remove", directory, "one", "two"]).exit_code == 0
    assert open_artifact(directory).adapters() == ()


def test_a_killed_command_leaves_the_old_adapters(made: Path, preloaded: Path, tmp_path: Path) -> None:
    directory = shutil.copytree(made / "artifact", tmp_path / "artifact")
    words = ["adapters", "add", str(directory), f"two={made / 'two'}"]
    done = subprocess.run([preloaded / "python", "-c", KILLED, *words], capture_output=True)
    assert done.returncode == -signal.SIGKILL and list(directory.glob("adapters.bin.tmp-*"))
    artifact = open_artifact(directory)
    check_hashes(artifact)
    assert [each.name for each in artifact.adapters()] == ["one"]
    assert CliRunner().invoke(main, words).exit_code == 0
    assert [each.name for each in open_artifact(directory).adapters()] == ["one", "two"]
