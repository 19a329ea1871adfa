"""From zeros_db to the splits: zeros are fetched, checked, kept as interval files, and served as a Dataset.

    training_zeros(config, 1)               # RiemannZerosDataset of interval 1: data/zeros_1000000_1000000.npy
    validation_zeros(config, 1)             # 1% of interval 2, the same until the round ends
    test_zeros(config)                      # the first data.N zeros of interval K + 1

It also exports the tokenizer: `from data_utils import encode, decode, vocabulary, trajectories`.
"""

import hashlib
import io
import itertools
import logging
import multiprocessing
import os
import sys
from array import array

import numpy as np
import torch
from torch.utils.data import Dataset

from common.config import UserError, require_writable, validation_size
from common.devices import derive_seed, tune_glibc_malloc
from common.files import atomic_write, exclusive_lock, quarantine, read_bytes, remedy, remove
from common.logs import progress_bar
from common.processes import exit_with_parent
from common.signals import signals_blocked, unblock_signals
from model.tokenizer import PAD, SCALE, decode, encode, encode_rows, targets_of_rows, trajectories, vocabulary, zero_text  # noqa: F401
from zero_values import checked, checked_zeros, is_from, is_own_zeros_db, lacks_tables, values_from, zeros_origin, zeros_source
from zeta.riemann_siegel import smooth_zeros

log = logging.getLogger("rzz")
FETCH_CHUNK = 16_384  # zeros; an interrupted fetch loses at most so many
FETCH_AHEAD = 100_000  # zeros; computing fewer takes less time than starting a process
SAMPLE = 20  # zeros in three places of a file without an origin that are compared
DIGEST_SIZE = hashlib.sha256().digest_size  # bytes


class RiemannZerosDataset(Dataset):
    """Zeros in index order: single items for a DataLoader, contiguous batches for the training loop.

    Item k is (inputs, targets), int64 tensors of shape (31,): the row without its last token, and the row without its first, with
    'p' at positions that have no target. So one row carries all trajectories of its zero. Rows are encoded on demand, a million in
    less than a second. indexes, values: int64 (n,), increasing. width: columns up to the end of the longest row; all columns after
    it are padding. first: the leftmost column of a ':'; no row has a target before it.
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
        return torch.from_numpy(row[0, :-1]).long(), torch.from_numpy(targets_of_rows(row)[0]).long()

    def batch(self, start, size):
        """Return rows start … start + size - 1 as (inputs, targets, indexes): uint8 (size, width - 1) twice, int64 (size,)."""
        indexes, values = self.indexes[start : start + size], self.values[start : start + size]
        rows = np.full((size, self.width), PAD, np.uint8)  # always of this shape: rows without a loss fill the last batch
        rows[: len(indexes)] = encode_rows(indexes, values)[:, : self.width]
        return rows[:, :-1], targets_of_rows(rows), np.pad(indexes, (0, size - len(indexes)), mode="edge")

    def subset(self, positions):
        """Return a dataset of the zeros at `positions` (a slice or an array)."""
        return RiemannZerosDataset(self.indexes[positions], self.values[positions])


def interval(config, t):
    """Return (first index, number of zeros) of interval t: [t·S, (t + 1)·S), S = data.interval_size; there is no zero 0."""
    size = config.data.interval_size
    return (1, size - 1) if t == 0 else (t * size, size)


def training_zeros(config, t):
    """Return the training set of round t: the zeros of interval t in index order."""
    return stored_zeros(config, *interval(config, t))


def validation_zeros(config, t):
    """Return the validation sample of round t: data.validation_fraction of interval t + 1, in index order.

    Drawn once from training.seed and kept in data/ as validation_round_<t>_seed_<seed>.npy. The draw of round K excludes
    the test zeros, so that no test zero is seen before evaluation.
    """
    zeros = stored_zeros(config, *interval(config, t + 1))
    num_test = config.data.N if t == config.data.K else 0
    size = validation_size(config.data)
    path = config.data_folder / f"validation_round_{t}_seed_{config.training.seed}.npy"
    if path.exists():
        try:
            positions = load_values(path, size)[0] - zeros.indexes[0]
            if (np.diff(positions) > 0).all() and num_test <= positions[0] and positions[-1] < len(zeros):
                return zeros.subset(positions)
        except ValueError:
            pass  # it is damaged
        log.warning("%s does not fit the settings or is damaged; moved to %s and drawn again", path.name, quarantine(path).name)
    generator = np.random.default_rng(derive_seed(config.training.seed, 1, t))  # 1: validation samples
    positions = num_test + np.sort(generator.choice(len(zeros) - num_test, size=size, replace=False))
    write_values(path, zeros.indexes[positions])
    return zeros.subset(positions)


def test_zeros(config):
    """Return the test set: the first data.N zeros of interval K + 1, in a file of their own if that has none."""
    first, count = interval(config, config.data.K + 1)
    if is_stored(config, first, count):
        return stored_zeros(config, first, count).subset(slice(0, config.data.N))
    return stored_zeros(config, first, config.data.N)


def tuning_splits(config):
    """Return the zeros 1 … tuning.zeros as (training set, validation set), the latter their last tenth."""
    zeros = stored_zeros(config, 1, config.tuning.zeros)
    split = len(zeros) - len(zeros) // 10
    return zeros.subset(slice(0, split)), zeros.subset(slice(split, None))


def stored_zeros(config, first, count):
    """Return the zeros first … first + count - 1 from their file in data/, which is built if it is missing.

    A file that is short, damaged, altered, far from the smooth count, or of another origin is named in the log, moved aside, and
    built again.
    """
    require_writable(config.data_folder)
    path = interval_file(config, first, count)
    try:
        values = read_values(config, first, count)
    except (FileNotFoundError, ValueError):
        with exclusive_lock(config.data_folder / ".lock", f"which fetches zeros {first} … {first + count - 1}", wait=True):
            try:
                values = read_values(config, first, count)  # another process may have built it meanwhile
            except (FileNotFoundError, ValueError) as error:
                if path.exists():
                    log.warning("%s; moved to %s and built again", error, quarantine(path).name)
                partial, origin = path.with_suffix(".partial"), zeros_origin(config)
                values = fetch_values(config, first, count, partial)
                write_values(path, values, origin)
                remove(partial)
    return RiemannZerosDataset(np.arange(first, first + count), values)


def interval_file(config, first, count):
    """Return the path of the file of these zeros, which may not exist yet."""
    return config.data_folder / f"zeros_{first}_{count}.npy"


def missing_zeros(config, intervals):
    """Return the number of zeros in those of `intervals`, pairs (first, count), that have no file in data/, or one to replace."""
    return sum(count for first, count in intervals if not is_stored(config, first, count))


def is_stored(config, first, count):
    """Return whether data/ has these zeros, undamaged and of the origin in the settings, if it says its origin."""
    try:
        origin = load_values(interval_file(config, first, count), count)[1]
    except (FileNotFoundError, ValueError):
        return False
    return not origin or is_from(origin, zeros_origin(config))


def fetch_ahead(config, first, count):
    """Start building the file of an interval, if it is missing and large, in a process that runs in parallel to the training.

    A thread would hold the GIL, zero by zero. An error there is raised again, and shown, when the training needs the interval.
    """
    if count >= FETCH_AHEAD and not is_stored(config, first, count):
        with signals_blocked():
            multiprocessing.get_context("spawn").Process(target=fetch_silently, args=(config, first, count), daemon=True).start()


def fetch_silently(config, first, count):
    unblock_signals()
    exit_with_parent()
    os.setpriority(os.PRIO_PROCESS, 0, 19)  # where all cores are busy, the training keeps them
    tune_glibc_malloc()  # the zeros take a seventh less time
    sys.stderr = open(os.devnull, "w")  # the terminal belongs to the training's progress bar
    stored_zeros(config, first, count)


def fetch_values(config, first, count, partial):
    """Return the checked values of the zeros first … first + count - 1 from zeros_db, with a progress bar.

    They are appended to the file `partial` in chunks with checksums, to which the zeros' origin adds. An error or a request to
    stop ends the last chunk early and loses nothing; a power cut loses at most one chunk.
    """
    origin = zeros_origin(config).encode()
    found, chunk = read_chunks(partial, origin)
    if filled := len(found) + len(chunk):
        log.info("resuming %s after %s zeros", partial.name, f"{filled:,}")
    with zeros_source(config, first, count), progress_bar(count, f"zeros from {first:,}", "zero", initial=filled) as bar:
        values = values_from(first + filled, count - filled) if filled < count else iter(())
        wanted = True
        while wanted:
            before, wanted = len(chunk), min(FETCH_CHUNK, count + 1 - len(found))  # one more, to notice if there are too many
            try:
                chunk.extend(itertools.islice(values, wanted - before))
            finally:
                if chunk:
                    write_with_digest(partial, chunk.tobytes(), origin, append=True)
            found.extend(chunk)
            bar.update(len(chunk) - before)
            wanted, chunk = wanted and len(chunk) == wanted, array("q")
    try:
        return checked_zeros(np.array(found, np.int64), first, count)
    except UserError:
        remove(partial)
        raise


def read_chunks(partial, origin):
    """Return (found, chunk) of an interrupted fetch of this origin: the values of full chunks, and of a last one that ended early.

    Both are arrays of int64. The file is cut off after the full chunks: the last one is written again when it is full.
    """
    found, chunk = array("q"), array("q")
    content, size = read_bytes(partial) if partial.exists() else b"", FETCH_CHUNK * 8 + DIGEST_SIZE
    for start in range(0, len(content), size):
        values = without_digest(content[start : start + size], origin)
        if values is None:
            break
        (found if len(values) == FETCH_CHUNK * 8 else chunk).frombytes(values)
    if content:
        os.truncate(partial, len(found) // FETCH_CHUNK * size)
        if not found and not chunk:
            log.warning("%s is damaged or holds zeros of another origin; begun again", partial.name)
    return found, chunk


def write_values(path, values, origin=""):
    """Write an int64 array to `path` in numpy's format, followed by its origin and a SHA-256, which np.load ignores."""
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    buffer.write(origin.encode())
    write_with_digest(path, buffer.getvalue())


def read_values(config, first, count):
    """Return the values (count,) of an interval file. Raises ValueError, naming the file, if they cannot be these zeros.

    It is one too if they were fetched from elsewhere than the settings say now. Files of older versions do not say where they are
    from: such a file is taken, and marked, if some zeros from its beginning, middle and end are the same there.
    """
    path, wanted = interval_file(config, first, count), zeros_origin(config)
    values, origin = load_values(path, count)
    checked(values, first, str(path))
    if origin and not is_from(origin, wanted):
        raise ValueError(f"{path} holds zeros from {origin}, not from {wanted}")
    if not origin and not lacks_tables(wanted):
        for start in {0, count // 2, max(count - SAMPLE, 0)}:
            sample = values[start : start + SAMPLE]
            if (zeros_in_memory(config, first + start, len(sample)).values != sample).any():
                raise ValueError(f"{path} holds other zeros than those from {wanted}")
        write_values(path, values, wanted)
    return values


def load_values(path, count):
    """Return (int64 array (count,), origin) that write_values wrote. Raises ValueError, naming the file, if it is not that."""
    content = without_digest(read_bytes(path))
    if content is None:
        raise ValueError(f"{path} is damaged: its checksum does not match")
    buffer = io.BytesIO(content)
    values = np.load(buffer, allow_pickle=False)
    if values.dtype != np.int64 or values.shape != (count,):
        raise ValueError(f"{path} holds {values.dtype} {values.shape} instead of {count} int64 values")
    return values, buffer.read().decode()


def write_with_digest(path, content, salt=b"", append=False):
    """Write `content` and the SHA-256 of it and `salt`, atomically or at the end of `path`. UserError if the disk is full."""
    try:
        with open(path, "ab") if append else atomic_write(path) as file:
            file.write(content + hashlib.sha256(content + salt).digest())
    except OSError as error:
        raise UserError(f"Cannot write {path} ({error.strerror}); {remedy(error)} and run the same command again.") from error


def without_digest(content, salt=b""):
    """Return the content that write_with_digest was given, or None if its digest does not match."""
    content, digest = content[:-DIGEST_SIZE], content[-DIGEST_SIZE:]
    return content if content and hashlib.sha256(content + salt).digest() == digest else None


def zeros_in_memory(config, first, count):
    """Return the zeros first … first + count - 1 straight from zeros_db: no file in data/ is read or written."""
    with zeros_source(config, first, count):
        values = np.fromiter(itertools.islice(values_from(first, count), count), np.int64)
    return RiemannZerosDataset(np.arange(first, first + count), checked_zeros(values, first, count))


def some_zeros(count):
    """A dataset as wide as the rows of a long training, of numbers that are no zeros but as good for a clock."""
    indexes = np.arange(5_000_000, 5_000_000 + count, dtype=np.int64)
    return RiemannZerosDataset(indexes, (smooth_zeros(indexes) * SCALE).astype(np.int64))


def require_zeros(config):
    """Raise UserError at once if zeros_db does not give the last zero that will be requested, unless all intervals are stored."""
    first, count = interval(config, config.data.K + 1)
    if not config.data.platt_tables:
        try:
            zeros_in_memory(config, first + count - 1, 1)
        except UserError as error:
            if all(is_stored(config, *interval(config, t)) for t in range(config.data.K + 1, config.data.first_round - 1, -1)):
                return  # K may be far too large, and the last interval is the first to be missing
            if not is_own_zeros_db():
                raise
            raise UserError(f"{error} Lower data.K or data.interval_size, or name Platt's tables.") from error
