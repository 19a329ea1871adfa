"""Several processes with a share of every batch each make the run of one, and take over one another's checkpoints."""

import json
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import SMALL_RUN, SRC, stop_after_step, write_config

import train
from common.config import UserError
from training.checkpoints import load_checkpoint

# Dropout draws other masks for other shares of a batch. 64 zeros a batch are not divisible by 3, nor is the last batch full.
SETTINGS = ("--device", "cpu", "--set", "model.dropout=0", "--set", "training.log_interval=1")


def several(count, config, *arguments, script=SRC / "train.py"):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}", script]
    return subprocess.Popen([*command, "--config", config, *SETTINGS, *arguments], stderr=subprocess.PIPE, text=True)


def losses(config):
    lines = [json.loads(line) for line in (config.parent / "logs" / "training.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "training"]
    assert [line["step"] for line in steps] == list(range(1, 31))
    return [line["loss"] for line in steps]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    config = write_config(tmp_path_factory.mktemp("alone"), SMALL_RUN)
    train.main(["--config", str(config), *SETTINGS])
    return losses(config)


def test_several_processes_make_the_updates_of_one(alone, tmp_path):
    config = write_config(tmp_path, SMALL_RUN)
    process = several(3, config, "--resume")
    said = process.communicate()[1]
    assert process.returncode == 0 and said.count("Training is complete") == 1
    assert losses(config) == pytest.approx(alone, abs=1e-5)


def test_a_run_that_one_process_stopped_goes_on_with_two(alone, tmp_path, monkeypatch):
    config = write_config(tmp_path, SMALL_RUN)
    monkeypatch.setattr(train, "catch_stop_signals", stop_after_step(3))
    train.main(["--config", str(config), *SETTINGS])
    assert load_checkpoint(tmp_path / "checkpoints" / "last.pt")["progress"]["step"] == 3
    assert several(2, config, "--resume").wait() == 0
    assert losses(config) == pytest.approx(alone, abs=1e-5)


def test_a_run_that_two_processes_stopped_goes_on_with_one(alone, tmp_path):
    config = write_config(tmp_path, SMALL_RUN)
    process = several(2, config, "--resume")
    log = tmp_path / "logs" / "training.jsonl"
    while process.poll() is None and not (log.exists() and log.read_text().count('"training"') >= 3):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    said = process.communicate()[1]
    assert "Stopped at" in said and "This is a bug" not in said, said
    step = load_checkpoint(tmp_path / "checkpoints" / "last.pt")["progress"]["step"]
    assert step % 8 == 0 or step % 7 == 0 or step % 10 == 0  # agreed on, or rank 0 was validating
    train.main(["--config", str(config), *SETTINGS, "--resume"])
    assert losses(config) == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize("arguments, says", [([], "move it aside with --fresh"), (["--check"], "without torchrun")])
def test_what_one_process_refuses_is_no_bug_of_the_others(tmp_path, arguments, says):
    config = write_config(tmp_path, SMALL_RUN)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.pt").touch()
    said = several(2, config, *arguments).communicate()[1]
    assert says in said and "This is a bug" not in said


FAILING_FIRST = """
import sys
sys.path.insert(0, {src!r})
import train
from common.cli import run_script
from common.config import UserError
from common.processes import rank

def failing(*arguments):
    if rank() == 0:
        raise {error}

train.log_validation = failing
run_script(train.main)
"""


@pytest.mark.parametrize("error, bugs", [("UserError('this cannot be')", 0), ("ValueError('this cannot be')", 1)])
def test_an_error_of_one_process_ends_all_and_is_the_only_one_that_is_told(tmp_path, error, bugs):
    script = tmp_path / "script.py"
    script.write_text(FAILING_FIRST.format(src=str(SRC), error=error))
    process = several(2, write_config(tmp_path / "run", SMALL_RUN), "--resume", script=script)
    said = process.communicate(timeout=120)[1]
    assert process.returncode != 0 and "this cannot be" in said
    assert said.count("This is a bug") == bugs and said.count("Traceback") <= bugs + 1  # one more is torchrun's own
    assert "FutureWarning" not in said


def test_after_a_request_to_stop_a_process_waits_for_no_thread_and_no_child(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(f"""
import multiprocessing, sys, threading, time
sys.path.insert(0, {str(SRC)!r})
from common.processes import exit_process
if __name__ == "__main__":
    threading.Thread(target=time.sleep, args=(3600,)).start()
    multiprocessing.get_context("spawn").Process(target=time.sleep, args=(3600,)).start()
    print("before", end="")
    exit_process(143)
""")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (143, "before", "")


@pytest.mark.parametrize("kind", ["mps", "xla"])
def test_a_device_that_several_processes_cannot_train_on_is_refused(tmp_path, monkeypatch, kind):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setattr(train, "choose_device", lambda name: (torch.device(kind), "asked for"))
    with pytest.raises(UserError, match=f"not over {kind}"):
        train.main(["--config", str(write_config(tmp_path, SMALL_RUN)), "--resume"])
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize("size", ["2", "", "abc", "-1"])
@pytest.mark.parametrize("check", [[], ["--check"]])
def test_a_world_size_without_its_torchrun_is_one_line(tmp_path, monkeypatch, size, check):
    monkeypatch.setenv("WORLD_SIZE", size)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(UserError, match=f"WORLD_SIZE is '{size}'"):
        train.main(["--config", str(write_config(tmp_path, SMALL_RUN)), "--resume", *check])
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
