"""The Riemann-Siegel functions on the critical line, vectorised in float64: theta, Z, Gram points, the smooth count.

    >>> smooth_zeros(np.array([1, 10, 11_000_000]))
    array([1.45179196e+01, 5.02332544e+01, 5.45335115e+06])
    >>> Z(np.array([14.0, 14.2, 5453351.25]))
    array([-0.10562627,  0.05204527, -1.51888901])

Z(t) = exp(i theta(t)) zeta(1/2 + it) is real, and its real zeros are those of zeta on the critical line. From t = 1000
on it is computed with the Riemann-Siegel formula (Edwards, Riemann's Zeta Function, chapter 7),

    Z(t) = 2 sum_{n <= m} n^(-1/2) cos(theta(t) - t log n) + (-1)^(m-1) tau^(-1/2) sum_{k <= 4} C_k(p) tau^(-k),

tau = sqrt(t / 2 pi), m its integer part and p its fraction; below, it is Euler-Maclaurin summation of zeta.

A phase t log n has up to 10^11 radians, of which float64 keeps five digits after the point. So a height is always a
whole number below 2^32 plus an offset, and the whole number's phase is taken modulo a turn in 64-bit integers, without loss.
"""

from functools import cache, lru_cache

import mpmath
import numpy as np

RIEMANN_SIEGEL_START = 1000.0  # Gabcke's bound for the truncated formula is 1e-10 here, and Euler-Maclaurin becomes expensive
_BERNOULLI = [float(mpmath.bernoulli(2 * k)) for k in range(1, 21)]
_THETA_SERIES = [(1 - 2.0 ** (1 - 2 * k)) * abs(b) / (4 * k * (2 * k - 1)) for k, b in enumerate(_BERNOULLI[:10], 1)]
_BLOCK, _BLOCK_TERMS = 32, 128  # rows or columns, and terms, of the matrix products in _product
_REMAINDER_TERMS = 48  # powers of y that count where |y| < 0.56: the next are below 1e-18
_POINTS_AT_ONCE = 1 << 20  # terms of the main sum held in memory together: 16 MB of float64 pairs


def theta(t):
    """Riemann-Siegel theta function, arg Gamma(1/4 + it/2) - t/2 log pi, for an array of t >= 5.

    Stirling's series, theta(t) ~ t/2 log(t/2 pi e) - pi/8 + sum_k (1 - 2^(1-2k)) |B_2k| / (4k (2k-1)) t^(1-2k) (Edwards
    6.5), with ten terms and the exponentially small arctan(exp(-pi t))/2 that it leaves out (Gabcke 1979). Against
    mpmath.siegeltheta: 3e-14 off at t = 5, float64 rounding (relative 4e-16) from t = 6 on.
    """
    t = np.asarray(t, dtype=np.float64)
    main = t / 2 * (np.log(t / (2 * np.pi)) - 1) - np.pi / 8
    return main + _theta_tail(t) + np.arctan(np.exp(-np.pi * t)) / 2


def _theta_tail(t):
    """The part of theta's series that tends to 0 as t grows."""
    return np.polynomial.polynomial.polyval(1 / (t * t), _THETA_SERIES) / t


def gram_point(n):
    """Return the Gram points g_n, the t > 2 pi with theta(t) = n pi, as float64 for an array of n >= -1, whole or not."""
    n = np.asarray(n, dtype=np.float64)
    # With q = t / 2 pi and the first terms of theta this is q (log q - 1) = x; Newton's step for that is
    # q <- (q + x) / log q, which converges from the right of the root without overshooting.
    x = n + 1 / 8
    q = np.maximum(3.0, (x + 3) / np.log(np.log(x + 4) + 1.2))
    for _ in range(6):
        q = (q + x) / np.log(q)
    t = 2 * np.pi * q
    for _ in range(3):
        t = t - (theta(t) - np.pi * n) / (np.log(t / (2 * np.pi)) / 2)
    return t


def smooth_zeros(indexes):
    """Return the zeros as the smooth count expects them: the g with theta(g) / pi + 1 = i - 1/2, float64, for indexes i >= 1."""
    return gram_point(np.asarray(indexes) - 1.5)


def mean_spacing(t):
    """Return the mean distance of neighbouring zeros at height t, 2π / log(t / 2π); an array for an array."""
    return 2 * np.pi / np.log(np.asarray(t) / (2 * np.pi))


def _to_fixed_point(turns_per_unit):
    """The fraction of an mpf as integers (high, low): high / 2^64 + low / 2^96."""
    scaled = int(mpmath.floor((turns_per_unit - mpmath.floor(turns_per_unit)) * 2**96))
    return scaled >> 32, scaled & 0xFFFFFFFF


def _turns(whole, high, low):
    """whole * frequency modulo 1, in [-1/2, 1/2], for uint64 arrays that broadcast and whole < 2^32: off by 1e-16."""
    fraction = whole * high + ((whole * low) >> np.uint64(32))  # wraps modulo 2^64, which is modulo one turn
    return fraction.view(np.int64) * 2.0**-64


@cache
def _log_frequencies(size):
    """log n / 2 pi for n = 1 ... size as fixed point: two uint64 arrays (high, low)."""
    with mpmath.workdps(45):
        pairs = [_to_fixed_point(mpmath.log(n) / (2 * mpmath.pi)) for n in range(1, size + 1)]
    return tuple(np.array(part, dtype=np.uint64) for part in zip(*pairs, strict=True))


def _log_turns(whole, terms):
    """whole * log n / 2 pi modulo 1 for n = 1 ... terms: float64 (len(whole), terms)."""
    high, low = _log_frequencies(1 << (terms - 1).bit_length())
    return _turns(whole[:, None].astype(np.uint64), high[:terms], low[:terms])


@lru_cache(maxsize=64)
def _theta_frequency(reference):
    """log(reference / 2 pi e) / 4 pi, the main frequency of theta about a whole number: float and fixed point."""
    with mpmath.workdps(45):
        frequency = mpmath.log(reference / (2 * mpmath.pi * mpmath.e)) / (4 * mpmath.pi)
        return float(frequency), *(np.uint64(part) for part in _to_fixed_point(frequency))


def _theta_turns(whole, offset):
    """theta(whole + offset) / 2 pi up to whole turns, for int64 and float64 arrays of one length, heights from 9.6 to 2^32.

    About a whole number r, t/2 log(t / 2 pi e) = t/2 log(r / 2 pi e) + t/2 log(1 + (t - r) / r): the first part has one
    frequency, exact on whole numbers, and the second stays below |t - r|, so its rounding error is below 1e-13. What the series
    leaves out, arctan(exp(-pi t))/2, is below 4e-14.
    """
    turns = np.empty(len(whole))
    block = whole >> 9
    for b in np.unique(block):
        here = block == b
        reference = (int(b) << 9) + 256
        frequency, high, low = _theta_frequency(reference)
        t = whole[here] + offset[here]
        rest = t / 2 * np.log1p(((whole[here] - reference) + offset[here]) / reference) - np.pi / 8 + _theta_tail(t)
        turns[here] = _turns(whole[here].astype(np.uint64), high, low) + frequency * offset[here] + rest / (2 * np.pi)
    return turns


def gram_offsets(start, n, offsets):
    """Return g_n - start for a whole number `start` and arrays of Gram indexes n and of approximations like gram_point(n) - start.

    One step of Newton's method with theta taken up to whole turns. Offsets below 16,384 are then right to 2e-12: half of it is
    their spacing in float64, and theta's 1e-13 is less, over its slope. Of gram_point's numbers the spacing is 5e-7 at 2^32.
    """
    whole = np.floor(offsets)
    turns = _theta_turns(start + whole.astype(np.int64), offsets - whole) - n % 2 / 2
    slopes = np.log((start + offsets) / (2 * np.pi)) / (4 * np.pi)
    return offsets - (turns - np.rint(turns)) / slopes


@lru_cache(maxsize=1)
def _remainder_series():
    """C_0 ... C_4 as power series in y = p - 1/2: float64 (powers, 5).

    C_0(p) = Psi(p) = cos 2 pi (p^2 - p - 1/16) / cos 2 pi p = -cos(2 pi y^2 - 5 pi / 8) / cos 2 pi y, an entire and
    even function of y; the others are combinations of its derivatives (Edwards 7.4; Gabcke 1979).
    """
    terms = 80
    with mpmath.workdps(60):
        pi, psi = mpmath.pi, [mpmath.mpf(0)] * terms
        shift = 5 * pi / 8
        # cos(x - shift) = cos shift cos x + sin shift sin x at x = 2 pi y^2, term by term
        numerator = [(mpmath.cos(shift) if k % 2 == 0 else mpmath.sin(shift)) * (-1) ** (k // 2) * (2 * pi) ** k
                     / mpmath.factorial(k) for k in range(terms // 2)]  # fmt: skip
        denominator = [(-1) ** k * (2 * pi) ** (2 * k) / mpmath.factorial(2 * k) for k in range(terms // 2)]
        for k in range(terms // 2):
            psi[2 * k] = -numerator[k] - sum(denominator[j] * psi[2 * (k - j)] for j in range(1, k + 1))

        def derivative(order):
            return [psi[k] * mpmath.ff(k, order) for k in range(order, terms)] + [mpmath.mpf(0)] * order

        combinations = (
            {0: mpmath.mpf(1)},
            {3: -1 / (96 * pi**2)},
            {6: 1 / (18432 * pi**4), 2: 1 / (64 * pi**2)},
            {9: -1 / (5308416 * pi**6), 5: -1 / (3840 * pi**4), 1: -1 / (64 * pi**2)},
            {12: 1 / (2038431744 * pi**8), 8: 11 / (5898240 * pi**6), 4: 19 / (24576 * pi**4), 0: 1 / (128 * pi**2)},
        )
        columns = [[sum(terms) for terms in zip(*([factor * c for c in derivative(order)]
                    for order, factor in combination.items()), strict=True)] for combination in combinations]
    return np.array([[float(c) for c in column[:_REMAINDER_TERMS]] for column in columns]).T


def _remainder(t, m):
    """Z(t) minus the main sum with m terms, for arrays that broadcast; p = tau - m may lie a little outside [0, 1]."""
    tau = np.sqrt(t / (2 * np.pi))
    c = np.polynomial.polynomial.polyvander(tau - m - 0.5, _REMAINDER_TERMS - 1) @ _remainder_series()  # (..., 5)
    total = np.polynomial.polynomial.polyval(1 / tau, np.moveaxis(c, -1, 0), tensor=False)
    return np.where(m % 2 == 1, 1.0, -1.0) * total / np.sqrt(tau)


def _Z_euler_maclaurin(whole, offset):
    """Z(whole + offset) for int64 and float64 arrays of one length, every height between 5 and RIEMANN_SIEGEL_START.

    zeta(s) = sum_{n < N} n^-s + N^(1-s) / (s - 1) + N^-s / 2 + sum_k B_2k / (2k)! s (s+1) ... (s+2k-2) N^(1-s-2k)
    (Edwards 6.4) with 20 Bernoulli terms; N = t/2 + 20 makes each a tenth of the one before, the last below 1e-17.
    """
    t = whole + offset
    N = int(t.max() / 2) + 20
    s = 0.5 + 1j * t
    main = (np.exp(-1j * t[:, None] * np.log(np.arange(1, N))) * np.arange(1, N) ** -0.5).sum(axis=1)
    tail = N / (s - 1) + 0.5
    term = s / N
    for k, bernoulli in enumerate(_BERNOULLI, 1):
        tail += bernoulli / float(mpmath.factorial(2 * k)) * term
        term = term * (s + 2 * k - 1) * (s + 2 * k) / N**2
    return (np.exp(1j * theta(t)) * (main + tail * N**-s)).real


def _Z_riemann_siegel(whole, offset):
    """Z(whole + offset) for int64 and float64 arrays of one length, every height at or above RIEMANN_SIEGEL_START."""
    t = whole + offset
    m = np.sqrt(t / (2 * np.pi)).astype(np.int64)
    n = np.arange(1, m.max() + 1)
    turns = _theta_turns(whole, offset)[:, None] - _log_turns(whole, len(n))
    phases = 2 * np.pi * turns - offset[:, None] * np.log(n)
    main = np.where(n <= m[:, None], np.cos(phases) * (2 * n**-0.5), 0.0).sum(axis=1)
    return main + _remainder(t, m)


def Z(t, offset=0.0):
    """Z(t + offset), float64, for arrays with t + offset >= 5 that broadcast.

    The offset is for heights that float64 cannot tell apart: at 10^7 its numbers are 2e-9 from each other. |error| is
    below error_bound(t). Time and memory grow with sqrt(t) for each height, so use Z_grid for many.
    """
    t, offset = np.broadcast_arrays(np.asarray(t, dtype=np.float64), offset)
    shape = t.shape
    whole = np.floor(t).ravel()
    offset = (t.ravel() - whole) + offset.ravel()
    carry = np.floor(offset)
    whole, offset = whole + carry, offset - carry
    values = np.empty(whole.shape)
    low = whole + offset < RIEMANN_SIEGEL_START
    for formula, indexes, terms in ((_Z_euler_maclaurin, np.flatnonzero(low), RIEMANN_SIEGEL_START),
                                    (_Z_riemann_siegel, np.flatnonzero(~low), np.sqrt(whole.max(initial=1.0)))):  # fmt: skip
        size = max(1, int(_POINTS_AT_ONCE // terms))
        for part in (indexes[k:k + size] for k in range(0, len(indexes), size)):
            values[part] = formula(whole[part].astype(np.int64), offset[part])
    return values.reshape(shape)


def error_bound(t):
    """A bound on |error| of Z at t <= 2^32.

    Twice Gabcke's 0.017 t^(-11/4) for the truncated expansion, and for float64 a relative 2e-13 of 4 m^(1/2), the sum
    of the terms' sizes: the phases are right to 1e-13, see _theta_turns.
    """
    t = np.asarray(t, dtype=np.float64)
    truncation = np.where(t < RIEMANN_SIEGEL_START, 0.0, 0.034 * t**-2.75)
    return truncation + 8e-13 * (t / (2 * np.pi)) ** 0.25


@lru_cache(maxsize=2)
def _grid_row(height, points, terms):
    """What all rows of a grid share, for offsets v from a row's centre (a whole number).

    Returns v (points,), of which -v are the same numbers; the waves n^(-1/2) cos(v log n), and to the right of them n^(-1/2)
    sin(v log n), both for v > 0 only, as blocks of a matrix (terms, points), see _product; Chebyshev nodes within the row; and the
    matrix (nodes, points) that interpolates.
    """
    v = (np.arange(points) + 0.5) * (height / points) - height / 2
    n = np.arange(1, terms + 1).reshape(-1, 1, _BLOCK_TERMS, 1)
    waves = np.log(n) * np.tile(v[points // 2:], 2).reshape(-1, 1, _BLOCK)
    for function, part in zip((np.cos, np.sin), np.split(waves, 2, axis=1), strict=True):
        function(part, out=part)
    waves *= n**-0.5
    nodes = np.cos(np.pi * (np.arange(10) + 0.5) / 10)
    chebyshev = np.polynomial.chebyshev.chebvander
    return v, waves, nodes * height / 2, np.linalg.solve(chebyshev(nodes, 9).T, chebyshev(v * 2 / height, 9).T)


def Z_grid(low, high, oversampling):
    """Z on a uniform grid over at least [low, high], low >= 8: (start, step, values).

    Point j lies at start + (j + 1/2) step; start is a whole number. The shortest mean distance of zeros in the range,
    pi / theta'(high), has at least `oversampling` points. The main sum is a product of matrices: row by row of the grid,
    exp(-i t log n) is that of the row's centre, a whole number, times that of the offset from it, which is the same for all
    rows. A call pays off for thousands of points.
    """
    # A row has the m of its centre, so it must be short compared with the stretch over which m is constant, 4 pi m.
    smallest_m = int(np.sqrt(max(low, RIEMANN_SIEGEL_START) / (2 * np.pi)))
    height = min(64, 1 << (smallest_m.bit_length() - 1))
    # A multiple of 2 _BLOCK also lets many grids share a cached _grid_row. The 4000 makes steps of 1/8 or less at the
    # low end, so that interpolation at the first Gram point, 9.67, does not reach below 8.
    points = oversampling * height * np.log(max(high, 4000.0) / (2 * np.pi)) / (2 * np.pi)
    points = int(np.ceil(points / (2 * _BLOCK))) * 2 * _BLOCK
    start = int(low // height) * height
    centres = np.arange(start + height // 2, int(high) + height, height, dtype=np.int64)
    values = np.empty((len(centres), points))
    below = int(np.searchsorted(centres, RIEMANN_SIEGEL_START + height))
    if below:
        values[:below] = Z(centres[:below, None] + _grid_row(height, points, _BLOCK_TERMS)[0])
    if below < len(centres):
        values[below:] = _Z_rows(centres[below:], height, points)
    return start, height / points, values.ravel()


def _Z_rows(centres, height, points):
    """Z on rows of `points` points over `height` about whole numbers `centres`: float64 (rows, points)."""
    t = centres.astype(np.float64)
    m = np.sqrt(t / (2 * np.pi)).astype(np.int64)
    terms = -(-int(m[-1]) // _BLOCK_TERMS) * _BLOCK_TERMS
    v, waves, nodes, interpolation = _grid_row(height, points, terms)
    angles = 2 * np.pi * _log_turns(centres, terms)
    sides = np.stack([np.cos(angles), np.sin(angles)])  # (2, rows, terms)
    sides[:, :, m[0]:] *= np.arange(m[0] + 1, terms + 1) <= m[:, None]
    # (cosine, sine) of t log n from those of centre log n and v log n, by the addition theorems; for v and -v together
    products = _product(sides.reshape(-1, terms), waves).reshape(2, len(centres), 2, points // 2)
    (cos_cos, cos_sin), (sin_cos, sin_sin) = products.transpose(0, 2, 1, 3)
    cosine_sums = np.concatenate([(cos_cos + sin_sin)[:, ::-1], cos_cos - sin_sin], axis=1)
    sine_sums = np.concatenate([(sin_cos - cos_sin)[:, ::-1], sin_cos + cos_sin], axis=1)
    # theta(centre + v), up to whole turns, by the Taylor series of t/2 log(t / 2 pi e) + 1 / 48t in v up to v^6; the next term of
    # theta changes by less than 1e-13 along a row
    taylor = [2 * np.pi * _theta_turns(centres, np.zeros(len(t))), np.log(t / (2 * np.pi)) / 2 - 1 / (48 * t**2)]
    taylor += [(-1) ** k * (1 / (2 * k * (k - 1)) + 1 / (48 * t**2)) / t ** (k - 1) for k in range(2, 7)]
    phases = np.stack(taylor, axis=1) @ v ** np.arange(7)[:, None]
    remainder = _remainder(centres[:, None] + nodes, m[:, None]) @ interpolation
    return 2 * (np.cos(phases) * cosine_sums + np.sin(phases) * sine_sums) + remainder


def _product(rows, blocks):
    """The product of matrices (r, k) and (k, c), float64 (r, c).

    The second is given as blocks (k / _BLOCK_TERMS, c / _BLOCK, _BLOCK_TERMS, _BLOCK), so small that OpenBLAS starts no threads: it
    does from 2^18 multiplications on. Its threads spin between calls: with another program on the second core, the zeros took four
    times as long. On one core the blocks cost nothing.
    """
    padded = np.zeros((-(-len(rows) // _BLOCK), 1, _BLOCK, rows.shape[1]))
    padded.reshape(-1, rows.shape[1])[:len(rows)] = rows
    products = np.zeros((len(padded), blocks.shape[1], _BLOCK, _BLOCK))
    for k, terms in enumerate(blocks):
        products += padded[..., k * _BLOCK_TERMS:(k + 1) * _BLOCK_TERMS] @ terms
    return products.transpose(0, 2, 1, 3).reshape(len(padded) * _BLOCK, -1)[:len(rows)]
