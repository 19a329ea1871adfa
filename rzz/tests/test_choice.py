"""What is written into config.json is the cheapest full training of those that are as good as the best."""

import pytest
from searches import with_grid

from common.config import load_config
from tuning.choice import choose, noise_of_seeds
from tuning.cost import ENOUGH_ZEROS, passes, training_hours, training_zeros_of
from tuning.grid import grid_of, trial_key_settings
from tuning.halving import SearchLog, repetitions

GRID = {"epochs": [1, 2, 3, 4], "learning_rate": [0.001], "batch_size": [16, 64], "d_model": [16, 32]}
SCARCE, PLENTY = "data.interval_size=60", "data.interval_size=200000"  # 180 zeros × 4 / 16 = 45 updates in the search


def finished_search(folder, interval_size, curves, seeds=1, rungs=(1, 2), grid=GRID):
    """Return (config, grid, search log); curves: {(batch size, d_model): list of curves, one for each seed}."""
    path = with_grid(folder, grid, seeds=seeds, rungs=list(rungs)).path
    config = load_config(path, [interval_size])
    grid, log = grid_of(config), SearchLog(config)
    for trial in grid.trials:
        found = curves[trial.values["batch_size"], trial.values["d_model"]]
        for each, curve in zip([trial, *repetitions(config, [trial])], found, strict=False):
            log.enter([{"epochs": len(curve), "nats_per_zero": curve, "mse": 1.0, "trainable": curve[-1] < 20,
                        "settings": trial_key_settings(each.settings)}])  # fmt: skip
    return config, grid, log


def chosen(search):
    choice = choose(*search)
    return choice.trial.values["batch_size"], choice.trial.values["d_model"], choice.passes


CURVES = {(16, 16): [[9.0, 8.0, 7.5, 7.4]], (16, 32): [[9.0, 7.9]], (64, 16): [[12.0, 11.0, 10.0, 8.5]], (64, 32): [[11.0]]}

WORTHLESS = {(64, 16): [[30.0]], (64, 32): [[30.0]]}


def test_where_updates_are_few_the_best_score_wins_with_its_epochs(tmp_path):
    search = finished_search(tmp_path, SCARCE, CURVES)
    assert chosen(search) == (16, 16, 4)


def test_where_updates_are_plenty_batches_are_compared_after_as_many_of_them(tmp_path):
    search = finished_search(tmp_path, PLENTY, CURVES)
    assert chosen(search) == (64, 16, 1)  # 8.5 after 4 epochs of batch 64 for 9.0 after 1 of batch 16
    worse = {**CURVES, (64, 16): [[12.0, 11.0, 10.0, 9.5]]}
    assert chosen(finished_search(tmp_path, PLENTY, worse))[0] == 16
    assert "after equally many updates" in choose(*search).reason
    once = finished_search(tmp_path, PLENTY, CURVES, grid={**GRID, "epochs": [1]})  # batch 16 has made four times as many
    assert "after as nearly equally many updates as" in choose(*once).reason


def test_of_those_that_chance_cannot_tell_apart_the_cheapest_full_training_wins(tmp_path):
    close = {(16, 16): [[9.0, 8.6, 8.6, 8.6]], (16, 32): [[9.0, 8.0, 8.0, 8.5], [9.0, 8.0, 8.0, 8.7]], **WORTHLESS}
    search = finished_search(tmp_path, SCARCE, close, seeds=2, rungs=(1, 2))
    noise = noise_of_seeds(*search)
    assert noise == pytest.approx(0.0)  # the lowest of each curve is 8.0
    assert chosen(search)[:2] == (16, 32)
    close[16, 32] = [[9.0, 8.5, 8.5, 8.5], [9.0, 8.7, 8.7, 8.7]]
    search = finished_search(tmp_path, SCARCE, close, seeds=2)
    assert noise_of_seeds(*search) == pytest.approx(0.02**0.5)  # deviation of 8.5 and 8.7
    assert chosen(search)[:2] == (16, 16)
    config, grid, _ = search
    small, large = (training_hours(trial.settings, 1) for trial in grid.trials[:2])
    assert small < large and "8.600 nats/zero" in choose(*search).reason
    assert "2 trials" in choose(*search).reason and "the best, 8.500" in choose(*search).reason


def test_the_learning_rate_falls_with_the_cube_root_of_the_updates_and_never_rises(tmp_path):
    for interval_size, factor in ((SCARCE, 1.0), (PLENTY, (180 * 4 / 600_000) ** (1 / 3)), ("data.interval_size=30", 1.0)):
        search = finished_search(tmp_path, interval_size, CURVES)
        choice = choose(*search)
        assert choice.learning_rate == pytest.approx(choice.trial.settings.training.learning_rate * factor, rel=0.05)


def test_a_learning_rate_and_epochs_that_were_not_searched_stay_the_users(tmp_path):
    fixed = {axis: values for axis, values in GRID.items() if axis not in ("learning_rate", "epochs")}
    config, grid, log = finished_search(tmp_path, PLENTY, CURVES, grid=fixed)
    assert training_zeros_of(config) >= ENOUGH_ZEROS and config.training.epochs == 2
    choice = choose(config, grid, log)
    assert (choice.passes, choice.learning_rate) == (2, config.training.learning_rate)


@pytest.mark.parametrize("interval_size, dropout", [(SCARCE, 0.2), (PLENTY, 0.1)])
def test_dropout_is_that_of_the_trial_unless_the_full_training_sees_zeros_less_often(tmp_path, interval_size, dropout):
    grid = {**GRID, "dropout": [0.2, 0.1]}
    config, found, log = finished_search(tmp_path, interval_size, CURVES, grid=grid)
    for trial in found.trials:  # those with less are worse
        if trial.values["dropout"] == 0.1:
            log.lines[trial.key][1] = {**log.result(trial, 1), "nats_per_zero": [30.0]}
    choice = choose(config, found, log)
    assert (choice.trial.values["dropout"], choice.dropout) == (0.2, dropout)
    assert ("which fewer passes do without" in choice.reason) == (dropout == 0.1)


def test_nothing_is_chosen_where_nothing_was_learned(tmp_path):
    assert choose(*finished_search(tmp_path, SCARCE, dict.fromkeys(CURVES, [[25.0]]))) is None


def test_passes_are_those_of_the_trial_but_no_more_than_half_a_million_zeros_need(tmp_path):
    config = with_grid(tmp_path, GRID)
    for size, expected in ((60, [1, 2, 3, 4]), (60_000, [1, 2, 3, 3]), (100_000, [1, 2, 2, 2]), (1_000_000, [1, 1, 1, 1])):  # × 3
        assert [passes(load_config(config.path, [f"data.interval_size={size}"]), count) for count in (1, 2, 3, 4)] == expected
