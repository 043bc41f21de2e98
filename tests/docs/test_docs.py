"""Docs and code say the same."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from lucid_deploy.cli import COMMANDS, main
from lucid_deploy.export.trace import graph_inputs, graph_outputs
from lucid_deploy.model.config import LucidConfig
from lucid_deploy.model.description import describe
from lucid_deploy.plugins.hosts.triton import aot

ROOT = Path(__file__).resolve().parents[2]
TEXTS = (".md", ".py", ".yaml", ".html", ".js", ".cpp")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_contract_in_the_docs_is_the_contract_in_the_code() -> None:
    config = LucidConfig(7, 8, 8, 1, 2, 1, 4, 1e-5, 16)
    layers = describe(config, "float32")
    names = {1: "kv_heads", 4: "head_dim", 7: "vocab"}
    row = r"^\| `([\w.{}]+)` \| (\w+) \| (\[.+?\]) \|$"
    page = (ROOT / "docs/artifact.md").read_text()
    for stage in ("prefill", "decode"):
        section = page.partition(f"### {stage.capitalize()}\n")[2].partition("\n#")[0]
        rows = re.findall(row, section, re.M)
        assert len(rows) == 8
        documented = {name.replace("{i}", "0"): (kind, shape) for name, kind, shape in rows}
        for info in (*graph_inputs(layers, stage), *graph_outputs(layers, config.vocab_size, stage, "last")):
            cached = "key_values" in info.name or "present" in info.name
            position = 1 if cached else -1
            shape = [
                names.get(axis, axis) if i == position or axis in (4, 7) else axis for i, axis in enumerate(info.shape)
            ]
            assert documented[info.name] == ("cache" if cached else info.dtype, "[" + ", ".join(map(str, shape)) + "]")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_the_docs_exist_with_their_options(page: Path) -> None:
    """Every `lucid-deploy …` in a code block names a command and options that exist."""
    text = page.read_text()
    blocks = "\n".join(re.findall(r"```\w*\n(.*?)```", text, re.S)).replace("\\\n", " ")
    for line in re.findall(r"^(?:\$ )?lucid-deploy (.+)$", blocks, re.M):
        words = line.split()
        if words[0].startswith("-"):
            continue
        command = main.get_command(click.Context(main), words[0])
        assert command is not None, line
        if isinstance(command, click.Group):
            command = command.get_command(click.Context(command), words[1])
            assert command is not None, line
        known = {name for parameter in command.params for name in parameter.opts}
        used = {word.split("=")[0] for word in words if re.match(r"-{1,2}[a-zA-Z]", word)}
        assert used <= known | {"--help"}, f"{line}: {used - known}"


def test_the_wheels_kernels_are_as_many_as_the_docs_say() -> None:
    """All are named by plans; nothing is compiled."""
    code = [variant for arch in aot.ARCHITECTURES for variant in aot.variants(arch)]
    archs = (aot.PTX_ARCHITECTURE, aot.FLOAT8_PTX_ARCHITECTURE)
    ptx = [variant for arch in archs for variant in aot.variants(arch) if aot.ptx_architecture(variant) == arch]
    words = " ".join((ROOT / "docs/index.md").read_text().split())
    counts = f"{len(code) + len(ptx):,} GPU kernels, {len(code)} as machine code and {len(ptx)} as PTX"
    assert counts in words


def test_every_command_is_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    for command in COMMANDS:
        assert f"lucid-deploy {command}" in readme, command


def test_nobody_is_sent_to_an_index_for_this_package() -> None:
    """It is on none: what pip found there under this name would be somebody else's."""
    files = [*PAGES, ROOT / "Dockerfile", *(path for path in (ROOT / "examples").rglob("*") if path.suffix in TEXTS)]
    by_name = re.compile(r"""pip install (?:-\S+ )*["']?lucid[-_]deploy\b""")
    found = [path.name for path in files if by_name.search(path.read_text())]
    assert len(files) > 30 and found == []


def test_links_between_pages_lead_somewhere() -> None:
    for page in [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
