"""The Dockerfile names what exists; the smoke test tells a container engine what it should. No image is built here."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from lucid_deploy.cli import COMMANDS
from tests.patience import PATIENCE

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
SMOKE = ROOT / ".ci" / "docker_smoke_test.sh"


def test_it_copies_what_exists_and_all_that_a_wheel_needs() -> None:
    copied = {word for line in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.M) for word in line.split()}
    assert copied and all((ROOT / name).exists() for name in copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    folders = {name.split("/")[0] for name in project["tool"]["setuptools"]["package-dir"].values()}
    assert folders | {"lucid_deploy", "pyproject.toml"} <= copied
    extras = {name for names in re.findall(r"\[([\w,]+)\]\"", DOCKERFILE) for name in names.split(",")}
    assert extras and extras <= project["project"]["optional-dependencies"].keys()


@pytest.mark.parametrize("target", ["export", "gpu"])
def test_the_smoke_test(target: str, tmp_path: Path) -> None:
    engine = tmp_path / "engine"
    engine.write_text(f'#!/bin/sh\nprintf "%s\\0" "$@" >> {tmp_path}/told\nprintf "\\n--\\n" >> {tmp_path}/told\n')
    engine.chmod(0o755)
    given = {**os.environ, "CONTAINERS": str(engine)}
    said = subprocess.run([SMOKE, target], env=given, capture_output=True, text=True, timeout=PATIENCE)
    assert said.returncode == 0, said.stderr
    build, run = ((tmp_path / "told").read_text().split("\n--\n"))[:2]
    assert build.split("\0")[:5] == ["build", "--target", target, "-t", f"lucid-deploy:{target}"]
    assert f"AS {target}\n" in DOCKERFILE
    words = run.split("\0")
    assert ("--gpus" in words) == (target == "gpu")
    inside = words[words.index("-c") + 1]
    assert subprocess.run(["sh", "-n", "-c", inside], timeout=PATIENCE).returncode == 0
    assert set(re.findall(r"^lucid-deploy (\w+)", inside, re.M)) <= set(COMMANDS)


def test_without_an_engine_there_is_one_line() -> None:
    given = {**os.environ, "CONTAINERS": "no-such-engine"}
    said = subprocess.run([SMOKE], env=given, capture_output=True, text=True, timeout=PATIENCE)
    assert (said.returncode, said.stderr.count("\n")) == (2, 1) and "no-such-engine is not there" in said.stderr
