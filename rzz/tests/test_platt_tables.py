"""Claims about tables in the LMFDB's format, on small ones written here from the first zeros."""

import sqlite3
import struct

import mpmath
import pytest

import zeros_db
from zeros_db import zeros_starting_at_N
from zeta import platt_tables

EPS_BITS = 101
# file name -> blocks (t0, t1); N(14) = 0, N(50) = 10, N(70) = 17, N(100) = 29, N(120) = 38, N(140) = 47
FILES = {"zeros_14.dat": [(14.0, 50.0), (50.0, 70.0), (70.0, 100.0)], "zeros_100.dat": [(100.0, 120.0), (120.0, 140.0)]}
COUNTS = {14.0: 0, 50.0: 10, 70.0: 17, 100.0: 29, 120.0: 38, 140.0: 47}


@pytest.fixture(scope="module")
def exact():
    """index -> the zero as a whole multiple of 2^-101, for the 47 zeros of the tables."""
    return {i: int(mpmath.nint(zero * 2**EPS_BITS)) for i, zero in _with_precision(zeros_starting_at_N(1, 47, dps=40))}


def _with_precision(pairs):
    with mpmath.workdps(60):
        yield from pairs


@pytest.fixture
def tables(tmp_path, exact):
    """A folder with index.db and data/*.dat; every block is in the index, as in the LMFDB's."""
    (tmp_path / "data").mkdir()
    with sqlite3.connect(tmp_path / "index.db") as database:
        columns = "t REAL, N INTEGER, filename TEXT, offset INTEGER, block_number INTEGER"
        database.execute(f"CREATE TABLE zero_index ({columns})")
        for name, blocks in FILES.items():
            content = struct.pack("<Q", len(blocks))
            for number, (t0, t1) in enumerate(blocks):
                row = (t0, COUNTS[t0], name, len(content), number)
                database.execute("INSERT INTO zero_index VALUES (?, ?, ?, ?, ?)", row)
                content += struct.pack("<ddQQ", t0, t1, COUNTS[t0], COUNTS[t1])
                previous = int(t0) << EPS_BITS
                for i in range(COUNTS[t0] + 1, COUNTS[t1] + 1):
                    content += (exact[i] - previous).to_bytes(13, "little")
                    previous = exact[i]
            (tmp_path / "data" / name).write_bytes(content + b"garbage at the end")
    database.close()
    yield tmp_path
    zeros_db.use_platt_tables(None)


def read(folder, first, count):
    return list(platt_tables.zeros(folder, first, count))


def damage(path, position, content):
    data = bytearray(path.read_bytes())
    data[position:position + len(content)] = content
    path.write_bytes(data)


def test_every_range_is_read_exactly_over_borders_of_blocks_and_files(tables, exact):
    for first in range(1, 48):
        for count in range(0, 49 - first):
            assert read(tables, first, count) == [(i, exact[i]) for i in range(first, first + count)]


def test_the_zero_after_a_border_is_not_lost(tables, exact):
    # a reader that takes N(t0) for the index of a block's first zero starts one too late
    assert read(tables, 10, 1) == [(10, exact[10])]
    assert read(tables, 11, 1) == [(11, exact[11])]


def test_a_file_may_lie_next_to_the_index(tables, exact):
    for name in FILES:
        (tables / "data" / name).rename(tables / name)
    assert read(tables, 28, 4) == [(i, exact[i]) for i in range(28, 32)]


def test_the_door_gives_the_published_zeros_digit_for_digit(tables):
    zeros_db.use_platt_tables(tables)
    with mpmath.workdps(36):
        assert [repr(zero) for zero in zeros_starting_at_N(10, 3)] == [
            "(10, mpf('49.7738324776723021819167846785638367196'))",
            "(11, mpf('52.9703214777144606441472966088808215661'))",
            "(12, mpf('56.4462476970633948043677594767060321269'))",
        ]


def test_tables_and_computation_agree(tables):
    computed = list(zeros_starting_at_N(0, 47))
    zeros_db.use_platt_tables(str(tables))
    for (i, zero), (j, other) in zip(zeros_starting_at_N(0, 47), computed, strict=True):
        assert i == j and abs(zero - other) < 1e-8
        assert mpmath.floor(zero * 10_000) == mpmath.floor(other * 10_000)


def test_an_end_of_the_tables_before_the_range_is_an_error_that_says_where(tables):
    with pytest.raises(platt_tables.TableError, match=r"zeros_100\.dat: no block from 1 on holds zero 48: .* end"):
        read(tables, 40, 20)
    with pytest.raises(platt_tables.TableError, match=r"zeros_100\.dat: no block from 1 on holds zero 1000"):
        read(tables, 1000, 1)


def test_blocks_that_the_index_leaves_out_are_found_after_those_it_names(tables, exact):
    with sqlite3.connect(tables / "index.db") as database:
        database.execute("DELETE FROM zero_index WHERE block_number > 0")
    database.close()
    assert read(tables, 20, 25) == [(i, exact[i]) for i in range(20, 45)]


@pytest.mark.parametrize("border", [10, 17, 29, 38])
def test_an_index_whose_N_is_one_too_small_for_a_block_loses_no_zero(tables, exact, border):
    with sqlite3.connect(tables / "index.db") as database:
        database.execute("UPDATE zero_index SET N = N - 1 WHERE N = ?", (border,))
    database.close()
    for first in (border - 1, border, border + 1):
        assert read(tables, first, 3) == [(i, exact[i]) for i in range(first, first + 3)]


def test_a_gap_at_the_first_zero_that_is_asked_for_is_named(tables):
    damage(tables / "data" / "zeros_14.dat", 8 + 32 + 130 + 16, struct.pack("<Q", 12))
    with pytest.raises(platt_tables.TableError, match=r"zeros_14\.dat: block 1 begins with zero 13 instead of zero 11: a gap"):
        read(tables, 11, 1)


def test_a_missing_file_is_named_with_its_block(tables):
    (tables / "data" / "zeros_100.dat").unlink()
    assert len(read(tables, 20, 10)) == 10
    with pytest.raises(platt_tables.TableError, match=r"zeros_100\.dat: no such file.*block 0 for zero 30"):
        read(tables, 20, 11)


def test_a_missing_index_is_named(tmp_path):
    with pytest.raises(platt_tables.TableError, match=r"index\.db: no such file"):
        read(tmp_path, 1, 1)


def test_an_index_that_is_no_database_is_named(tmp_path):
    (tmp_path / "index.db").write_bytes(b"no database at all" * 100)
    with pytest.raises(platt_tables.TableError, match=r"index\.db"):
        read(tmp_path, 1, 1)


@pytest.mark.parametrize(("size", "message"), [
    (5, "the count of blocks is truncated"),
    (8 + 32 + 40, "block 0 is truncated"),
    (8 + 32 + 130 + 20, "block 1 is truncated"),
])
def test_a_truncated_file_is_named_with_its_block(tables, size, message):
    path = tables / "data" / "zeros_14.dat"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(platt_tables.TableError, match=rf"zeros_14\.dat: {message}"):
        read(tables, 1, 15)


def test_a_gap_between_blocks_is_named(tables):
    damage(tables / "data" / "zeros_14.dat", 8 + 32 + 130 + 16, struct.pack("<Q", 12))
    with pytest.raises(platt_tables.TableError, match=r"zeros_14\.dat: block 1 begins with zero 13 instead of zero 11"):
        read(tables, 1, 15)


def test_a_gap_between_files_is_named(tables):
    with sqlite3.connect(tables / "index.db") as database:
        database.execute("DELETE FROM zero_index WHERE filename = 'zeros_100.dat' AND block_number = 0")
    database.close()
    with pytest.raises(platt_tables.TableError, match=r"zeros_14\.dat: no block from 2 on holds zero 30: .* gap"):
        read(tables, 25, 10)


def test_zeros_that_do_not_increase_are_named(tables):
    damage(tables / "data" / "zeros_14.dat", 8 + 32 + 3 * 13, bytes(13))
    with pytest.raises(platt_tables.TableError, match=r"zeros_14\.dat: block 0: damaged"):
        read(tables, 1, 5)


def test_zeros_beyond_their_block_are_named(tables):
    damage(tables / "data" / "zeros_14.dat", 8 + 8, struct.pack("<d", 49.7))  # zero 10 is 49.77
    with pytest.raises(platt_tables.TableError, match=r"zeros_14\.dat: block 0: damaged"):
        read(tables, 1, 5)


def test_a_block_number_past_the_end_of_its_file_is_named(tables):
    damage(tables / "data" / "zeros_100.dat", 0, struct.pack("<Q", 1))
    with pytest.raises(platt_tables.TableError, match=r"zeros_100\.dat: block 1 for zero 40 is past its 1 blocks"):
        read(tables, 40, 1)


def test_a_damaged_header_is_named(tables):
    damage(tables / "data" / "zeros_14.dat", 8, struct.pack("<d", float("nan")))
    with pytest.raises(platt_tables.TableError, match=r"zeros_14\.dat: block 0: damaged header"):
        read(tables, 1, 5)
