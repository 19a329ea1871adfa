"""The three stages as commands: what they leave behind, what they refuse, and that a resumed run is the same run."""

import fcntl
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import termios
import time

import pytest
import torch
from conftest import SMALL_RUN, SRC, write_config

import data_utils
from common.config import load_config
from data_utils import interval, training_zeros, validation_zeros
from model.tokenizer import decode, row_text

LONG_RUN = {**SMALL_RUN, "training": {**SMALL_RUN["training"], "epochs": 16}}


def start(script, folder, *arguments, cwd=None):
    command = [sys.executable, str(SRC / script), "--config", str(folder / "config.json"), *arguments]
    return subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(script, folder, *arguments, expect=0, cwd=None):
    process = start(script, folder, *arguments, cwd=cwd)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == expect, errors
    return output, errors


def checkpoint(folder, name="last.pt"):
    return torch.load(folder / "checkpoints" / name, map_location="cpu", weights_only=True)


def same(first, second):
    """Whether two nested structures are equal, tensors bit for bit."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    return first == second


def log_lines(folder):
    """The training log without what depends on the clock."""
    lines = [json.loads(line) for line in (folder / "logs" / "training.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if "second" not in key} for line in lines]


@pytest.fixture(scope="module")
def trained_long(tmp_path_factory):
    """The same for 240 steps."""
    folder = tmp_path_factory.mktemp("trained_long")
    write_config(folder, LONG_RUN)
    run("train.py", folder)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run that was never interrupted."""
    folder = tmp_path_factory.mktemp("trained")
    write_config(folder, SMALL_RUN)
    run("train.py", folder, cwd="/")
    return folder


def test_training_leaves_last_and_round_checkpoints_logs_and_interval_files(trained):
    names = {path.name for path in (trained / "checkpoints").iterdir()}
    assert names == {"last.pt", "last.prev.pt", "round_0.pt", "round_1.pt", "round_2.pt", "model_card.md", ".lock"}
    assert {path.name for path in (trained / "logs").iterdir()} == {"rzz.log", "training.log", "training.jsonl"}
    data = {path.name for path in (trained / "data").iterdir()}
    assert {"zeros_1_299.npy", "zeros_300_300.npy", "zeros_600_300.npy", "zeros_900_300.npy"} <= data
    progress = checkpoint(trained)["progress"]
    assert (progress["round"], progress["epoch"], progress["row"], progress["step"]) == (2, 2, 0, 30)
    assert checkpoint(trained, "round_1.pt")["progress"]["step"] == 20


def test_training_logs_loss_at_its_steps_and_both_mse(trained):
    lines = log_lines(trained)
    assert [line["step"] for line in lines if line["kind"] == "training"] == sorted({*range(4, 31, 4), 10, 20, 30})
    validations = [line for line in lines if line["kind"] == "validation"]
    assert {7, 10, 14, 20, 21, 28, 30} == {line["step"] for line in validations}
    assert all({"loss", "mse_training", "mse_validation"} <= line.keys() for line in validations)
    losses = [line["loss"] for line in lines if line["kind"] == "training"]
    assert losses[-1] < losses[0]
    text = (trained / "logs" / "rzz.log").read_text()
    assert re.search(r"run_log\.py:\d+ round 0/2 · epoch 1/2", text) and "ln 16" in text


def test_training_data_is_in_index_order_and_splits_never_touch_the_test_zeros(trained):
    config = load_config(trained / "config.json")
    seen = set()
    for t in range(0, 3):
        training, validation = training_zeros(config, t), validation_zeros(config, t)
        first, count = interval(config, t)
        assert training.indexes.tolist() == list(range(first, first + count))
        rows = [decode(training[k][0]) for k in (0, 1, len(training) - 1)]
        assert rows == [row_text(training.indexes[k], training.values[k])[:-1] for k in (0, 1, len(training) - 1)]
        assert len(validation) == 30 and (validation.indexes[1:] > validation.indexes[:-1]).all()
        assert set(validation.indexes.tolist()) <= set(range(*(lambda f, n: (f, f + n))(*interval(config, t + 1))))
        assert (validation_zeros(config, t).indexes == validation.indexes).all()
        seen |= set(training.indexes.tolist()) | set(validation.indexes.tolist())
    test = data_utils.test_zeros(config)
    assert test.indexes.tolist() == list(range(900, 920))
    assert not seen & set(test.indexes.tolist())


def test_the_last_validation_sample_leaves_out_every_test_zero(run_folder):
    config = load_config(run_folder / "config.json", ["data.N=270"])  # of 300 zeros, 30 of which are the sample
    assert validation_zeros(config, 2).indexes.tolist() == list(range(1170, 1200))
    assert data_utils.test_zeros(config).indexes.tolist() == list(range(900, 1170))


def test_plain_training_refuses_to_overwrite_a_run_and_says_both_ways_on(trained):
    before = (trained / "checkpoints" / "last.pt").read_bytes()
    _, errors = run("train.py", trained, expect=2)
    assert "--resume" in errors and "--fresh" in errors and len(errors.strip().splitlines()) == 1
    assert (trained / "checkpoints" / "last.pt").read_bytes() == before


def test_resuming_a_finished_run_changes_nothing(trained):
    before = checkpoint(trained)
    run("train.py", trained, "--resume")
    assert same(before["model"], checkpoint(trained)["model"])


@pytest.mark.parametrize("change, key", [
    ("model.d_model=32", "model.d_model"), ("data.interval_size=200", "data.interval_size"),
    ("training.batch_size=32", "training.batch_size"),
])  # fmt: skip
def test_a_checkpoint_that_does_not_fit_names_the_key(trained, change, key):
    _, errors = run("train.py", trained, "--resume", "--set", change, expect=2)
    assert key in errors and "--fresh" in errors and len(errors.strip().splitlines()) == 1


def test_evaluation_prints_the_model_beside_the_baselines(trained):
    output, _ = run("evaluate.py", trained, cwd="/")
    for name in ("model, sampled", "untrained model", "last training zero", "straight line", "smooth count", "explicit formula",
                 "shuffled index", "independent spacings"):  # fmt: skip
        assert f"\n{name}  " in output
    result = json.loads((trained / "logs" / "evaluation.json").read_text())
    assert (result["first_index"], result["last_index"], result["runs"], result["top_p"]) == (900, 919, 3, 0.9)
    assert result["nats_per_zero"] < result["untrained"]["nats_per_zero"]
    assert 0 <= result["readable"] <= 1 and len(result["accuracy_by_position"]) == len("1421.0000e")
    assert result["baselines"]["smooth count"]["mse"] < result["baselines"]["straight line"]["mse"]
    assert max(map(len, output.splitlines())) <= 80
    again, _ = run("evaluate.py", trained)
    assert again == output


def test_evaluation_refuses_zeros_that_the_checkpoint_has_seen(trained):
    _, errors = run("evaluate.py", trained, "--set", "data.K=1", expect=2)
    assert "raise data.K" in errors


def test_evaluation_of_an_unfinished_training_says_how_far_it_got(trained, tmp_path):
    _, errors = run("evaluate.py", trained, "--checkpoint", str(trained / "checkpoints" / "round_0.pt"), "--set", "data.N=5")
    assert "trained up to zero 299 only" in errors


def test_evaluation_without_a_checkpoint_says_what_to_do_first(run_folder):
    _, errors = run("evaluate.py", run_folder, expect=2)
    assert "train.py" in errors


def test_the_resumed_run_is_the_same_run_after_being_killed_at_any_moment(trained_long, tmp_path):
    """kill -9 after random times, during training and during saves; RZZ_KILLS says how often."""
    folder = tmp_path / "killed"
    write_config(folder, LONG_RUN)
    log = folder / "logs" / "training.jsonl"
    wanted, kills = int(os.environ.get("RZZ_KILLS", "20")), 0
    generator = torch.Generator().manual_seed(1)
    for _ in range(wanted):
        process = start("train.py", folder, "--resume")
        process_begins = log.stat().st_mtime_ns if log.exists() else 0
        while process.poll() is None and (log.stat().st_mtime_ns if log.exists() else 0) == process_begins:
            time.sleep(0.002)
        time.sleep(0.15 * torch.rand(1, generator=generator).item())
        process.kill()
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
        if process.returncode == 0:
            break
    assert kills > 10 or kills == wanted  # so many times it was killed while it ran
    run("train.py", folder, "--resume")
    for name in ("last.pt", "round_0.pt", "round_1.pt", "round_2.pt"):
        for part in ("model", "optimizer", "config"):
            assert same(checkpoint(trained_long, name)[part], checkpoint(folder, name)[part])
    assert log_lines(folder) == log_lines(trained_long)


@pytest.mark.parametrize("sent, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_asked_to_stop_it_finishes_the_step_saves_and_says_how_to_go_on(trained, tmp_path, sent, code):
    folder = tmp_path / "stopped"
    write_config(folder, SMALL_RUN)
    process = start("train.py", folder, "--resume", "--quiet")
    while process.poll() is None and not (folder / "checkpoints" / "last.pt").exists():
        time.sleep(0.005)
    process.send_signal(sent)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == code and "and saved. Go on with the same command and --resume" in errors
    assert 5 <= checkpoint(folder)["progress"]["step"] < 30
    run("train.py", folder, "--resume")
    assert same(checkpoint(trained)["model"], checkpoint(folder)["model"])
    assert log_lines(folder) == log_lines(trained)


def test_ctrl_c_that_also_ends_who_reads_the_output_still_saves(run_folder):
    """As in `train.py 2>&1 | tee file`, or with a notebook's stop button."""
    process = start("train.py", run_folder, "--resume")
    while process.poll() is None and not (run_folder / "checkpoints" / "last.pt").exists():
        time.sleep(0.005)
    process.stderr.close()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=120) == 130
    assert "Stopped at" in (run_folder / "logs" / "rzz.log").read_text().splitlines()[-1]


def test_closing_the_terminal_stops_as_ctrl_c_does(trained, run_folder):
    """With a progress bar that is being drawn on what is no longer there."""
    terminal, its_end = pty.openpty()
    command = [sys.executable, str(SRC / "train.py"), "--config", str(run_folder / "config.json"), "--resume"]

    def own_terminal():  # which sends SIGHUP to those it controls when it goes
        os.setsid()
        fcntl.ioctl(its_end, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(command, stdin=its_end, stdout=its_end, stderr=its_end, preexec_fn=own_terminal)
    os.close(its_end)
    while process.poll() is None and not (run_folder / "checkpoints" / "last.pt").exists():
        os.read(terminal, 4096)
    os.close(terminal)
    assert process.wait(timeout=120) == 128 + signal.SIGHUP
    assert "Stopped at" in (run_folder / "logs" / "rzz.log").read_text().splitlines()[-1]
    assert 5 <= checkpoint(run_folder)["progress"]["step"] < 30
    run("train.py", run_folder, "--resume")
    assert same(checkpoint(trained)["model"], checkpoint(run_folder)["model"])


def copy_of(trained, folder):
    shutil.copytree(trained, folder)
    return folder


@pytest.mark.parametrize("raised", [["data.K=3"], ["training.epochs=3"]])
def test_a_finished_run_goes_on_when_more_is_asked_of_it(trained, tmp_path, raised):
    folder = copy_of(trained, tmp_path / "more")
    run("train.py", folder, "--resume", *(word for setting in raised for word in ("--set", setting)))
    progress = checkpoint(folder)["progress"]
    assert not same(checkpoint(folder)["model"], checkpoint(trained)["model"])
    assert (progress["round"], progress["epoch"]) == ((3, 2) if raised == ["data.K=3"] else (2, 3))
    steps = 40 if raised == ["data.K=3"] else 35  # five a pass of an interval; what is finished is not done again
    assert progress["step"] == steps and progress["zeros"] == 2 * 899 + (600 if steps == 40 else 300)
    last = [line for line in log_lines(folder) if line["kind"] == "training"][-1]
    assert last["steps_in_run"] == steps and 0 < last["learning_rate"] < 1e-3  # it decays again, to the end of what is left


@pytest.mark.parametrize("check", [[], ["--check"]])
def test_fewer_rounds_than_a_run_has_got_to_are_refused(trained, check):
    before = log_lines(trained)
    _, errors = run("train.py", trained, "--resume", "--set", "data.K=1", *check, expect=2)
    assert "is in round 2, but data.K is 1: set data.K to 2 or more" in errors and len(errors.strip().splitlines()) == 1
    assert log_lines(trained) == before


def test_a_second_training_in_the_same_folder_stops_and_names_the_first(trained, tmp_path):
    folder = copy_of(trained, tmp_path / "two")
    process = start("train.py", folder, "--resume", "--set", "data.K=12", "--set", "training.epochs=50")
    while "step" not in (folder / "logs" / "training.log").read_text().splitlines()[-1] and process.poll() is None:
        time.sleep(0.01)
    try:
        _, errors = run("train.py", folder, "--resume", expect=2)
        assert f"process {process.pid} on" in errors and len(errors.strip().splitlines()) == 1
    finally:
        process.kill()
        process.communicate()
    run("train.py", folder, "--resume", "--set", "data.K=12", "--set", "training.epochs=1")  # the lock of a killed process is free


def test_fresh_moves_the_old_run_aside(trained, tmp_path):
    folder = tmp_path / "fresh"
    write_config(folder, SMALL_RUN)
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "last.pt").write_bytes((trained / "checkpoints" / "last.pt").read_bytes())
    run("train.py", folder, "--fresh", "--set", "data.K=0")
    (aside,) = (folder / "previous_runs").iterdir()
    assert (aside / "last.pt").read_bytes() == (trained / "checkpoints" / "last.pt").read_bytes()
    assert checkpoint(folder)["progress"]["step"] == 10


def test_fresh_leaves_a_run_where_it_is_if_a_new_one_cannot_begin(trained, tmp_path):
    folder = copy_of(trained, tmp_path / "kept")
    _, errors = run("train.py", folder, "--fresh", "--set", "data.K=1000000000", expect=2)
    assert "Lower data.K" in errors and not (folder / "previous_runs").exists()
    assert same(checkpoint(folder)["model"], checkpoint(trained)["model"])


def test_the_log_of_a_run_whose_checkpoints_are_gone_is_moved_aside(trained, tmp_path):
    folder = copy_of(trained, tmp_path / "gone")
    for path in (folder / "checkpoints").glob("*.pt"):
        path.unlink()
    run("train.py", folder, "--resume", "--set", "data.K=0", "--set", "training.seed=7")
    (aside,) = (folder / "previous_runs").iterdir()
    assert (aside / "training.jsonl").read_bytes() == (trained / "logs" / "training.jsonl").read_bytes()
    assert log_lines(folder)[-1]["step"] == 10


@pytest.mark.parametrize("script", ["tune_hyper_parameters.py", "train.py", "evaluate.py"])
@pytest.mark.parametrize("arguments, says", [
    (["--set", "data.k=3"], "data.k"),
    (["--set", "model.num_heads=7"], "not divisible"),
    (["--device", "abacus"], "abacus"),
    (["--device", "cuda"], "cuda"),
    (["--colour"], "--colour"),
])  # fmt: skip
def test_bad_input_is_one_line_and_exit_code_2(run_folder, script, arguments, says):
    if arguments[-1] == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has it")
    output, errors = run(script, run_folder, *arguments, expect=2)
    assert says in errors and len(errors.strip().splitlines()) == 1 and output == ""
    assert not list(run_folder.glob("checkpoints/*.pt"))


def test_a_folder_that_cannot_be_made_is_one_line(run_folder):
    (run_folder / "data").write_text("a file where the folder should be")
    _, errors = run("train.py", run_folder, expect=2)
    assert "data" in errors.splitlines()[-1] and "Traceback" not in errors


def test_a_bug_shows_its_traceback_and_logs_file_and_line(run_folder):
    config = str(run_folder / "config.json")
    code = (
        f"import sys; sys.path.insert(0, {str(SRC)!r}); sys.argv = ['train.py', '--config', {config!r}];"
        "import train, training.run; training.run.build_model = lambda *a: 1 / 0;"
        "from common.cli import run_script; run_script(train.main)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 1 and "ZeroDivisionError" in result.stderr
    assert re.search(r"train\.py\", line \d+", (run_folder / "logs" / "rzz.log").read_text())
