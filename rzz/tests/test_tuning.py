"""The search: nothing is left out without a reason, the better part goes on, and it can be interrupted at any moment."""

import io
import itertools
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import pytest
import torch
from conftest import SMALL_RUN, SRC, write_config
from test_stages import run, start

import tune_hyper_parameters
from common.config import UserError, load_config
from common.files import read_json_lines
from model.network import build_model, parameter_count
from tuning import workers
from tuning.cost import memory_gb, training_hours
from tuning.display import description, search_seconds
from tuning.grid import grid_of, settings_of
from tuning.halving import SearchLog, outcome, promoted, rungs_of
from tuning.workers import schedule_jobs, state_folder

GRID = {"epochs": [1, 2, 3], "learning_rate": [0.0003, 0.003, 0.01], "batch_size": [16, 64], "dropout": [0.0, 0.1],
        "num_heads": [1, 2]}  # fmt: skip
SEARCH = {**SMALL_RUN, "tuning": {"zeros": 200, "rungs": [1, 2], "keep": 0.3, "grid": GRID}}
CPU = torch.device("cpu")


@pytest.fixture
def search_folder(tmp_path):
    """A run folder whose grid has 24 points: 12 of each batch size, of which 4 go on, and then 2."""
    write_config(tmp_path / "run", SEARCH)
    return tmp_path / "run"


class Trained(list):
    """The tasks that were trained; someone presses Ctrl-C when there are `limit` of them."""

    limit = math.inf


def workers_without_processes(trained):
    """What worker_pool does, within this process."""

    @contextmanager
    def pool(config, device, training, validation):
        stopped = []

        def submit(task):
            future = Future()
            if len(trained) == trained.limit and not stopped:
                os.kill(os.getpid(), signal.SIGINT)
                stopped.append(True)
            if not stopped:
                future.set_result(workers.train_stack(task, config, device, training, validation, lambda: False))
                trained.append(task)
            return future

        yield submit

    return pool


@pytest.fixture
def in_process(monkeypatch):
    trained = Trained()
    monkeypatch.setattr(tune_hyper_parameters, "worker_pool", workers_without_processes(trained))
    return trained


@pytest.fixture(scope="module")
def whole_search(tmp_path_factory):
    """(run folder of a search that was never interrupted, its tasks, what it printed)."""
    folder, printed, trained = tmp_path_factory.mktemp("whole") / "run", io.StringIO(), Trained()
    write_config(folder, SEARCH)
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
        patch.setattr(tune_hyper_parameters, "worker_pool", workers_without_processes(trained))
        assert tune(folder) == 0
    return folder, trained, printed.getvalue()


@pytest.fixture
def searched_folder(whole_search, tmp_path):
    """A copy of that folder, with the config.json from before the search."""
    shutil.copytree(whole_search[0], tmp_path / "searched")
    write_config(tmp_path / "searched", SEARCH)
    return tmp_path / "searched"


def tune(folder, *arguments):
    return tune_hyper_parameters.main(["--config", str(folder / "config.json"), *arguments])


def rung_lines(folder):
    """What tuning.jsonl says of finished rungs, in a fixed order and without what depends on the clock."""
    lines = [line for line in read_json_lines(folder / "logs" / "tuning.jsonl") if line["kind"] == "rung"]
    for line in lines:
        del line["seconds"]
    return sorted(lines, key=lambda line: json.dumps([line["point"], line["epochs"]]))


def with_grid(folder, grid, **tuning):
    write_config(folder, {**SEARCH, "tuning": {**SEARCH["tuning"], "grid": grid, **tuning}})
    return load_config(folder / "config.json")


# ------------------------------------------------------------------------------------------------------------------ grid


def test_every_combination_is_trained_or_ruled_out_with_its_reason(search_folder):
    grid_axes = {**GRID, "d_model": [16, 24, 64], "num_heads": [1, 2, 5], "d_k": [None, 8]}
    config = with_grid(search_folder, grid_axes, max_memory_gb=0.0025)
    grid = grid_of(config)
    names = [axis for axis in grid_axes if axis != "epochs"]
    wanted = [dict(zip(names, values, strict=True)) for values in itertools.product(*(grid_axes[axis] for axis in names))]
    found = [point.values for point in grid.points] + [entry.values for entry in grid.ruled_out]
    assert len(found) == len(wanted) and all(values in found for values in wanted)
    for entry in grid.ruled_out:
        d_model, heads, d_k = (entry.values[axis] for axis in ("d_model", "num_heads", "d_k"))
        if d_model % heads:
            assert "not divisible" in entry.reason and entry.detail == f"{d_model} by {heads}"
        elif heads == 2 and d_model == 16 and d_k == 8:  # null is 16 / 2 = 8 too
            assert "same as another point" in entry.reason and "d_k None" in entry.detail
        else:
            assert "max_memory_gb" in entry.reason and memory_gb(settings_of(config, entry.values)) > 0.0025
    assert len({entry.reason for entry in grid.ruled_out}) == 3
    assert all(memory_gb(point.settings) <= 0.0025 for point in grid.points)
    text = description(config, grid, CPU, "")
    assert f"{len(wanted):,} points" in text and f"ruled out: {len(grid.ruled_out)}" in text


def test_a_point_too_long_for_some_epochs_is_kept_with_fewer_and_too_long_for_all_is_ruled_out(search_folder):
    config = with_grid(search_folder, {**GRID, "d_model": [16, 64]})
    hours = [training_hours(point.settings, 1) for point in grid_of(config).points]
    limit = 1.9 * sorted(hours)[len(hours) // 2]
    config = load_config(config.path, [f"tuning.max_training_hours={limit}"])
    grid = grid_of(config)
    for point in grid.points:
        assert point.epochs == [count for count in (1, 2, 3) if count * training_hours(point.settings, 1) <= limit] != []
    shortened = [point.values for point in grid.points if point.epochs != [1, 2, 3]]
    assert [entry.values for entry in grid.shortened] == shortened != []
    assert {len(point.epochs) for point in grid.points} >= {1, 3}
    impossible = grid_of(load_config(config.path, [f"tuning.max_training_hours={min(hours) / 2}"]))
    assert not impossible.points and len(impossible.ruled_out) == len(hours)
    assert all("max_training_hours" in entry.reason and "epochs 1" in entry.detail for entry in impossible.ruled_out)


def test_a_point_with_fewer_epochs_is_trained_no_longer_and_wins_with_none_that_it_may_not_have(search_folder, in_process):
    config = load_config(search_folder / "config.json")
    hours = sorted(training_hours(point.settings, 1) for point in grid_of(config).points)
    tune(search_folder, "--set", f"tuning.max_training_hours={2.5 * hours[0]}")
    assert {line["epochs"] for line in rung_lines(search_folder)} <= {1, 2}
    assert load_config(search_folder / "config.json").training.epochs <= 2


def test_the_default_grid_has_what_was_specified_and_a_forecast_of_three_hours_at_most():
    config = load_config()
    grid = grid_of(config)
    axes = config.tuning.grid
    assert axes["epochs"] == list(range(1, 17)) and axes["batch_size"] == [16, 32, 64, 128]
    assert {"learning_rate", "d_model", "num_heads", "num_layers", "d_k", "d_v", "dropout", "index_embedding"} <= axes.keys()
    assert len(grid.points) + len(grid.ruled_out) == math.prod(len(values) for axis, values in axes.items() if axis != "epochs")
    likely, most = search_seconds(config, grid.points, rungs_of(config), CPU)
    assert likely <= most <= 3 * 3600 * config.tuning.host.cores


@pytest.mark.parametrize("keep, states", [(1.0, 2), (0.5, 1)])  # of 2 learning rates with one head; three do not fit d_model
def test_the_states_of_the_points_that_may_go_on_are_counted(run_folder, keep, states):
    config = load_config(run_folder / "config.json", ["model.d_model=256", f"tuning.keep={keep}"])
    megabytes = 16 * parameter_count(build_model(config.model, seed=1)) / 1e6  # weights, their running average, and AdamW's two
    assert f"up to {states * megabytes:,.0f} MB on disk" in description(config, grid_of(config), CPU, "")


# --------------------------------------------------------------------------------------------------------------- halving


class KnownScores:
    """A ledger that knows everything: {key of the point: line}."""

    def __init__(self, lines):
        self.lines = lines

    def line(self, point, rung):
        return self.lines.get(point.key)


@pytest.mark.parametrize("seed", range(20))
def test_the_better_part_of_each_batch_size_goes_on(search_folder, seed):
    """The reference takes the best remaining point again and again, the earlier of equals first."""
    draw = random.Random(seed)
    config = load_config(search_folder / "config.json", [f"tuning.keep={draw.choice([0.1, 0.25, 0.5, 1])}"])
    points = grid_of(config).points
    lines = {point.key: {"nats_per_zero": [draw.choice([3.0, 2.0, 1.0]), draw.choice([3.0, None])],
                         "mse": draw.choice([1.0, 2.0, None]), "trainable": draw.random() < 0.7}
             for point in points}  # fmt: skip
    expected = []
    for size in (16, 64):
        peers = [point for point in points if point.settings.training.batch_size == size]
        remaining = [point for point in peers if lines[point.key]["trainable"]]
        places = math.ceil(round(config.tuning.keep * len(peers), 6))
        chosen = []
        while remaining and len(chosen) < places:
            best = remaining[0]
            for point in remaining[1:]:
                mine, other = lines[point.key], lines[best.key]
                nats, other_nats = (min(value for value in line["nats_per_zero"] if value) for line in (mine, other))
                mse, other_mse = (math.inf if line["mse"] is None else line["mse"] for line in (mine, other))
                if nats < other_nats or (nats == other_nats and mse < other_mse):
                    best = point
            remaining.remove(best)
            chosen.append(best)
        expected += [point for point in peers if point in chosen]
    assert promoted(config, points, KnownScores(lines), 1) == expected


def test_rungs_end_with_the_most_epochs_that_the_grid_asks_for(search_folder):
    for epochs, rungs in (([1, 2, 3], [1, 2, 3]), ([1], [1]), ([2, 16], [1, 2, 16]), ([5, 2], [1, 2, 5])):
        assert rungs_of(with_grid(search_folder, {**GRID, "epochs": epochs})) == rungs


def test_only_points_that_learned_are_trainable_and_only_finite_ones_stable():
    assert outcome(2.0, [1.0, 1.5], True, 9.0) == {"stable": True, "trainable": True}
    assert outcome(1.0, [0.5, 1.6], True, 9.0) == {"stable": True, "trainable": False}
    assert outcome(2.0, [1.0, 1.5], False, 9.0) == {"stable": False, "trainable": False}
    assert outcome(2.0, [1.0, 1.5], True, math.inf) == {"stable": False, "trainable": False}
    assert outcome(math.nan, [math.nan], False, math.nan) == {"stable": False, "trainable": False}


# ---------------------------------------------------------------------------------------------------------- whole searches


def test_a_search_trains_all_points_for_the_first_rung_and_writes_the_winner_back(whole_search):
    folder, _, output = whole_search
    lines = rung_lines(folder)
    assert [sum(line["epochs"] == rung for line in lines) for rung in (1, 2, 3)] == [24, 8, 4]
    curves = {}
    for line in sorted(lines, key=lambda line: line["epochs"]):
        assert len(line["nats_per_zero"]) == line["epochs"] and line["stable"] and line["trainable"]
        assert line["last_losses"] < line["first_loss"] and 0 <= line["readable"] <= 1 and (line["mse"] or line["readable"] == 0)
        before = curves.get(str(line["point"]), [])
        assert line["nats_per_zero"][: len(before)] == before  # it went on, and did not begin anew
        curves[str(line["point"])] = line["nats_per_zero"]

    nats, epochs, rate = min((nats, epochs, line["point"]["learning_rate"])
                             for line in lines for epochs, nats in enumerate(line["nats_per_zero"], 1))  # fmt: skip
    config = load_config(folder / "config.json")
    assert (config.training.epochs, config.training.learning_rate) == (epochs, rate)
    assert config.data.interval_size == 300 and (folder / "config.previous.json").read_text() == json.dumps(SEARCH)
    assert not state_folder(config).exists()
    table, axes = output.split("what each value is worth")
    assert f"{nats:.3f}" in table.splitlines()[3] and len(table.splitlines()) == 3 + 10 + 1
    for value in GRID["learning_rate"]:
        of_value = [line["nats_per_zero"][0] for line in lines if line["epochs"] == 1 and line["point"]["learning_rate"] == value]
        (row,) = [row for row in axes.splitlines() if row.split()[:2] == ["learning_rate", str(value)]]
        assert row.split()[2:5] == ["8", "8", f"{sum(of_value) / 8:.3f}"]


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


@pytest.mark.parametrize("seed", range(5))
def test_what_an_interruption_left_is_stacked_as_it_was_before(search_folder, monkeypatch, seed):
    monkeypatch.setattr(workers, "stack_size", lambda settings, device: 4)
    config = load_config(search_folder / "config.json")
    points = grid_of(config).points
    stacks = {tuple(point.key for point in task.points) for task in schedule_jobs(config, points, 1, CPU)}
    assert sorted(map(len, stacks)) == [2, 2, 2, 2, 4, 4, 4, 4]
    left = set(random.Random(seed).sample(sorted(stacks), 3))
    again = schedule_jobs(config, [point for point in points if any(point.key in stack for stack in left)], 1, CPU)
    assert {tuple(point.key for point in task.points) for task in again} == left


def test_the_order_in_which_stacks_finish_does_not_matter(whole_search, search_folder, in_process, monkeypatch):
    def shuffled(*given):
        tasks = schedule_jobs(*given)
        return random.Random(1).sample(tasks, len(tasks))

    monkeypatch.setattr(tune_hyper_parameters, "schedule_jobs", shuffled)
    tune(search_folder)
    assert rung_lines(search_folder) == rung_lines(whole_search[0])


def test_a_changed_grid_trains_only_what_is_new(searched_folder, in_process):
    before = rung_lines(searched_folder)
    with_grid(searched_folder, {**GRID, "learning_rate": [1e-6, *GRID["learning_rate"]]})  # the new ones are the worst
    tune(searched_folder)
    assert {point.values["learning_rate"] for task in in_process for point in task.points if task.last_epoch == 1} == {1e-6}
    after = rung_lines(searched_folder)
    assert [line for line in after if line in before] == before and sum(line["epochs"] == 1 for line in after) == 32

    in_process.clear()
    with_grid(searched_folder, {**GRID, "num_layers": [1]})  # what the model had before, now an axis
    tune(searched_folder)
    assert not in_process
    tune(searched_folder, "--set", "training.compile=off", "--set", "training.log_interval=50")  # which the search does not use
    assert not in_process


def test_a_damaged_state_is_said_and_a_lost_one_trained_again_to_the_same_line(whole_search, search_folder, in_process):
    config = load_config(search_folder / "config.json")
    in_process.limit = len(schedule_jobs(config, grid_of(config).points, 1, CPU))
    assert tune(search_folder) == 130
    states = list(state_folder(config).iterdir())
    assert len(states) == 8
    in_process.limit = math.inf
    for state in states:
        state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(UserError, match="is damaged; remove it"):
        tune(search_folder)
    for state in state_folder(config).iterdir():
        state.unlink()
    assert tune(search_folder) == 0
    theirs = {(str(line["point"]), line["epochs"]): line for line in rung_lines(whole_search[0])}
    for line in rung_lines(search_folder):
        assert line["nats_per_zero"] == pytest.approx(theirs[str(line["point"]), line["epochs"]]["nats_per_zero"], rel=1e-4)


def test_a_diverged_point_is_a_result_and_cannot_win(search_folder, in_process, capsys):
    with_grid(search_folder, {"epochs": [1, 2], "learning_rate": [1e18, 0.003]})
    assert tune(search_folder) == 0
    good, diverged = [line for line in rung_lines(search_folder) if line["epochs"] == 1]
    assert diverged["point"]["learning_rate"] == 1e18 and not diverged["trainable"] and good["trainable"]
    assert load_config(search_folder / "config.json").training.learning_rate == 0.003

    with_grid(search_folder, {"epochs": [1], "learning_rate": [1e18]})
    before = (search_folder / "config.json").read_text()
    with pytest.raises(UserError, match="smaller values to tuning.grid.learning_rate"):
        tune(search_folder)
    assert (search_folder / "config.json").read_text() == before


def test_what_was_left_out_stands_in_the_log_once(search_folder, in_process):
    with_grid(search_folder, {**GRID, "num_heads": [1, 3]})
    tune(search_folder)
    tune(search_folder)
    out = [line for line in read_json_lines(search_folder / "logs" / "tuning.jsonl") if line["kind"] == "ruled_out"]
    assert len(out) == 12 and all(line["point"]["num_heads"] == 3 and line["detail"] == "16 by 3" for line in out)


def test_a_dry_run_trains_and_writes_nothing(search_folder, in_process, capsys):
    assert not tune(search_folder, "--dry-run")
    text = capsys.readouterr().out
    assert "24 points" in text and "forecast for the search on Mac mini M4" in text
    assert not in_process and [path.name for path in search_folder.iterdir()] == ["config.json"]


def test_a_measured_host_is_used_and_written_and_the_old_file_kept(search_folder, in_process, monkeypatch, capsys):
    monkeypatch.setattr("tuning.cost.measured_step_seconds", lambda model, size, device: 0.001 * size * model.num_layers)
    before = (search_folder / "config.json").read_text()
    tune(search_folder, "--dry-run", "--measure-host")
    assert "Mac mini" not in capsys.readouterr().out and (search_folder / "config.json").read_text() == before
    with_grid(search_folder, {"epochs": [1]})
    before = (search_folder / "config.json").read_text()
    monkeypatch.setattr(tune_hyper_parameters, "tune", lambda *given: 0)
    tune(search_folder, "--measure-host")
    assert "Mac mini" not in load_config(search_folder / "config.json").tuning.host.name
    assert (search_folder / "config.previous.json").read_text() == before


# --------------------------------------------------------------------------------------------------------- with processes


def test_two_processes_find_what_one_finds_and_ctrl_c_keeps_what_is_finished(whole_search, search_folder):
    log = search_folder / "logs" / "tuning.jsonl"
    process = start("tune_hyper_parameters.py", search_folder, "--set", "tuning.workers=2")
    while process.poll() is None and not (log.exists() and log.read_text()):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130 and "same command" in errors and "Traceback" not in errors
    whole, kept = rung_lines(whole_search[0]), rung_lines(search_folder)
    assert kept and all(line in whole for line in kept)
    run("tune_hyper_parameters.py", search_folder, "--set", "tuning.workers=2", cwd="/")
    assert rung_lines(search_folder) == whole
    assert load_config(search_folder / "config.json").settings == load_config(whole_search[0] / "config.json").settings


@pytest.mark.skipif(not Path("/proc").exists(), reason="it looks for the workers in /proc")
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGHUP, signal.SIGTERM])
def test_a_signal_to_all_processes_while_workers_start_stops_the_search(search_folder, sent):
    """As a terminal sends them. The zeros are more than a pipe holds, so that who starts a worker waits for it to read them."""
    command = [sys.executable, str(SRC / "tune_hyper_parameters.py"), "--config", str(search_folder / "config.json"),
               "--set", "tuning.zeros=10000", "--set", "tuning.workers=2"]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while process.poll() is None and not any(b"spawn_main" in commandline(child) for child in children.read_text().split()):
        time.sleep(0.005)
    os.killpg(process.pid, sent)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + sent and "same command" in errors and "Traceback" not in errors, errors


def commandline(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def failing_task(task):
    raise ZeroDivisionError("in a worker")


def dying_task(task):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("task, error, says", [
    (failing_task, ZeroDivisionError, "in a worker"), (dying_task, UserError, "set tuning.workers lower"),
])  # fmt: skip
def test_a_crash_in_a_worker_is_an_error_and_not_a_result(search_folder, monkeypatch, task, error, says):
    monkeypatch.setattr(workers, "train_job", task)
    with pytest.raises(error, match=says) as caught:
        tune(search_folder, "--set", "tuning.workers=1")
    assert error is not ZeroDivisionError or "failing_task" in str(caught.value.__cause__)  # the worker's own traceback
    assert not rung_lines(search_folder)


def test_where_the_search_is_asked_to_stop_a_worker_may_have_ended_but_not_crashed():
    def ended_with(error):
        future = Future()
        future.set_exception(error)
        return list(workers.as_completed(lambda task: future, ["a task"], stop=[signal.SIGTERM]))

    assert ended_with(BrokenProcessPool("terminated abruptly")) == []
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        ended_with(RuntimeError("shapes do not fit"))


def test_the_ledger_cuts_a_longer_curve_at_the_rung(searched_folder):
    config = load_config(searched_folder / "config.json")
    ledger = SearchLog(config)
    cut = [ledger.line(point, rung) for point in grid_of(config).points for rung in (1, 2, 3)]
    assert [len(line["nats_per_zero"]) for line in cut[::3]] == [1] * 24
    assert sum(line is not None for line in cut) == 24 + 8 + 4
