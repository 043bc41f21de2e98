"""The page of a verification: self-contained, well-formed, and it says first what matters most."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from lucid_deploy.cli import main
from lucid_deploy.model.description import summarize
from lucid_deploy.parity.compare import check
from lucid_deploy.parity.page import TEMPLATES, Line, _chart, render_page
from tests.parity.faults import change_weight
from tests.parity.pages import check_page
from tests.parity.small_models import session

CONTEXT = 48
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def directory(exported, tmp_path):
    """A copy of an artifact, with a tokenizer of 97 words that starts every text with w1."""
    _, artifact = exported(max_position_embeddings=CONTEXT)
    copy = shutil.copytree(artifact.directory, tmp_path / "artifact <b>")
    tokenizer = Tokenizer(WordLevel({f"w{i}": i for i in range(97)}, unk_token="w0"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="w1 $A", special_tokens=[("w1", 1)])
    tokenizer.save(str(copy / "tokenizer.json"))
    return copy


def verify(directory, *arguments):
    command = ["verify", str(directory), "--steps", "8", *map(str, arguments)]
    return CliRunner().invoke(main, command, catch_exceptions=False)


def message(result):
    return " ".join(result.stderr.split())


def test_the_page_of_a_sound_artifact(directory, tmp_path):
    target = tmp_path / "page.html"
    text = tmp_path / "text.txt"
    text.write_text("w1 w2 w3 w4 w5 w6 w7 w1 w2 w3 w4")
    result = verify(directory, "--report", target, "--text", text, "--text-tokens", 10, "--seed", 4, "--json", "-")
    assert result.exit_code == 0, result.stderr
    page = check_page(target.read_text(encoding="utf-8"))
    words = " ".join("".join(page.text).split())
    assert words.index("Passed") < words.index("What was compared")
    assert "artifact <b>" in words
    for part in ("Error against position", "Each part by itself"):
        assert part in words
    assert "Perplexity of 9 tokens" in words
    data = json.loads(result.stdout)
    assert data["perplexity"]["tokens"] == 9
    assert data["explanation"]["origin"] is None
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []  # nothing unfinished is left
    assert str(data["seed"]) in words


def test_the_page_of_a_failure_names_where_the_error_starts(directory, tmp_path):
    change_weight(directory, "model.layers.1.self_attn.v_proj.weight")
    target = tmp_path / "page.html"
    target.write_text("an older page")
    result = verify(directory, "--report", target)
    assert result.exit_code == 1
    page = check_page(target.read_text(encoding="utf-8"))
    words = " ".join("".join(page.text).split())
    assert words.index("Failed") < words.index("The error starts in layer 1 Y") < words.index("What was compared")
    assert "beyond" in words
    assert "The error starts in layer 1 Y" in " ".join(result.stdout.split())
    assert "v_proj" in message(result)


# Pages of reports made without an artifact


FACTS = {
    "artifact": "somewhere",
    "checkpoint": "elsewhere",
    "device": "cpu",
    "cache": "growing, float32",
    "files": 8,
    "bytes": 12345,
    "exported_with": {"torch": "2.9"},
}


@pytest.fixture(scope="module")
def report(model, targets):
    return replace(check(session(model), targets), left_out=())  # fewer steps are taken to save time


def page_of(report, model, **facts):
    facts = {**FACTS, "model": model.config.to_dict(), "summary": summarize(model.config), **facts}
    text = render_page(replace(report, facts=facts))
    return text, " ".join("".join(check_page(text).text).split())


def test_every_text_is_escaped(report, model):
    wild = replace(
        report,
        label="<b>label</b>",
        left_out=("<i>left</i>",),
        comparisons=tuple(replace(item, schedule="<u>fed</u>") for item in report.comparisons),
    )
    text, words = page_of(wild, model, artifact="<s>artifact</s>", checkpoint='"quoted" & <em>')
    for letter in ("<b>", "<i>", "<u>", "<s>", "<em>"):
        assert letter not in text.replace("<b>K", "").replace("<b>Y", "").replace("<b>logits", "").replace("<b>E", "")
        assert letter in words


def test_the_templates_are_part_of_the_package():
    import tomllib

    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert settings["lucid_deploy.parity"] == ["templates/*"]
    assert {path.name for path in TEMPLATES.iterdir()} == {"page.html.j2", "page.css"}


def test_charts_leave_gaps_and_are_left_out_if_empty():
    nan, inf = math.nan, math.inf
    (chart,) = _chart("t", "d", "x", [Line("l", list(enumerate([1e-3, nan, 1e-2, 0.0, inf, 1e-1, 1.0])), 0)])
    assert chart["paths"][0]["d"].count("M") >= 3 and "nan" not in chart["paths"][0]["d"]
    assert _chart("t", "d", "x", [Line("l", [(0, 0.0), (1, nan)], 0)]) == []
    assert _chart("t", "d", "x", [Line("l", [(5, 1e-3)], 0)])  # one layer
