"""Claims about the zeros themselves: complete, indexed, right; with python-flint's certified zeros as the oracle."""

import flint
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zeta import zeros as zeta_zeros
from zeta.z_grid import ZGrid

UNIT = 2**zeta_zeros.FRACTION_BITS


def computed(first, count):
    return [value for _, values in zeta_zeros.zeros(first, count) for value in values]


def certified(first, count, bits=60):
    """floor(zero * 2^bits) from python-flint, whose zeros are proven enclosures."""
    before = flint.ctx.prec
    flint.ctx.prec = 128
    try:
        return [int((zero.imag.mid() * 2**bits).floor().unique_fmpz()) for zero in flint.acb.zeta_zeros(first, count)]
    finally:
        flint.ctx.prec = before


def assert_right(first, count):
    for value, exact in zip(computed(first, count), certified(first, count), strict=True):
        assert abs((value << 24) - exact) < 1e-8 * 2**60
        assert value * 10_000 >> 36 == exact * 10_000 >> 60
        if value < 2**25 * UNIT:
            assert int(np.floor(value / UNIT * 1e4)) == exact * 10_000 >> 60  # after rounding to float64 too


def test_the_first_zeros_are_right():
    assert_right(1, 1200)


@pytest.mark.parametrize("first", [
    *np.random.default_rng(4).integers(1200, 20_000_000, 25).tolist(), 10**6, 10**7, 10**8,
    *np.random.default_rng(5).integers(10**8, 10**10, 2).tolist(), 10**9, zeta_zeros.LAST_INDEX - 11,
])
def test_zeros_at_scattered_indexes_are_right(first):
    assert_right(first, 12)


@pytest.mark.parametrize("first", [
    6709,  # Lehmer's pair, 0.038 apart
    44_555, 95_248, 415_587, 420_891, 1_115_578,
    8_546_950,  # 0.0023 apart, the closest pair among the first 20 million
    1_048_449_114,  # 0.00011 apart
])
def test_close_pairs_are_found_and_placed(first):
    assert_right(first - 2, 6)


@pytest.mark.parametrize("index", [2_657_710, 4_737_854, 8_537_305, 9_130_142, 11_249_805, 13_268_368, 19_703_416])
def test_zeros_within_5e_11_of_a_ten_thousandth_are_cut_on_the_right_side(index):
    assert_right(index, 1)


@pytest.mark.parametrize("gram_index", [126, 134, 195, 211, 232, 254, 1_181_229, 2_009_955, 3_637_897, 13_999_525])
def test_zeros_around_failures_of_grams_law_are_right(gram_index):
    assert_right(gram_index - 3, 8)


@pytest.mark.parametrize("m", [13, 14, 25, 60, 150, 300, 600, 900, 1200])
def test_zeros_on_both_sides_of_a_change_of_m_are_right(m):
    change = 2 * np.pi * m * m
    index = int(change / (2 * np.pi) * (np.log(change / (2 * np.pi)) - 1) + 7 / 8)
    assert_right(index - 5, 10)


@pytest.mark.parametrize("piece", [1, 2, 3, 100, 2000])
def test_zeros_on_both_sides_of_a_border_between_pieces_are_right(piece):
    assert_right(piece * zeta_zeros.PIECE - 3, 8)


@pytest.mark.parametrize(("count", "height"), [
    (75_000_000, 32_585_736.4),  # Brent 1979, in his abstract
    (1_500_000_001, 545_439_823.215),  # van de Lune, te Riele and Winter 1986, in theirs
])
def test_the_counts_of_zeros_that_others_published_come_out(count, height):
    below, above = computed(count, 2)
    assert below < height * UNIT < above


def test_rossers_rule_fails_at_gram_index_13999525_and_nowhere_before_in_its_piece():
    grid, n, g = zeta_zeros._good_gram_points(13_998_000, 13_999_600)
    offsets, slopes = grid.zeros()
    offsets, _ = grid.with_close_pairs(offsets, slopes, np.array([[g[0], g[-1]]]))
    failures = n[:-1][zeta_zeros._breaks_rule(offsets, n, g)]
    assert failures.tolist() == [13_999_525]


@given(first=st.integers(1, 12_000_000), cuts=st.lists(st.integers(0, 20_000), min_size=2, max_size=4))
@settings(max_examples=25, derandomize=True, deadline=None)
def test_any_range_is_the_concatenation_of_its_parts(first, cuts):
    cuts = sorted(cuts)
    whole = computed(first + cuts[0], cuts[-1] - cuts[0]) if cuts[0] < cuts[-1] else []
    parts = [value for a, b in zip(cuts[:-1], cuts[1:], strict=True) if a < b for value in computed(first + a, b - a)]
    assert parts == whole
    assert all(a < b for a, b in zip(whole[:-1], whole[1:], strict=True))


def test_indexes_go_with_the_values_in_order():
    seen = [(index, len(values)) for index, values in zeta_zeros.zeros(8000, 20_000)]
    assert seen[0][0] == 8000
    assert all(a + length == b for (a, length), (b, _) in zip(seen[:-1], seen[1:], strict=True))
    assert sum(length for _, length in seen) == 20_000


@pytest.mark.parametrize(("first", "count"), [(0, 3), (-5, 10), (1, -1), (zeta_zeros.LAST_INDEX, 2)])
def test_ranges_that_cannot_be_computed_are_refused_at_the_call(first, count):
    with pytest.raises(ValueError, match="known up to zero 10,000,000,000, at height 3,293,531,632"):
        zeta_zeros.zeros(first, count)


def lose_a_pair(monkeypatch, method):
    """Make a method of ZGrid that returns (offsets, slopes) lose two neighbouring zeros in the middle."""
    original = getattr(ZGrid, method)

    def without_a_pair(self, *arguments):
        offsets, slopes = original(self, *arguments)
        middle = len(offsets) // 2
        return np.delete(offsets, [middle, middle + 1]), np.delete(slopes, [middle, middle + 1])

    monkeypatch.setattr(ZGrid, method, without_a_pair)


def test_a_pair_that_the_scan_misses_is_noticed_and_found(monkeypatch):
    undisturbed = zeta_zeros._piece.__wrapped__(40)
    lose_a_pair(monkeypatch, "zeros")
    assert zeta_zeros._piece.__wrapped__(40) == undisturbed


def test_a_pair_that_cannot_be_found_is_an_error_that_names_the_indexes(monkeypatch):
    lose_a_pair(monkeypatch, "with_close_pairs")
    with pytest.raises(ArithmeticError, match=r"zeros 3276\d\d \.\.\. 3358\d\d: \d+ sign changes found instead of \d+"):
        zeta_zeros._piece.__wrapped__(40)


def test_an_anchor_needs_rossers_rule_on_both_sides():
    n, t = np.arange(1000, 1021), 1e6  # K = 3 there
    assert zeta_zeros._is_anchor(n, np.ones(20, dtype=bool), t).nonzero()[0].tolist() == list(range(3, 18))
    satisfied = np.ones(20, dtype=bool)
    satisfied[9] = False
    expected = [*range(3, 7), *range(13, 18)]
    assert zeta_zeros._is_anchor(n, satisfied, t).nonzero()[0].tolist() == expected


def test_too_few_zeros_in_a_block_and_a_wrong_parity_break_the_rule():
    n, g = np.array([5, 6, 8, 9, 10]), np.array([0.0, 1.0, 3.0, 4.0, 5.0])
    offsets = np.array([0.5, 1.1, 3.2, 3.4, 3.6, 4.2, 4.4])  # 1 of 1, 1 of 2, 3 of 1, 2 of 1
    assert zeta_zeros._breaks_rule(offsets, n, g).tolist() == [False, True, False, True]


def test_a_gram_point_where_the_grid_cannot_tell_the_sign_is_settled_at_high_precision(monkeypatch):
    _, undisturbed, _ = zeta_zeros._good_gram_points(120, 140)
    assert 126 not in undisturbed and 134 not in undisturbed  # the first failures of Gram's law
    monkeypatch.setattr(ZGrid, "Z", lambda self, offsets: np.full(len(offsets), 1e-13))
    _, settled, _ = zeta_zeros._good_gram_points(120, 140)
    assert settled.tolist() == undisturbed.tolist()


def test_a_sign_of_Z_that_float64_cannot_tell_is_settled_at_high_precision(monkeypatch):
    t, offset = np.array([14.0, 14.0, 11.0]), np.array([0.1347251417, 0.1347251418, 0.0])
    monkeypatch.setattr(zeta_zeros, "Z", lambda t, offset: np.full(len(t), 1e-14))
    assert zeta_zeros._sign_of_Z(t, offset).tolist() == [-1, 1, -1]


def test_zeros_where_Z_is_flat_are_placed_by_Z_itself():
    grid = ZGrid.over(4_316_700.0, 4_317_000.0)
    offsets, slopes = grid.with_close_pairs(*grid.zeros(), np.array([[20.0, 280.0]]))
    closest = np.diff(offsets).argmin()  # the zeros 8,546,950 and 8,546,951
    exact, slopes = offsets[closest:closest + 2].copy(), slopes[closest:closest + 2]
    placed, _ = zeta_zeros._certain(grid, exact + np.array([1e-7, -1e-7]), slopes)
    assert np.all(np.abs(placed - exact) < 2e-9)
    with pytest.raises(ArithmeticError, match="Z is too flat"):
        zeta_zeros._certain(grid, exact, -slopes)


def test_margins_without_an_anchor_are_widened_until_there_is_one(monkeypatch):
    undisturbed = zeta_zeros._piece.__wrapped__(30)
    monkeypatch.setattr(zeta_zeros, "_MARGINS", (1, 32))
    assert zeta_zeros._piece.__wrapped__(30) == undisturbed


def test_no_anchor_at_all_is_an_error_that_names_the_indexes(monkeypatch):
    monkeypatch.setattr(zeta_zeros, "_MARGINS", (1,))
    with pytest.raises(ArithmeticError, match="zeros 245761 ... 253952"):
        zeta_zeros._piece.__wrapped__(30)
