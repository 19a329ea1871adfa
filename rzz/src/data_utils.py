"""From zeros to what the model reads: tokens, rows, the Dataset, and the splits.

    encode("b10:49.7738e")                  # [12, 1, 0, 11, 4, 9, 10, 7, 7, 3, 8, 13]
    row_text(10, 497738)                    # 'b10:49.7738epppppppppppppppppppp'
    training_zeros(config, 1)               # RiemannZerosDataset of interval 1

A value is the imaginary part of a zero cut after four decimals, as an int64 of ten-thousandths: 497738. A row is the
text of one zero, padded to the context of 32 tokens, as uint8 token ids.
"""

import logging

import numpy as np
import torch
from torch.utils.data import Dataset

import zeros_db
from common.config import CONTEXT, UserError, validation_size
from common.devices import derive_seed
from common.files import quarantine
from interval_files import load_values, stored_values, write_values
from zero_values import DECIMALS, UNIT, source_errors, values_in_memory

log = logging.getLogger("rzz")
vocabulary: list[str] = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9", ".", ":", "b", "e", " ", "p"]
token_ids = {character: number for number, character in enumerate(vocabulary)}
POINT, COLON, BEGIN, END, PAD = (token_ids[character] for character in ".:bep")
VALIDATION_STREAM = 1  # tells the draw of validation samples apart from other uses of the seed


# ---------------------------------------------------------------------------------------------------- text and tokens


def encode(text):
    """Return the token ids of `text`, character by character. Raises ValueError for a character without a token."""
    try:
        return [token_ids[character] for character in text]
    except KeyError as error:
        raise ValueError(f"{error.args[0]!r} in {text!r} is not in the vocabulary {''.join(vocabulary)!r}") from None


def decode(ids):
    """Return the text of a sequence of token ids."""
    return "".join(vocabulary[number] for number in ids)


def zero_text(index, value):
    """Return 'b<index>:<value>e' for a value in ten-thousandths: 'b10:49.7738e'."""
    return f"b{index}:{value // UNIT}.{value % UNIT:0{DECIMALS}d}e"


def row_text(index, value):
    """Return zero_text padded with 'p' to 32 characters. Raises ValueError where it is longer."""
    text = zero_text(index, value)
    if len(text) > CONTEXT:
        raise ValueError(f"{text!r} has {len(text)} characters and does not fit the context of {CONTEXT} tokens")
    return text.ljust(CONTEXT, "p")


def trajectories(text):
    """Yield the (prefix, next character) pairs that a text is trained on, in order, from 'b<i>:' to the target 'e'.

    >>> next(trajectories("b1:23.4567e"))
    ('b1:', '2')
    """
    for position in range(text.index(":") + 1, text.index("e") + 1):
        yield text[:position], text[position]


def encode_rows(indexes, values):
    """Return the rows of many zeros: uint8 token ids of shape (n, 32), from int64 arrays of shape (n,).

    Rows of equal lengths are written together, column by column, so there is no Python loop over zeros. Raises
    ValueError where a row does not fit 32 tokens.
    """
    indexes, values = np.asarray(indexes, np.int64), np.asarray(values, np.int64)
    rows = np.full((len(indexes), CONTEXT), PAD, np.uint8)
    index_digits, whole_digits = number_of_digits(indexes), number_of_digits(values // UNIT)
    layouts = np.stack([index_digits, whole_digits], 1)
    for index_width, whole_width in np.unique(layouts, axis=0).tolist():
        group = np.flatnonzero((index_digits == index_width) & (whole_digits == whole_width))
        length = 1 + index_width + 1 + whole_width + 1 + DECIMALS + 1
        if length > CONTEXT:
            row_text(int(indexes[group[0]]), int(values[group[0]]))  # raises, naming the zero
        block = np.full((len(group), CONTEXT), PAD, np.uint8)
        colon = 1 + index_width
        point = colon + 1 + whole_width
        block[:, 0], block[:, colon], block[:, point], block[:, length - 1] = BEGIN, COLON, POINT, END
        write_digits(block[:, 1:colon], indexes[group])
        write_digits(block[:, colon + 1 : point], values[group] // UNIT)
        write_digits(block[:, point + 1 : length - 1], values[group] % UNIT)
        rows[group] = block
    return rows


def encode_prompts(indexes):
    """Return the prompts 'b<i>:' as a list of (positions, rows): one uint8 array (n, length) per prompt length.

    `positions` (n,) says where in `indexes` each row came from.
    """
    indexes = np.asarray(indexes, np.int64)
    widths = number_of_digits(indexes)
    groups = []
    for width in np.unique(widths).tolist():
        positions = np.flatnonzero(widths == width)
        prompts = np.empty((len(positions), width + 2), np.uint8)
        prompts[:, 0], prompts[:, -1] = BEGIN, COLON
        write_digits(prompts[:, 1:-1], indexes[positions])
        groups.append((positions, prompts))
    return groups


def decode_rows(rows):
    """Return (indexes, values), int64 of shape (n,), of well-formed rows (n, 32): the inverse of encode_rows."""
    rows = np.asarray(rows)
    colon, end = (rows == COLON).argmax(1), (rows == END).argmax(1)
    indexes, values = np.zeros(len(rows), np.int64), np.zeros(len(rows), np.int64)
    for column in range(rows.shape[1]):
        token = rows[:, column].astype(np.int64)
        digit = token < 10
        in_index, in_value = digit & (column < colon), digit & (column > colon) & (column < end)
        indexes = np.where(in_index, 10 * indexes + token, indexes)
        values = np.where(in_value, 10 * values + token, values)
    return indexes, values


def number_of_digits(numbers):
    """Return how many decimal digits each of the int64 `numbers` (all >= 0) has; 0 has one."""
    powers = 10 ** np.arange(1, 19, dtype=np.int64)
    return np.searchsorted(powers, numbers, side="right") + 1


def write_digits(columns, numbers):
    """Write the decimal digits of `numbers` (n,) into `columns` (n, width), leading zeros included."""
    for column in range(columns.shape[1] - 1, -1, -1):
        numbers, columns[:, column] = np.divmod(numbers, 10)


# ------------------------------------------------------------------------------------------------------------ dataset


class RiemannZerosDataset(Dataset):
    """Zeros in index order: single items for those who use a DataLoader, contiguous batches for the training loop.

    Item k is (inputs, targets), int64 tensors of shape (31,): inputs are the row without its last token, and targets
    are the row without its first, with 'p' wherever there is nothing to predict. So one row carries all trajectories
    of its zero, and 'p', which is never a target, marks what has no loss.

    Rows are encoded when they are asked for: a million in less than a second, which nobody has to wait for at once.

    indexes, values: int64 (n,), increasing. width: columns up to the longest row's end; what lies beyond is padding in
    every row. first: the leftmost column of a ':'; before it no row has a target.
    """

    def __init__(self, indexes, values):
        self.indexes = np.asarray(indexes, np.int64)
        self.values = np.asarray(values, np.int64)
        ends = [zero_text(int(self.indexes[k]), int(self.values[k])) for k in (0, -1)] if len(self.indexes) else [":", ""]
        self.width, self.first = len(ends[1]), ends[0].index(":")

    def __len__(self):
        return len(self.indexes)

    def __getitem__(self, k):
        row = encode_rows([self.indexes[k]], [self.values[k]])
        inputs, targets = row[0, :-1], targets_of_rows(row)[0]
        return torch.from_numpy(inputs.astype(np.int64)), torch.from_numpy(targets.astype(np.int64))

    def batch(self, start, size):
        """Return rows start … start + size - 1 as (inputs, targets, indexes): uint8 (size, width - 1) twice, int64 (size,).

        Always of the same shape: what is missing at the end is filled with rows that carry no loss.
        """
        stop = min(start + size, len(self))
        rows = np.full((size, self.width), PAD, np.uint8)
        indexes = np.full(size, self.indexes[stop - 1], np.int64)
        rows[: stop - start] = encode_rows(self.indexes[start:stop], self.values[start:stop])[:, : self.width]
        indexes[: stop - start] = self.indexes[start:stop]
        return rows[:, :-1], targets_of_rows(rows), indexes

    def part(self, positions):
        """Return a dataset of the zeros at `positions` (a slice or an array)."""
        return RiemannZerosDataset(self.indexes[positions], self.values[positions])


def targets_of_rows(rows):
    """Return the targets (n, columns - 1) of rows (n, columns): the next token after ':' and up to 'e', else 'p'."""
    after_colon = np.cumsum(rows[:, :-1] == COLON, axis=1, dtype=np.uint8) > 0
    return np.where(after_colon, rows[:, 1:], PAD).astype(np.uint8)


# ------------------------------------------------------------------------------------------------------------- splits


def stored_zeros(config, first, count):
    """Return the zeros first … first + count - 1 from their file in data/, which is made where it is missing."""
    values = stored_values(config, first, count)
    return RiemannZerosDataset(np.arange(first, first + count, dtype=np.int64), values)


def zeros_in_memory(config, first, count):
    """Return the zeros first … first + count - 1 straight from zeros_db: no file in data/ is read or written."""
    return RiemannZerosDataset(np.arange(first, first + count, dtype=np.int64), values_in_memory(config, first, count))


def first_zeros(config):
    """The zeros that tuning searches on, 1 … tuning.zeros, as (training part, validation part: the last tenth)."""
    zeros = stored_zeros(config, 1, config.tuning.zeros)
    split = len(zeros) - len(zeros) // 10
    return zeros.part(slice(0, split)), zeros.part(slice(split, None))


def training_zeros(config, t):
    """The zeros of interval t in index order, on which round t trains."""
    return stored_zeros(config, *interval(config, t))


def validation_zeros(config, t):
    """The validation sample of round t: data.validation_fraction of interval t + 1, in index order.

    Drawn once from training.seed and kept in data/ as validation_round_<t>_seed_<seed>.npy. In round K the test
    zeros are left out of the draw, so that no test zero is seen before evaluation.
    """
    zeros = stored_zeros(config, *interval(config, t + 1))
    kept_out = config.data.N if t == config.data.K else 0
    size = validation_size(config.data)
    name = config.data_folder / f"validation_round_{t}_seed_{config.training.seed}.npy"
    positions = stored_sample(name, zeros.indexes, kept_out, size)
    if positions is None:
        generator = np.random.default_rng(derive_seed(config.training.seed, VALIDATION_STREAM, t))
        positions = kept_out + np.sort(generator.choice(len(zeros) - kept_out, size=size, replace=False))
        write_values(name, zeros.indexes[positions])
    return zeros.part(positions)


def stored_sample(path, indexes, kept_out, size):
    """Return positions in `indexes` of the sample stored at `path`, or None where it is missing or does not fit."""
    if not path.exists():
        return None
    try:
        sample = load_values(path, size)
        fits = bool((np.diff(sample) > 0).all())
    except ValueError:
        fits = False
    if fits and indexes[kept_out] <= sample[0] and sample[-1] <= indexes[-1]:
        return sample - indexes[0]
    log.warning("%s does not fit the settings or is damaged; moved to %s and drawn again", path.name, quarantine(path).name)
    return None


def test_zeros(config):
    """The test set: the first data.N zeros of interval K + 1, in a file of their own."""
    first, _ = interval(config, config.data.K + 1)
    return stored_zeros(config, first, config.data.N)


def require_zeros(config):
    """Raise UserError at once where zeros_db refuses the last zero that training and evaluation will ask for."""
    first, count = interval(config, config.data.K + 1)
    if not config.data.platt_tables:
        try:
            with source_errors(first + count - 1, 1):
                next(iter(zeros_db.zeros_starting_at_N(first + count - 1, 1)))
        except UserError as error:
            raise UserError(f"{error} Lower data.K or data.interval_size, or name Platt's tables.") from error


def interval(config, t):
    """Return (first index, number of zeros) of interval t: [t·S, (t + 1)·S), without the index 0, where no zero is."""
    size = config.data.interval_size
    return (1, size - 1) if t == 0 else (t * size, size)
