"""Numbers are read from text as written, unreadable ones are counted, and the measures are what their names say."""

import mpmath
import numpy as np
import pytest

import zeros_db
from data_utils import RiemannZerosDataset
from model import metrics
from model.metrics import (
    baselines,
    controls,
    explicit_formula,
    gue_share_below,
    independent_spacings,
    scores,
    shuffled_predictions,
    table_notes,
)
from model.tokenizer import parse_value
from zeta.riemann_siegel import smooth_zeros, theta


@pytest.mark.parametrize("text, value", [
    ("b10:49.7738epppp", 49.7738), ("b10:49.7738e", 49.7738), ("b10:49e", 49.0), ("b10:007.5e9", 7.5),
    ("b10:49.7738", None), ("b10:e", None), ("b10:4.9.7e", None), ("b10:.5e", None), ("b10:4 9e", None), ("b10:49.e", None),
    ("b10:4p9e", None), ("b1b:49e", None), ("", None), ("b10:999999999999999999999999999e", 1e27),
])  # fmt: skip
def test_only_a_number_that_ends_is_readable(text, value):
    assert parse_value(text) == value


def three_zeros():
    return RiemannZerosDataset([10, 11, 12], [500000, 530000, 560000])


def test_mse_is_the_mean_over_the_runs_of_each_runs_mse_over_its_readable_predictions():
    predictions = np.array([[51.0, 50.0], [53.0, np.nan], [56.0, 58.0]])
    found = scores(predictions, three_zeros())
    assert found["mse"] == pytest.approx(((1 + 0 + 0) / 3 + (0 + 4) / 2) / 2)
    assert found["mse_spread"] == pytest.approx((2 - 1 / 3) / 2)
    assert found["readable"] == pytest.approx(5 / 6)
    assert found["rmse"] == pytest.approx(found["mse"] ** 0.5)
    assert found["median_absolute_error"] == 0
    assert found["mse_of_mean_prediction"] == pytest.approx((0.25 + 0 + 1) / 3)


def test_error_in_spacings_is_in_units_of_the_local_mean_spacing():
    spacing = 2 * np.pi / np.log(53.0 / (2 * np.pi))
    found = scores(np.array([[np.nan], [53.0 + 2 * spacing], [np.nan]]), three_zeros())
    assert found["median_error_in_spacings"] == pytest.approx(2)
    assert found["readable"] == pytest.approx(1 / 3)


def test_nothing_readable_is_no_number_and_not_zero():
    found = scores(np.full((3, 2), np.nan), three_zeros())
    assert found["readable"] == 0 and found["mse"] is None


def test_baselines_are_what_they_are_called():
    training = RiemannZerosDataset(np.arange(1, 10), 1000 * 10_000 + 30_000 * np.arange(1, 10))
    found = baselines(three_zeros(), training, max_prime=30)
    assert found["last training zero"][:, 0].tolist() == [1027.0] * 3
    assert found["straight line"][:, 0] == pytest.approx([1030.0, 1033.0, 1036.0])
    smooth = found["smooth count"][:, 0]  # θ(γ̄)/π + 1 = i − 1/2, by mpmath
    for index, height in zip((10, 11, 12), smooth, strict=True):
        assert mpmath.siegeltheta(height) / mpmath.pi + 1 == pytest.approx(index - 0.5, abs=1e-9)
    assert found["explicit formula"][:, 0].tolist() == explicit_formula([10, 11, 12], 30).tolist()


def plain_solutions(index, max_prime, reach, points=64):
    """(γ̄, the explicit formula's solutions within `reach` mean spacings of it, the nearest first), by mpmath and term by term."""
    primes = [p for p in range(2, max_prime + 1) if all(p % q for q in range(2, p))]
    with mpmath.workdps(30):
        terms = [(k * mpmath.log(p), 1 / (k * mpmath.sqrt(p) ** k)) for p in primes for k in range(1, 64) if p**k <= max_prime**2]

        def excess(t, terms=terms):
            sines = sum(weight * mpmath.sin(frequency * t) for frequency, weight in terms)
            return mpmath.siegeltheta(t) / mpmath.pi + 1 - sines / mpmath.pi - (index - mpmath.mpf(1) / 2)

        smooth = mpmath.findroot(lambda t: excess(t, []), 2 * mpmath.pi * index / mpmath.lambertw(index / mpmath.e))
        spacing = 2 * mpmath.pi / mpmath.log(smooth / (2 * mpmath.pi))
        heights = [smooth + reach * spacing * j / points for j in range(-points, points + 1)]
        heights = [t for t in heights if t > 7]
        signs = [excess(t) > 0 for t in heights]
        solutions = [mpmath.findroot(excess, heights[j : j + 2], solver="anderson")
                     for j in range(len(heights) - 1) if signs[j] != signs[j + 1]]  # fmt: skip
    return float(smooth), sorted(map(float, solutions), key=lambda t: abs(t - float(smooth)))


@pytest.mark.parametrize("index, max_prime", [
    (1, 2), (1, 30), (2, 1000), (905, 30), (110_017, 100), (11_000_540, 100), (11_000_224, 200), (10**9 + 1, 30),
])  # fmt: skip
def test_the_explicit_formula_is_the_solution_that_is_nearest_to_the_smooth_count(index, max_prime):
    smooth, solutions = plain_solutions(index, max_prime, reach=4)
    assert explicit_formula([index], max_prime)[0] == pytest.approx(solutions[0], rel=0, abs=1e-7)
    assert abs(solutions[0] - smooth) > 1e-3


def test_of_several_solutions_it_is_the_nearest():
    smooth, solutions = plain_solutions(11_004_902, 300, reach=4)
    assert len(solutions) == 3 and np.abs(np.diff(solutions)).min() > 1e-3
    assert explicit_formula([11_004_902], 300)[0] == pytest.approx(solutions[0], rel=0, abs=1e-7)


def test_without_a_solution_within_reach_it_is_the_smooth_count(monkeypatch):
    monkeypatch.setattr(metrics, "REACH", 1)
    smooth, solutions = plain_solutions(11_000_224, 200, reach=1)
    assert solutions == [] and explicit_formula([11_000_224], 200)[0] == pytest.approx(smooth, rel=1e-15)
    assert plain_solutions(11_000_223, 200, reach=1)[1] != []  # its neighbour has one
    assert explicit_formula([11_000_223, 11_000_224], 200)[0] != pytest.approx(smooth_zeros(11_000_223), abs=1e-3)


def true_zeros(first, count):
    values = [int(zero * 10_000) for _, zero in zeros_db.zeros_starting_at_N(first, count)]
    return RiemannZerosDataset(np.arange(first, first + count), values)


@pytest.fixture(scope="module")
def thousand_zeros():
    return true_zeros(110_000, 1000)


def over_the_smooth_count(predictions, zeros):
    return scores(predictions, zeros)["mse"] / scores(smooth_zeros(zeros.indexes)[:, None], zeros)["mse"]


def test_the_explicit_formula_is_many_times_nearer_to_the_zeros_than_the_smooth_count(thousand_zeros):
    high = true_zeros(11_000_000, 1000)
    for zeros, max_prime, ratio in ((thousand_zeros, 1000, 0.0346), (thousand_zeros, 100, 0.0803), (high, 1000, 0.0563)):
        predictions = explicit_formula(zeros.indexes, max_prime)
        assert over_the_smooth_count(predictions[:, None], zeros) == pytest.approx(ratio, abs=2e-4)
    each = [explicit_formula([index], 1000)[0] for index in high.indexes[:3]]
    assert predictions[:3] == pytest.approx(each, rel=0, abs=1e-7)  # whatever else is asked
    assert len(explicit_formula([], 1000)) == 0


def test_perfect_predictions_of_other_zeros_have_twice_the_error_of_the_smooth_count(thousand_zeros):
    perfect = np.repeat(thousand_zeros.values[:, None] / 10_000, 2, axis=1)
    perfect[5, 1] = np.nan
    shuffled = controls(perfect, thousand_zeros.indexes, seed=1)["shuffled index"]
    assert over_the_smooth_count(shuffled, thousand_zeros) == pytest.approx(2, rel=0.1)
    assert np.isnan(shuffled).sum() == 1 and not np.isnan(shuffled[5, 1])
    smooth = smooth_zeros(thousand_zeros.indexes)[:, None]  # who knows the smooth count alone loses nothing
    assert shuffled_predictions(smooth, thousand_zeros.indexes, seed=1) == pytest.approx(smooth, rel=1e-15)


@pytest.mark.parametrize("count", [2, 3, 20, 1000])
def test_every_index_is_answered_with_another_one_and_each_one_once(count):
    indexes = np.arange(110_000, 110_000 + count)
    smooth = smooth_zeros(indexes)
    own = smooth + np.arange(count)  # its excess over the smooth count says whose a prediction was

    def owners(seed):
        return np.rint(shuffled_predictions(own[:, None], indexes, seed)[:, 0] - smooth).astype(int)

    assert (owners(1) != np.arange(count)).all() and sorted(owners(1)) == list(range(count))
    assert (owners(1) == owners(1)).all() and (count < 20 or (owners(1) != owners(2)).any())


def test_independent_spacings_have_the_distribution_of_true_ones_and_drift_away_from_the_zeros(thousand_zeros):
    drawn = independent_spacings(thousand_zeros.indexes, runs=20, seed=1)
    assert drawn[0] == pytest.approx(np.full(20, smooth_zeros(110_000)), rel=1e-15)
    spacings = np.diff(theta(drawn) / np.pi, axis=0)
    assert spacings.mean() == pytest.approx(1, abs=0.01) and spacings.var() == pytest.approx(3 * np.pi / 8 - 1, rel=0.03)
    assert (spacings < 0.5).mean() == pytest.approx(gue_share_below(0.5), rel=0.05)
    assert np.corrcoef(spacings[:-1].ravel(), spacings[1:].ravel())[0, 1] == pytest.approx(0, abs=0.02)
    assert 100 < over_the_smooth_count(drawn, thousand_zeros) < 3000
    assert (drawn == independent_spacings(thousand_zeros.indexes, runs=20, seed=1)).all()
    assert (drawn != independent_spacings(thousand_zeros.indexes, runs=20, seed=2))[1:].all()


def test_a_single_zero_has_no_other_to_be_shuffled_with():
    assert controls(np.array([[49.8, 49.7]]), np.array([10]), seed=1).keys() == {"independent spacings"}


def test_the_notes_are_short_and_about_rows_that_are_there():
    evaluation = {"max_prime": 1_000_000, "baselines": dict.fromkeys(("straight line", "smooth count", "explicit formula")),
                  "controls": dict.fromkeys(("shuffled index", "independent spacings"))}  # fmt: skip
    assert [note.split(":")[0] for note in table_notes(evaluation)] == [
        "median", "smooth count", "explicit formula", "shuffled index", "independent spacings"]  # fmt: skip
    assert max(map(len, table_notes(evaluation))) < 80 and "up to 1,000,000" in table_notes(evaluation)[2]
    assert len(table_notes({"baselines": {"smooth count": {}}})) == 2  # of an older version
