"""Successive halving: the best trials of each batch size go on, and the log says what is known of each."""

import json
import math
import random

import pytest
from searches import GRID, tune, with_grid

from common.config import load_config
from common.files import append_json_lines, read_json_lines
from tuning.grid import grid_of, trial_key_settings
from tuning.halving import SearchLog, eliminated, outcome, promoted, rungs_of


class KnownResults:
    """A search log with one result for each trial: {key of the trial: result}."""

    def __init__(self, results):
        self.results = results

    def result(self, trial, rung):
        return self.results.get(trial.key)


def random_results(trials, draw):
    return {trial.key: {"nats_per_zero": [draw.choice([3.0, 2.0, 1.0]), draw.choice([3.0, None])],
                        "mse": draw.choice([1.0, 2.0, None]), "trainable": draw.random() < 0.7}
            for trial in trials}  # fmt: skip


@pytest.mark.parametrize("seed", range(20))
def test_the_best_of_each_batch_size_go_on(search_folder, seed):
    """The reference takes the best remaining trial again and again, the earlier of equals first."""
    draw = random.Random(seed)
    config = load_config(search_folder / "config.json", [f"tuning.keep={draw.choice([0.1, 0.25, 0.5, 1])}"])
    trials = grid_of(config).trials
    results = random_results(trials, draw)
    expected = []
    for size in (16, 64):
        same_batch_size = [trial for trial in trials if trial.settings.training.batch_size == size]
        remaining = [trial for trial in same_batch_size if results[trial.key]["trainable"]]
        places = math.ceil(round(config.tuning.keep * len(same_batch_size), 6))
        chosen = []
        while remaining and len(chosen) < places:
            best = remaining[0]
            for trial in remaining[1:]:
                pair = results[trial.key], results[best.key]
                nats, best_nats = (min(value for value in result["nats_per_zero"] if value) for result in pair)
                mse, best_mse = (math.inf if result["mse"] is None else result["mse"] for result in pair)
                if nats < best_nats or (nats == best_nats and mse < best_mse):
                    best = trial
            remaining.remove(best)
            chosen.append(best)
        expected += [trial for trial in same_batch_size if trial in chosen]
    assert promoted(config, trials, KnownResults(results), 1) == expected


@pytest.mark.parametrize("seed", range(5))
def test_who_is_eliminated_while_results_are_missing_is_not_promoted_by_any_of_them(search_folder, seed):
    draw = random.Random(seed)
    config = load_config(search_folder / "config.json")
    trials = grid_of(config).trials
    results, known, before = random_results(trials, draw), {}, set()
    for trial in draw.sample(trials, len(trials)):
        known[trial.key] = results[trial.key]
        out = {trial.key for trial in eliminated(config, trials, KnownResults(known), 1)}
        assert before <= out <= known.keys()
        before = out
    assert before == {trial.key for trial in trials} - {trial.key for trial in promoted(config, trials, KnownResults(results), 1)}


def test_rungs_end_with_the_most_epochs_that_the_grid_asks_for(search_folder):
    for epochs, rungs in (([1, 2, 3], [1, 2, 3]), ([1], [1]), ([2, 16], [1, 2, 16]), ([5, 2], [1, 2, 5])):
        assert rungs_of(with_grid(search_folder, {**GRID, "epochs": epochs})) == rungs


def test_only_trials_that_learned_are_trainable_and_only_finite_ones_stable():
    assert outcome(2.0, [1.0, 1.5], True, 9.0) == {"stable": True, "trainable": True}
    assert outcome(1.0, [0.5, 1.6], True, 9.0) == {"stable": True, "trainable": False}
    assert outcome(2.0, [1.0, 1.5], False, 9.0) == {"stable": False, "trainable": False}
    assert outcome(2.0, [1.0, 1.5], True, math.inf) == {"stable": False, "trainable": False}
    assert outcome(math.nan, [math.nan], False, math.nan) == {"stable": False, "trainable": False}


def test_the_search_log_cuts_a_longer_curve_at_the_rung(searched_folder):
    config = load_config(searched_folder / "config.json")
    search_log = SearchLog(config)
    cut = [search_log.result(trial, rung) for trial in grid_of(config).trials for rung in (1, 2, 3)]
    assert [len(result["nats_per_zero"]) for result in cut[::3]] == [1] * 24
    assert sum(result is not None for result in cut) == 24 + 8 + 4


@pytest.mark.parametrize("epochs", [[1, 2, 3], [4, 5, 6]])
def test_the_last_result_of_a_trial_is_cut_at_the_epochs_that_the_grid_asks_for_now(search_folder, epochs):
    config = with_grid(search_folder, {"epochs": epochs})
    (trial,), log = grid_of(config).trials, SearchLog(config)
    curve, settings = [9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0], trial_key_settings(trial.settings)
    log.enter([{"epochs": count, "nats_per_zero": curve[:count], "settings": settings} for count in (4, 8)])
    result = log.last_result(trial)
    assert (result["nats_per_zero"], result["epochs"]) == (curve[: epochs[-1]], epochs[-1])


def test_what_was_excluded_is_in_the_log_once(search_folder, in_process):
    with_grid(search_folder, {**GRID, "num_heads": [1, 3]})
    tune(search_folder)
    tune(search_folder)
    excluded = [line for line in read_json_lines(search_folder / "logs" / "tuning.jsonl") if line["kind"] == "ruled_out"]
    assert len(excluded) == 12 and all(line["point"]["num_heads"] == 3 and line["detail"] == "16 by 3" for line in excluded)


def test_a_line_of_the_log_that_lost_a_key_is_a_result_that_is_not_known(searched_folder, caplog):
    path = searched_folder / "logs" / "tuning.jsonl"
    rungs = [line for line in read_json_lines(path) if line["kind"] == "rung"]
    needed = ("kind", "epochs", "nats_per_zero", "mse", "stable", "trainable", "settings", "parameters")
    path.write_text("".join(json.dumps({k: v for k, v in rungs[0].items() if k != key}) + "\n" for key in needed))
    config = load_config(searched_folder / "config.json")
    log = SearchLog(config)
    assert not log.lines and f"left out lines that are damaged or of another version: {len(needed)}" in caplog.text
    append_json_lines(path, rungs)
    assert sum(map(len, SearchLog(config).lines.values())) == len(rungs)
