"""The zeros of zeta by index, in blocks, each with a proof that none is missing.

    >>> for first_index, values in zeros(11_000_000, 2):
    ...     print(first_index, values / 2**FRACTION_BITS)

Zeros are the sign changes of Z. How many there are up to a height is known at certain Gram points, so that a pair of zeros
too close to be seen at first is noticed, looked for and found, and every zero has its index for certain:

A Gram point g_n is good where (-1)^n Z(g_n) > 0. Then N(g_n), the count of zeros up to it, is n + 1 plus an even number. A
Gram block, the stretch between neighbouring good Gram points g_n and g_{n+k}, satisfies Rosser's rule if it holds at least
k zeros. Turing's method in Brent's form (R. P. Brent, On the zeros of the Riemann zeta function in the critical strip, Math.
Comp. 33 (1979), theorem 3.2; it rests on Lehman's bound for the integral of S(t), valid above 168 pi = 528): if K
consecutive Gram blocks with union [g_n, g_p) satisfy the rule, and K >= 0.0061 log^2 g_p + 0.08 log g_p, then
N(g_n) <= n + 1 and N(g_p) >= p + 1. So at a good Gram point with K such blocks before it and K behind it, N(g_n) = n + 1:
an anchor. All that the theorem is given are sign changes that were found, which are zeros whatever else was missed. Between
two anchors g_a and g_b there are exactly b - a zeros; when as many sign changes are found, they are all the zeros, simple
and on the line, and the first of them has index a + 2. Nothing is assumed about Rosser's rule elsewhere, which fails now
and then (first at Gram index 13,999,525). Below the first Gram point, g_{-1} = 9.67, there are no zeros.
"""

from dataclasses import dataclass
from functools import lru_cache

import mpmath
import numpy as np

from riemann_siegel import Z, Z_grid, error_bound, gram_point

LAST_INDEX = 100_000_000  # up to here float64 tells Gram points from zeros well enough
FRACTION_BITS = 36  # values are whole multiples of 2^-36 = 1.5e-11
PIECE = 8192  # zeros computed at a time: many enough for numpy, few enough for a quick answer to a small request
_MARGINS = (32, 128, 512)  # Gram points computed on either side of a piece, to find anchors; 32 is nearly always enough
_OVERSAMPLING = 4  # grid points to a mean distance between zeros
_TAPS = 8  # grid points used on either side of a cell for interpolation
_DEGREE = 10  # of the polynomial for a cell
_NEAR = 2.0**-28  # 3.7e-9: a zero this near to a ten-thousandth is put on the right side of it by the sign of Z there
_INTERPOLATION_ERROR = 1e-11  # relative to the sum of the sizes of Z's terms


def zeros(first_index, count):
    """Yield (index, values) in order: int64 values of the zeros with indexes index, index + 1, ... in units of 2^-36.

    A value is within 1e-8 of its zero, is odd, and its four first decimals are those of the zero (so are those of the
    nearest float64). Takes memory for one block of at most PIECE zeros. Raises ArithmeticError naming the indexes if a
    count does not come out.
    """
    if first_index < 1 or count < 0 or first_index + count - 1 > LAST_INDEX:
        raise ValueError(f"zeros {first_index} ... {first_index + count - 1}: only 1 ... {LAST_INDEX} can be computed")
    end = first_index + count
    while first_index < end:
        piece, skip = divmod(first_index - 1, PIECE)
        values = _piece(piece)[skip:skip + end - first_index]
        yield first_index, values
        first_index += len(values)


@lru_cache(maxsize=1)
def _piece(number):
    """The zeros with indexes number * PIECE + 1 ... (number + 1) * PIECE.

    Always computed as a whole, so a zero has the same value whatever range it is asked for in.
    """
    first, last = number * PIECE + 1, (number + 1) * PIECE
    for margin in _MARGINS:
        found = _between_anchors(first, last, margin)
        if found is not None:
            return _truncation_safe(*found)
    raise ArithmeticError(f"zeros {first} ... {last}: no Gram points with a known count of zeros around them")


# Counting


def _between_anchors(first, last, margin):
    """The zeros with indexes first ... last as (start, offsets, slopes), or None if the margin holds no anchors.

    slopes are those of Z at the zeros.
    """
    n = np.arange(max(first - 2 - margin, -1), last + margin)
    g = gram_point(n)
    grid = Grid.over(g[0], g[-1])
    g -= grid.start
    good = np.flatnonzero(_is_good(n, g, grid))
    n, g = n[good], g[good]
    offsets, slopes = grid.zeros()
    short = np.diff(np.searchsorted(offsets, g)) < np.diff(n)
    for block in np.flatnonzero(short):
        offsets, slopes = _replace(offsets, slopes, *grid.zeros_looked_for_closely(g[block], g[block + 1]))
    known = _is_anchor(n, np.diff(np.searchsorted(offsets, g)) >= np.diff(n), grid.start + g[-1])
    lower, upper = np.flatnonzero(known & (n <= first - 2)), np.flatnonzero(known & (n >= last - 1))
    if not len(lower) or not len(upper):
        return None
    a, b = lower[-1], upper[0]
    if np.diff(np.searchsorted(offsets, g[[a, b]])) < n[b] - n[a]:
        offsets, slopes = _replace(offsets, slopes, *grid.zeros_looked_for_closely(g[a], g[b]))
    begin, end = np.searchsorted(offsets, g[[a, b]])
    if end - begin != n[b] - n[a]:
        raise ArithmeticError(f"zeros {n[a] + 2} ... {n[b] + 1}: {n[b] - n[a]} zeros, but {end - begin} sign changes found")
    wanted = slice(begin + first - (n[a] + 2), begin + last + 1 - (n[a] + 2))
    return grid.start, offsets[wanted], slopes[wanted]


def _is_good(n, g, grid):
    """Whether (-1)^n Z(g_n) > 0, for Gram points given as offsets in a grid."""
    # A Gram point is right to a few units in the last place, and |Z'| stays below 8 sqrt(m); where Z is nearer to zero than
    # that explains, its sign is settled at high precision.
    signed = np.where(n % 2 == 0, 1, -1) * grid.Z(g)
    t = grid.start + g
    doubt = 8 * (t / (2 * np.pi)) ** 0.25 * 4 * np.spacing(t) + grid.error_bound(g)
    good = signed > 0
    for k in np.flatnonzero(np.abs(signed) <= doubt):
        with mpmath.workdps(40):
            good[k] = (-1) ** int(n[k]) * mpmath.siegelz(mpmath.grampoint(int(n[k]))) > 0
    return good


def _is_anchor(n, satisfied, t):
    """Which good Gram points, of indexes n, have a proven count; satisfied[j]: Rosser's rule holds between j and j + 1."""
    K = int(np.ceil(0.0061 * np.log(t) ** 2 + 0.08 * np.log(t)))
    run = np.lib.stride_tricks.sliding_window_view(satisfied, K).all(axis=1)  # run[j]: it holds from j up to j + K
    known = np.zeros(len(n), dtype=bool)
    known[K:len(run)] = run[:-K] & run[K:]
    known[0] |= n[0] == -1
    return known


def _replace(offsets, slopes, low, high, new_offsets, new_slopes):
    """offsets and slopes with those between low and high replaced by new ones."""
    a, b = np.searchsorted(offsets, [low, high])
    return np.concatenate([offsets[:a], new_offsets, offsets[b:]]), np.concatenate([slopes[:a], new_slopes, slopes[b:]])


# Finding


@lru_cache(maxsize=1)
def _cell_matrix():
    """The matrix (2 TAPS, DEGREE + 1) from values at -TAPS + 1/2 ... TAPS - 1/2 to a polynomial's coefficients on [-1/2, 1/2].

    It fits waves exp(i w x) best, in the sense of least squares, for |w| <= pi / OVERSAMPLING: the frequencies of Z. For
    those it errs by less than 5e-12.
    """
    x = np.cos(np.pi * (np.arange(_DEGREE + 1) + 0.5) / (_DEGREE + 1)) / 2
    w = (np.polynomial.legendre.leggauss(60)[0] + 1) / 2 * np.pi / _OVERSAMPLING
    taps = np.arange(-_TAPS, _TAPS) + 0.5
    at_taps = np.concatenate([np.cos(w[:, None] * taps), np.sin(w[:, None] * taps)])
    at_x = np.concatenate([np.cos(w[:, None] * x), np.sin(w[:, None] * x)])
    weights = np.linalg.lstsq(at_taps, at_x, rcond=1e-13)[0]
    return np.linalg.solve(np.vander(x, increasing=True), weights.T).T


def _horner(coefficients, x):
    """Values and derivatives at x of polynomials: coefficients (powers, ...), x (...)."""
    value, slope = coefficients[-1], np.zeros_like(x)
    for c in coefficients[-2::-1]:
        slope = slope * x + value
        value = value * x + c
    return value, slope


def _roots(coefficients, left, right):
    """The root of each polynomial between left and right, where its signs differ: Newton's steps, kept in the bracket."""
    left, right = left.copy(), right.copy()
    low, high = _horner(coefficients, left)[0], _horner(coefficients, right)[0]
    rising = low < high
    x = left - low * (right - left) / (high - low)
    active = np.arange(len(x))
    for _ in range(100):
        value, slope = _horner(coefficients[:, active], x[active])
        below = (value < 0) == rising[active]
        left[active] = np.where(below, x[active], left[active])
        right[active] = np.where(below, right[active], x[active])
        with np.errstate(divide="ignore", invalid="ignore"):
            newton = x[active] - value / slope
        inside = (newton >= left[active]) & (newton <= right[active])
        following = np.where(inside, newton, (left[active] + right[active]) / 2)
        moved = np.abs(following - x[active]) > 1e-12
        x[active] = following
        active = active[moved]
        if not len(active):
            break
    return x


@dataclass
class Grid:
    """Z at start + (j + 1/2) step for j = 0, 1, ..., and between by interpolation. All heights are offsets from start.

    The cell between points j and j + 1 has a polynomial in x = offset / step - (j + 1), in [-1/2, 1/2].
    """

    start: int
    step: float
    values: np.ndarray

    @classmethod
    def over(cls, low, high):
        """A grid that can be interpolated from low to high."""
        margin = (_TAPS + 1) / _OVERSAMPLING * 2 * np.pi / np.log(low / (2 * np.pi))
        return cls(*Z_grid(max(low - margin, 8.0), high + margin, _OVERSAMPLING))

    def error_bound(self, offsets):
        """A bound for |error| of the interpolated Z: that of its values and that of interpolation."""
        t = self.start + offsets
        return 3 * error_bound(t) + _INTERPOLATION_ERROR * 4 * (t / (2 * np.pi)) ** 0.25

    def _polynomials(self, cells):
        """Coefficients (DEGREE + 1, cells), from the constant term on."""
        windows = np.lib.stride_tricks.sliding_window_view(self.values, 2 * _TAPS)
        return np.ascontiguousarray((windows[cells - (_TAPS - 1)] @ _cell_matrix()).T)

    def Z(self, offsets):
        """Z at offsets, interpolated."""
        cells = np.rint(offsets / self.step).astype(np.int64) - 1
        return _horner(self._polynomials(cells), offsets / self.step - (cells + 1))[0]

    def zeros(self):
        """Offsets of the zeros in cells at whose ends Z has different signs, and the slopes there."""
        negative = self.values < 0
        cells = np.flatnonzero(negative[1:] != negative[:-1])
        cells = cells[(cells >= _TAPS - 1) & (cells < len(self.values) - _TAPS)]
        half = np.full(len(cells), 0.5)
        return self._zeros_between(cells, -half, half)

    def _zeros_between(self, cells, left, right):
        polynomials = self._polynomials(cells)
        x = _roots(polynomials, left, right)
        return (cells + 1 + x) * self.step, _horner(polynomials, x)[1] / self.step

    def zeros_looked_for_closely(self, low, high):
        """The zeros between two offsets with the pairs that lie within a cell: (low, high, offsets, slopes).

        Between points of one sign a pair of zeros shows at the extremum that points towards zero.
        """
        first, last = int(low / self.step) - 1, int(high / self.step)
        cells = np.repeat(np.arange(first, last + 1), 16)
        x = np.tile((np.arange(16) + 0.5) / 16 - 0.5, last + 1 - first)
        polynomials = self._polynomials(cells)
        value, slope = _horner(polynomials, x)
        towards_zero = value * slope < 0
        dips = np.flatnonzero(towards_zero[:-1] & ~towards_zero[1:] & (value[:-1] * value[1:] > 0))
        derivatives = polynomials[1:, dips] * np.arange(1, _DEGREE + 1)[:, None]
        bottom = np.clip(_roots(derivatives, x[dips], x[dips] + 1 / 16), -0.5, 0.5)
        cells, x = np.append(cells, cells[dips]), np.append(x, bottom)
        value = np.append(value, _horner(polynomials[:, dips], bottom)[0])
        order = np.argsort(cells + x, kind="stable")
        cells, x, value = cells[order], x[order], value[order]
        change = np.flatnonzero((value[:-1] < 0) != (value[1:] < 0))
        left = x[change]
        right = x[change + 1] + (cells[change + 1] - cells[change])
        offsets, slopes = self._zeros_between(cells[change], left, right)
        inside = (offsets >= low) & (offsets < high)
        return low, high, offsets[inside], slopes[inside]


# Four decimals


def _sign_of_Z(t, offset):
    """The sign of Z(t + offset), for certain, for float64 arrays: by float64 where that is enough, else by mpmath."""
    values = Z(t, offset)
    signs = np.sign(values)
    for k in np.flatnonzero(np.abs(values) <= error_bound(t)):
        with mpmath.workdps(40):
            signs[k] = int(mpmath.sign(mpmath.siegelz(mpmath.mpf(float(t[k])) + mpmath.mpf(float(offset[k])))))
    return signs


def _truncation_safe(start, offsets, slopes):
    """Zeros at start + offsets in units of 2^-36, each on its own side of every multiple of 1e-4 and at least NEAR from it."""
    boundary = np.rint(offsets * 1e4)
    near = np.flatnonzero(np.abs(offsets - boundary * 1e-4) < _NEAR * 1.1)
    if len(near):
        whole, tenthousandths = np.divmod(boundary[near], 10_000)
        # Z has the sign of its slope behind the zero
        behind = _sign_of_Z(start + whole, tenthousandths / 10_000) == np.sign(slopes[near])
        offsets[near] = boundary[near] * 1e-4 + np.where(behind, -_NEAR, _NEAR)
    fraction = np.int64(1) << FRACTION_BITS
    return start * fraction + np.rint(offsets * fraction).astype(np.int64) | 1
