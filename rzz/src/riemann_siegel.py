"""The Riemann-Siegel functions on the critical line, vectorised in float64.

    >>> smooth_zeros(np.array([1, 10, 11_000_000]))
    array([1.45179196e+01, 5.02332544e+01, 5.45335115e+06])
"""

import numpy as np

# theta(t) ~ t/2 log(t/2 pi e) - pi/8 + sum_k (1 - 2^(1-2k)) |B_2k| / (4k (2k-1)) t^(1-2k), k = 1 ... 10
# (Edwards, Riemann's Zeta Function, 6.5). B_2, B_4, ... are the Bernoulli numbers.
_BERNOULLI = (1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66, -691 / 2730, 7 / 6, -3617 / 510, 43867 / 798, -174611 / 330)
_THETA_SERIES = [(1 - 2.0 ** (1 - 2 * k)) * abs(b) / (4 * k * (2 * k - 1)) for k, b in enumerate(_BERNOULLI, 1)]


def theta(t):
    """Riemann-Siegel theta function, arg Gamma(1/4 + it/2) - t/2 log pi, for an array of t >= 5.

    Stirling's series with ten terms and the exponentially small term arctan(exp(-pi t))/2 (Gabcke 1979),
    right to 1e-13 at t = 5 and to float64 rounding (relative 3e-16) from t = 8 on.
    """
    t = np.asarray(t, dtype=np.float64)
    inverse_square = 1 / (t * t)
    series = np.zeros_like(t)
    for coefficient in reversed(_THETA_SERIES):
        series = series * inverse_square + coefficient
    main = t / 2 * (np.log(t / (2 * np.pi)) - 1) - np.pi / 8
    return main + series / t + np.arctan(np.exp(-np.pi * t)) / 2


def _solve_theta(half_turns):
    """The t > 2 pi with theta(t) = pi * half_turns, for an array of half_turns >= -1."""
    # With q = t / 2 pi and the first terms of theta this is q (log q - 1) = x; Newton's step for that is
    # q <- (q + x) / log q, which from the right of the root converges without overshooting.
    x = np.asarray(half_turns, dtype=np.float64) + 1 / 8
    q = np.maximum(3.0, (x + 3) / np.log(np.log(x + 4) + 1.2))
    for _ in range(6):
        q = (q + x) / np.log(q)
    t = 2 * np.pi * q
    for _ in range(3):
        t = t - (theta(t) - np.pi * np.asarray(half_turns)) / (np.log(t / (2 * np.pi)) / 2)
    return t


def gram_point(n):
    """Gram points g_n, theta(g_n) = n pi, as float64 for an array of n >= -1."""
    return _solve_theta(n)


def smooth_zeros(indexes):
    """Where the smooth count puts the zeros: the g with theta(g) / pi + 1 = i - 1/2, float64, for indexes i >= 1."""
    return _solve_theta(np.asarray(indexes) - 1.5)
