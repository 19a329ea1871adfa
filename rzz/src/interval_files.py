"""Zeros on the disk: a file of values for each interval, checked when it is read, made from zeros_db where it is missing.

    values = stored_values(config, first=1_000_000, count=1_000_000)     # data/zeros_1000000_1000000.npy

A fetch that is interrupted goes on where it was, and the next interval is fetched by a process beside the training.
"""

import hashlib
import io
import itertools
import logging
import multiprocessing
import os
import sys
from contextlib import contextmanager

import numpy as np

from common.config import UserError, require_writable
from common.files import atomic_write, exclusive_lock, quarantine
from common.logs import progress_bar
from common.processes import signals_blocked, unblock_signals
from zero_values import check_values, checked, choose_source, pairs_from, source_errors, values_of_pairs

log = logging.getLogger("rzz")
CHUNK = 16_384  # zeros that an interruption of a fetch can lose
FETCH_AHEAD = 100_000  # zeros; fewer are computed sooner than a process starts
DIGEST_SIZE = hashlib.sha256().digest_size  # bytes


def stored_values(config, first, count):
    """Return the values (count,) of these zeros from their file in data/, which is made where it is missing.

    A file that is short, damaged, altered, or far from the smooth count is named in the log, moved aside, and made again.
    """
    require_writable(config.data_folder)
    path = interval_file(config, first, count)
    try:
        return read_values(path, first, count)
    except (FileNotFoundError, ValueError):
        with exclusive_lock(config.data_folder / ".lock", f"process {os.getpid()}", wait=True):
            return made_values(config, path, first, count)


def made_values(config, path, first, count):
    """Make the interval file `path` and return its values, unless another process has made it meanwhile."""
    if path.exists():
        try:
            return read_values(path, first, count)
        except ValueError as error:
            log.warning("%s; moved to %s and made again", error, quarantine(path).name)
    partial = path.with_suffix(".partial")
    values = fetch_values(config, first, count, partial)
    write_values(path, values)
    partial.unlink(missing_ok=True)
    return values


def interval_file(config, first, count):
    """The path of the file of these zeros, whether it is there or not."""
    return config.data_folder / f"zeros_{first}_{count}.npy"


def missing_zeros(config, intervals):
    """Number of zeros in those of `intervals`, pairs (first, count), that have no file in data/ yet."""
    return sum(count for first, count in intervals if not interval_file(config, first, count).exists())


def fetch_ahead(config, first, count):
    """Begin to make the file of an interval, if it is missing and large, in a process of its own beside the training.

    A thread would not do: where zeros are taken one by one it keeps Python from giving the device its work. What goes
    wrong there is met again, and said, when the interval is needed.
    """
    if count >= FETCH_AHEAD and not interval_file(config, first, count).exists():
        with signals_blocked():
            multiprocessing.get_context("spawn").Process(target=fetch_silently, args=(config, first, count), daemon=True).start()


def fetch_silently(config, first, count):
    unblock_signals()
    sys.stderr = open(os.devnull, "w")  # the terminal belongs to the training's progress bar
    stored_values(config, first, count)


def fetch_values(config, first, count, partial):
    """Return the values first … first + count - 1 from zeros_db, checked as they come, with a progress bar.

    What has come is kept in the file `partial`, chunk by chunk, each with its checksum, so that after an interruption
    at most one chunk is fetched again.
    """
    choose_source(config)
    chunks = read_chunks(partial)
    filled = sum(map(len, chunks))
    if filled:
        log.info("going on with %s after %s zeros", partial.name, f"{filled:,}")
    with source_errors(first, count), progress_bar(count, f"zeros from {first:,}", "zero", initial=filled) as bar:
        zeros = pairs_from(first + filled, count - filled) if filled < count else iter(())
        while len(chunk := values_of_pairs(itertools.islice(zeros, min(CHUNK, count - filled + 1)), first + filled)):
            chunks.append(chunk)
            filled += len(chunk)
            with disk_errors(partial), open(partial, "ab") as file:
                file.write(with_digest(chunk.tobytes()))
            bar.update(len(chunk))
            if filled > count:
                break
    if filled != count:
        partial.unlink(missing_ok=True)
        given = f"{filled} zeros{' or more' if filled > count else ''}"
        raise UserError(f"zeros_db gave {given} from index {first} on instead of {count}.")
    try:
        return checked(np.concatenate(chunks), first)
    except UserError:
        partial.unlink(missing_ok=True)
        raise


def read_chunks(partial):
    """Return the whole chunks of an interrupted fetch as int64 arrays, and cut the file after the last of them."""
    if not partial.exists():
        return []
    content, size = partial.read_bytes(), CHUNK * 8 + DIGEST_SIZE
    chunks = []
    while (piece := without_digest(content[len(chunks) * size : (len(chunks) + 1) * size])) is not None:
        chunks.append(np.frombuffer(piece, np.int64))
    with open(partial, "r+b") as file:
        file.truncate(len(chunks) * size)
    return chunks


def write_values(path, values):
    """Write an int64 array to `path` in numpy's format with a SHA-256 of that at the end, which np.load leaves unread."""
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    with disk_errors(path), atomic_write(path) as file:
        file.write(with_digest(buffer.getvalue()))


def read_values(path, first, count):
    """Return the int64 values (count,) of an interval file. Raises ValueError, naming the file, for anything odd."""
    values = load_values(path, count)
    check_values(values, first, str(path))
    return values


def load_values(path, count):
    """Return the int64 array (count,) that write_values wrote. Raises ValueError, naming the file, where it is another."""
    content = without_digest(path.read_bytes())
    if content is None:
        raise ValueError(f"{path} is damaged: its checksum does not match")
    values = np.load(io.BytesIO(content), allow_pickle=False)
    if values.dtype != np.int64 or values.shape != (count,):
        raise ValueError(f"{path} holds {values.dtype} {values.shape} instead of {count} int64 values")
    return values


def with_digest(content):
    return content + hashlib.sha256(content).digest()


def without_digest(content):
    """Return what with_digest was given, or None where the digest does not match."""
    content, digest = content[:-DIGEST_SIZE], content[-DIGEST_SIZE:]
    return content if content and hashlib.sha256(content).digest() == digest else None


@contextmanager
def disk_errors(path):
    """Turn an OSError within the block into a UserError that names `path`."""
    try:
        yield
    except OSError as error:
        raise UserError(f"Cannot write {path} ({error.strerror}); free some space and run the same command again.") from error
