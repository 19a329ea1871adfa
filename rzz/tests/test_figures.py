"""The figures show what the logs say, aligned and on the right scale."""

import math
import re

import numpy as np
import pytest

from model.metrics import gue_share_below, gue_spacing_density
from reporting.figures import (
    BASELINE,
    MODEL,
    MODEL_LIGHT,
    RUN_COLOURS,
    RUN_LINES,
    THEORY,
    accuracy_figure,
    compared_figure,
    epochs_figure,
    loss_figure,
    mse_figure,
    speed_figure,
    text_colour_on,
    tuning_figure,
    worth_figure,
)
from reporting.pages import STYLE


def training_log():
    """The lines of a training of rounds 0 … 2, 10 steps each, in which one loss and one MSE could not be measured."""
    lines = []
    for t in range(3):
        baselines = {"last training zero": 900.0, "straight line": 40.0 + t, "smooth count": 0.05 + 0.01 * t}
        lines.append({"kind": "round", "round": t, "step": 10 * t, "mse_baselines": baselines})
        for step in (10 * t + 5, 10 * t + 10):
            lines.append({"kind": "training", "round": t, "step": step, "loss": None if step == 15 else 30 / step,
                          "seconds": 60 * step, "zeros_per_second": 1000.0 + step, "seconds_left": 30 - step})  # fmt: skip
            lines.append({"kind": "validation", "round": t, "step": step, "loss": 31 / step, "mse_training": 1 / step,
                          "mse_validation": None if step == 5 else 2 / step,
                          "accuracy_by_position": [0.25] * (9 if t == 0 else 10)})  # fmt: skip
    return lines


def column(kind, name):
    return [math.nan if line[name] is None else line[name] for line in training_log() if line["kind"] == kind]


def curves(figure):
    """Return {label: (x, y)} of the lines of a figure."""
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in figure.drawing.axes[0].lines}


def test_the_curves_are_the_logs_with_gaps_and_squared_errors_are_on_a_log_scale():
    loss, mse = curves(loss_figure(training_log())), curves(mse_figure(training_log()))
    for kind in ("training", "validation"):
        steps = column(kind, "step")
        assert loss[kind][0] == steps and np.array_equal(loss[kind][1], column(kind, "loss"), equal_nan=True)
        found = mse[f"model, {kind} zeros"]
        assert found[0] == steps and np.array_equal(found[1], column("validation", f"mse_{kind}"), equal_nan=True)
    assert mse["smooth count"] == ([0, 10, 20, 30], pytest.approx([0.05, 0.06, 0.07, 0.07]))
    assert not mse.keys() & {"straight line", "last training zero"}  # thousands of times as large, they would flatten the rest
    assert mse_figure(training_log()).drawing.axes[0].get_yscale() == "log"
    (speed,) = curves(speed_figure(training_log())).values()
    assert speed == (column("training", "step"), column("training", "zeros_per_second"))  # a step a minute


def test_rounds_of_an_older_version_leave_a_gap_in_the_line_of_a_newer_baseline():
    lines = training_log()
    for line in lines:
        if line["kind"] == "round" and line["round"] > 0:
            line["mse_baselines"]["explicit formula"] = 0.002
    assert "explicit formula" not in curves(mse_figure(training_log()))
    steps, errors = curves(mse_figure(lines))["explicit formula"]
    assert steps == [0, 10, 20, 30] and np.array_equal(errors, [np.nan, 0.002, 0.002, 0.002], equal_nan=True)


def test_a_round_that_was_begun_twice_before_its_first_step_has_one_baseline():
    log = training_log()
    second = next(line for line in log if line["kind"] == "round" and line["round"] == 1)
    once, twice = (curves(mse_figure(lines)) for lines in (log, [*log[: log.index(second)], second, *log[log.index(second) :]]))
    assert once["smooth count"] == twice["smooth count"]


def test_captions_say_what_was_measured_last():
    assert loss_figure(training_log()).caption.endswith("Last: training 1 at step 30, validation 1.033 at step 30.")
    assert mse_figure(training_log()).caption.endswith("Last: training 0.03333, validation 0.06667, smooth count 0.07.")
    assert speed_figure(training_log()).caption.endswith("over 30 min 0 s of training. Last: 1,030; left then: 0 s.")


def test_the_map_of_characters_is_aligned_at_the_end_of_the_value():
    axes = accuracy_figure(training_log()).drawing.axes[0]
    shown = np.ma.filled(axes.collections[0].get_array().reshape(10, -1), np.nan)
    assert np.isnan(shown[0]).tolist() == [True, True, False, False, False, False] and (shown[1:] == 0.25).all()
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "10³", "10²", "10", "1", ".", "0.1", "0.01", "0.001", "0.0001", "end"]  # fmt: skip


def trial(rate, size, nats, stable=True, trainable=True):
    return {"point": {"learning_rate": rate, "batch_size": size}, "nats_per_zero": nats, "stable": stable, "trainable": trainable}


def test_a_heat_map_shows_the_best_of_each_pair_and_which_were_stable_and_trainable():
    trials = [trial(0.001, 16, [9.0, 8.5, 8.75]), trial(0.002, 16, [8.0, 7.0]), trial(0.002, 16, [3.0], trainable=False),
              trial(0.001, 32, [6.0], trainable=False), trial(0.002, 32, [9.0, None], stable=False, trainable=False)]  # fmt: skip
    figure = tuning_figure(trials, "batch_size", [0.001, 0.002], [16, 32])
    axes = figure.drawing.axes[0]
    texts = {text.get_position(): text.get_text() for text in axes.texts}
    assert texts == {(0, 0): "8.500\n● 1", (1, 0): "7.000\n● 1  ○ 1", (0, 1): "–\n○ 1", (1, 1): "–\n× 1"}
    assert axes.get_xlabel() == "learning_rate" and axes.get_ylabel() == "batch_size"
    assert figure.caption == "Best: 7.000 at learning_rate 0.002, batch_size 16."
    assert tuning_figure(trials[2:], "batch_size", [0.001, 0.002], [16, 32]).caption == "No trial was trainable."


def luminance(color):
    """Relative luminance of '#rrggbb', by the definition of WCAG 2."""
    parts = [int(color[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("color", [MODEL, MODEL_LIGHT, BASELINE, THEORY, *RUN_COLOURS])
def test_lines_can_be_seen_on_the_light_page_and_on_the_dark_one(color):
    papers = re.findall(r"--paper: (#\w+)", STYLE)[:2]
    light, dark = (luminance(paper if len(paper) == 7 else "#" + "".join(2 * digit for digit in paper[1:])) for paper in papers)
    assert (light + 0.05) / (luminance(color) + 0.05) >= 3 and (luminance(color) + 0.05) / (dark + 0.05) >= 3


def test_what_shares_a_frame_differs_in_its_form_and_not_in_its_colour_alone():
    for figure in (loss_figure(training_log()), mse_figure(training_log()), compared_figure("", "", {
            str(k): ([0, 1], [1, 2]) for k in range(len(RUN_LINES))})):  # fmt: skip
        named = [line for line in figure.drawing.axes[0].lines if not line.get_label().startswith("_")]
        forms = {str((line._dash_pattern, line.get_marker(), line.get_drawstyle())) for line in named}
        assert len(forms) == len(named) > 1


@pytest.mark.parametrize("grey", np.linspace(0, 1, 21))
def test_text_on_a_colour_can_be_read(grey):
    linear = grey / 12.92 if grey <= 0.04045 else ((grey + 0.055) / 1.055) ** 2.4
    ink = {"black": 0.0, "white": 1.0}[text_colour_on((grey, grey, grey, 1.0))]
    lighter, darker = max(linear, ink) + 0.05, min(linear, ink) + 0.05
    assert lighter / darker >= 4.5


def test_what_a_value_is_worth_is_the_mean_over_pairs_that_differ_in_nothing_else():
    scores = {(0.1, 16): 5.0, (0.2, 16): 6.0, (0.1, 32): 7.0, (0.2, 32): 10.0, (0.1, 64): 1.0}  # (0.2, 64) did not train
    trials = [trial(rate, size, [score, 0.0]) for (rate, size), score in scores.items()]
    trials += [trial(0.2, 64, [None, 9.0])]
    repeated = [[trial(0.1, 16, [nats, 0.0]) for nats in (4.0, 5.0, 6.0)], [trial(0.1, 32, [7.0, 0.0])]]  # deviation 1
    figure = worth_figure(trials, {"learning_rate": [0.1, 0.2], "batch_size": [16, 32, 64]}, repeated)
    axes = figure.drawing.axes[0]
    dots = [(line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines if line.get_marker() == "o"]
    # Rates: pairs of sizes 16 and 32. Sizes: only rate 0.1 has all three.
    assert dots == [(0.0, 0), (2.0, 1), (4.0, 2), (6.0, 3), (0.0, 4)]
    labels = [text.get_text() for text in axes.get_yticklabels()]
    assert labels == ["learning_rate 0.1", "learning_rate 0.2", "batch_size 16", "batch_size 32", "batch_size 64"]
    (band,) = axes.patches
    assert band.get_x() + band.get_width() == pytest.approx(2 * math.sqrt(2))


def test_the_curves_of_the_finalists_are_the_means_of_their_seeds():
    repeated = [[trial(0.1, 16, [4.0, 3.0]), trial(0.1, 16, [6.0, 3.5])], [trial(0.1, 32, [7.0, 5.0])]]
    figure = epochs_figure(repeated)
    assert epochs_figure([lines[:1] for lines in repeated]).caption == "The trials that were trained to the end."
    assert curves(figure) == {"16": ([1, 2], [5.0, 3.25]), "32": ([1, 2], [7.0, 5.0])}
    assert "mean of 2 seeds" in figure.caption and f"differ by {math.sqrt(0.125):.3f}" in figure.caption


def test_the_gue_curve_has_area_one_and_mean_one():
    s, step = np.linspace(0, 12, 120_001, retstep=True)
    density = gue_spacing_density(s)
    assert (density * step).sum() == pytest.approx(1) and (s * density * step).sum() == pytest.approx(1)
    assert gue_spacing_density(0.01) / gue_spacing_density(0.005) == pytest.approx(4, rel=1e-3)  # repulsion by s², not s
    for limit in (0.3, 1.0, 2.5):
        assert gue_share_below(limit) == pytest.approx((density * step)[s < limit].sum(), rel=1e-3)
