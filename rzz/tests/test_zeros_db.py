"""Claims about the door to the zeros, zeros_starting_at_N."""

import subprocess
import sys
from itertools import islice

import flint
import mpmath
import pytest
from conftest import SRC

import zeros_db
from zeros_db import zeros_starting_at_N
from zeta import zeros as zeta_zeros

PUBLISHED = [
    (10, "49.7738324776723021819167846785638367196"),
    (11, "52.9703214777144606441472966088808215661"),
    (12, "56.4462476970633948043677594767060321269"),
]


def test_38_digits_rounded_to_the_resolution_of_platts_tables_are_the_published_ones_digit_for_digit():
    # The published values are multiples of 2^-101, so their digits are those of the zeros down to 1e-30 only.
    zeros = list(zeros_starting_at_N(10, 3, dps=38))
    with mpmath.workdps(60):
        rounded = [(i, mpmath.nstr(mpmath.nint(zero * 2**101) / 2**101, 39)) for i, zero in zeros]
        assert rounded == PUBLISHED
        for (_, zero), (_, text) in zip(zeros, PUBLISHED, strict=True):
            assert abs(zero - mpmath.mpf(text)) < 1e-30


@pytest.mark.parametrize(("index", "dps"), [(1, 38), (10, 60), (700, 30), (6709, 38), (138_070, 25), (1_000_000, 38)])
def test_dps_digits_are_right(index, dps):
    ((_, zero),) = zeros_starting_at_N(index, 1, dps=dps)
    before = flint.ctx.prec
    flint.ctx.dps = dps + 15
    try:
        exact = flint.acb.zeta_zero(index).imag.str(dps + 10, radius=False)
    finally:
        flint.ctx.prec = before
    with mpmath.workdps(dps + 10):
        assert abs(zero / mpmath.mpf(exact) - 1) < mpmath.mpf(10) ** -dps


def test_few_digits_still_leave_the_fourth_decimal_right():
    ((_, zero),) = zeros_starting_at_N(11_000_000, 1, dps=3)
    assert mpmath.floor(zero * 10_000) == 54_533_511_219


def test_indexes_begin_at_1_and_N_0_begins_there_too():
    from_0, from_1 = list(zeros_starting_at_N(0, 3)), list(zeros_starting_at_N(1, 3))
    assert from_0 == from_1
    assert [(i, int(mpmath.floor(zero * 10_000))) for i, zero in from_0] == [(1, 141347), (2, 210220), (3, 250108)]


def test_a_pair_holds_the_computed_value_without_rounding():
    pairs = list(zeros_starting_at_N(11_000_000, 100))
    ((first, values),) = zeta_zeros.zeros(11_000_000, 100)
    assert [i for i, _ in pairs] == list(range(first, first + 100))
    for (_, zero), value in zip(pairs, values, strict=True):
        assert isinstance(zero, mpmath.mpf)
        assert zero.man_exp == (value, -zeta_zeros.FRACTION_BITS)


def test_no_zeros_are_no_zeros():
    assert list(zeros_starting_at_N(5, 0)) == []


def test_zeros_are_computed_as_they_are_consumed(monkeypatch):
    computed = []
    original = zeta_zeros._piece
    monkeypatch.setattr(zeta_zeros, "_piece", lambda number: computed.append(number) or original(number))
    zeros = zeros_starting_at_N(1, 20_000_000)
    assert computed == []
    assert [i for i, _ in islice(zeros, 3)] == [1, 2, 3]
    assert computed == [0]


@pytest.mark.parametrize("dps", [None, 30])
def test_mpmaths_precision_is_left_alone(dps):
    before = mpmath.mp.prec
    for _ in zeros_starting_at_N(100, 2, dps=dps):
        assert mpmath.mp.prec == before
    assert mpmath.mp.prec == before


@pytest.mark.parametrize("arguments", [
    (-1, 3), (1, -3), (1.5, 3), (1, 2.0), ("1", 3), (None, 3), (True, 3), (1, 3, 0), (1, 3, 20.5), (10**12, 1),
])
def test_bad_arguments_are_refused_at_the_call(arguments):
    with pytest.raises(ValueError):
        zeros_starting_at_N(*arguments)


def test_numpy_integers_are_arguments_like_others():
    np = pytest.importorskip("numpy")
    assert list(zeros_starting_at_N(np.int64(7), np.int32(2))) == list(zeros_starting_at_N(7, 2))


def test_without_a_folder_no_table_is_touched(monkeypatch):
    monkeypatch.setattr(zeros_db.platt_tables, "zeros", None)
    zeros_db.use_platt_tables("")
    assert len(list(zeros_starting_at_N(1, 2))) == 2


@pytest.mark.parametrize("height", [-5.0, 14.1, 14.2, 1000.0, 9877.78, 9877.79, 280_000.0])
def test_the_zeros_from_a_height_on_are_all_those_at_it_or_above(height):
    found = list(islice(zeros_db.zeros_from_height(height), 3))
    first = int(mpmath.nzeros(height)) + 1 if height > 10 else 1  # mpmath counts those below
    assert [index for index, _ in found] == [first, first + 1, first + 2]
    assert found[0][1] >= height


def test_the_command_line_prints_zeros(capsys):
    zeros_db.main(["10", "3"])
    assert capsys.readouterr().out == "10 49.7738\n11 52.9703\n12 56.4462\n"
    zeros_db.main(["1,000", "--digits", "30"])
    index, text = capsys.readouterr().out.split()
    flint.ctx.dps = 45
    assert index == "1000" and abs(mpmath.mpf(text) - mpmath.mpf(flint.acb.zeta_zero(1000).imag.str(40, radius=False))) < 1e-26
    zeros_db.main(["--height", "1000", "2"])
    assert capsys.readouterr().out == "650 1001.3494\n651 1002.4043\n"


def test_a_reader_that_has_seen_enough_is_no_error():
    command = [sys.executable, str(SRC / "zeros_db.py"), "10", "20000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "10 49.7738\n"
        process.stdout.close()
        assert process.wait() == 1 and process.stderr.read() == ""


@pytest.mark.parametrize("words", [
    [], ["x"], ["1", "2", "3"], ["10", "--digits", "0"],
    ["10000000001"], ["9999999999", "3"], ["--height", "3.3e9"], ["--height", "1e300"], ["--height", "nan"],
])
def test_a_bad_command_line_is_one_line_and_exit_code_2(words, capsys):
    with pytest.raises(SystemExit) as ended:
        zeros_db.main(words)
    captured = capsys.readouterr()
    assert ended.value.code == 2 and captured.out == "" and len(captured.err.splitlines()) == 1
