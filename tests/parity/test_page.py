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
from lucid_deploy.parity import check
from lucid_deploy.parity.gate import Gate
from lucid_deploy.parity.metrics import Divergence
from lucid_deploy.parity.page import LINES, TEMPLATES, Line, _chart, _position_charts, render_page
from lucid_deploy.parity.record import TensorId
from tests.parity.faults import change_weight, edit_graphs
from tests.parity.pages import check_page
from tests.parity.small_models import LAYERS, session

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


def coarser_norms(model, stage):
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "RMSNormalization" and attribute.name == "epsilon":
                attribute.f *= 10


def test_a_tolerance_is_said_first_everywhere(directory, tmp_path):
    edit_graphs(directory, coarser_norms)
    target = tmp_path / "page.html"
    result = verify(directory, "--tolerance", 0.5, "--report", target, "--json", tmp_path / "data.json")
    assert result.exit_code == 0, result.stderr
    assert "tolerance of 0.5 was set by hand" in " ".join(result.stdout.split())
    words = " ".join("".join(check_page(target.read_text()).text).split())
    assert words.index("A tolerance was set by hand") < words.index("Passed")
    assert "With those gates it would have failed" in words
    gate = json.loads((tmp_path / "data.json").read_text())["gate"]
    assert (gate["tolerance"], gate["within_derived"]) == (0.5, False)
    tight = verify(directory, "--tolerance", 1e-9)
    assert tight.exit_code == 1
    assert "failed: The tolerance of 1e-09 was set by hand" in message(tight)


def test_a_page_on_wrong_weights_that_no_comparison_shows_has_failed(directory, tmp_path):
    change_weight(directory, "model.layers.1.self_attn.v_proj.weight")
    target = tmp_path / "page.html"
    result = verify(directory, "--tolerance", 0.5, "--report", target, "--json", tmp_path / "data.json")
    assert result.exit_code == 1
    assert "v_proj.weight is not the checkpoint's weight" in message(result)
    words = " ".join("".join(check_page(target.read_text()).text).split())
    assert "Passed" not in words and words.index("Failed") < words.index("v_proj.weight is not the checkpoint's")
    data = json.loads((tmp_path / "data.json").read_text())
    assert not data["passed"] and "What was compared is within its gates, but" in data["verdict"]
    assert "FAILED" in result.stdout and "PASSED" not in result.stdout


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


def test_the_first_line_says_how_much_was_judged(report, model):
    _, words = page_of(report, model)
    total = len(report.comparisons)
    first = f"Judged {total} of {total} comparisons against this toolkit's own PyTorch model in float64."
    assert words.index("Passed") < words.index(first) < words.index("What was checked")


def test_every_check_has_a_row(report, model):
    _, words = page_of(report, model)
    for item in report.checks:
        assert item.name in words and item.detail in words
    assert words.index("Every check, made or not") < words.index("What was compared", words.index("Every check"))


def test_what_was_not_judged_stands_beside_the_verdict(report, model):
    wide = replace(report.comparisons[0], gate=Gate(1.5e8, 3e7), blind_positions=len(report.comparisons[0].errors))
    text, words = page_of(replace(report, comparisons=(wide, *report.comparisons[1:])), model)
    assert "Not everything could be judged." in words and "1 comparison was not judged" in words
    assert '<td class="number unsure">not judged</td>' in text
    assert "Not everything could be judged" not in page_of(report, model)[1]


def test_what_was_left_out_stands_beside_the_verdict(report, model):
    _, words = page_of(replace(report, left_out=("No prompt was fed backwards.",)), model)
    assert words.index("No prompt was fed backwards.") < words.index("What was checked")


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


def test_many_other_tokens_are_folded_away(report, model):
    item = next(i for i, c in enumerate(report.comparisons) if c.logits is not None)
    found = tuple(Divergence(position, 1, 2, 0.5, 1.0, True) for position in range(29))
    logits = replace(report.comparisons[item].logits, divergences=found)
    comparisons = list(report.comparisons)
    comparisons[item] = replace(comparisons[item], logits=logits)
    _, words = page_of(replace(report, comparisons=tuple(comparisons)), model)
    assert "5 more" in words and "More other tokens" in words


def test_charts_leave_gaps_and_are_left_out_if_empty():
    nan, inf = math.nan, math.inf
    (chart,) = _chart("t", "d", "x", [Line("l", list(enumerate([1e-3, nan, 1e-2, 0.0, inf, 1e-1, 1.0])), 0)])
    assert chart["paths"][0]["d"].count("M") >= 3 and "nan" not in chart["paths"][0]["d"]
    assert _chart("t", "d", "x", [Line("l", [(0, 0.0), (1, nan)], 0)]) == []
    assert _chart("t", "d", "x", [Line("l", [(5, 1e-3)], 0)])  # one layer


def test_a_deep_model_has_few_lines_in_a_chart(report):
    layers = 40
    comparisons = tuple(
        replace(item, tensor=TensorId(layer, item.tensor.kind))
        for item in report.comparisons
        for layer in ([layers] if item.tensor.is_logits else range(item.tensor.layer, layers, LAYERS))
    )
    for chart in _position_charts(replace(report, comparisons=comparisons)):
        named = [path for path in chart["paths"] if "limit" not in path["style"]]
        assert 1 <= len(named) <= LINES
