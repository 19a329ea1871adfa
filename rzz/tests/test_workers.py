"""The workers: who trains what, and whatever happens to them is a result, an error or a stop, and never a wrong result."""

import errno
import math
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
import torch
from conftest import SRC
from searches import CPU, rung_lines, tune
from test_stages import run, start

from common.config import UserError, load_config
from data_utils import zeros_in_memory
from tuning import workers
from tuning.grid import grid_of
from tuning.workers import schedule_jobs, state_folder


@pytest.mark.parametrize("seed", range(5))
def test_what_an_interruption_left_is_stacked_as_it_was_before(search_folder, monkeypatch, seed):
    monkeypatch.setattr(workers, "stack_size", lambda settings, device: 4)
    config = load_config(search_folder / "config.json")
    trials = grid_of(config).trials
    stacks = {tuple(trial.key for trial in job.trials) for job in schedule_jobs(config, trials, 1, CPU)}
    assert sorted(map(len, stacks)) == [2, 2, 2, 2, 4, 4, 4, 4]
    left = set(random.Random(seed).sample(sorted(stacks), 3))
    again = schedule_jobs(config, [trial for trial in trials if any(trial.key in stack for stack in left)], 1, CPU)
    assert {tuple(trial.key for trial in job.trials) for job in again} == left


def test_trials_with_a_damaged_or_lost_state_begin_again_to_the_same_line(whole_search, search_folder, in_process):
    config = load_config(search_folder / "config.json")
    in_process.limit = len(schedule_jobs(config, grid_of(config).trials, 1, CPU))
    assert tune(search_folder) == 130
    states = list(state_folder(config).iterdir())
    assert len(states) == 8
    in_process.limit = math.inf
    for state in states[::2]:
        state.write_bytes(state.read_bytes()[:1000])
    torch.save({"stack": {}}, states[3])
    states[1].unlink()
    assert tune(search_folder) == 0
    assert (search_folder / "logs" / "rzz.log").read_text().count("is damaged") == 5
    expected = {(str(line["point"]), line["epochs"]): line for line in rung_lines(whole_search[0])}
    for line in rung_lines(search_folder):
        assert line["nats_per_zero"] == pytest.approx(expected[str(line["point"]), line["epochs"]]["nats_per_zero"], rel=1e-4)


def test_a_state_that_cannot_be_read_stops_the_search_and_stays(search_folder, in_process, monkeypatch):
    config = load_config(search_folder / "config.json")
    in_process.limit = len(schedule_jobs(config, grid_of(config).trials, 1, CPU))
    assert tune(search_folder) == 130
    in_process.limit = math.inf
    states = sorted(state_folder(config).iterdir())

    def drop(path):
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    monkeypatch.setattr("pathlib.Path.read_bytes", drop)
    monkeypatch.setattr("data_utils.stored_zeros", lambda config, first, count: zeros_in_memory(config, first, count))
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        tune(search_folder)
    assert sorted(state_folder(config).iterdir()) == states


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


def failing_job(job):
    raise ZeroDivisionError("in a worker")


def dying_job(job):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(params=[True, False], ids=["shared memory", "none"])
def shared_memory(request, monkeypatch):
    """With and without what processes share memory by, which is read-only in some containers."""
    def refuse(*arguments):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), "/dev/shm/pym-1")

    if not request.param:
        monkeypatch.setattr(multiprocessing.get_context("spawn"), "Value", refuse)
    return request.param


def test_a_search_without_shared_memory_says_so_and_has_one_worker(whole_search, search_folder, monkeypatch, capsys):
    monkeypatch.setattr(multiprocessing.get_context("spawn"), "Value", lambda *given: open("/dev/shm/none/such"))
    assert tune(search_folder, "--set", "tuning.workers=2") == 0
    said = capsys.readouterr().err
    assert "/dev/shm" in said and "one worker" in said
    assert rung_lines(search_folder) == rung_lines(whole_search[0])
    assert not multiprocessing.active_children()


def endless_job(job):
    time.sleep(3600)


def test_a_job_is_not_waited_for_when_the_search_is_asked_to_stop(search_folder, monkeypatch, shared_memory):
    monkeypatch.setattr(workers, "train_job", endless_job)
    stop = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM))
    stop.start()
    assert tune(search_folder, "--set", "tuning.workers=2") == 128 + signal.SIGTERM
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("job, error, says", [
    (failing_job, ZeroDivisionError, "in a worker"), (dying_job, UserError, "set tuning.workers lower"),
])  # fmt: skip
def test_a_crash_in_a_worker_is_an_error_and_not_a_result(search_folder, monkeypatch, job, error, says, shared_memory):
    monkeypatch.setattr(workers, "train_job", job)
    with pytest.raises(error, match=says) as caught:
        tune(search_folder, "--set", "tuning.workers=1")
    assert error is not ZeroDivisionError or "failing_job" in str(caught.value.__cause__)  # the worker's own traceback
    assert not rung_lines(search_folder)


def test_a_worker_may_have_ended_if_the_search_is_asked_to_stop_but_not_crashed():
    def ended_with(error):
        future = Future()
        future.set_exception(error)
        return list(workers.as_completed(lambda job: future, ["a job"], stop=[signal.SIGTERM]))

    assert ended_with(BrokenProcessPool("terminated abruptly")) == []
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        ended_with(RuntimeError("shapes do not fit"))
