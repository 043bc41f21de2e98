"""The words of docs, README and product: lines that fit, no riddles, and a glossary whose terms are in use."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
GLOSSARY = ROOT / "docs" / "glossary.md"
FOLDERS = ("lucid_deploy", "conformance", "export", "plugins")
SOURCES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
WIDEST = 120

# Each puzzled readers. Beside it, what to write instead.
DISCOURAGED = {
    r"whoever": "name who it is",
    r"as it likes": "optionally",
    r"as wide as the format is coarse": "int8 needs wide gates",
    r"errs (behind|beyond)": "the error appears only after",
    r"solves? nothing|nothing (was|is) solved": "has no preconditioner; the cached values are V",
    r"rows? (that )?(joins?|leaves?)( and (joins?|leaves?))?\b": "a request starts or finishes",
    r"join and leave|joins and leaves|joins or leaves|leaves / joins": "requests start and finish",
    r"otherwise one line says": "say which command prints what",
    r"none is ever": "it never",
    r"permit contexts": "allow prompts longer than",
    r"begins? alike": "with the same beginning",
    r"kept prefix": "stored prefix",
    r"live on inside": "was computed from",
    r"hang together": "are correlated, depend on each other",
    r"whatever (one|it|they) (sets?|says?)": "regardless of",
    r"the last quarter [\d.]+ times the first": "the mean error over the last quarter is … times that over the first",
}


def prose(page: Path) -> list[tuple[int, str]]:
    """Return the lines of a page outside of fenced blocks, with their numbers."""
    lines, fenced = [], False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced:
            lines.append((number, line))
    return lines


def terms() -> list[str]:
    return re.findall(r"^\*\*([^*]+)\*\*: ", GLOSSARY.read_text(encoding="utf-8"), re.M)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tables_fit_a_screen(page: Path) -> None:
    """No line of a table is longer than a screen is wide."""
    too_long = [
        f"{page.name}:{number}: {len(line)} characters"
        for number, line in prose(page)
        if line.lstrip().startswith("|") and len(line) > WIDEST
    ]
    assert not too_long, f"Split them, or write a list: {too_long}"


@pytest.mark.parametrize("phrase", DISCOURAGED)
def test_nothing_speaks_in_riddles(phrase: str) -> None:
    found = []
    for path in [*PAGES, ROOT / "CONTRIBUTING.md", *SOURCES]:
        text = re.sub(r"\s+", " ", path.read_text(encoding="utf-8"))  # phrases go over the ends of lines
        found += [f"{path.relative_to(ROOT)}: {hit[0]}" for hit in re.finditer(rf"\b({phrase})", text, re.I)]
    assert not found, f"Write instead: {DISCOURAGED[phrase]}. {found}"


def test_the_glossary_defines_each_word_once() -> None:
    assert len(terms()) > 20
    assert len(set(terms())) == len(terms())


@pytest.mark.parametrize("term", terms())
def test_every_word_of_the_glossary_is_in_use(term: str) -> None:
    """Each is on another page or in the product; one that is nowhere else needs no definition."""
    words = r"\s+".join(map(re.escape, reversed(term.split(", "))))  # "fault, seeded" is a seeded fault
    pattern = re.compile(rf"\b{words}", re.I)
    texts = (path.read_text(encoding="utf-8") for path in [*PAGES, *SOURCES] if path != GLOSSARY)
    assert any(pattern.search(text) for text in texts), term
