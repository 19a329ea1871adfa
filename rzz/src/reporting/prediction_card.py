"""How predict.py shows zeros to a reader: one in full, or several as rows of a table.

    print(card(record, training_range=(1_000_000, 10_999_999), truth_note=""))

A record is what model.sampling.prediction_record returns. A card fits 80 columns, as does a table of zeros up to
100,000,000, and both are ASCII if standard output takes no more.
"""

import sys
import textwrap

from common.text import format_row

BAR_WIDTH = 20  # columns that stand for 100 %
QUOTED = str.maketrans({" ": "' '"})
MAX_WIDTH = 20  # columns of a number on a card
MAX_ALTERNATIVES = 4  # characters shown after the one that was written
TABLE_HEADER = ("index", "predicted", "spread", "true", "error", "spacings", "seen")
ASCII = str.maketrans({"…": "...", "–": "-", "█": "#", **dict.fromkeys("▏▎▍", " "), **dict.fromkeys("▌▋▊▉", "#")})


def card(record, training_range, truth_note):
    """Return a zero in full. training_range: (first, last) index of the training. truth_note: why there is no true value, or ""."""
    true, smooth, spacing = record["true"], record["smooth_count"], record["mean_spacing"]
    rows = [("predicted", fixed(record["predicted"]), sampling_note(record)), ("true", fixed(true), truth_note)]
    if record["error"] is not None:
        in_spacings = f"{fixed(record['error_in_spacings'], '+', decimals=3)} mean spacings of {spacing:.4f}"
        rows.append(("error", fixed(record["error"], "+"), in_spacings))
    offset = "" if true is None else f"{(smooth - true) / spacing:+.3f} mean spacings from the true zero"
    rows.append(("smooth count", fixed(smooth), offset))
    width = max(len(number) for _, number, _ in rows)
    lines = [f"zero {record['index']:,} {training_text(record['index'], training_range)}", ""]
    for name, number, note in rows:
        lines += indented(f"  {name:<12}  {number:>{width}}  ", note)
    if readable := [sample for sample in record["samples"] if sample is not None]:
        lines += ["", *indented("  samples  ", "  ".join(map(fixed, sorted(readable))))]
    lines += ["", f"  The most probable characters give {record['text']}", "", *probability_lines(record)]
    return printable("\n".join(lines))


def sampling_note(record):
    """How the prediction came about, and what of the samples was readable."""
    samples, spread = record["samples"], record["spread"]
    unreadable = samples.count(None)
    readable = len(samples) - unreadable
    if not samples:
        return "from the most probable characters"
    if spread is None:
        return f"{readable or 'none'} of {len(samples)} samples is a number"
    note = f"mean of {readable} samples, standard deviation {fixed(spread)}"
    return f"{note}; {unreadable} more are no number" if unreadable else note


def training_text(index, training_range):
    """'lies beyond the training (zeros 1,000,000 … 10,999,999)', or what else holds."""
    first, last = training_range
    if not last:
        return "is asked of a model that was not trained"
    relation = "was trained on" if first <= index <= last else f"lies {'beyond' if index > last else 'before'} the training"
    return f"{relation} (zeros {first:,} … {last:,})"


def probability_lines(record):
    """One line for each character of the text after ':': a bar for its probability, and what else was possible."""
    lines = []
    for written, probabilities in zip(record["text"].partition(":")[2], record["probabilities"], strict=True):
        alternatives = [f"{character.translate(QUOTED)} {percent(probability)}" for character, probability in probabilities.items()
                        if character != written and probability >= 0.005]  # fmt: skip
        chosen = f"    {written.translate(QUOTED)}  {bar(probabilities[written])} {percent(probabilities[written]):>5}"
        lines.append(f"{chosen}   {'  '.join(alternatives[:MAX_ALTERNATIVES])}".rstrip())
    return lines


def bar(probability):
    """A bar of BAR_WIDTH columns for a probability, in steps of an eighth of a column."""
    eighths = round(8 * BAR_WIDTH * probability)
    return ("█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8]).ljust(BAR_WIDTH)[:BAR_WIDTH]


def percent(probability):
    """'97 %', and '>99 %' if it is not quite all."""
    return ">99 %" if 0.995 <= probability < 0.9995 else f"{100 * probability:.0f} %"


def column_widths(indexes):
    """Return the widths of the table's columns for zeros of these indexes: rows are printed before the last one is known."""
    digits = len(str(max(indexes, default=1)))
    value = max(len("predicted"), digits + len(".0000"))
    return max(len("index"), digits + (digits - 1) // 3), value, 7, value, 9, 8, len("seen")


def table_row(record, widths):
    numbers = (fixed(record[name], width=width) for name, width in zip(("predicted", "spread", "true"), widths[1:], strict=False))
    error, in_spacings = fixed(record["error"], "+", widths[4]), fixed(record["error_in_spacings"], "+", widths[5], decimals=3)
    cells = [f"{record['index']:,}", *numbers, error, in_spacings, "yes" if record["trained_on"] else "no"]
    return printable(format_row(cells, widths))


def fixed(number, sign="", width=MAX_WIDTH, decimals=4):
    """A number with its decimals, or as 3e+35 where it would be wider than `width`; '–' for None."""
    if number is None:
        return "–"
    text = f"{round(number, decimals) + 0.0:{sign}.{decimals}f}"  # not -0.0000
    return text if len(text) <= width else f"{number:{sign}.0e}"


def indented(start, text):
    """Return the lines of start + text, wrapped, with the text in a column of its own."""
    return textwrap.wrap(text, 79, initial_indent=start, subsequent_indent=" " * len(start)) or [start.rstrip()]


def printable(text):
    """Return `text`, in ASCII if standard output cannot take all of it."""
    try:
        text.encode(sys.stdout.encoding or "ascii")
        return text
    except UnicodeEncodeError:
        return text.translate(ASCII)
