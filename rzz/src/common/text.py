"""Numbers, durations and tables as a person reads them.

    format_duration(3723)                   # '1 h 2 min'
    format_number(0.0035651)                # '0.003565'
    "\\n".join(format_table([("", "MSE"), ("smooth count", "0.0445")]))
"""

import difflib
import re
import textwrap


def format_duration(seconds):
    """'45 s', '12 min 3 s' or '5 h 20 min'."""
    seconds = int(round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"


def format_number(value):
    """A measure with four digits, '–' if there is none."""
    return "–" if value is None else f"{value:.4g}"


def short_number(value):
    """A measure with three digits, for tables; '–' if there is none."""
    return "–" if value is None else f"{value:.3g}"


def format_table(rows, rule=False):
    """Return rows of texts as lines, each column as wide as its widest cell. rule: draw a line below the first row."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [format_row(row, widths) for row in rows]
    return [lines[0], "─" * (sum(widths) + 2 * len(widths) - 2), *lines[1:]] if rule else lines


def format_row(cells, widths):
    """Return one line of a table: the first cell on the left of its column, the others on the right of theirs."""
    first, *others = (cell.rjust(width) if column else cell.ljust(width)
                      for column, (cell, width) in enumerate(zip(cells, widths, strict=True)))  # fmt: skip
    return "  ".join([first, *others]).rstrip()


def fit_docstring(text, width=80):
    """Return a module's docstring for the terminal: no line is longer than `width`.

    Prose is filled again. In blocks that are indented, what stands on the right of a line that is too long, after two spaces, goes
    below it, and with it the lines that continue it.
    """
    blocks = []
    for block in text.strip().split("\n\n"):
        if not block.startswith(" "):
            blocks.append(textwrap.fill(block, width))
            continue
        lines, left = block.splitlines(), len(block) - len(block.lstrip())
        if max(map(len, lines)) > width:
            entries = re.split(rf"\n(?= {{{left}}}\S)", block)  # each with the lines that continue it
            pairs = [re.split(r" {2,}", " ".join(entry.split("\n")).strip(), maxsplit=1) for entry in entries]
            lines = []
            for name, *note in pairs:
                lines.append(" " * left + name)
                indent = " " * (left + 4)
                lines += textwrap.wrap(" ".join(" ".join(note).split()), width, initial_indent=indent, subsequent_indent=indent)
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def did_you_mean(word, known):
    """The end of a sentence about an unknown word: '; did you mean …?' with the nearest known one, else the list of those."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(known)}."
