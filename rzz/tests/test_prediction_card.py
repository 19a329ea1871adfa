"""A zero is shown in full and in a table with what is known of it, unreadable samples included."""

import re

import numpy as np
import pytest

from common.text import format_row
from model.sampling import Prediction, prediction_record
from reporting.prediction_card import TABLE_HEADER, bar, card, column_widths, fixed, percent, table_row, training_text


def record(samples, text="b10:50.0000e"):
    """What prediction_record says of zero 10, for which all characters are equally probable."""
    probabilities = np.full((len(text.partition(":")[2]), 16), 1 / 16)
    return prediction_record(Prediction(10, samples, text, probabilities), 497738, (1, 899))


def words(samples, **options):
    return " ".join(card(record(samples, **options), (1, 899), "").split())


def test_what_rounds_to_nothing_has_no_sign():
    assert [fixed(-0.00003), fixed(-0.00003, "+"), fixed(-0.0004, decimals=3), fixed(-0.0006, decimals=3)] == [
        "0.0000", "+0.0000", "0.000", "-0.001"]  # fmt: skip


def test_unreadable_samples_are_null_and_counted():
    some = record([49.0, None, 51.0])
    assert (some["predicted"], some["spread"], some["samples"]) == (50.0, 1.0, [49.0, None, 51.0])
    assert some["error"] == pytest.approx(50 - 49.7738)
    assert "mean of 2 samples, standard deviation 1.0000; 1 more are no number" in words([49.0, None, 51.0])
    assert "1 of 2 samples is a number" in words([None, 51.0]) and record([None, 51.0])["spread"] is None


def test_nothing_readable_is_no_number():
    none = record([None, None], text="b10:4p")
    assert [none[name] for name in ("predicted", "spread", "error", "error_in_spacings")] == [None] * 4
    assert "none of 2 samples is a number" in words([None, None], text="b10:4p")
    row = table_row(none, column_widths([10]))
    assert row.split() == ["10", "–", "–", "49.7738", "–", "–", "yes"]
    assert len(row) == len(format_row(TABLE_HEADER, column_widths([10])))


def test_wild_predictions_keep_the_columns_of_the_table_and_the_width_of_the_card():
    """A text of digits alone may be a number of twenty digits."""
    wild, widths = record([9e19, 3.2e19, 41.0]), column_widths([10])
    row, header = table_row(wild, widths), format_row(TABLE_HEADER, widths)
    assert len(row) == len(header) and row.split()[1:6] == ["4e+19", "4e+19", "49.7738", "+4e+19", "+1e+19"]
    ends = [[word.end() for word in re.finditer(r"\S+", line)][1:] for line in (row, header)]
    assert ends[0] == ends[1]
    assert max(map(len, card(wild, (1, 899), "").splitlines())) <= 80


def test_without_samples_the_number_of_the_text_is_the_prediction():
    greedy = record([])
    assert greedy["predicted"] == 50.0 and greedy["spread"] is None
    assert "predicted 50.0000 from the most probable characters" in words([])


def test_it_says_where_the_zero_lies():
    assert training_text(999_999, (1_000_000, 10_999_999)) == "lies before the training (zeros 1,000,000 … 10,999,999)"
    assert training_text(1, (0, 0)) == "is asked of a model that was not trained"


def test_a_bar_is_as_long_as_its_probability():
    assert [bar(share).rstrip() for share in (0, 1 / 160, 0.5, 0.975, 1)] == ["", "▏", "█" * 10, "█" * 19 + "▌", "█" * 20]
    assert {len(bar(share)) for share in np.linspace(0, 1, 99)} == {20}
    assert [percent(share) for share in (0, 0.994, 0.999, 1)] == ["0 %", "99 %", ">99 %", "100 %"]
