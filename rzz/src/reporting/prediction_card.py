"""How predict.py shows zeros to a reader: one in full, or several as lines of a table.

    print(card(answer, trained=(1_000_000, 10_999_999), unknown=""))

An answer is what model.sampling.answer returns. A card fits 80 columns, as does a table of zeros up to 100,000,000, and both
are ASCII where standard output takes no more.
"""

import sys
import textwrap

WIDTH = 79  # columns
BAR = 20  # columns that stand for 100 %
EIGHTHS = " ▏▎▍▌▋▊▉"
OTHERS = 4  # most characters shown besides the one that was written
HEADS = ("index", "predicted", "spread", "true", "error", "spacings", "seen")
ASCII = str.maketrans({"…": "...", "–": "-", "█": "#", **dict.fromkeys("▏▎▍", " "), **dict.fromkeys("▌▋▊▉", "#")})


def card(answer, trained, unknown):
    """Return all that there is to say of one zero.

    trained: (first, last) index of the training. unknown: why there is no true value, or "".
    """
    lines = [f"zero {answer['index']:,} {training_text(answer['index'], trained)}", ""]
    rows = [prediction_row(answer), ("true", answer["true"], unknown)]
    if answer["error"] is not None:
        in_spacings = f"{answer['error_in_spacings']:+.3f} mean spacings of {answer['mean_spacing']:.4f}"
        rows.append(("error", answer["error"], in_spacings))
    offset = ""
    if answer["true"] is not None:
        offset = f"{(answer['smooth_count'] - answer['true']) / answer['mean_spacing']:+.3f} mean spacings from the true zero"
    rows.append(("smooth count", answer["smooth_count"], offset))
    cells = [fixed(number, "+" if name == "error" else "") for name, number, _ in rows]
    for (name, _, note), cell in zip(rows, cells, strict=True):
        lines += indented(f"  {name:<12}  {cell:>{max(map(len, cells))}}  ", note)
    if readable := [sample for sample in answer["samples"] if sample is not None]:
        lines += ["", *indented("  samples  ", "  ".join(map(fixed, sorted(readable))))]
    lines += ["", f"  The most probable characters give {answer['text']}", "", *probability_lines(answer)]
    return printable("\n".join(lines))


def prediction_row(answer):
    """The row of the card that says what was predicted and how."""
    samples, spread = answer["samples"], answer["spread"]
    readable = len(samples) - samples.count(None)
    if not samples:
        note = "from the most probable characters"
    elif spread is None:
        note = f"{readable or 'none'} of {len(samples)} samples is a number"
    else:
        note = f"mean of {readable} samples, standard deviation {spread:.4f}"
        note += f"; {len(samples) - readable} more are no number" if readable < len(samples) else ""
    return "predicted", answer["predicted"], note


def training_text(index, trained):
    """'lies beyond the training (zeros 1,000,000 … 10,999,999)', or what else holds."""
    first, last = trained
    if not last:
        return "is asked of a model that was not trained"
    if first <= index <= last:
        where = "was trained on"
    else:
        where = f"lies {'beyond' if index > last else 'before'} the training"
    return f"{where} (zeros {first:,} … {last:,})"


def probability_lines(answer):
    """One line for each character of the text after ':': a bar for its probability, and what else was possible."""
    lines = []
    for written, given in zip(answer["text"].partition(":")[2], answer["probabilities"], strict=True):
        others = [f"{shown(character)} {percent(share)}" for character, share in given.items()
                  if character != written and share >= 0.005]  # fmt: skip
        line = f"    {shown(written)}  {bar(given[written])} {percent(given[written]):>5}   {'  '.join(others[:OTHERS])}"
        lines.append(line.rstrip())
    return lines


def shown(character):
    return character.replace(" ", "' '")


def bar(share):
    """A bar of BAR columns for a share of 0 … 1, in steps of an eighth of a column."""
    eighths = round(8 * BAR * share)
    return ("█" * (eighths // 8) + EIGHTHS[eighths % 8]).ljust(BAR)[:BAR]


def percent(share):
    """'97 %', and '>99 %' where it is not quite all."""
    return ">99 %" if 0.995 <= share < 0.9995 else f"{100 * share:.0f} %"


def column_widths(indexes):
    """Return the widths of the table's columns for zeros of these indexes."""
    longest = len(str(max(indexes, default=1)))
    value = max(len(HEADS[1]), longest + len(".0000"))
    return (max(len(HEADS[0]), longest + (longest - 1) // 3), value, 7, value, 9, 8, len(HEADS[-1]))


def table_head(widths):
    return "  ".join(head.rjust(width) for head, width in zip(HEADS, widths, strict=True))


def table_line(answer, widths):
    in_spacings = "–" if answer["error_in_spacings"] is None else f"{answer['error_in_spacings']:+.3f}"
    numbers = [fixed(answer[name]) for name in ("predicted", "spread", "true")]
    error = fixed(answer["error"], "+")
    cells = (f"{answer['index']:,}", *numbers, error, in_spacings, "yes" if answer["trained_on"] else "no")
    return printable("  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True)))


def fixed(number, sign=""):
    return "–" if number is None else f"{number:{sign}.4f}"


def indented(start, text):
    """Return the lines of start + text, wrapped, with the text in a column of its own."""
    return textwrap.wrap(text, WIDTH, initial_indent=start, subsequent_indent=" " * len(start)) or [start.rstrip()]


def printable(text):
    """Return `text`, in ASCII where standard output cannot take all of it."""
    try:
        text.encode(sys.stdout.encoding or "ascii")
        return text
    except UnicodeEncodeError:
        return text.translate(ASCII)
