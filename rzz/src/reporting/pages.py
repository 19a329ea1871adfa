"""The two forms of the report, one HTML file and Markdown with PNG files, from one list of blocks.

    blocks = [Heading("Training"), Table(["round", "loss"], [["1", "0.82"]]), Figures([Figure("loss", "Loss", "…", figure)])]
    write_pages(folder, "rzz", blocks)      # folder/report.html, folder/report.md, folder/loss.png

Texts are plain, with `code` between backticks.
"""

import html
import re
from dataclasses import dataclass
from typing import Any

from common.config import require_writable
from common.files import atomic_write
from reporting.figures import svg_text


@dataclass
class Heading:
    text: str


@dataclass
class Paragraph:
    text: str


@dataclass
class Numbers:
    """The answer in large type."""

    items: list[tuple[str, str]]  # (number, what it is)


@dataclass
class Sentences:
    items: list[str]


@dataclass
class Table:
    header: list[str]
    rows: list[list[str]]  # the first cell of a row is its name


@dataclass
class Figure:
    name: str  # of its PNG file
    title: str
    caption: str
    figure: Any  # matplotlib.figure.Figure


@dataclass
class Figures:
    items: list[Figure]


def write_pages(folder, title, blocks):
    """Write report.html, report.md and the PNG files of its figures to `folder`; return the path of the HTML file.

    Each file is there whole or not at all, so that a browser can be reloaded while the report is written again.
    """
    require_writable(folder)
    for figure in (figure for block in blocks if isinstance(block, Figures) for figure in block.items):
        with atomic_write(folder / f"{figure.name}.png") as file:
            figure.figure.savefig(file, format="png", dpi=150, facecolor="white")
    for name, text in (("report.md", as_markdown(title, blocks)), ("report.html", as_html(title, blocks))):
        with atomic_write(folder / name, "w") as file:
            file.write(text)
    return folder / "report.html"


def as_markdown(title, blocks):
    return "\n\n".join([f"# {title}", *(markdown_block(block) for block in blocks)]) + "\n"


def markdown_block(block):
    match block:
        case Heading(text):
            return f"## {text}"
        case Paragraph(text):
            return text
        case Numbers(items):
            return "\n".join(f"- **{value}** {label}" for value, label in items)
        case Sentences(items):
            return "\n".join(f"- {sentence}" for sentence in items)
        case Table(header, rows):
            lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
            return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)
        case Figures(items):
            return "\n\n".join(f"### {each.title}\n\n![{each.title}]({each.name}.png)\n\n{each.caption}" for each in items)


def as_html(title, blocks):
    body = "\n".join([f"<h1>{html_text(title)}</h1>", *(html_block(block) for block in blocks)])
    return PAGE.format(title=html_text(title), style=STYLE, body=body)


def html_block(block):
    match block:
        case Heading(text):
            return f"<h2>{html_text(text)}</h2>"
        case Paragraph(text):
            return f"<p>{html_text(text)}</p>"
        case Numbers(items):
            tiles = (f"<div><b>{html_text(value)}</b><span>{html_text(label)}</span></div>" for value, label in items)
            return f'<div class="numbers">{"".join(tiles)}</div>'
        case Sentences(items):
            return "<ul>" + "".join(f"<li>{html_text(sentence)}</li>" for sentence in items) + "</ul>"
        case Table(header, rows):
            lines = [row_html("th", header), *(row_html("td", row) for row in rows)]
            return '<div class="wide"><table>' + "\n".join(lines) + "</table></div>"
        case Figures(items):
            return f'<div class="figures">{"".join(figure_html(each) for each in items)}</div>'


def row_html(tag, cells):
    return "<tr>" + "".join(f"<{tag}>{html_text(cell)}</{tag}>" for cell in cells) + "</tr>"


def figure_html(each):
    drawing = svg_text(each.figure).replace("<svg", f'<svg role="img" aria-label="{html_text(each.title)}"', 1)
    return f"<figure><h3>{html_text(each.title)}</h3>{drawing}<figcaption>{html_text(each.caption)}</figcaption></figure>"


def html_text(text):
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", html.escape(text))


PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{style}
</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""
STYLE = """
:root { color-scheme: light dark; --ink: #1c2126; --soft: #59636e; --paper: #fff; --line: #d8dee4; --tile: #f4f6f8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e8ec; --soft: #9aa5b1; --paper: #14181c; --line: #343b43; --tile: #1e242a; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 24px 20px 64px; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 12px; }
h2 { font-size: 1.3rem; margin: 48px 0 12px; padding-top: 12px; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 0 0 6px; }
h1 + p { color: var(--soft); margin-top: 0; }
p, li { max-width: 78ch; }
ul { padding-left: 1.2em; }
code { font: 0.9em ui-monospace, monospace; overflow-wrap: anywhere; }
.numbers { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin: 20px 0; }
.numbers div { background: var(--tile); border-radius: 8px; padding: 12px 14px; }
.numbers b { display: block; font-size: 1.5rem; line-height: 1.3; }
.numbers span { color: var(--soft); font-size: 0.85rem; line-height: 1.35; display: block; }
.figures { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 36px 40px; margin: 24px 0; }
.figures figure:first-child:nth-last-child(3) { grid-row: span 2; }
@media (max-width: 760px) {
  .figures { grid-template-columns: minmax(0, 1fr); }
  main { padding: 16px 14px 48px; }
  h1 { font-size: 1.4rem; }
}
figure { margin: 0; }
figure svg { display: block; width: 100%; height: auto; }
figcaption { color: var(--soft); font-size: 0.9rem; margin-top: 6px; }
.wide { overflow-x: auto; margin: 16px 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.92rem; }
th, td { padding: 5px 12px 5px 0; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--soft); font-weight: 600; }
th:first-child, td:first-child { text-align: left; }
""".strip()
