"""What a page is made of, as data: the templates give it its form, and escape every text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from lucid_deploy.parity.show.svg import Line, classes, log_chart


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: What it says.
        kind: ``ok``, ``bad`` or ``unsure``; ``wide`` for sentences; empty for anything else.
    """

    text: str
    kind: str = ""


@dataclass(frozen=True)
class Table:
    """A table that scrolls sideways by itself, by keyboard too.

    Attributes:
        caption: What it shows.
        heads: Headings of the columns; empty: none.
        rows: Cells; the first of a row is its heading.
        remark: In small print under the caption.
        texts: So many columns hold words and are aligned left; the others hold numbers.
    """

    caption: str
    heads: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    remark: str = ""
    texts: int = 1
    kind: str = field(default="table", init=False)


@dataclass(frozen=True)
class Paragraph:
    """Sentences."""

    text: str
    kind: str = field(default="paragraph", init=False)


@dataclass(frozen=True)
class Figure:
    """A chart with its caption and its legend.

    Attributes:
        title: Its short name.
        description: What it shows, in words.
        chart: The drawing, an inline SVG.
        legend: Style classes and name of every line.
    """

    title: str
    description: str
    chart: Markup
    legend: Sequence[tuple[str, str]]
    kind: str = field(default="figure", init=False)


@dataclass(frozen=True)
class FoldedBlocks:
    """Blocks that are shown on demand."""

    summary: str
    blocks: Sequence[Block]
    kind: str = field(default="folded", init=False)


Block = Table | Paragraph | Figure | FoldedBlocks


@dataclass(frozen=True)
class Callout:
    """Words that stand out.

    Attributes:
        kind: ``passed``, ``failed`` or ``note``.
        headline: Says in words what the colour says.
        texts: Paragraphs; empty ones are left out.
    """

    kind: str
    headline: str
    texts: Sequence[str]


@dataclass(frozen=True)
class Section:
    """A part of the page; one without blocks is left out."""

    heading: str
    blocks: Sequence[Block]


def table(
    caption: str, heads: Sequence[str], rows: Iterable[Sequence[str | Cell]], remark: str = "", texts: int = 1
) -> Table:
    """Return a table of cells and plain texts."""
    cells = [[item if isinstance(item, Cell) else Cell(item) for item in row] for row in rows]
    return Table(caption, heads, cells, remark, texts)


def figure(name: str, title: str, description: str, x_label: str, lines: Sequence[Line]) -> list[Block]:
    """Return a chart, or nothing if there is nothing to draw; arguments as :func:`~.svg.log_chart`."""
    chart = log_chart(name, title, description, x_label, lines)
    legend = [(classes(line), line.name) for line in lines]
    return [Figure(title, description, Markup(chart), legend)] if chart else []  # its texts are escaped there
