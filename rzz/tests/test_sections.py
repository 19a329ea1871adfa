"""The sections of the report pick the best and the worst, and say so if there is nothing to show."""

import re

import numpy as np

from reporting.sections import compare_mse, evaluation_figures, examples_section, prediction_text, tuning_section


def tagged(section, tag):
    """Return the texts of all <tag> elements of a section, list by list."""
    return [re.findall(f"<{tag}>(.*?)</{tag}>", piece) for piece in section if f"<{tag}>" in piece]


def predictions(true, runs):
    return [{"index": 1000 + k, "true": value, "predicted": row} for k, (value, row) in enumerate(zip(true, runs, strict=True))]


def test_best_and_worst_are_those_whose_mean_is_nearest_and_farthest():
    generator = np.random.default_rng(1)
    true = 1419.4 + np.cumsum(generator.uniform(0.5, 1.5, 60)).round(4)
    runs = true[:, None] + generator.normal(0, 0.2, (60, 4))
    errors = np.abs(runs.mean(1) - true)
    best, worst = tagged(examples_section(predictions(true, runs.tolist())), "li")
    named = [[int(text.split()[1].replace(",", "")) - 1000 for text in texts] for texts in (best, worst)]
    assert named[0] == np.argsort(errors)[:5].tolist() and named[1] == np.argsort(errors)[::-1][:5].tolist()
    assert f"is {true[named[0][0]]:.4f}; the model said {runs[named[0][0]].mean():.1f} ± {runs[named[0][0]].std():.1f}" in best[0]


def test_a_zero_for_which_no_number_was_written_is_among_the_worst():
    true = [1419.4228, 1420.4165, 1421.8506]
    best, worst = tagged(examples_section(predictions(true, [[1419.5, None], [None, None], [1430.0, 1430.0]])), "li")
    assert worst[0] == "zero 1,001 is 1420.4165; the model wrote nothing that is a number"
    assert worst[1] == "zero 1,002 is 1421.8506; the model said 1430.0000 ± 0.0000, 8.1494 too high"
    assert best[0] == "zero 1,000 is 1419.4228; the model said 1419.5000 ± 0.0000, 0.0772 too high"


def test_a_sentence_has_as_many_decimals_as_the_runs_agree_on_and_the_error_of_their_mean():
    text = prediction_text(11_000_412, 5453540.6071, np.array([5453540.4, 5453540.6]))
    assert text == "zero 11,000,412 is 5453540.6071; the model said 5453540.5 ± 0.1, 0.1071 too low"
    assert prediction_text(10, 49.7738, np.array([0.0, 100.0])) == "zero 10 is 49.7738; the model said 50 ± 50, 0.2262 too high"
    assert prediction_text(10, 49.7738, np.array([49.77378])).endswith("said 49.7738 ± 0.0000, right to the last digit")


def test_what_lies_outside_of_a_picture_is_counted():
    true = [1419.4228, 1420.4165, 1421.8506]
    runs = [[value, value] for value in true[:2]] + [[1.0, 1421.8506]]
    captions = [figure.caption for figure in evaluation_figures({"accuracy_by_position": [1.0] * 10}, predictions(true, runs))]
    assert captions[0].endswith("Outside of the frame: 1 of 3 zeros.")
    assert "All 6 sampled predictions" in captions[1] and captions[1].endswith("not in the picture: 1.")
    assert captions[2].endswith("in the wrong order: 1.")


def test_one_zero_and_nothing_readable_are_enough():
    for run, titles in ((1419.5, ["Predicted against true", "Errors", "Right characters"]), (None, ["Right characters"])):
        drawn = evaluation_figures({"accuracy_by_position": [1.0] * 10}, predictions([1419.4228], [[run, None]]))
        assert [figure.title for figure in drawn] == titles


def rung(rate, size, nats, stable=True, trainable=True, seed=1, zeros=1000, **more):
    """A line of tuning.jsonl."""
    point = {"learning_rate": rate, "batch_size": size, "d_model": 64, **more}
    settings = {"zeros": zeros, "model": {"d_model": point["d_model"], "dropout": more.get("dropout", 0.0)},
                "training": {"learning_rate": rate, "batch_size": size, "seed": seed}}  # fmt: skip
    return {"kind": "rung", "point": point, "epochs": len(nats), "nats_per_zero": nats, "mse": 0.5, "stable": stable,
            "trainable": trainable, "parameters": 1234, "settings": settings}  # fmt: skip


def ruled_out(rate, size):
    point = {"learning_rate": rate, "batch_size": size, "d_model": 64}
    return {"kind": "ruled_out", "point": point, "reason": "too large", "detail": "9 GB"}


def test_the_tuning_counts_the_last_lines_of_the_last_grid_and_lists_the_best_trials():
    log = [rung(0.1, 16, [1.0], dropout=0.1), ruled_out(0.1, 16), ruled_out(0.001, 16), rung(0.1, 16, [2.0], zeros=500),
           rung(0.001, 16, [9.0]), rung(0.001, 16, [9.0, 8.5, 8.75]), rung(0.002, 16, [8.0, 7.0]),
           rung(0.002, 16, [3.0], trainable=False, d_model=32), rung(0.001, 32, [6.0], trainable=False),
           rung(0.002, 32, [9.0, None], stable=False, trainable=False), rung(0.001, 16, [1.0, 1.0, 1.0], seed=2)]  # fmt: skip
    section = list(tuning_section(log, seed=1))
    assert tagged(section, "li") == [["● 2 trainable", "○ 2 stable, but learned nothing", "× 1 diverged",
                                      "excluded before: 1, too large"]]  # fmt: skip
    assert tagged(section, "h3") == [["What each value is worth", "Epochs", "learning_rate and batch_size",
                                      "learning_rate and d_model"]]  # fmt: skip
    assert tagged(section, "th")[0][:4] == ["learning_rate", "batch_size", "d_model", "nats per zero"]
    (cells,) = tagged(section, "td")
    assert cells[:4] == ["0.002", "16", "64", "7.000"] and cells[7:11] == ["0.001", "16", "64", "8.500"]


def test_trials_from_before_an_axis_was_added_count_with_the_value_that_they_had():
    log = [rung(0.001, 16, [5.0]), rung(0.002, 16, [6.0]), rung(0.001, 16, [7.0], dropout=0.1), rung(0.002, 16, [8.0], dropout=0.1)]
    cells = tagged(tuning_section(log, seed=1), "td")[0]
    rows = [cells[start : start + 3] for start in range(0, len(cells), 6)]
    assert rows == [["0.001", "0.0", "5.000"], ["0.002", "0.0", "6.000"], ["0.001", "0.1", "7.000"], ["0.002", "0.1", "8.000"]]


def test_the_tuning_is_of_the_seed_of_the_settings_or_of_the_most_trials():
    log = [rung(0.1, 16, [1.0], seed=1, dropout=0.1), *(rung(rate, 16, [9.0], seed=5) for rate in (0.001, 0.002)),
           rung(0.001, 16, [7.0, 6.0], seed=6), rung(0.001, 16, [5.0], seed=3)]  # fmt: skip
    for seed, expected in ((1, "2 trials"), (5, "2 trials"), (6, "2 trials"), (3, "1 trials")):  # 6 repeats one of 5
        assert any(expected in block for block in tagged(tuning_section(log, seed), "p")[0])


def test_an_error_is_compared_with_the_smooth_counts():
    assert compare_mse(0.004, 0.05) == ("12.5", "smaller")
    assert compare_mse(0.085, 0.05) == ("1.7", "larger")
    assert compare_mse(0.0, 0.05) == ("inf", "smaller")
    assert compare_mse(1.0, 999.7) == ("1,000", "smaller") and compare_mse(1.0, 999.4) == ("999", "smaller")
    assert compare_mse(0.00003, 0.04449) == ("1,483", "smaller") and compare_mse(3e12, 1.0) == ("3e+12", "larger")
