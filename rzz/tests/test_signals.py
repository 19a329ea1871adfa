"""A request to stop is heard wherever a stage is, and what it interrupted is made up for: the resumed run is the same run."""

import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import SMALL_RUN, SRC, write_config
from test_stages import log_lines, same

import train
from common import signals
from common.config import UserError
from common.files import exclusive_lock
from common.signals import StopRequested, catch_stop_signals, interruptible
from training import optimizer, run_log
from training.checkpoints import load_checkpoint


def raised(number=signal.SIGTERM):
    os.kill(os.getpid(), number)
    time.sleep(0.01)  # Python calls the handler before its next instruction


def test_a_request_interrupts_what_may_be_interrupted_and_is_noted_elsewhere():
    reached = []
    with catch_stop_signals() as stop:
        raised()
        reached.append("noted")
        with interruptible(False):
            reached.append("still going")
        with interruptible():
            reached.append("never")
    assert stop == [signal.SIGTERM] and reached == ["noted", "still going"]
    with catch_stop_signals() as stop:
        with interruptible():
            raised(signal.SIGHUP)
            reached.append("never")
    assert stop == [signal.SIGHUP] and "never" not in reached


def test_a_second_ctrl_c_interrupts_at_once_unless_it_is_the_first_one_passed_on(monkeypatch):
    with pytest.raises(KeyboardInterrupt) as caught, catch_stop_signals() as stop:
        raised(signal.SIGINT)
        raised(signal.SIGINT)
        raised(signal.SIGTERM)
        assert stop == [signal.SIGINT]
        monkeypatch.setattr(signals, "SAME_REQUEST", 0)
        raised(signal.SIGINT)
    assert caught.type is not StopRequested


def test_waiting_for_a_lock_names_its_holder_and_can_be_interrupted(tmp_path, caplog):
    caplog.set_level("INFO", "rzz")
    with exclusive_lock(tmp_path / "lock", "which works"), catch_stop_signals() as stop, interruptible():
        signals.stop_after(time.monotonic() - signals.BEGAN + 0.2)
        with exclusive_lock(tmp_path / "lock", "which waits", wait=True):
            raise AssertionError("two have the lock")
    assert stop == [signal.SIGALRM]
    assert f"Waiting for process {os.getpid()} on {os.uname().nodename}, which works" in caplog.text
    with exclusive_lock(tmp_path / "lock", "", wait=True) as holder:
        assert holder is None


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    assert train.main(["--config", str(write_config(folder, SMALL_RUN))]) == 0
    return folder


def stopping_at(call, module, name, monkeypatch):
    """Let `module.name` send SIGTERM to this process when it is called for the `call`-th time, counted from 1."""
    real, calls = getattr(module, name), []

    def function(*arguments, **options):
        calls.append(name)
        if len(calls) == call:
            raised()
        return real(*arguments, **options)

    monkeypatch.setattr(module, name, function)


@pytest.mark.parametrize("call, module, name, step", [
    (1, run_log, "sampled_predictions", 0),  # before the first step
    (2, run_log, "sampled_predictions", 7),
    (5, run_log, "sampled_predictions", 10),  # at the end of a round, which is not validated otherwise
    (2, run_log, "baselines", 10),  # before the first step of a round
    (15, run_log, "sampled_predictions", 30),  # at the very end
    (28, run_log, "cross_entropy_of", None),
    (18, optimizer, "cross_entropy", 17),  # within a step
])  # fmt: skip
def test_whatever_a_request_interrupts_the_resumed_run_is_the_same(whole, tmp_path, monkeypatch, call, module, name, step):
    arguments = ["--config", str(write_config(tmp_path, SMALL_RUN)), "--resume"]
    with monkeypatch.context() as patch:
        stopping_at(call, module, name, patch)
        code = train.main(arguments)
    if step is None:
        assert code == 0  # it was not called so often
        return
    assert code == 128 + signal.SIGTERM
    last = tmp_path / "checkpoints" / "last.pt"
    assert load_checkpoint(last)["progress"]["step"] == step if step else not last.exists()
    assert train.main(arguments) == 0
    for file in ("last.pt", "round_0.pt", "round_1.pt", "round_2.pt"):
        found, wanted = (load_checkpoint(folder / "checkpoints" / file) for folder in (tmp_path, whole))
        assert same(found["model"], wanted["model"]) and same(found["optimizer"], wanted["optimizer"])
    assert log_lines(tmp_path) == log_lines(whole)


def test_sigusr1_saves_and_goes_on(whole, tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(train, "log_training", lambda run: raised(signal.SIGUSR1) if run.progress.step == 8 else None)
    save = train.TrainingRun.save
    monkeypatch.setattr(train.TrainingRun, "save", lambda run, *names: saved.append(run.progress.step) or save(run, *names))
    assert train.main(["--config", str(write_config(tmp_path, SMALL_RUN)), "--resume", "--set", "data.K=0"]) == 0
    assert saved == [5, 8, 10, 10]
    assert "Saved at round 0/0 · epoch 2/2 · zero 193, as SIGUSR1 asks" in (tmp_path / "logs" / "rzz.log").read_text()


def test_minutes_save_and_stop_by_themselves(tmp_path, monkeypatch):
    config, seconds = write_config(tmp_path, SMALL_RUN), []
    monkeypatch.setattr(train, "stop_after", seconds.append)
    monkeypatch.setattr(train, "log_validation", lambda run: raised(signal.SIGALRM))
    assert train.main(["--config", str(config), "--resume", "--minutes", "90"]) == 0
    assert seconds == [90 * 60 - 10]  # to save within them
    assert load_checkpoint(tmp_path / "checkpoints" / "last.pt")["progress"]["step"] == 7
    logged = (tmp_path / "logs" / "rzz.log").read_text()
    assert "The 90 minutes of --minutes are nearly over." in logged and "--resume" in logged.splitlines()[-1]
    assert "minutes" not in config.read_text()


@pytest.mark.parametrize("value", ["0", "-1", "abc", "nan", "inf", "1e9", ""])
def test_minutes_that_make_no_sense_are_refused_in_a_line(tmp_path, value):
    with pytest.raises(UserError, match=f"--minutes: must be a number above 0 and at most 525,600, not '{value}'") as caught:
        train.main(["--config", str(write_config(tmp_path, SMALL_RUN)), f"--minutes={value}"])
    assert len(str(caught.value).splitlines()) == 1 and list(tmp_path.iterdir()) == [tmp_path / "config.json"]


SLOW = """
import sys, time
sys.path.insert(0, {src!r})
import zeros_db
own = zeros_db.zeros_starting_at_N

def zeros_starting_at_N(N, number_of_zeros):
    for pair in own(N, number_of_zeros):
        time.sleep(0.02)
        yield pair
        if pair[0] == N + 9:
            open({given!r}, "w").close()

zeros_db.zeros_starting_at_N = zeros_starting_at_N
import {stage}
from common.cli import run_script
run_script({stage}.main)
"""


@pytest.mark.parametrize("stage", ["train", "tune_hyper_parameters", "evaluate"])
def test_zeros_that_are_fetched_slowly_are_kept_when_a_stage_is_stopped(whole, tmp_path, stage):
    """A hundred seconds of zeros, of which the stage has got some."""
    config = write_config(tmp_path, {**SMALL_RUN, "data": {**SMALL_RUN["data"], "interval_size": 5000, "N": 4000},
                                     "tuning": {**SMALL_RUN["tuning"], "zeros": 5000}})  # fmt: skip
    if stage == "evaluate":
        (tmp_path / "checkpoints").mkdir()
        (tmp_path / "checkpoints" / "last.pt").write_bytes((whole / "checkpoints" / "last.pt").read_bytes())
    given = tmp_path / "given"
    command = [sys.executable, "-c", SLOW.format(src=str(SRC), stage=stage, given=str(given)), "--config", str(config)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    while process.poll() is None and not given.exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM and "Traceback" not in errors, errors
    (partial,) = (tmp_path / "data").glob("*.partial")
    assert 8 * 10 <= partial.stat().st_size - 32 < 8 * 3000
