"""Tables of the pages say what the code says."""

from __future__ import annotations

import re
from pathlib import Path

from lucid_deploy.export.trace import graph_inputs, graph_outputs
from lucid_deploy.model.config import LucidConfig
from lucid_deploy.model.description import describe
from lucid_deploy.model.families import BUILT_IN, family_named
from lucid_deploy.plugins.hosts.tensorrt.build import PLUGIN_ABI
from lucid_deploy.runtimes import RuntimeOptions
from lucid_deploy.runtimes.registry import built_in_runtimes
from lucid_deploy.version import __version__
from tests.compat.tried import FORMS, TABLE, tabled

ROOT = Path(__file__).resolve().parents[2]


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]


def test_the_page_shows_the_graphs_inputs_and_outputs() -> None:
    config = LucidConfig(7, 8, 8, 1, 2, 1, 4, 1e-5, 16)
    layers = describe(config, "float32")
    names = {1: "kv_heads", 4: "head_dim", 7: "vocab"}
    for stage in ("prefill", "decode"):
        section = page("docs/artifact.md").partition(f"### {stage.capitalize()}\n")[2].partition("\n#")[0]
        documented = {
            name.strip("`").replace("{i}", "0"): (kind, shape) for name, kind, shape in rows(section) if "`" in name
        }
        assert len(documented) == 8
        for info in (*graph_inputs(layers, stage), *graph_outputs(layers, config.vocab_size, stage, "last")):
            cached = "key_values" in info.name or "present" in info.name
            position = 1 if cached else -1
            shape = [
                names.get(axis, axis) if i == position or axis in (4, 7) else axis for i, axis in enumerate(info.shape)
            ]
            assert documented[info.name] == ("cache" if cached else info.dtype, f"[{', '.join(map(str, shape))}]")


def test_the_page_shows_the_architectures_of_each_family() -> None:
    table = rows(page("docs/models.md"))
    shown = {kind.strip("`"): set(re.findall(r"`(\w+)`", classes)) for kind, classes, *_ in table}
    for name in BUILT_IN:
        assert shown[name] == set(family_named(name).architectures), name


def test_the_page_shows_the_capabilities_of_runtimes() -> None:
    table = {what: cells for what, *cells in rows(page("docs/runtimes.md")) if len(cells) == 4}
    for column, name in enumerate(table[""]):
        [runtime] = [each for each in built_in_runtimes() if each.name == name.strip("`")]
        can = runtime.capabilities(RuntimeOptions())
        assert {what: cells[column] for what, cells in table.items() if what and "-" not in what} == {
            "devices": ", ".join(can.devices),
            "types": ", ".join(can.dtypes),
            "graphs": ", ".join(can.graphs),
            "caches": ", ".join(can.caches),
            "cache types besides the model's": ", ".join(can.cache_dtypes),
            "cached tensors": ", ".join(can.cache_sorts),
            "layers one by one": "yes" if can.reads_layers else "no",
            "limits": "of the engines" if can.builds_engines else "none",
            "extra to install": "".join(f"`{extra}`" for extra in re.findall(r"\[(\w+)\]", can.install)),
        }


def test_the_page_shows_the_runtimes_that_were_tried() -> None:
    assert {len(cells) for cells in TABLE.values()} == {len(FORMS)}
    assert tabled() in page("docs/runtimes.md")


def test_make_demo_prints_what_the_pages_show() -> None:
    section = page("docs/demo-model.md").split("## What make demo prints", 1)[1]
    printed = section.split("```text\n", 1)[1].split("```")[0]
    makefile = re.sub(r"\\\n\s*", "", page("Makefile"))  # continued lines are one
    variables = dict(re.findall(r"^(\w+) [?:]?= (.*)$", makefile, re.MULTILINE))
    recipes = makefile.split("\ndemo: $(VENV)", 1)[1].split("\ndemo-engines:", 1)[0]
    recipes += makefile.split("\ndemo-build:", 1)[1].split("\n\n", 1)[0]
    commands = [line.strip() for line in recipes.splitlines() if line.startswith("\t$(BIN)/lucid-deploy")]
    while any("$(" in command for command in commands):
        commands = [re.sub(r"\$\((\w+)\)", lambda found: variables[found[1]], command) for command in commands]
    assert [line for line in printed.splitlines() if line.startswith(".venv/bin/lucid-deploy")] == commands
    assert re.findall(r"ABI (\d+)", printed) == [str(PLUGIN_ABI)]
    shown = page("README.md").split("```text\n", 1)[1].split("```", 1)[0]
    assert {line for line in shown.splitlines() if not line.startswith("Prompt:")} <= set(printed.splitlines())


def test_the_page_names_the_wheels_of_this_version() -> None:
    text = page("docs/install.md")
    assert f"lucid_deploy-{__version__}-py3-none-any.whl" in text
    assert re.search(rf"dist/lucid_deploy-{re.escape(__version__)}-py3-none-manylinux\w+\.whl\[cpu\]", text)
