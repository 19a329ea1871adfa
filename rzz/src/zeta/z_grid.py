"""Z between the points of a uniform grid, and its sign changes.

    >>> grid = ZGrid.over(1000.0, 1010.0)
    >>> offsets, slopes = grid.zeros()
    >>> grid.start + offsets[:3]
    array([993.21458096, 994.40459057, 996.20533616])

All heights here are offsets from the grid's start, a whole number: at 10^7 a float64 height would be good to 1e-9 only.
A grid extends somewhat beyond the heights it was made for, and so do the zeros found on it.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.polynomial.polynomial import polyval

from zeta.riemann_siegel import Z_grid, error_bound

_OVERSAMPLING = 4  # grid points to a mean distance between zeros
_TAPS = 9  # points on either side of a cell that interpolation uses
_DEGREE = 11  # of the polynomial for a cell
_INTERPOLATION_ERROR = 4e-13  # relative to the sum of the sizes of Z's terms; test_z_grid.py holds it to this
_CELLS_AT_ONCE = 1024  # in a matrix product, few enough that the BLAS starts no threads
_LAST_STEP = 1e-9  # of Newton's method, in cells; the next one would be of the size of its square
_PARTS = 16  # subintervals of a cell in which close pairs of zeros are searched


@lru_cache(maxsize=1)
def _cell_matrix():
    """The matrix (2 TAPS, DEGREE + 1) from values at -TAPS + 1/2 ... TAPS - 1/2 to a polynomial on [-1/2, 1/2]."""
    # the least-squares fit to the waves exp(i w x) with |w| <= pi / OVERSAMPLING, the frequencies of Z
    x = np.cos(np.pi * (np.arange(_DEGREE + 1) + 0.5) / (_DEGREE + 1)) / 2
    w = (np.polynomial.legendre.leggauss(60)[0] + 1) / 2 * np.pi / _OVERSAMPLING
    taps = np.arange(-_TAPS, _TAPS) + 0.5
    at_taps = np.concatenate([np.cos(w[:, None] * taps), np.sin(w[:, None] * taps)])
    at_x = np.concatenate([np.cos(w[:, None] * x), np.sin(w[:, None] * x)])
    weights = np.linalg.lstsq(at_taps, at_x, rcond=1e-13)[0]
    return np.linalg.solve(np.vander(x, increasing=True), weights.T).T


def _horner(coefficients, x):
    """Values and derivatives at x of polynomials: coefficients (powers, ...), x (...), broadcast."""
    value = np.array(np.broadcast_arrays(coefficients[-1], x)[0])
    slope = np.zeros_like(value)
    for c in coefficients[-2::-1]:  # in place, which halves the time
        slope *= x
        slope += value
        value *= x
        value += c
    return value, slope


def _roots(coefficients, left, right):
    """Return (x, slopes): the root of each polynomial (powers, n) between left and right, at which its signs differ, and its slope.

    By bracketed Newton steps from the secant's root on.
    """
    low, high = polyval(left, coefficients, tensor=False), polyval(right, coefficients, tensor=False)
    rising = low < high
    x = left - low * (right - left) / (high - low)
    roots, slopes, index = np.empty(len(x)), np.empty(len(x)), np.arange(len(x))
    for _ in range(100):
        value, slope = _horner(coefficients, x)
        below = (value < 0) == rising
        left, right = np.where(below, x, left), np.where(below, right, x)
        with np.errstate(divide="ignore", invalid="ignore"):
            newton = x - value / slope
        following = np.where((newton >= left) & (newton <= right), newton, (left + right) / 2)
        moved = np.abs(following - x) > _LAST_STEP
        roots[index], slopes[index], x = following, slope, following
        if 2 * np.count_nonzero(moved) < len(moved):  # before that, going on with all of them is faster
            index, x, left, right, rising = (part[moved] for part in (index, x, left, right, rising))
            coefficients = coefficients[:, moved]
        if not len(index):
            break
    return roots, slopes


@dataclass
class ZGrid:
    """Z at offsets (j + 1/2) step from start, for j = 0, 1, ...

    The cell between points j and j + 1 has a polynomial in x = offset / step - (j + 1), from -1/2 to 1/2.
    """

    start: int
    step: float
    values: np.ndarray

    @classmethod
    def over(cls, low, high):
        """Return a grid that covers the heights from low >= 9.6 to high and has the points that interpolation there needs."""
        margin = (_TAPS + 1) / _OVERSAMPLING * 2 * np.pi / np.log(low / (2 * np.pi))
        return cls(*Z_grid(max(low - margin, 8.0), high + margin, _OVERSAMPLING))

    def Z(self, offsets):
        """Return Z at `offsets`, interpolated: float64 of their shape."""
        cells = self._cell(offsets)
        return polyval(offsets / self.step - (cells + 1), self._polynomials(cells), tensor=False)

    def error_bound(self, offsets):
        """Return a bound on the |error| of Z(offsets)."""
        t = self.start + offsets
        # rows of the grid extend beyond the heights of their m, hence the 3
        return _INTERPOLATION_ERROR * 4 * (t / (2 * np.pi)) ** 0.25 + 3 * error_bound(t)

    def zeros(self):
        """Return (offsets, slopes): the zeros in cells whose ends have different signs, and Z' there."""
        negative = self.values < 0
        cells = np.flatnonzero(negative[1:] != negative[:-1])
        cells = cells[(cells >= _TAPS - 1) & (cells < len(self.values) - _TAPS)]
        return self._zeros_between(cells, np.full(len(cells), -0.5), np.full(len(cells), 0.5))

    def with_close_pairs(self, offsets, slopes, ranges):
        """Return (offsets, slopes) of zeros, those between each (low, high) of `ranges` searched again more closely."""
        first, last = self._cell(ranges.T)
        cells = np.unique(np.concatenate([np.arange(a, b + 1) for a, b in zip(first, last, strict=True)]))
        polynomials = self._polynomials(cells)[:, :, None]
        edges = np.broadcast_to(np.linspace(-0.5, 0.5, _PARTS + 1), (len(cells), _PARTS + 1))
        values, slopes_at_edges = _horner(polynomials, edges)
        values[:, 0], values[:, -1] = self.values[cells], self.values[cells + 1]
        # two zeros in a cell show as an extremum of Z that points towards zero and lies beyond it
        falling = values * slopes_at_edges < 0  # |Z| falls
        cell, part = np.nonzero(falling[:, :-1] & ~falling[:, 1:] & (values[:, :-1] * values[:, 1:] > 0))
        derivatives = polynomials[1:, cell, 0] * np.arange(1, _DEGREE + 1)[:, None]
        bottoms, _ = _roots(derivatives, edges[cell, part], edges[cell, part + 1])
        crossed = polyval(bottoms, polynomials[:, cell, 0], tensor=False) * values[cell, part] < 0
        cell, part, bottoms = cell[crossed], part[crossed], bottoms[crossed]
        single, single_part = np.nonzero((values[:, :-1] < 0) != (values[:, 1:] < 0))
        found, found_slopes = self._zeros_between(
            cells[np.concatenate([single, cell, cell])],
            np.concatenate([edges[single, single_part], edges[cell, part], bottoms]),
            np.concatenate([edges[single, single_part + 1], bottoms, edges[cell, part + 1]]))
        kept = ~np.isin(self._cell(offsets), cells)
        offsets, slopes = np.append(offsets[kept], found), np.append(slopes[kept], found_slopes)
        order = np.argsort(offsets)
        return offsets[order], slopes[order]

    def _cell(self, offsets):
        return np.rint(offsets / self.step).astype(np.int64) - 1

    def _polynomials(self, cells):
        """Return coefficients (DEGREE + 1, cells), the constant term first."""
        windows = np.lib.stride_tricks.sliding_window_view(self.values, 2 * _TAPS)
        coefficients = np.empty((_DEGREE + 1, len(cells)))
        for k in range(0, len(cells), _CELLS_AT_ONCE):
            part = slice(k, k + _CELLS_AT_ONCE)
            coefficients[:, part] = (windows[cells[part] - (_TAPS - 1)] @ _cell_matrix()).T
        return coefficients

    def _zeros_between(self, cells, left, right):
        x, slopes = _roots(self._polynomials(cells), left, right)
        return (cells + 1 + x) * self.step, slopes / self.step
