"""Small searches for the tests of tuning: the grid, and fixtures that run it within this process."""

import io
import json
import math
import os
import shutil
import signal
from concurrent.futures import Future
from contextlib import contextmanager, redirect_stdout

import pytest
import torch
from conftest import SMALL_RUN, write_config

import tune_hyper_parameters
from common.config import load_config
from common.files import read_json_lines
from data_utils import tuning_splits
from tuning import workers

GRID = {"epochs": [1, 2, 3], "learning_rate": [0.0003, 0.003, 0.01], "batch_size": [16, 64], "dropout": [0.0, 0.1],
        "num_heads": [1, 2]}  # fmt: skip
SEARCH = {**SMALL_RUN, "tuning": {"zeros": 200, "rungs": [1, 2], "keep": 0.3, "seeds": 1, "grid": GRID}}
CPU = torch.device("cpu")


class TrainedJobs(list):
    """The jobs that were trained; someone presses Ctrl-C when there are `limit` of them."""

    limit = math.inf


def pool_without_processes(trained):
    """What worker_pool does, within this process."""

    @contextmanager
    def pool(config, device):
        interrupted = []

        def submit(job):
            future = Future()
            if len(trained) == trained.limit and not interrupted:
                os.kill(os.getpid(), signal.SIGINT)
                interrupted.append(True)
            if not interrupted:
                future.set_result(workers.train_job(job))
                trained.append(job)
            return future

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(workers, "worker", (config, device, *tuning_splits(config)))
            yield submit

    return pool


@pytest.fixture
def search_folder(tmp_path):
    """A run folder whose grid has 24 trials: 12 of each batch size, of which 4 go on, and then 2."""
    write_config(tmp_path / "run", SEARCH)
    return tmp_path / "run"


@pytest.fixture
def in_process(monkeypatch):
    """Train without worker processes; returns the TrainedJobs."""
    trained = TrainedJobs()
    monkeypatch.setattr(tune_hyper_parameters, "worker_pool", pool_without_processes(trained))
    return trained


@pytest.fixture(scope="session")
def whole_search(tmp_path_factory):
    """(run folder of a search that was never interrupted, its jobs, what it printed)."""
    folder, printed, trained = tmp_path_factory.mktemp("whole") / "run", io.StringIO(), TrainedJobs()
    write_config(folder, SEARCH)
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
        patch.setattr(tune_hyper_parameters, "worker_pool", pool_without_processes(trained))
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
    """The lines of tuning.jsonl on finished rungs, in a fixed order and without what depends on the clock."""
    lines = [line for line in read_json_lines(folder / "logs" / "tuning.jsonl") if line["kind"] == "rung"]
    for line in lines:
        del line["seconds"]
    return sorted(lines, key=lambda line: json.dumps([line["point"], line["epochs"], line["settings"]["training"]["seed"]]))


def with_grid(folder, grid, **tuning):
    """Write a config.json with this grid into `folder`; return the Config."""
    write_config(folder, {**SEARCH, "tuning": {**SEARCH["tuning"], "grid": grid, **tuning}})
    return load_config(folder / "config.json")
