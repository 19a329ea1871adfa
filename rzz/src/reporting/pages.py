"""The page of the report: one HTML file that opens without a network, joined from what these functions return.

    body = [heading("Training"), table(["round", "loss"], [["1", "0.82"]]), figure_grid([loss_figure(training)])]
    write_page(config.log_folder / "report" / "report.html", "rzz", body)

Texts are plain, with `code` between backticks.
"""

import html
import re

from common.config import require_writable
from common.files import atomic_write
from reporting.figures import can_draw, svg_text


def write_page(path, title, body, reload_after=None):
    """Write the HTML strings of `body` as a page to `path`, atomically: a browser may reload it at any moment.

    reload_after: seconds after which the browser is to do so by itself, None for never.
    """
    require_writable(path.parent)
    refresh = f'\n<meta http-equiv="refresh" content="{reload_after}">' if reload_after else ""
    body = "\n".join([f"<h1>{html_text(title)}</h1>", *body])
    with atomic_write(path, "w") as file:
        file.write(PAGE.format(title=html_text(title), refresh=refresh, style=STYLE, body=body))


def heading(text):
    return f"<h2>{html_text(text)}</h2>"


def paragraph(text):
    unbroken = re.sub(r"(?<=\de-)(?=\d)", "&NoBreak;", html_text(text))  # 2.9e-05 stays on one line
    return f"<p>{unbroken}</p>"


def bullet_list(items):
    return "<ul>" + "".join(f"<li>{html_text(item)}</li>" for item in items) + "</ul>"


def definition_list(terms):
    """What words mean. terms: {word: meaning}."""
    pairs = (f"<div><dt>{html_text(word)}</dt><dd>{html_text(meaning)}</dd></div>" for word, meaning in terms.items())
    return f"<dl>{''.join(pairs)}</dl>"


def number_tiles(items):
    """Numbers in large type. items: [(number, what it is)]."""
    tiles = (f"<div><b>{html_text(number)}</b><span>{html_text(label)}</span></div>" for number, label in items)
    return f'<div class="numbers">{"".join(tiles)}</div>'


def table(header, rows):
    """A table of texts; the first cell of a row is its name."""
    lines = [("th", header), *(("td", row) for row in rows)]
    rows_html = ("".join(f"<{tag}>{html_text(cell)}</{tag}>" for cell in cells) for tag, cells in lines)
    return '<div class="wide"><table>' + "\n".join(f"<tr>{row}</tr>" for row in rows_html) + "</table></div>"


def figure_grid(figures):
    """Figures of reporting.figures, two in a row if the window is wide enough. Without matplotlib none is asked for or shown."""
    pieces = []
    if not can_draw():
        return ""
    for figure in figures:
        title = html_text(figure.title)
        drawing = svg_text(figure.drawing).replace("<svg", f'<svg role="img" aria-label="{title}"', 1)
        pieces.append(f"<figure><h3>{title}</h3>{drawing}<figcaption>{html_text(figure.caption)}</figcaption></figure>")
    return f'<div class="figures">{"".join(pieces)}</div>'


def html_text(text):
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", html.escape(text))


PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>{refresh}
<style>{style}</style>
</head>
<body><main>
{body}
</main></body>
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
h1 + p { font-size: 1.1rem; margin-top: 0; }
p, li { max-width: 78ch; }
ul { padding-left: 1.2em; }
code { font: 0.9em ui-monospace, monospace; overflow-wrap: anywhere; }
.numbers { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin: 20px 0; }
.numbers div { background: var(--tile); border-radius: 8px; padding: 12px 14px; }
.numbers b { display: block; font-size: 1.5rem; line-height: 1.3; }
.numbers span { color: var(--soft); font-size: 0.85rem; line-height: 1.35; display: block; }
.figures { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 36px 40px; margin: 24px 0; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(260px, 1fr)); gap: 8px 40px; margin: 24px 0; font-size: 0.9rem; }
dt { font-weight: 600; }
dd { margin: 0; color: var(--soft); }
@media (max-width: 760px) {
  .figures { grid-template-columns: minmax(0, 1fr); }
  main { padding: 16px 14px 48px; }
  h1 { font-size: 1.4rem; }
}
figure { margin: 0; }
figure:only-child { grid-column: 1 / -1; }
figure svg { display: block; width: 100%; height: auto; }
figcaption { color: var(--soft); font-size: 0.9rem; margin-top: 6px; }
/* A shadow on the right says that there is more; it is covered where the table ends. The first column stays in sight. */
.wide { overflow-x: auto; margin: 16px 0; background: linear-gradient(to left, var(--paper) 30%, transparent) right / 40px 100%
  no-repeat local, linear-gradient(to left, var(--line), transparent) right / 14px 100% no-repeat scroll; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.92rem; }
th, td { padding: 5px 12px 5px 0; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--soft); font-weight: 600; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: var(--paper); }
@media print {
  :root { color-scheme: light; --ink: #000; --soft: #333; --paper: #fff; --line: #bbb; --tile: #f4f6f8; }
  body { font-size: 11pt; }
  main { max-width: none; padding: 0; }
  .wide { overflow: visible; background: none; }
  table { font-size: 8pt; }
  th, td { white-space: normal; padding: 3px 6px 3px 0; }
  .figures { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 18px 24px; }
  figure, .wide, tr, .numbers { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
}
"""
