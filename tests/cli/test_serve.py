"""``lucid-deploy serve`` refuses what cannot be served before it loads a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from lucid_deploy.cli import main
from lucid_deploy.cli.serve import ENGINE_OPTIONS, command, ray_application
from lucid_deploy.errors import LucidError

if TYPE_CHECKING:
    from lucid_deploy.serving.ray_cluster import ClusterOptions


def test_options_whose_help_names_ray_are_declared_for_ray() -> None:
    rays = {each.name for each in command.params if (getattr(each, "help", None) or "").startswith("With ray")}
    assert rays == set(ENGINE_OPTIONS["ray"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--host", "no.such.host.invalid"], "on no.such.host.invalid cannot be used"),
        (["--api-key-file", "missing"], "--api-key-file missing cannot be read: No such file"),
        (["--api-key-file", "."], "cannot be read: Is a directory"),
        (["--replicas", "2"], "--replicas is for --engine ray"),
        (["--engine", "ray", "--replicas", "2", "--max-replicas", "3"], "not both"),
        (["--engine", "ray", "--min-replicas", "3", "--max-replicas", "2"], "is more than"),
        (["--engine", "ray", "--replica-gpus", "1.5"], "--replica-gpus 1.5: Ray reserves a part of one GPU, or whole"),
        (["--threads", "0"], "number of threads"),
        (["--device", "cuda"], "runs on cpu"),
        (["--replica-cpus", "4"], "--replica-cpus is for --engine ray"),
        (["--engine", "ray", "--max-connections", "1"], "--max-connections is for --engine local; with ray, Ray's"),
        (["--engine", "ray", "--idle-timeout", "30"], "--idle-timeout is for --engine local"),
        (["--served-model-name", " "], "--served-model-name is empty"),
        (["--share-prefix-cache", "--prefix-cache-tokens", "9"], "it needs --api-key-file, and more than 0"),
        (["--host", "0.0.0.0", "--allow-host", "x"], "--allow-host is for a server without API keys that listens on"),
    ],
)
def test_impossible_options_are_refused(with_tokenizer: Path, options: list[str], message: str) -> None:
    result = CliRunner().invoke(main, ["serve", str(with_tokenizer), "--port", "0", *options])
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


def test_bad_key_files_are_refused(with_tokenizer: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"

    def message(text: bytes, mode: int = 0o600) -> str:
        keys.write_bytes(text)
        keys.chmod(mode)
        arguments = ["serve", str(with_tokenizer), "--port", "0", "--api-key-file", str(keys)]
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 2
        return result.stderr

    assert "has no keys" in message(b"# nothing\n\n")
    assert "has no keys" in message(b"\xef\xbb\xbf# nothing\n")  # a byte order mark, as Windows' programs write it
    assert "can be read by every user" in message(b"key\n", 0o644)
    assert "line 2: a key is printable ASCII" in message("key\nschlüssel\n".encode())
    assert "line 1: a key is printable ASCII" in message(b"two words\n")
    assert "'utf-8' codec can't decode byte" in message(b"\xff\xfe")


def test_a_folder_without_artifact_or_tokenizer_is_refused(tmp_path: Path, artifact_copy: Path) -> None:
    assert CliRunner().invoke(main, ["serve", str(tmp_path)]).exit_code == 2
    result = CliRunner().invoke(main, ["serve", str(artifact_copy)])
    assert (result.exit_code, "has no tokenizer.json" in result.stderr) == (2, True)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({}, "args must be options"),
        ({"options": "x", "rows": "2"}, "nothing else"),
        ({"options": ""}, "Missing argument"),
        ({"options": "ARTIFACT --rows many"}, "is not a valid integer"),
        ({"options": "ARTIFACT 'a"}, "No closing quotation"),
        ({"options": "ARTIFACT --port 80"}, "--port cannot be set here"),
        ({"options": "ARTIFACT --replicas 2 --max-replicas 3"}, "not both"),
        ({"options": "nowhere"}, "nowhere"),
    ],
)
def test_impossible_configurations_of_ray_are_refused(with_tokenizer: Path, args: dict[str, str], message: str) -> None:
    pytest.importorskip("ray", reason="the extra ray")
    given = {name: text.replace("ARTIFACT", str(with_tokenizer)) for name, text in args.items()}
    with pytest.raises(LucidError, match=message):
        ray_application(given)


def test_a_configuration_of_ray_gives_the_application(with_tokenizer: Path) -> None:
    serve = pytest.importorskip("ray.serve", reason="the extra ray")
    made = ray_application({"options": f"{with_tokenizer} --replicas 3 --rows 5 --runtime torch"})
    assert isinstance(made, serve.Application)


@pytest.mark.parametrize(
    ("words", "cpus", "threads"),
    [
        ("", 1, 1),
        ("--replica-cpus 2.5", 2.5, 2),
        ("--replica-cpus 0.25", 0.25, 1),
        ("--replica-cpus 0", 0, None),
        ("--replica-gpus 1", 1, None),
    ],
)
def test_an_engine_has_the_threads_that_it_reserves(
    with_tokenizer: Path, monkeypatch: pytest.MonkeyPatch, words: str, cpus: float, threads: int | None
) -> None:
    pytest.importorskip("ray", reason="the extra ray")
    monkeypatch.setattr("lucid_deploy.serving.ray_cluster.application", lambda engine, api, cluster: cluster)
    cluster = ray_application({"options": f"{with_tokenizer} {words}"})
    assert (cluster.cpus, cluster.threads) == (cpus, threads)


@pytest.mark.parametrize(
    ("words", "threads"),
    [
        ([], 12),
        (["--replicas", "5"], 2),
        (["--replicas", "20"], 1),
        (["--min-replicas", "0", "--max-replicas", "4"], 3),
        (["--replicas", "2", "--ray-address", "auto"], 1),
        (["--replica-gpus", "0.5"], None),
    ],
)
def test_engines_of_a_machine_share_its_cores(
    with_tokenizer: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], threads: int | None
) -> None:
    pytest.importorskip("ray", reason="the extra ray")
    found: list[ClusterOptions] = []
    monkeypatch.setattr("lucid_deploy.cli.serve.usable_cores", lambda: 12)
    monkeypatch.setattr(
        "lucid_deploy.serving.ray_cluster.serve_on_ray", lambda engine, api, cluster, ready: found.append(cluster)
    )
    result = CliRunner().invoke(main, ["serve", str(with_tokenizer), "--engine", "ray", *words])
    assert result.exit_code == 0, result.output
    assert [cluster.threads for cluster in found] == [threads]
