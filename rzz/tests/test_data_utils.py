"""Interval files are complete, checked and resumable, and a user's own zeros_db is not trusted."""

import multiprocessing
import os
import sqlite3
import sys
import time
from contextlib import contextmanager

import mpmath
import numpy as np
import pytest
import torch
from conftest import SMALL_RUN, write_config

import data_utils
import zeros_db
from common.config import CONTEXT, UserError, load_config
from common.files import exclusive_lock
from data_utils import (
    RiemannZerosDataset,
    fetch_ahead,
    interval,
    missing_zeros,
    require_zeros,
    stored_zeros,
    training_zeros,
    validation_zeros,
)
from model.tokenizer import PAD, decode, trajectories, vocabulary
from zero_values import truncated_value
from zeta import zeros as zeta_zeros

NAME = "zeros_300_300.npy"


@pytest.fixture
def config(tmp_path):
    return load_config(write_config(tmp_path, SMALL_RUN))


def true_values(first, count):
    return [truncated_value(zero) for _, zero in zeros_db.zeros_starting_at_N(first, count)]


def test_an_interval_is_one_file_that_numpy_reads(config):
    dataset = training_zeros(config, 1)
    assert dataset.indexes.tolist() == list(range(300, 600))
    assert dataset.values.tolist() == true_values(300, 300)
    assert np.load(config.data_folder / NAME, allow_pickle=False).tolist() == dataset.values.tolist()
    assert {path.name for path in config.data_folder.iterdir()} == {NAME, ".lock"}


def test_the_interval_after_next_is_built_by_another_process_and_whoever_needs_it_waits(config, monkeypatch):
    monkeypatch.setattr(data_utils, "FETCH_AHEAD", 300)
    fetch_ahead(config, *interval(config, 1))
    (process,) = multiprocessing.active_children()
    lock = config.data_folder / ".lock"
    while process.is_alive() and not (lock.exists() and lock.read_text()):  # it says who holds it
        time.sleep(0.01)
    monkeypatch.setattr(data_utils, "fetch_values", lambda *arguments: pytest.fail("it is being fetched already"))
    assert training_zeros(config, 1).values.tolist() == true_values(300, 300)
    process.join()
    assert process.exitcode == 0
    fetch_ahead(config, *interval(config, 1))
    assert not multiprocessing.active_children()


def test_fetching_ahead_has_the_lowest_priority(config, monkeypatch):
    monkeypatch.setattr(data_utils, "FETCH_AHEAD", 300)
    config.data_folder.mkdir()
    with exclusive_lock(config.data_folder / ".lock", "which waits", wait=True):  # so that the other process cannot finish
        fetch_ahead(config, *interval(config, 1))
        (process,) = multiprocessing.active_children()
        most = time.monotonic() + 60
        while time.monotonic() < most and process.is_alive() and os.getpriority(os.PRIO_PROCESS, process.pid) < 19:
            time.sleep(0.01)
        assert os.getpriority(os.PRIO_PROCESS, process.pid) == 19
    process.join()
    assert process.exitcode == 0


def test_a_damaged_file_that_another_process_rebuilds_first_is_used_as_it_is(config, monkeypatch):
    values, path = training_zeros(config, 1).values.tolist(), config.data_folder / NAME
    good = path.read_bytes()
    path.write_bytes(good[:-5])

    @contextmanager
    def lock_after_another_process(*arguments, **options):
        path.write_bytes(good)
        yield

    monkeypatch.setattr(data_utils, "exclusive_lock", lock_after_another_process)
    monkeypatch.setattr(data_utils, "fetch_values", lambda *arguments: pytest.fail("it is there already"))
    assert training_zeros(config, 1).values.tolist() == values
    assert {path.name for path in config.data_folder.iterdir()} == {NAME, ".lock"}


def test_small_intervals_are_not_fetched_ahead(config):
    fetch_ahead(config, *interval(config, 1))
    assert not multiprocessing.active_children()


def test_the_first_interval_begins_with_zero_1(config):
    assert training_zeros(config, 0).indexes.tolist() == list(range(1, 300))


@pytest.mark.parametrize("damage", [
    lambda content: b"",
    lambda content: content[:500],
    lambda content: content + b"x",
    lambda content: content[:300] + bytes([content[300] ^ 1]) + content[301:],
])  # fmt: skip
def test_a_damaged_or_altered_file_is_named_moved_aside_and_built_again(config, damage, caplog):
    good = training_zeros(config, 1)
    path = config.data_folder / NAME
    content = path.read_bytes()
    path.write_bytes(damage(content))
    assert (training_zeros(config, 1).values == good.values).all()
    assert NAME in caplog.text and path.read_bytes() == content
    assert (config.data_folder / f"{NAME}.bad-1").read_bytes() == damage(content)


@pytest.mark.parametrize("change", [
    lambda values: np.sort(values)[::-1].copy(),
    lambda values: values + 100_000,
    lambda values: values[:-1],
    lambda values: np.where(np.arange(len(values)) == 7, values[6], values),
    lambda values: values.astype(np.float64),
])  # fmt: skip
def test_a_file_of_other_numbers_is_rejected_even_with_a_right_checksum(config, change):
    good = training_zeros(config, 1)
    data_utils.write_values(config.data_folder / NAME, change(good.values))
    assert (training_zeros(config, 1).values == good.values).all()
    assert (config.data_folder / f"{NAME}.bad-1").exists()


def interrupted_after(count, error):
    def zeros_starting_at_N(N, number_of_zeros):
        for given, pair in enumerate(zeros_db_zeros(N, number_of_zeros)):
            if given == count:
                raise error
            yield pair

    zeros_db_zeros = zeros_db.zeros_starting_at_N
    return zeros_starting_at_N


def interrupted_fetch(config, monkeypatch, count):
    """Interrupt the fetch of interval 1, in chunks of 64, after `count` zeros; return the path of the partial file."""
    monkeypatch.setattr(data_utils, "FETCH_CHUNK", 64)
    with monkeypatch.context() as patch:
        patch.setattr(zeros_db, "zeros_starting_at_N", interrupted_after(count, KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            training_zeros(config, 1)
    return config.data_folder / "zeros_300_300.partial"


def test_an_interrupted_fetch_resumes_and_loses_at_most_a_chunk(config, monkeypatch):
    with open(interrupted_fetch(config, monkeypatch, 150), "ab") as file:
        file.write(b"half a chunk, torn by a power cut")

    requests = []
    zeros = zeros_db.zeros_starting_at_N
    monkeypatch.setattr(zeros_db, "zeros_starting_at_N", lambda N, count: requests.append((N, count)) or zeros(N, count))
    assert training_zeros(config, 1).values.tolist() == true_values(300, 300)
    assert requests[0] == (300 + 128, 300 - 128)
    assert {path.name for path in config.data_folder.iterdir()} == {NAME, ".lock"}


def test_a_fetch_that_was_interrupted_twice_loses_nothing(config, monkeypatch):
    requests, zeros = [], zeros_db.zeros_starting_at_N
    interrupted_fetch(config, monkeypatch, 150)
    interrupted_fetch(config, monkeypatch, 10)
    monkeypatch.setattr(zeros_db, "zeros_starting_at_N", lambda N, count: requests.append((N, count)) or zeros(N, count))
    assert training_zeros(config, 1).values.tolist() == true_values(300, 300)
    assert requests[0] == (300 + 160, 300 - 160)


def test_an_altered_partial_file_is_rejected(config, monkeypatch):
    partial = interrupted_fetch(config, monkeypatch, 250)
    content = bytearray(partial.read_bytes())
    content[700] ^= 1
    partial.write_bytes(content)
    assert training_zeros(config, 1).values.tolist() == true_values(300, 300)


OFF = "def zeros_starting_at_N(N, number_of_zeros):\n    return ((index, zero + 0.01) for index, zero in own(N, number_of_zeros))\n"
READERS = [lambda config: training_zeros(config, 1), data_utils.test_zeros, lambda config: data_utils.tuning_splits(config)[0],
           lambda config: validation_zeros(config, 1)]  # fmt: skip


@pytest.mark.parametrize("zeros_of", READERS)
def test_zeros_of_a_zeros_db_that_was_replaced_are_fetched_again(config, users_file, monkeypatch, caplog, zeros_of):
    users_file(OFF)
    wrong = zeros_of(config)
    assert (zeros_of(config).values == wrong.values).all() and not caplog.messages  # no change, no word
    monkeypatch.setitem(sys.modules, "zeros_db", zeros_db)
    assert missing_zeros(config, [(300, 300)]) == 300
    right = zeros_of(config)
    assert right.values.tolist() == [true_values(int(index), 1)[0] for index in right.indexes]
    assert (right.values != wrong.values).all()
    assert len(caplog.messages) == 1 and "holds zeros from zeros_db.py " in caplog.text and ".bad-1" in caplog.text
    assert (zeros_of(config).values == right.values).all() and len(caplog.messages) == 1


def test_zeros_of_an_older_method_are_fetched_again(config, monkeypatch, caplog):
    values = training_zeros(config, 1).values
    monkeypatch.setattr(zeta_zeros, "VERSION", zeta_zeros.VERSION + 1)
    assert (training_zeros(config, 1).values == values).all()
    assert "holds zeros from method 1, not from method 2" in caplog.text


def test_an_interrupted_fetch_of_another_zeros_db_begins_again(config, users_file, monkeypatch, caplog):
    partial = interrupted_fetch(config, monkeypatch, 150)
    users_file(OFF)
    assert (training_zeros(config, 1).values == np.array(true_values(300, 300)) + 100).all()
    assert f"{partial.name} is damaged or holds zeros of another origin" in caplog.text


def test_a_file_that_does_not_say_its_origin_is_taken_if_a_sample_of_it_is_the_same(config, users_file, monkeypatch, caplog):
    values, path = training_zeros(config, 1).values, config.data_folder / NAME
    marked = path.read_bytes()
    data_utils.write_values(path, values)
    with monkeypatch.context() as patch:
        patch.setattr(data_utils, "fetch_values", lambda *arguments: pytest.fail("it is there"))
        assert (training_zeros(config, 1).values == values).all() and not caplog.messages
    assert path.read_bytes() == marked
    data_utils.write_values(path, values)
    users_file(OFF)
    assert (training_zeros(config, 1).values == values + 100).all()
    assert f"{NAME} holds other zeros than those from zeros_db.py" in caplog.text


def test_zeros_of_tables_that_are_not_there_any_more_stay_in_use(config, monkeypatch, tmp_path):
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "index.db").touch()
    config.data.platt_tables = "tables"
    monkeypatch.setattr(zeros_db, "use_platt_tables", lambda folder: None)
    training_zeros(config, 1)
    (tmp_path / "tables" / "index.db").unlink()
    monkeypatch.setattr(data_utils, "fetch_values", lambda *arguments: pytest.fail("it is there"))
    training_zeros(config, 1)


def use(monkeypatch, function):
    monkeypatch.setattr(zeros_db, "zeros_starting_at_N", function)


def test_a_users_generator_that_changes_mpmaths_precision_works(config, monkeypatch):
    own = zeros_db.zeros_starting_at_N

    def zeros_starting_at_N(N, number_of_zeros):
        mpmath.mp.prec = 300
        yield from own(N, number_of_zeros)

    before = mpmath.mp.prec
    expected = true_values(300, 300)
    use(monkeypatch, zeros_starting_at_N)
    assert training_zeros(config, 1).values.tolist() == expected
    assert mpmath.mp.prec == before


@pytest.mark.parametrize("border", [300, 364])
def test_a_users_reader_that_begins_one_zero_late_at_a_border_works(config, monkeypatch, border):
    own = zeros_db.zeros_starting_at_N

    def like_the_lmfdb(N, number_of_zeros):
        return own(N + 1 if N == border else N, number_of_zeros)

    monkeypatch.setattr(data_utils, "FETCH_CHUNK", 64)
    if border == 364:  # the first chunk was fetched before
        with monkeypatch.context() as patch:
            patch.setattr(zeros_db, "zeros_starting_at_N", interrupted_after(64, KeyboardInterrupt()))
            with pytest.raises(KeyboardInterrupt):
                training_zeros(config, 1)
    use(monkeypatch, like_the_lmfdb)
    values = training_zeros(config, 1).values.tolist()
    monkeypatch.undo()
    assert values == true_values(300, 300)


def test_a_list_works_as_well_as_a_generator(config, monkeypatch):
    pairs = list(zeros_db.zeros_starting_at_N(300, 300))
    use(monkeypatch, lambda N, count: pairs)
    assert training_zeros(config, 1).values.tolist() == [truncated_value(zero) for _, zero in pairs]


@pytest.mark.parametrize("spoil, says", [
    (lambda pairs: pairs[1:], "zero 301 instead of zero 300"),
    (lambda pairs: pairs[:100] + pairs[101:], "zero 401 instead of zero 400"),
    (lambda pairs: pairs[:-1], "299 zeros"),
    (lambda pairs: pairs + [(600, pairs[-1][1] + 1)], "301 zeros"),
    (lambda pairs: [(index, zero + 8) for index, zero in pairs], "smooth count"),
    (lambda pairs: [(index, zero + 1) for index, zero in pairs], "shifted"),
    (lambda pairs: [(index, zero if index != 350 else zero - 3) for index, zero in pairs], "zero 350"),
    (lambda pairs: [(i, pairs[k + 1][1]) for k, (i, _) in enumerate(pairs[:-1])] + [(599, pairs[-1][1] + 1)], "shifted"),
    (lambda pairs: [(index, -zero) for index, zero in pairs], "positive"),
    (lambda pairs: [], "0 zeros"),
])  # fmt: skip
def test_a_users_wrong_zeros_are_refused_and_the_error_says_what_is_wrong(config, monkeypatch, spoil, says):
    pairs = list(zeros_db.zeros_starting_at_N(300, 300))
    use(monkeypatch, lambda N, count: iter(spoil(pairs)))
    with pytest.raises(UserError, match=says):
        training_zeros(config, 1)
    assert not (config.data_folder / NAME).exists()


def test_a_zeros_db_that_never_ends_is_stopped_and_works_once_it_is_repaired(config, monkeypatch):
    own = zeros_db.zeros_starting_at_N
    given = []

    def endless(N, number_of_zeros):
        for pair in own(N, 10**6):
            given.append(pair)
            yield pair

    with monkeypatch.context() as patch:
        patch.setattr(zeros_db, "zeros_starting_at_N", endless)
        with pytest.raises(UserError, match="or more"):
            training_zeros(config, 1)
    assert len(given) == 301
    assert training_zeros(config, 1).values.tolist() == true_values(300, 300)


@pytest.mark.parametrize("error", [ArithmeticError("no count"), TypeError("odd"), KeyError("gone"), sqlite3.Error("no database")])
def test_an_error_in_zeros_db_is_reported_in_one_line(config, monkeypatch, error):
    use(monkeypatch, interrupted_after(3, error))
    with pytest.raises(UserError, match=str(error)):
        training_zeros(config, 1)


def test_a_zeros_db_that_refuses_or_lacks_the_function_is_noticed_before_training(config, monkeypatch):
    use(monkeypatch, interrupted_after(0, sqlite3.Error("unable to open database file")))
    with pytest.raises(UserError, match="unable to open database file"):
        require_zeros(config)
    monkeypatch.delattr(zeros_db, "zeros_starting_at_N")
    with pytest.raises(UserError, match="zeros_starting_at_N"):
        require_zeros(config)


def test_a_height_that_cannot_be_computed_is_reported_before_training(config):
    config.data.interval_size, config.data.K = 1_000_000, 9_998
    require_zeros(config)
    config.data.K = 9_999
    with pytest.raises(UserError, match="Lower data.K"):
        require_zeros(config)


def test_platt_tables_are_used_only_if_the_settings_name_them(config, monkeypatch):
    used = []
    monkeypatch.setattr(zeros_db, "use_platt_tables", used.append)
    stored_zeros(config, 20, 5)
    assert used == []
    config.data.platt_tables = "/tables"
    stored_zeros(config, 20, 6)
    config.data.platt_tables = "tables"
    stored_zeros(config, 20, 7)
    assert used == ["/tables", str(config.folder / "tables")]


# ----------------------------------------------------------------------------------------------------------------------- dataset


def test_data_utils_exports_what_scripts_import_from_it(config):
    from data_utils import (
        RiemannZerosDataset,
        decode,
        encode,
        test_zeros,
        training_zeros,
        trajectories,
        validation_zeros,
        vocabulary,
    )

    assert decode(encode("b10:49.7738e")) == "b10:49.7738e" and len(vocabulary) == 16
    assert next(trajectories("b1:23.4567e")) == ("b1:", "2")
    training, validation, test = training_zeros(config, 2), validation_zeros(config, 2), test_zeros(config)
    assert all(isinstance(zeros, RiemannZerosDataset) for zeros in (training, validation, test))
    assert training.indexes[-1] < test.indexes[0] and not set(test.indexes) & set(validation.indexes)


def some_zeros():
    return RiemannZerosDataset([9, 10, 11], [480051, 497738, 529703])


def test_an_items_targets_are_exactly_its_trajectories():
    dataset = some_zeros()
    inputs, targets = dataset[1]
    assert inputs.shape == targets.shape == (CONTEXT - 1,) and inputs.dtype == torch.int64
    found = [(decode(inputs[: k + 1]), vocabulary[target]) for k, target in enumerate(targets) if target != PAD]
    assert found == list(trajectories("b10:49.7738e"))


def test_batches_are_contiguous_and_rows_without_a_loss_fill_the_last_one():
    dataset = some_zeros()
    inputs, targets, indexes = dataset.batch(2, 4)
    assert inputs.shape == targets.shape == (4, len("b11:52.9703e") - 1)
    assert decode(inputs[0]) == "b11:52.9703" and indexes.tolist() == [11, 11, 11, 11]
    assert (targets[1:] == PAD).all() and (targets[0] != PAD).any()
