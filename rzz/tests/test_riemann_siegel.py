"""Claims about theta, Gram points, the smooth count and Z, with mpmath as the oracle."""

import mpmath
import numpy as np
import pytest

from zeta import riemann_siegel as rs


def siegelz(t, offset=0.0):
    with mpmath.workdps(30):
        return float(mpmath.siegelz(mpmath.mpf(float(t)) + mpmath.mpf(float(offset))))


@pytest.mark.parametrize("t", [5.0, 6.0, 9.5, 14.25, 50.0, 1e3, 123456.789, 5e6, 4e7])
def test_theta_is_right_to_float64_rounding(t):
    with mpmath.workdps(30):
        exact = mpmath.siegeltheta(mpmath.mpf(t))
        assert abs(rs.theta(t) - exact) < 4e-14 + 4e-16 * abs(exact)


def test_smooth_zeros_solve_the_smooth_count():
    indexes = np.concatenate([np.arange(1, 3000), [10**5, 10**6, 11_000_000, 10**8]])
    zeros = rs.smooth_zeros(indexes)
    assert np.all(np.diff(zeros) > 0)
    with mpmath.workdps(30):
        for index, zero in zip(indexes[::97].tolist() + [10**8], [*zeros[::97], zeros[-1]], strict=True):
            slope = mpmath.log(zero / (2 * mpmath.pi)) / 2
            error = (mpmath.siegeltheta(mpmath.mpf(float(zero))) - mpmath.pi * (mpmath.mpf(index) - 1.5)) / slope
            assert abs(error) < 1e-10 + 4e-16 * zero


@pytest.mark.parametrize("n", [-1, 0, 1, 126, 10**4, 13_999_525, 10**10])
def test_gram_points_are_those_of_mpmath(n):
    with mpmath.workdps(30):
        exact = mpmath.grampoint(n)
        g = float(rs.gram_point(n))
        assert abs(g - exact) < 1e-10 + 4e-16 * exact
        start = max(int(g) - 16_000, 0)
        offset = rs.gram_offsets(start, np.array([n]), np.array([g - start]))[0]
        assert abs(start + mpmath.mpf(float(offset)) - exact) < 2e-12


def test_whole_turns_are_taken_off_without_loss():
    high, low = rs._log_frequencies(1024)
    for whole in (1, 9_999_991, 2**32 - 1):
        turns = rs._turns(np.full(1024, whole, dtype=np.uint64), high, low)
        with mpmath.workdps(50):
            for n in (2, 3, 97, 1000):
                exact = whole * mpmath.log(n) / (2 * mpmath.pi)
                difference = turns[n - 1] - (exact - mpmath.nint(exact))
                assert abs(difference - mpmath.nint(difference)) < 2e-16


def test_Z_is_within_its_error_bound():
    t = np.exp(np.random.default_rng(1).uniform(np.log(6), np.log(2**32), 150))
    errors = np.abs(rs.Z(t) - [siegelz(x) for x in t])
    assert np.all(errors < rs.error_bound(t))


def test_Z_is_within_its_error_bound_next_to_changes_of_its_number_of_terms():
    changes = 2 * np.pi * np.array([13, 14, 30, 100, 500, 1000]) ** 2
    t = np.concatenate([changes - 1e-6, changes + 1e-6, [rs.RIEMANN_SIEGEL_START, rs.RIEMANN_SIEGEL_START - 1e-9]])
    errors = np.abs(rs.Z(t) - [siegelz(x) for x in t])
    assert np.all(errors < rs.error_bound(t))


def test_the_offset_of_Z_reaches_heights_between_those_of_float64():
    t, offset = 9_000_000.0, np.array([-1234.5678, 1e-12, 0.3, 2345.678])
    exact = [siegelz(t, x) for x in offset]
    assert np.all(np.abs(rs.Z(t, offset) - exact) < 1e-11)


@pytest.mark.parametrize(("low", "high"), [
    (8.0, 1100.0), (1000.0, 6000.0), (60_000.0, 60_500.0), (9.4e6, 9.401e6), (3.2e9, 3.2e9 + 300),
])
def test_a_grid_holds_the_values_of_Z(low, high):
    start, step, values = rs.Z_grid(low, high, 4)
    offsets = (np.arange(len(values)) + 0.5) * step
    assert start <= low and start + offsets[-1] >= high - step
    sample = np.random.default_rng(2).choice(len(values), 1000)
    errors = np.abs(values[sample] - rs.Z(float(start), offsets[sample]))
    rounding = 2e-13 * 8 * (high / 6) ** 0.25 * np.log(high)  # of the offsets, times a bound for Z'
    assert np.all(errors < 3 * rs.error_bound(start + offsets[sample]) + rounding)
