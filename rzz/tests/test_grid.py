"""The grid of the search: no combination is left out without a reason."""

import itertools
import math

from searches import GRID, rung_lines, tune, with_grid

from common.config import load_config
from tuning.cost import memory_gb, training_hours
from tuning.grid import grid_of, settings_of


def test_every_combination_is_a_trial_or_excluded_with_its_reason(search_folder):
    axes = {**GRID, "d_model": [16, 24, 64], "num_heads": [1, 2, 5], "d_k": [None, 8]}
    config = with_grid(search_folder, axes, max_memory_gb=0.0025)
    grid = grid_of(config)
    names = [axis for axis in axes if axis != "epochs"]
    wanted = [dict(zip(names, values, strict=True)) for values in itertools.product(*(axes[axis] for axis in names))]
    found = [trial.values for trial in grid.trials] + [entry.values for entry in grid.excluded]
    assert len(found) == len(wanted) and all(values in found for values in wanted)
    for entry in grid.excluded:
        d_model, heads, d_k = (entry.values[axis] for axis in ("d_model", "num_heads", "d_k"))
        if d_model % heads:
            assert "not divisible" in entry.reason and entry.detail == f"{d_model} by {heads}"
        elif heads == 2 and d_model == 16 and d_k == 8:  # null is 16 / 2 = 8 too
            assert "same as another trial" in entry.reason and "d_k None" in entry.detail
        else:
            assert "max_memory_gb" in entry.reason and memory_gb(settings_of(config, entry.values)) > 0.0025
    assert len({entry.reason for entry in grid.excluded}) == 3
    assert all(memory_gb(trial.settings) <= 0.0025 for trial in grid.trials)


def test_a_trial_too_long_for_some_epochs_is_kept_with_fewer_and_too_long_for_all_is_excluded(search_folder):
    path = with_grid(search_folder, {**GRID, "d_model": [16, 64]}).path
    config = load_config(path, ["data.interval_size=60"])  # × 3 rounds: as many zeros as the search trains on
    hours = [training_hours(trial.settings, 1) for trial in grid_of(config).trials]
    limit = 1.9 * sorted(hours)[len(hours) // 2]
    config = load_config(path, ["data.interval_size=60", f"tuning.max_training_hours={limit}"])
    grid = grid_of(config)
    for trial in grid.trials:
        assert trial.epochs == [count for count in (1, 2, 3) if count * training_hours(trial.settings, 1) <= limit] != []
    shortened = [trial.values for trial in grid.trials if trial.epochs != [1, 2, 3]]
    assert [entry.values for entry in grid.shortened] == shortened != []
    assert {len(trial.epochs) for trial in grid.trials} >= {1, 3}
    impossible = grid_of(load_config(path, ["data.interval_size=60", f"tuning.max_training_hours={min(hours) / 2}"]))
    assert not impossible.trials and len(impossible.excluded) == len(hours)
    assert all("max_training_hours" in entry.reason and "epochs 1" in entry.detail for entry in impossible.excluded)


def test_a_trial_with_fewer_epochs_is_trained_no_longer_and_wins_with_none_that_it_may_not_have(search_folder, in_process):
    config = load_config(search_folder / "config.json", ["data.interval_size=60"])
    hours = sorted(training_hours(trial.settings, 1) for trial in grid_of(config).trials)
    tune(search_folder, "--set", "data.interval_size=60", "--set", f"tuning.max_training_hours={2.5 * hours[0]}")
    assert {line["epochs"] for line in rung_lines(search_folder)} <= {1, 2}
    assert load_config(search_folder / "config.json").training.epochs <= 2


def test_the_default_grid_has_what_was_specified():
    config = load_config()
    grid, axes = grid_of(config), config.tuning.grid
    assert axes["epochs"] == list(range(1, 17)) and axes["batch_size"] == [16, 32, 64, 128]
    assert {"learning_rate", "d_model", "num_heads", "num_layers", "d_k", "d_v", "dropout"} <= axes.keys()
    assert grid.axes == {axis: values for axis, values in axes.items() if axis != "epochs"}
    assert len(grid.trials) + len(grid.excluded) == math.prod(map(len, grid.axes.values()))
