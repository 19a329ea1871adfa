"""Characters, token ids and rows: how a zero is written and read.

    encode("b10:49.7738e")                  # [12, 1, 0, 11, 4, 9, 10, 7, 7, 3, 8, 13]
    row_text(10, 497738)                    # 'b10:49.7738epppppppppppppppppppp'
    parse_value("b10:49.7738e")             # 49.7738

A value is the imaginary part of a zero cut after four decimals, as an int64 of ten-thousandths: 497738. A row is the
text of one zero, padded to the context of 32 tokens, as uint8 token ids.
"""

import re

import numpy as np

from common.config import CONTEXT

DECIMALS = 4
SCALE = 10**DECIMALS  # a value counts ten-thousandths
vocabulary: list[str] = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9", ".", ":", "b", "e", " ", "p"]
token_ids = {character: token for token, character in enumerate(vocabulary)}
POINT, COLON, BEGIN, END, PAD = (token_ids[character] for character in ".:bep")


def encode(text):
    """Return the token ids of `text`, character by character. Raises ValueError for a character without a token."""
    try:
        return [token_ids[character] for character in text]
    except KeyError as error:
        raise ValueError(f"{error.args[0]!r} in {text!r} is not in the vocabulary {''.join(vocabulary)!r}") from None


def decode(ids):
    """Return the text of a sequence of token ids."""
    return "".join(vocabulary[token] for token in ids)


def zero_text(index, value):
    """Return 'b<index>:<value>e' for a value in ten-thousandths: 'b10:49.7738e'."""
    return f"b{index}:{value // SCALE}.{value % SCALE:0{DECIMALS}d}e"


def row_text(index, value):
    """Return zero_text padded with 'p' to 32 characters. Raises ValueError if it is longer."""
    text = zero_text(index, value)
    if len(text) > CONTEXT:
        raise ValueError(f"{text!r} has {len(text)} characters and does not fit the context of {CONTEXT} tokens")
    return text.ljust(CONTEXT, "p")


def trajectories(text):
    """Yield the (prefix, next character) pairs of a text, the training examples, in order from 'b<i>:' to the target 'e'.

    >>> next(trajectories("b1:23.4567e"))
    ('b1:', '2')
    """
    for position in range(text.index(":") + 1, text.index("e") + 1):
        yield text[:position], text[position]


def encode_rows(indexes, values):
    """Return the rows, uint8 token ids (n, 32), of zeros given as int64 (n,). Raises ValueError if one does not fit 32 tokens."""
    indexes, values = np.asarray(indexes, np.int64), np.asarray(values, np.int64)
    rows = np.full((len(indexes), CONTEXT), PAD, np.uint8)
    layouts = np.stack([number_of_digits(indexes), number_of_digits(values // SCALE)], 1)
    for index_width, whole_width in np.unique(layouts, axis=0).tolist():  # rows of a layout are written together, by columns
        group = np.flatnonzero((layouts == [index_width, whole_width]).all(1))
        colon, point = 1 + index_width, 2 + index_width + whole_width
        end = point + 1 + DECIMALS
        if end >= CONTEXT:
            row_text(int(indexes[group[0]]), int(values[group[0]]))  # raises, naming the zero
        block = np.full((len(group), CONTEXT), PAD, np.uint8)
        block[:, 0], block[:, colon], block[:, point], block[:, end] = BEGIN, COLON, POINT, END
        write_digits(block[:, 1:colon], indexes[group])
        write_digits(block[:, colon + 1 : point], values[group] // SCALE)
        write_digits(block[:, point + 1 : end], values[group] % SCALE)
        rows[group] = block
    return rows


def encode_prompts(indexes):
    """Yield the prompts 'b<i>:' as (positions, rows), rows uint8 (n, length), by length: row k is for indexes[positions[k]]."""
    indexes = np.asarray(indexes, np.int64)
    widths = number_of_digits(indexes)
    for width in np.unique(widths).tolist():
        positions = np.flatnonzero(widths == width)
        prompts = np.empty((len(positions), width + 2), np.uint8)
        prompts[:, 0], prompts[:, -1] = BEGIN, COLON
        write_digits(prompts[:, 1:-1], indexes[positions])
        yield positions, prompts


def number_of_digits(numbers):
    """Return the number of decimal digits of each of the int64 `numbers` (all >= 0); 0 has one."""
    powers = 10 ** np.arange(1, 19, dtype=np.int64)
    return np.searchsorted(powers, numbers, side="right") + 1


def write_digits(columns, numbers):
    """Write the decimal digits of `numbers` (n,) into `columns` (n, width), leading zeros included."""
    for column in range(columns.shape[1] - 1, -1, -1):
        numbers, columns[:, column] = np.divmod(numbers, 10)


def targets_of_rows(rows):
    """Return the targets (n, columns - 1) of rows (n, columns): the next token after ':' and up to 'e', else 'p'."""
    after_colon = np.cumsum(rows[:, :-1] == COLON, axis=1, dtype=np.uint8) > 0
    return np.where(after_colon, rows[:, 1:], PAD).astype(np.uint8)


def parse_value(text):
    """Return the number in 'b<i>:<number>e…' as a float, or None if there is no number or no 'e' after it."""
    match = re.match(r"b\d+:(\d+(?:\.\d+)?)e", text)
    return float(match[1]) if match else None
