"""The zeros of zeta by index, in blocks, each with a proof that none is missing.

    >>> for index, values in zeros(11_000_000, 2):
    ...     print(index, [value / 2**FRACTION_BITS for value in values])
    11000000 [5453351.121974111, 5453351.523329037]

Zeros are the sign changes of Z. The number of zeros up to a height is known at certain Gram points, so a pair of zeros that
was too close to be seen at first is noticed, searched and found, and the index of every zero is proven:

A Gram point g_n is good if (-1)^n Z(g_n) > 0. Then N(g_n), the count of zeros up to it, is n + 1 plus an even number. A Gram
block, the stretch between neighbouring good Gram points g_n and g_{n+k}, satisfies Rosser's rule if it holds at least k zeros.
Turing's method in the form of R. P. Brent (On the zeros of the Riemann zeta function in the critical strip, Math. Comp. 33 (1979),
theorem 3.2; it rests on Lehman's bound for the integral of S(t), valid above 168 pi = 528): if K consecutive Gram blocks with
union [g_n, g_p) satisfy it, K >= 0.0061 log^2 g_p + 0.08 log g_p, then N(g_n) <= n + 1 and N(g_p) >= p + 1. So N(g_n) = n + 1 at a
good Gram point with K such blocks before it and K after it: an anchor. The theorem is applied to sign changes that were found,
which are zeros whatever else was missed. Between two anchors g_a and g_b there are b - a zeros. If as many sign changes are found,
these are all the zeros, simple and on the line, and the first of them has index a + 2. Nothing is assumed of Rosser's rule
elsewhere: it fails now and then, first at Gram index 13,999,525. Up to the first Gram point, g_{-1} = 9.67, there are no zeros.
"""

from functools import lru_cache

import mpmath
import numpy as np

from zeta.riemann_siegel import Z, error_bound, gram_offsets, gram_point, smooth_zeros
from zeta.z_grid import ZGrid

VERSION = 1  # of the method; a change that may change a decimal of the four raises it, and stored zeros are fetched again
LAST_INDEX = 10_000_000_000  # heights are to stay below 2^32, see riemann_siegel
RANGE = f"known up to zero {LAST_INDEX:,}, at height {smooth_zeros(LAST_INDEX):,.0f}"
FRACTION_BITS = 36  # values are whole multiples of 2^-36 = 1.5e-11
PIECE = 8192  # zeros computed at a time: many enough for numpy, few enough for a quick answer to a small request
_MARGINS = (32, 128, 512)  # Gram points on either side of a piece among which anchors are searched, one after the other
_NEAR = 2.0**-28  # 3.7e-9: the sign of Z decides on which side of a multiple of 1e-4 a zero this near to it lies
_POSITION_ERROR = 2e-9  # largest error of a zero's position before that


def zeros(first_index, count):
    """Yield (index, values) in order: the zeros with indexes index, index + 1, ... as a tuple of ints, in units of 2^-36.

    A value is within 1e-8 of its zero, is odd, and its first four decimals are those of the zero (below height 2^25, so are those
    of the nearest float64). Memory: one block of at most PIECE zeros, and tables that grow with the square root of the height; a
    process that computes zeros near 10^10 takes 0.3 GB. Raises ValueError for indexes out of range, and ArithmeticError, naming the
    indexes, if the number of zeros found is not the proven one.
    """
    if first_index < 1 or count < 0 or first_index + count - 1 > LAST_INDEX:
        raise ValueError(RANGE)
    return _blocks(first_index, first_index + count)


def _blocks(index, end):
    while index < end:
        piece, skip = divmod(index - 1, PIECE)
        values = _piece(piece)[skip:skip + end - index]
        yield index, values
        index += len(values)


@lru_cache(maxsize=1)
def _piece(number):
    """The zeros number * PIECE + 1 ... (number + 1) * PIECE, always computed together: no value depends on the requested range."""
    first, last = number * PIECE + 1, (number + 1) * PIECE
    for margin in _MARGINS:
        grid, n, g = _good_gram_points(max(first - 2 - margin, -1), last - 1 + margin)
        found = _between_anchors(grid, n, g, first, last)
        if found is not None:
            return _fixed_point(grid.start, *_certain(grid, *found))
    raise ArithmeticError(f"zeros {first} ... {last}: no Gram points with a proven count of zeros around them")


def _good_gram_points(lowest, highest):
    """Return a grid over the Gram points lowest ... highest, and of the good ones the indexes and offsets in the grid."""
    n = np.arange(lowest, highest + 1)
    g = gram_point(n)
    grid = ZGrid.over(g[0], g[-1])
    offsets = gram_offsets(grid.start, n, g - grid.start)
    signed = np.where(n % 2 == 0, 1, -1) * grid.Z(offsets)
    good = signed > 0
    # |Z'| is below 2 sum n^(-1/2) log(m / n) < 8 m^(1/2). If |Z| is within the error that those of Gram point and grid allow, its
    # sign is computed at high precision.
    doubt = 8 * (g / (2 * np.pi)) ** 0.25 * 2e-12 + grid.error_bound(offsets)
    with mpmath.workdps(40):
        for k in np.flatnonzero(np.abs(signed) <= doubt):
            good[k] = (-1) ** int(n[k]) * mpmath.siegelz(mpmath.grampoint(int(n[k]))) > 0
    return grid, n[good], offsets[good]


def _between_anchors(grid, n, g, first, last):
    """Return (offsets, slopes) of the zeros first ... last; None if the good Gram points around them hold no anchors."""
    found = grid.zeros()
    broken = np.flatnonzero(_breaks_rule(found[0], n, g))
    for ranges in (np.stack([g[broken], g[broken + 1]], axis=1), np.array([[g[0], g[-1]]])):
        if len(ranges):
            found = grid.with_close_pairs(*found, ranges)
        known = _is_anchor(n, ~_breaks_rule(found[0], n, g), grid.start + g[-1])
        below, above = np.flatnonzero(known & (n <= first - 2)), np.flatnonzero(known & (n >= last - 1))
        if not len(below) or not len(above):
            continue
        a, b = below[-1], above[0]
        begin, end = np.searchsorted(found[0], g[[a, b]])
        if end - begin == n[b] - n[a]:
            wanted = slice(begin + first - (n[a] + 2), begin + last + 1 - (n[a] + 2))
            return tuple(part[wanted] for part in found)
    if len(below) and len(above):
        raise ArithmeticError(f"zeros {n[a] + 2} ... {n[b] + 1}: {end - begin} sign changes found instead of {n[b] - n[a]}")
    return None


def _breaks_rule(offsets, n, g):
    """Return which stretches between neighbouring good Gram points hold fewer zeros than Rosser demands, or have a wrong parity."""
    excess = np.diff(np.searchsorted(offsets, g)) - np.diff(n)
    return (excess < 0) | (excess % 2 != 0)  # odd: a zero so near to a Gram point that it was counted on its wrong side


def _is_anchor(n, satisfied, t):
    """Return which good Gram points n, up to height t, have a proven count. satisfied[j]: the rule holds from n[j] to n[j + 1]."""
    K = int(np.ceil(0.0061 * np.log(t) ** 2 + 0.08 * np.log(t)))
    run = np.lib.stride_tricks.sliding_window_view(satisfied, K).all(axis=1)  # run[j]: it holds from j up to j + K
    known = np.zeros(len(n), dtype=bool)
    known[K:len(run)] = run[:-K] & run[K:]
    known[0] |= n[0] == -1
    return known


def _sign_of_Z(t, offset):
    """Return the proven sign of Z(t + offset) for float64 arrays: by float64 if that is enough, else by mpmath."""
    values = Z(t, offset)
    signs = np.sign(values)
    with mpmath.workdps(40):
        for k in np.flatnonzero(np.abs(values) <= error_bound(t)):
            signs[k] = int(mpmath.sign(mpmath.siegelz(mpmath.mpf(float(t[k])) + mpmath.mpf(float(offset[k])))))
    return signs


def _certain(grid, offsets, slopes):
    """Return (offsets, slopes) with every offset right to _POSITION_ERROR.

    If Z is so flat that the grid's error may have moved a zero further, steps on Z itself follow, and Z must change its
    sign around the result.
    """
    flat = np.flatnonzero(grid.error_bound(offsets) > _POSITION_ERROR / 2 * np.abs(slopes))
    if len(flat):
        start = np.full(len(flat), float(grid.start))
        for _ in range(3):
            offsets[flat] -= Z(start, offsets[flat]) / slopes[flat]
        rising = np.sign(slopes[flat])
        before, after = (_sign_of_Z(start, offsets[flat] + step) for step in (-_POSITION_ERROR, _POSITION_ERROR))
        uncertain = flat[(before != -rising) | (after != rising)]
        if len(uncertain):
            raise ArithmeticError(f"zeros near {grid.start + offsets[uncertain]}: Z is too flat to place them")
    return offsets, slopes


def _fixed_point(start, offsets, slopes):
    """Return the zeros at start + offsets in units of 2^-36, each on its side of every multiple of 1e-4, _NEAR or more from it."""
    boundary = np.rint(offsets * 1e4)
    near = np.flatnonzero(np.abs(offsets - boundary * 1e-4) < _NEAR + _POSITION_ERROR)
    if len(near):
        whole, ten_thousandths = np.divmod(boundary[near], 10_000)
        # right of a zero Z has the sign of its slope
        zero_is_below = _sign_of_Z(start + whole, ten_thousandths / 10_000) == np.sign(slopes[near])
        offsets[near] = boundary[near] * 1e-4 + np.where(zero_is_below, -_NEAR, _NEAR)
    base = start << FRACTION_BITS  # from height 2^27 on more than an int64 holds
    return tuple(base + offset for offset in (np.rint(offsets * 2**FRACTION_BITS).astype(np.int64) | 1).tolist())
