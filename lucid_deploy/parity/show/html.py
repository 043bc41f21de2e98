"""The parts that the page is made of: tables, figures, the frame and its style. Every text is escaped here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from lucid_deploy.parity.show.svg import Line, legend, log_chart

STYLE = """
:root { color-scheme: light dark; --back: #fbfbf9; --card: #ffffff; --ink: #1c1f23; --soft: #5b636d; --rule: #d9dcd8;
  --good: #17693a; --good-back: #e4f3e8; --bad: #a3201a; --bad-back: #fbe6e3; --note: #7a5200; --note-back: #fdf1d6;
  --s0: #1f66b5; --s1: #c2571a; --s2: #2c8054; --s3: #8a4fbf; --s4: #a8326e; --s5: #6b6f76; }
@media (prefers-color-scheme: dark) { :root { --back: #15181c; --card: #1c2026; --ink: #e6e8ea; --soft: #a2aab3;
  --rule: #363c44; --good: #7fd6a0; --good-back: #16321f; --bad: #ff9b92; --bad-back: #401a18; --note: #f1c56a;
  --note-back: #382b0e; --s0: #6aaef5; --s1: #f0955b; --s2: #67c795; --s3: #c29bee; --s4: #ee82b5; --s5: #a3a8af; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink); line-height: 1.5;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem; padding-top: 1.25rem; border-top: 1px solid var(--rule); }
p { max-width: 46rem; margin: .5rem 0; } .soft { color: var(--soft); }
a { color: var(--s0); } nav ul { list-style: none; padding: 0; margin: 1rem 0; display: flex; flex-wrap: wrap;
  gap: .25rem 1.25rem; }
.verdict, .note { border-left: .4rem solid; border-radius: .3rem; padding: .8rem 1rem; margin: 1rem 0; }
.verdict strong { display: block; font-size: 1.15rem; } .verdict p, .note p { margin: .3rem 0; max-width: none;
  overflow-wrap: anywhere; }
.passed { background: var(--good-back); border-color: var(--good); } .passed strong { color: var(--good); }
.failed { background: var(--bad-back); border-color: var(--bad); } .failed strong { color: var(--bad); }
.note { background: var(--note-back); border-color: var(--note); }
.scroll { overflow-x: auto; margin: 1rem 0; } .scroll:focus-visible, summary:focus-visible, a:focus-visible {
  outline: 2px solid var(--s0); outline-offset: 2px; }
table { border-collapse: collapse; background: var(--card); font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: .4rem 0; } caption small { font-weight: 400;
  color: var(--soft); display: block; } caption span { display: inline-block; position: sticky; left: 0;
  max-width: min(46rem, 100vw - 2.5rem); }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--rule); text-align: left; white-space: nowrap; }
td.wide { white-space: normal; min-width: 14rem; overflow-wrap: anywhere; } td.number, th.number {
  text-align: right; }
thead th { border-bottom: 2px solid var(--rule); color: var(--soft); font-weight: 600; white-space: normal;
  vertical-align: bottom; }
tbody th { font-weight: 500; } td.ok { color: var(--good); } td.bad { color: var(--bad); font-weight: 700; }
figure { margin: 1.25rem 0; background: var(--card); border: 1px solid var(--rule); border-radius: .4rem;
  padding: .75rem; }
figure > svg { display: block; width: 100%; height: auto; } figcaption { font-size: .9rem; color: var(--soft);
  max-width: 46rem; }
figcaption b { color: var(--ink); } .grid { stroke: var(--rule); fill: none; } .tick, .label { fill: var(--soft);
  font-size: 12px; }
.line { fill: none; stroke-width: 1.6; stroke-linejoin: round; } .dot { stroke-width: 1.2; } .limit {
  stroke-dasharray: 6 4; }
path.broad { stroke-width: 6; opacity: .4; }
@media (max-width: 40rem) { .tick, .label { font-size: 20px; } }
.s0 { stroke: var(--s0); } .s1 { stroke: var(--s1); } .s2 { stroke: var(--s2); } .s3 { stroke: var(--s3); }
.s4 { stroke: var(--s4); } .s5 { stroke: var(--s5); } .dot.s0 { fill: var(--s0); } .dot.s1 { fill: var(--s1); }
.dot.s2 { fill: var(--s2); } .dot.s3 { fill: var(--s3); } .dot.s4 { fill: var(--s4); } .dot.s5 { fill: var(--s5); }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; padding: 0; margin: .4rem 0 0;
  font-size: .85rem; }
.legend svg { width: 1.6rem; height: .6rem; margin-right: .4rem; } .legend .line { stroke-width: 2.4; }
details { margin: 1rem 0; } summary { cursor: pointer; color: var(--s0); }
@media print { :root { color-scheme: light; --back: #fff; --card: #fff; --ink: #000; --soft: #444; --rule: #bbb;
  --good: #17693a;
  --good-back: #fff; --bad: #a3201a; --bad-back: #fff; --note: #7a5200; --note-back: #fff; --s0: #1f66b5;
  --s1: #c2571a;
  --s2: #2c8054; --s3: #8a4fbf; --s4: #a8326e; --s5: #6b6f76; }
  body { font-size: 10pt; } main { max-width: none; padding: 0; } nav, details:not([open]) { display: none; }
  .scroll { overflow: visible; } figure, tr, .verdict { break-inside: avoid; } h2, caption { break-after: avoid; }
  table { font-size: 8.5pt; } th, td { padding: .2rem .45rem; } td.wide { white-space: normal; }
  .tick, .label { font-size: 13px; } .verdict, .note { print-color-adjust: exact; } }
"""


class Cell(str):
    """A table cell with a class of its own: ``ok``, ``bad`` or ``wide``."""

    kind: str

    def __new__(cls, text: str, kind: str) -> Cell:
        """Make a cell of a text and a class."""
        cell = super().__new__(cls, text)
        cell.kind = kind
        return cell


def paragraph(text: str, kind: str = "") -> str:
    """Return a paragraph; nothing for an empty text."""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>" if text else ""


def box(kind: str, headline: str, *texts: str) -> str:
    """Return a box that stands out: ``passed``, ``failed`` or ``note``, with words for what the colour says."""
    css = "note" if kind == "note" else f"verdict {kind}"
    return f'<div class="{css}"><strong>{escape(headline)}</strong>{"".join(map(paragraph, texts))}</div>'


def table(caption: str, heads: Sequence[str], rows: Iterable[Sequence[str]], remark: str = "", texts: int = 1) -> str:
    """Return a table that scrolls sideways by itself, by keyboard too.

    Args:
        caption: What it shows.
        heads: Headings of the columns; empty: none.
        rows: Their cells; the first is the row's heading.
        remark: In small print under the caption.
        texts: So many columns hold words and are aligned left; the others hold numbers.
    """
    small = f"<small>{escape(remark)}</small>" if remark else ""
    head = "".join(f'<th scope="col"{_number(index >= texts)}>{escape(text)}</th>' for index, text in enumerate(heads))
    head = f"<thead><tr>{head}</tr></thead>" if heads else ""
    body = "".join(_row(cells, texts) for cells in rows)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table>'
        f"<caption><span>{escape(caption)}{small}</span></caption>{head}<tbody>{body}</tbody></table></div>"
    )


def figure(name: str, title: str, description: str, x_label: str, lines: Sequence[Line]) -> str:
    """Return a chart with caption and legend; nothing if there is nothing to draw. Arguments as ``svg.log_chart``."""
    chart = log_chart(name, title, description, x_label, lines)
    if not chart:
        return ""
    caption = f"<figcaption><b>{escape(title)}.</b> {escape(description)}</figcaption>"
    return f"<figure>{chart}{legend(lines)}{caption}</figure>"


def folded(summary: str, content: str) -> str:
    """Return content that is shown on demand."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>" if content else ""


def page(title: str, lead: str, sections: Sequence[tuple[str, str]]) -> str:
    """Return the whole document.

    Args:
        title: Its heading.
        lead: HTML above the sections.
        sections: (heading, HTML) each; those without content are left out.
    """
    shown = [(f"part{index}", heading, content) for index, (heading, content) in enumerate(sections) if content]
    links = "".join(f'<li><a href="#{name}">{escape(heading)}</a></li>' for name, heading, _ in shown)
    body = "".join(
        f'<section aria-labelledby="{name}"><h2 id="{name}">{escape(heading)}</h2>{content}</section>'
        for name, heading, content in shown
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>"
        f"<h1>{escape(title)}</h1>{lead}"
        f'<nav aria-label="Sections"><ul>{links}</ul></nav>{body}</main></body></html>\n'
    )


def _row(cells: Sequence[str], texts: int) -> str:
    first, *rest = cells
    return (
        f'<tr><th scope="row">{escape(first)}</th>'
        + "".join(_cell(text, index >= texts) for index, text in enumerate(rest, 1))
        + "</tr>"
    )


def _cell(text: str, number: bool) -> str:
    kinds = [*(["number"] if number else []), *([text.kind] if isinstance(text, Cell) else [])]
    css = f' class="{" ".join(kinds)}"' if kinds else ""
    return f"<td{css}>{escape(text)}</td>"


def _number(number: bool) -> str:
    return ' class="number"' if number else ""
