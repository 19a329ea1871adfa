"""A user's own zeros_db is not trusted: what is wrong with it is said in a line, and coarse values are refused."""

import hashlib
import traceback
from decimal import Decimal
from pathlib import Path

import mpmath
import numpy as np
import pytest
from conftest import SMALL_RUN, write_config

import data_utils
import zeros_db
from common.config import UserError, load_config
from data_utils import require_zeros, zeros_in_memory
from zero_values import OWN_ZEROS_DB, is_from, truncated_value, zeros_origin
from zeta import zeros as zeta_zeros


@pytest.fixture
def config(tmp_path):
    return load_config(write_config(tmp_path, SMALL_RUN))


OWN = "def zeros_starting_at_N(N, number_of_zeros):\n    "


@pytest.mark.parametrize("text, says, line", [
    ("def zeros_starting_at_N(", "SyntaxError", 2),
    ("import numpyy", "ModuleNotFoundError: No module named 'numpyy'", 2),
    ("def zeros(N, count):\n    pass", "has no function zeros_starting_at_N(N, number_of_zeros)", None),
    (OWN + "pass", "returned None instead of pairs (index, zero)", None),
    (OWN + "return [14.1347]", "gave 14.1347 instead of a pair (index, zero)", None),
    (OWN + "yield N, None", "None is not a number", None),
    (OWN + "\n    yield N, {}[8999]", "KeyError: 8999", 4),
    (OWN + "return own(-1, 'two\\nlines')", "ValueError: N must be a whole number of at least 0", 3),
    (OWN + "raise ValueError('two\\nlines')", "ValueError: two lines", 3),
    (OWN + "return iter(())", "gave 0 zeros from index", None),
])  # fmt: skip
def test_what_is_wrong_with_a_users_file_is_one_line_that_names_the_place_in_it(config, users_file, text, says, line):
    path = users_file(text)
    for ask in (lambda: require_zeros(config), lambda: data_utils.test_zeros(config)):
        with pytest.raises(UserError) as caught:
            ask()
        message = str(caught.value)
        assert says in message and "Lower" not in message and "\n" not in message
        assert "zeros_db" in message and (line is None or f"({path}:{line})" in message)
        assert line is None or path.name in "".join(traceback.format_exception(caught.value.__cause__))


def test_our_own_zeros_db_is_known_by_its_content():
    digest = hashlib.sha256(Path(zeros_db.__file__).read_bytes()).hexdigest()
    assert digest == OWN_ZEROS_DB, "zeros_db.py was changed: write this digest into zero_values.py"


@pytest.mark.parametrize("zero, value", [
    (mpmath.mpf("49.7738"), 497738), (mpmath.mpf("52.9703"), 529703), (mpmath.mpf("56.4462"), 564462), (mpmath.mpf(49.5), 495000),
    (mpmath.mpc(0.5, "49.77383"), 497738), (complex(0.5, 49.77383), 497738), (49.7738, 497738), ("49.7738", 497738),
    (" 49.77389\n", 497738), (Decimal("49.77389"), 497738), (np.float64(49.7738), 497738), (np.float32(49.7738), 497738),
    (np.array(49.7738), 497738), (50, 500000),
])  # fmt: skip
def test_a_zero_may_be_of_any_type_that_holds_its_decimals(zero, value):
    assert truncated_value(zero) == value


@pytest.mark.parametrize("zero, says", [
    (mpmath.mpc(0.6, 49), r"not of the form 1/2 \+ i t"), (complex(49.7, 0), "wanted is t, a real number"),
    (np.float32(8.0893e4), "float32, precise to 0.008"), (np.float16(49.77), "float16, precise to 0.03"),
    (np.complex64(0.5 + 8.0893e4j), "float32"), (-1.5, "positive"), ("0", "positive"), (float("nan"), "not a number"),
    (mpmath.inf, "positive"), (b"49.7738", "not a number"), ([49.7], "not a number"), (None, "None is not a number"),
])  # fmt: skip
def test_what_is_no_zero_with_four_decimals_is_refused(zero, says):
    with pytest.raises(ValueError, match=says):
        truncated_value(zero)


def in_five_digits(zero):
    return float(f"{float(zero):.4e}")


def in_five_digits_mpf(zero):
    with mpmath.workdps(5):
        return +zero


@pytest.mark.parametrize("rounded, step", [
    (in_five_digits, 1.0), (lambda zero: f"{float(zero):.4e}", 1.0), (lambda zero: Decimal(f"{float(zero):.3f}"), 0.001),
    (lambda zero: mpmath.mpf(f"{float(zero):.3f}"), 0.001), (lambda zero: mpmath.mpf(f"{float(zero):.2f}"), 0.01),
    (in_five_digits_mpf, 0.125), (lambda zero: float(np.float32(zero)), 0.0078125),
    (lambda zero: mpmath.mpf(int(zero * 8192)) / 8192, 2**-13),
])  # fmt: skip
def test_values_without_four_decimals_are_refused_and_their_precision_is_named(config, monkeypatch, rounded, step):
    pairs = [(index, rounded(zero)) for index, zero in zeros_db.zeros_starting_at_N(109_000, 300)]  # near 80,893
    monkeypatch.setattr(zeros_db, "zeros_starting_at_N", lambda N, count: pairs)
    with pytest.raises(UserError, match=f"multiples of {step:g}; wanted are four right decimals"):
        zeros_in_memory(config, 109_000, 300)


@pytest.mark.parametrize("given", [
    lambda zero: f"{float(zero):.4f}", lambda zero: round(float(zero), 4), lambda zero: mpmath.mpf(f"{float(zero):.4f}"),
    lambda zero: f"{float(zero):.9f}", float, lambda zero: np.float32(zero) if zero < 400 else zero,
    lambda zero: mpmath.mpf(int(zero * 2**16)) / 2**16,
])  # fmt: skip
@pytest.mark.parametrize("first", [1, 109_000])
def test_values_with_four_decimals_are_taken(config, monkeypatch, given, first):
    true = zeros_in_memory(config, first, 400).values
    pairs = [(index, given(zero)) for index, zero in zeros_db.zeros_starting_at_N(first, 400)]
    monkeypatch.setattr(zeros_db, "zeros_starting_at_N", lambda N, count: pairs)
    assert np.abs(zeros_in_memory(config, first, 400).values - true).max() <= 1


def test_digits_that_are_too_few_from_some_height_on_are_noticed(config, monkeypatch):
    own = zeros_db.zeros_starting_at_N  # 7 digits are enough up to 1,000
    monkeypatch.setattr(zeros_db, "zeros_starting_at_N",
                        lambda N, count: ((index, float(f"{float(zero):.6e}")) for index, zero in own(N, count)))  # fmt: skip
    assert len(zeros_in_memory(config, 1, 600)) == 600
    with pytest.raises(UserError, match="zeros 801 … are given as multiples of 0.001"):
        zeros_in_memory(config, 1, 1100)


def test_an_origin_names_the_source_and_differs_if_a_table_does(config, users_file, tmp_path):
    assert zeros_origin(config) == f"method {zeta_zeros.VERSION}"
    config.data.platt_tables = str(tmp_path / "tables")
    missing = zeros_origin(config)
    (tmp_path / "tables" / "data").mkdir(parents=True)
    origins = {missing}
    for name, content in (("index.db", b"1"), ("data/zeros_14.dat", b"1"), ("data/zeros_14.dat", b"12"), ("zeros_50.dat", b"1")):
        (tmp_path / "tables" / name).write_bytes(content)
        origins.add(zeros_origin(config))
    assert len(origins) == 5 and all(origin.startswith("Platt's tables ") for origin in origins)
    assert all(is_from(origin, missing) for origin in origins) and not is_from(missing, zeros_origin(config))
    users_file("zeros_starting_at_N = own")
    config.data.platt_tables = ""
    assert zeros_origin(config).startswith("zeros_db.py ")
    assert not is_from("method 10", "method 1")
