"""Numbers are read from text as written, unreadable ones are counted, and the measures are what their names say."""

import numpy as np
import pytest

from data_utils import RiemannZerosDataset
from model.metrics import baselines, scores
from model.tokenizer import parse_value


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
    found = baselines(three_zeros(), training)
    assert found["last training zero"][:, 0].tolist() == [1027.0] * 3
    assert found["straight line"][:, 0] == pytest.approx([1030.0, 1033.0, 1036.0])
    smooth = found["smooth count"][:, 0]  # θ(γ̄)/π + 1 = i − 1/2, by mpmath
    import mpmath

    for index, height in zip((10, 11, 12), smooth, strict=True):
        assert mpmath.siegeltheta(height) / mpmath.pi + 1 == pytest.approx(index - 0.5, abs=1e-9)
