"""Whole searches: the winner is written back, and a search can be interrupted and changed at any moment."""

import errno
import json
import math
import os
import random
import shutil
from pathlib import Path

import pytest
from conftest import write_config
from searches import GRID, SEARCH, rung_lines, tune, with_grid

import tune_hyper_parameters
from common.config import UserError, load_config
from tuning.workers import schedule_jobs, state_folder


def test_a_search_trains_all_trials_for_the_first_rung_and_writes_the_winner_back(whole_search):
    folder, _, _ = whole_search
    lines = rung_lines(folder)
    assert [sum(line["epochs"] == rung for line in lines) for rung in (1, 2, 3)] == [24, 8, 4]
    curves = {}
    for line in sorted(lines, key=lambda line: line["epochs"]):
        assert len(line["nats_per_zero"]) == line["epochs"] and line["stable"] and line["trainable"]
        assert line["last_losses"] < line["first_loss"] and 0 <= line["readable"] <= 1 and (line["mse"] or line["readable"] == 0)
        before = curves.get(str(line["point"]), [])
        assert line["nats_per_zero"][: len(before)] == before  # it went on, and did not begin again
        curves[str(line["point"])] = line["nats_per_zero"]

    _, epochs, rate = min((nats, epochs, line["point"]["learning_rate"])
                          for line in lines for epochs, nats in enumerate(line["nats_per_zero"], 1))  # fmt: skip
    config = load_config(folder / "config.json")
    assert (config.training.epochs, config.training.learning_rate) == (epochs, scaled(rate))
    assert config.data.interval_size == 300 and (folder / "config.previous.json").read_text() == json.dumps(SEARCH)
    assert not state_folder(config).exists()


def scaled(rate):
    """The rate that is written: full training has 900 zeros for 180 of the search, and as many passes as the trial had epochs."""
    return float(f"{rate * (180 / 900) ** (1 / 3):.2g}")


def test_an_interrupted_search_goes_on_to_the_same_lines_and_the_same_winner(whole_search, search_folder, in_process):
    finished = 0
    for more in (1, 2, 1, 1, 2):
        in_process.clear()
        in_process.limit = more
        assert tune(search_folder) == 130
        finished += len(in_process)
        assert (search_folder / "config.json").read_text() == json.dumps(SEARCH)
    in_process.clear()
    in_process.limit = math.inf
    assert tune(search_folder) == 0
    assert finished + len(in_process) == len(whole_search[1])  # nothing was trained twice
    assert rung_lines(search_folder) == rung_lines(whole_search[0])
    assert (search_folder / "config.json").read_text() == (whole_search[0] / "config.json").read_text()


def test_states_may_lie_on_a_disk_that_is_lost_and_the_search_goes_on(whole_search, search_folder, in_process, tmp_path):
    """As in Colab, whose disk goes with the runtime, while the run folder is on Drive."""
    local = tmp_path / "disk"
    states = ("--set", f"tuning.state_folder={local}")
    in_process.limit = len([job for job in whole_search[1] if job.last_epoch == 1]) + 1  # one has gone on to the second rung
    assert tune(search_folder, *states) == 130
    assert len(list(local.glob("*/*.pt"))) > 1 and not list(search_folder.glob("checkpoints/**/*.pt"))
    finished = rung_lines(search_folder)
    shutil.rmtree(local)
    in_process.limit = math.inf
    assert tune(search_folder, *states) == 0
    lines = rung_lines(search_folder)
    assert all(line in lines for line in finished)
    for line, expected in zip(lines, rung_lines(whole_search[0]), strict=True):
        assert (line["point"], line["epochs"]) == (expected["point"], expected["epochs"])
        assert line["nats_per_zero"] == pytest.approx(expected["nats_per_zero"], rel=1e-4)  # in other stacks sums round otherwise
    assert (search_folder / "config.json").read_text() == (whole_search[0] / "config.json").read_text()
    assert list(local.iterdir()) == []


def test_what_else_lies_in_the_folder_for_states_is_left_alone(search_folder, tmp_path, in_process):
    others = load_config(write_config(tmp_path / "other", SEARCH), ["tuning.state_folder=~/states"])
    config = load_config(search_folder / "config.json", ["tuning.state_folder=../states"])
    assert state_folder(others).parent == Path.home() / "states" and state_folder(others).name != state_folder(config).name
    (tmp_path / "states").mkdir()
    (tmp_path / "states" / "mine.pt").touch()
    assert tune(search_folder, "--set", "tuning.state_folder=../states") == 0
    assert [path.name for path in (tmp_path / "states").iterdir()] == ["mine.pt"]


def test_the_trials_of_the_last_rung_are_trained_again_with_other_seeds_and_only_once(searched_folder, in_process):
    before = rung_lines(searched_folder)
    for limit, code in ((1, 130), (math.inf, 0)):
        in_process.limit = limit
        assert tune(searched_folder, "--set", "tuning.seeds=3") == code
    jobs = [(job.trials[0].settings.training.seed, len(job.trials), job.first_epoch, job.last_epoch) for job in in_process]
    assert {seed for seed, *_ in jobs} == {2, 3} and all((first, last) == (0, 3) for *_, first, last in jobs)
    new = [line for line in rung_lines(searched_folder) if line not in before]
    finalists = [line for line in before if line["epochs"] == 3]
    for seed in (2, 3):
        again = [line for line in new if line["settings"]["training"]["seed"] == seed]
        assert [line["point"] for line in again] == [line["point"] for line in finalists]
        assert all(line["nats_per_zero"] != other["nats_per_zero"] for line, other in zip(again, finalists, strict=True))
    assert len(new) == 2 * len(finalists) == sum(count for _, count, *_ in jobs)


def test_the_order_in_which_stacks_finish_does_not_matter(whole_search, search_folder, in_process, monkeypatch):
    def shuffled(*arguments):
        jobs = schedule_jobs(*arguments)
        return random.Random(1).sample(jobs, len(jobs))

    monkeypatch.setattr(tune_hyper_parameters, "schedule_jobs", shuffled)
    tune(search_folder)
    assert rung_lines(search_folder) == rung_lines(whole_search[0])


def test_a_changed_grid_trains_only_what_is_new(searched_folder, in_process):
    before = rung_lines(searched_folder)
    with_grid(searched_folder, {**GRID, "learning_rate": [1e-6, *GRID["learning_rate"]]})  # the new ones are the worst
    tune(searched_folder)
    assert {trial.values["learning_rate"] for job in in_process for trial in job.trials if job.last_epoch == 1} == {1e-6}
    after = rung_lines(searched_folder)
    assert [line for line in after if line in before] == before and sum(line["epochs"] == 1 for line in after) == 32

    in_process.clear()
    with_grid(searched_folder, {**GRID, "num_layers": [1]})  # what the model had before, now an axis
    tune(searched_folder)
    assert not in_process
    tune(searched_folder, "--set", "training.compile=off", "--set", "training.log_interval=50")  # which the search does not use
    assert not in_process


def test_a_diverged_trial_is_a_result_and_cannot_win(search_folder, in_process, capsys):
    with_grid(search_folder, {"epochs": [1, 2], "learning_rate": [1e18, 0.003]})
    assert tune(search_folder) == 0
    good, diverged = [line for line in rung_lines(search_folder) if line["epochs"] == 1]
    assert diverged["point"]["learning_rate"] == 1e18 and not diverged["trainable"] and good["trainable"]
    assert load_config(search_folder / "config.json").training.learning_rate == scaled(0.003)

    with_grid(search_folder, {"epochs": [1], "learning_rate": [1e18]})
    before = (search_folder / "config.json").read_text()
    with pytest.raises(UserError, match="smaller values to tuning.grid.learning_rate"):
        tune(search_folder)
    assert (search_folder / "config.json").read_text() == before


def test_overrides_that_the_winner_was_found_with_are_written_with_it(search_folder, in_process):
    tune(search_folder, "--set", "model.max_prime=20", "--set", "training.weight_decay=0.1", "--set", "tuning.keep=0.1")
    written = json.loads((search_folder / "config.json").read_text())
    assert written["model"]["max_prime"] == 20 and written["training"]["weight_decay"] == 0.1
    assert written["tuning"]["keep"] == 0.3 and written["training"]["learning_rate"] in map(scaled, GRID["learning_rate"])


def test_a_dry_run_trains_and_writes_nothing(search_folder, in_process, capsys):
    assert not tune(search_folder, "--dry-run")
    text = capsys.readouterr().out
    assert "24 trials" in text and "forecast for the search on Mac mini M4" in text
    assert not in_process and [path.name for path in search_folder.iterdir()] == ["config.json"]


def test_a_measured_host_is_used_and_written_and_the_old_file_kept(search_folder, in_process, monkeypatch, capsys):
    monkeypatch.setattr("tuning.cost.measured_step_seconds", lambda model, size, device: 0.001 * size * model.num_layers)
    before = (search_folder / "config.json").read_text()
    tune(search_folder, "--dry-run", "--measure-host")
    assert "Mac mini" not in capsys.readouterr().out and (search_folder / "config.json").read_text() == before
    with_grid(search_folder, {"epochs": [1]})
    before = (search_folder / "config.json").read_text()
    monkeypatch.setattr(tune_hyper_parameters, "tune", lambda *arguments: 0)
    tune(search_folder, "--measure-host")
    assert "Mac mini" not in load_config(search_folder / "config.json").tuning.host.name
    assert (search_folder / "config.previous.json").read_text() == before


def test_a_clean_up_that_fails_costs_no_result(search_folder, whole_search, in_process, monkeypatch, caplog):
    """As on NFS, where a folder may stay for what is still open in it."""
    def not_empty(path):
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))

    monkeypatch.setattr("common.files.shutil.rmtree", not_empty)
    assert tune(search_folder) == 0
    assert (search_folder / "config.json").read_text() == (whole_search[0] / "config.json").read_text()
    assert "not needed any more" in (search_folder / "logs" / "rzz.log").read_text()
    assert tune(search_folder) == 0  # nothing is left to train
