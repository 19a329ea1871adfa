"""Claims about interpolation of Z and about its sign changes."""

import numpy as np
import pytest

from zeta import z_grid
from zeta.riemann_siegel import Z


def test_the_polynomial_of_a_cell_fits_every_frequency_of_Z_to_the_stated_error():
    taps = np.arange(-z_grid._TAPS, z_grid._TAPS) + 0.5
    x = np.linspace(-0.5, 0.5, 101)
    w = np.linspace(0, np.pi / z_grid._OVERSAMPLING, 500)
    coefficients = z_grid._cell_matrix().T @ np.exp(1j * taps[:, None] * w)
    fitted = np.vander(x, z_grid._DEGREE + 1, increasing=True) @ coefficients
    assert np.abs(fitted - np.exp(1j * x[:, None] * w)).max() < z_grid._INTERPOLATION_ERROR


@pytest.mark.parametrize("low", [10.0, 990.0, 6990.0, 500_000.0, 9_400_000.0, 3e9])
def test_interpolated_Z_is_within_its_error_bound(low):
    grid = z_grid.ZGrid.over(low, low + 40)
    offsets = np.random.default_rng(3).uniform(low, low + 40, 1000) - grid.start
    assert np.all(np.abs(grid.Z(offsets) - Z(float(grid.start), offsets)) < grid.error_bound(offsets))


def test_roots_are_found_where_newton_alone_would_leave_the_bracket():
    coefficients = np.array([[-1e-9, 0.0, 0.0, 1.0], [0.3, -1.0, 0.0, 0.0]]).T  # x^3 = 1e-9, and a straight line
    roots, slopes = z_grid._roots(coefficients, np.full(2, -0.5), np.full(2, 0.5))
    assert np.allclose(roots, [1e-3, 0.3], rtol=1e-9)
    assert np.allclose(slopes, [3e-6, -1], rtol=1e-5)


def test_a_pair_within_one_cell_is_seen_only_by_looking_closely():
    # the zeros 8,546,950 and 8,546,951 are 0.0023 apart, the mean distance is 0.47
    grid = z_grid.ZGrid.over(4_316_700.0, 4_317_000.0)
    pair = np.array([4_316_832.467101, 4_316_832.469425]) - grid.start
    offsets, slopes = grid.zeros()
    assert np.abs(offsets - pair[:, None]).min() > 0.01
    close_offsets, close_slopes = grid.with_close_pairs(offsets, slopes, np.array([[20.0, 280.0]]))
    assert np.all(np.abs(close_offsets - pair[:, None]).min(axis=1) < 1e-5)
    assert np.all(np.diff(close_offsets) > 0)
    assert np.all(close_slopes[1:] * close_slopes[:-1] < 0)
    assert np.all(np.abs(Z(float(grid.start), close_offsets)) < 1e-9)


def test_looking_closely_again_finds_the_same_zeros():
    grid = z_grid.ZGrid.over(5000.0, 5400.0)
    ranges = np.array([[20.0, 100.0], [150.0, 151.0], [151.0, 380.0]])
    once = grid.with_close_pairs(*grid.zeros(), ranges)
    twice = grid.with_close_pairs(*once, ranges)
    assert np.array_equal(once[0], twice[0])
