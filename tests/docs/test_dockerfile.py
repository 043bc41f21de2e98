"""The Dockerfile names what exists. No image is built here."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def test_the_dockerfile_copies_what_exists_and_all_that_a_wheel_needs() -> None:
    copied = {word for line in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.M) for word in line.split()}
    assert copied and all((ROOT / name).exists() for name in copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    folders = {name.split("/")[0] for name in project["tool"]["setuptools"]["package-dir"].values()}
    assert folders | {"lucid_deploy", "pyproject.toml"} <= copied
    extras = {name for names in re.findall(r"\[([\w,]+)\]\"", DOCKERFILE) for name in names.split(",")}
    assert extras and extras <= project["project"]["optional-dependencies"].keys()
