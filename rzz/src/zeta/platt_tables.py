"""David Platt's tables of zeros (10^11 of them, each to 2^-102), read in the format in which the LMFDB keeps them.

    >>> for i, value in zeros("/data/zeros/zeta", 1, 1):
    ...     print(i, value / 2**FRACTION_BITS)
    1 14.134725141734693

The folder holds index.db, an SQLite file with the table zero_index(t, N, filename, offset, block_number), and the named
files, in its subfolder data or next to it. A file is a uint64, the number of its blocks, followed by the blocks. A block
is a header ddQQ = t0, t1, N(t0), N(t1) and 13 bytes for each of the N(t1) - N(t0) zeros between t0 and t1, in order: the
difference to the zero before, or to t0, in units of 2^-101. All numbers are little-endian.
"""

import sqlite3
import struct
from contextlib import closing
from itertools import accumulate
from os import SEEK_CUR
from pathlib import Path

FRACTION_BITS = 101
_HEADER = struct.Struct("<ddQQ")
_ENTRY_BYTES = 13


class TableError(ValueError):
    """The tables lack a requested zero or are damaged; the message names file and block."""


def zeros(folder, first_index, count):
    """Yield (i, value) for the zeros first_index ... first_index + count - 1: value is the int gamma * 2^101.

    Raises TableError for a missing file, a truncated or damaged block, a gap, and tables that end too early.
    """
    folder = Path(folder)
    index, end = first_index, first_index + count
    while index < end:
        path, offset, block = _find_block(folder, index)
        if _begins_after(path, offset, index):  # in the index database the N of some blocks is one too small
            path, offset, block = _find_block(folder, index - 1)
        before = index
        for block_start, values in _blocks(path, offset, block, index):
            yield from zip(range(index, end), values[index - block_start:], strict=False)
            index = block_start + len(values)
            if index >= end:
                return
        if index == before:
            raise TableError(f"{path}: no block from {block} on holds zero {index}: the tables end or have a gap")


def _find_block(folder, index):
    """Return (path, offset, number) of the block that the index database gives for zero `index`."""
    database = folder / "index.db"
    if not database.is_file():
        raise TableError(f"{database}: no such file; it should be the index of the tables")
    # The first zero of a block has the index N + 1, so the block of zero i is the last one with N < i.
    query = "SELECT filename, offset, block_number FROM zero_index WHERE N < ? ORDER BY N DESC LIMIT 1"
    try:
        with closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            row = connection.execute(query, (index,)).fetchone()
    except sqlite3.Error as error:
        raise TableError(f"{database}: {error}") from error
    if row is None:
        raise TableError(f"{database}: the tables begin after zero {index}")
    name, offset, block = row
    for path in (folder / "data" / name, folder / name):
        if path.is_file():
            return path, offset, block
    raise TableError(f"{folder / 'data' / name}: no such file; {database} wants its block {block} for zero {index}")


def _begins_after(path, offset, index):
    """Return whether the first zero of the block at `offset` comes after zero `index`; of a truncated header _blocks speaks."""
    with path.open("rb") as file:
        file.seek(offset)
        header = file.read(_HEADER.size)
    return len(header) == _HEADER.size and _HEADER.unpack(header)[2] >= index


def _blocks(path, offset, block, index):
    """Yield (index of the first zero, values) for the blocks of a file, from the one that holds zero `index` on."""
    with path.open("rb") as file:
        blocks = int.from_bytes(_read(file, 8, path, "the count of blocks"), "little")
        file.seek(offset)
        if block >= blocks:
            raise TableError(f"{path}: block {block} for zero {index} is past its {blocks} blocks")
        for number in range(block, blocks):
            name = f"block {number}"
            t0, t1, before, last = _HEADER.unpack(_read(file, _HEADER.size, path, name))
            if not (0 <= t0 < t1 and before <= last):
                raise TableError(f"{path}: {name}: damaged header {t0}, {t1}, {before}, {last}")
            if before >= index:
                raise TableError(f"{path}: {name} begins with zero {before + 1} instead of zero {index}: a gap")
            size = (last - before) * _ENTRY_BYTES
            if last < index:  # the index database need not name every block
                file.seek(size, SEEK_CUR)
            else:
                yield before + 1, _decode(_read(file, size, path, name), t0, t1, f"{path}: {name}")
                index = last + 1


def _read(file, size, path, name):
    data = file.read(size)
    if len(data) < size:
        raise TableError(f"{path}: {name} is truncated: {len(data)} of {size} bytes")
    return data


def _decode(data, t0, t1, source):
    """Return the zeros of a block as integers in units of 2^-101."""
    start, end = (int(t * 2**52) << (FRACTION_BITS - 52) for t in (t0, t1))  # exact: float64 heights
    steps = (int.from_bytes(data[k:k + _ENTRY_BYTES], "little") for k in range(0, len(data), _ENTRY_BYTES))
    values = list(accumulate(steps, initial=start))
    if any(a >= b for a, b in zip(values[1:], values[2:], strict=False)) or values[-1] > end:
        raise TableError(f"{source}: damaged, its zeros do not increase from {t0} to {t1}")
    return values[1:]
