"""``lucid-deploy verify`` with its page, its text and its tolerance, on a real export."""

import json
import re
import shutil
from html.parser import HTMLParser

import pytest
from click.testing import CliRunner
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from lucid_deploy.cli import main
from lucid_deploy.parity.show.html import Cell, paragraph, table
from lucid_deploy.parity.show.svg import Line, log_chart
from tests.parity.faults import change_weight

CONTEXT = 48
VOID = {"meta", "br", "circle", "path"}


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


class Page(HTMLParser):
    """Collects what a page is made of, and checks that elements are closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.ids, self.refs, self.text = [], [], [], [], []
        self.tables_without_caption = 0
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.tags.append((tag, given))
        self.ids += [given["id"]] if "id" in given else []
        self.refs += [*(given.get("aria-labelledby") or "").split(), given.get("href", "#")[1:]]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def check_page(text):
    """Check what every page must be: self-contained, well-formed and readable without eyes; return it parsed."""
    page = Page(text)
    names = [tag for tag, _ in page.tags]
    assert not {"script", "link", "img", "iframe", "object", "base"} & set(names)
    assert not re.search(r"https?:|//[a-z]|url\(|@import|@font-face", text.replace("<!doctype html>", ""))
    assert not any(name.startswith("on") for _, given in page.tags for name in given)
    assert len(page.ids) == len(set(page.ids))
    assert set(filter(None, page.refs)) <= set(page.ids)
    assert names.count("table") == names.count("caption") == text.count('role="region"')
    charts = [given for tag, given in page.tags if tag == "svg" and given.get("role") == "img"]
    assert len(charts) == names.count("desc") > 0
    assert names.count("h1") == 1 and 'lang="en"' in text
    return page


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
    for part in ("Error against position", "Own and inherited error", "Where errors in Y come from", "Conditioning"):
        assert part in words
    assert "Perplexity of 9 tokens" in words
    data = json.loads(result.stdout)
    assert data["explanation"]["perplexity"]["tokens"] == 9
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


def test_a_tolerance_is_said_first_everywhere(directory, tmp_path):
    change_weight(directory, "model.layers.1.self_attn.v_proj.weight")
    target = tmp_path / "page.html"
    result = verify(directory, "--tolerance", 0.5, "--report", target, "--json", tmp_path / "data.json")
    assert result.exit_code == 0, result.stderr
    assert "tolerance of 0.5 was set by hand" in " ".join(result.stdout.split())
    words = " ".join("".join(check_page(target.read_text()).text).split())
    assert words.index("A tolerance was set by hand") < words.index("Passed")
    assert "By them this artifact would have failed" in words
    gate = json.loads((tmp_path / "data.json").read_text())["gate"]
    assert (gate["tolerance"], gate["within_derived"]) == (0.5, False)
    tight = verify(directory, "--tolerance", 1e-9)
    assert tight.exit_code == 1
    assert "failed: The tolerance of 1e-09 was set by hand" in message(tight)


def test_nothing_expensive_is_run_unless_asked_or_failed(directory):
    data = json.loads(verify(directory, "--json", "-").stdout)
    assert data["explanation"] is None
    assert len(data["heads"]) == 2 * 2 * 2 and data["error_against_position"]  # cheap: always there
    data = json.loads(verify(directory, "--explain", "--json", "-").stdout)
    assert data["explanation"]["own_errors"] and data["explanation"]["perplexity"] is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--prompt", ""], "prompt to verify with is empty"),
        (["--tolerance", "0"], "above 0 and below 1"),
        (["--tolerance", "nan"], "above 0 and below 1"),
        (["--tolerance", "1"], "above 0 and below 1"),
        (["--tolerance", "much"], "not a valid float"),
        (["--report", "{tmp}/none/page.html"], "file in a directory that exists"),
        (["--report", "{tmp}"], "file in a directory that exists"),
        (["--report", "-"], "file in a directory that exists"),
        (["--text", "{tmp}/none.txt"], "cannot be read"),
        (["--text", "{tmp}"], "cannot be read"),
        (["--text", "{tmp}/empty.txt"], "takes at least 2"),
        (["--text", "{tmp}/binary.txt"], "no UTF-8 text"),
        (["--text", "{tmp}/empty.txt", "--text-tokens", "1"], "--text-tokens"),
    ],
)
def test_bad_usage_is_refused_before_the_long_run(directory, tmp_path, arguments, words):
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "binary.txt").write_bytes(b"w1 \xff\xfe")
    result = verify(directory, *(argument.format(tmp=tmp_path) for argument in arguments))
    assert result.exit_code == 2
    assert words in message(result)


def test_a_text_needs_a_tokenizer(directory, tmp_path):
    (directory / "tokenizer.json").unlink()
    (tmp_path / "text.txt").write_text("w1 w2")
    result = verify(directory, "--text", tmp_path / "text.txt")
    assert result.exit_code == 2 and "no tokenizer.json" in message(result)


def test_texts_are_escaped():
    shown = table("<i>", ["<a>"], [("<b>", Cell("<c>", "ok"))], remark="<d>") + paragraph("<e>")
    for letter in "iabcde":
        assert f"&lt;{letter}&gt;" in shown and f"<{letter}>" not in shown
    chart = log_chart("x", "<t>", "<u>", "<v>", [Line("<w>", [(0, 1.0), (1, 10.0)], 0)])
    assert not re.search("<[tuvw]>", chart)


def test_charts_leave_gaps_where_nothing_can_be_drawn():
    nan, inf = float("nan"), float("inf")
    chart = log_chart("x", "t", "d", "x", [Line("l", list(enumerate([1e-3, nan, 1e-2, 0.0, inf, 1e-1, 1.0])), 0)])
    assert chart.count("M") >= 3 and "nan" not in chart and "inf" not in chart
    assert log_chart("x", "t", "d", "x", [Line("l", [(0, 0.0), (1, nan)], 0)]) == ""
    assert "<svg" in log_chart("x", "t", "d", "x", [Line("l", [(5, 1e-3)], 0)])  # one layer
