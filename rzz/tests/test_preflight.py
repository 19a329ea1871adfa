"""--check previews the run, refuses what training would refuse, and writes nothing."""

import re
import shutil
from collections import namedtuple

import pytest
import torch
from conftest import DEVICE, SMALL_RUN, write_config

import evaluate
import train
from common.config import UserError, load_config
from data_utils import zeros_in_memory
from model.batches import iterate_batches
from model.network import build_model, parameter_count
from training import preflight
from training.checkpoints import make_checkpoint, save_checkpoint
from training.optimizer import make_optimizer, training_step
from training.preflight import check_disk_space, median_seconds, zeros_text
from training.progress import Progress


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("check")
    write_config(folder, SMALL_RUN)
    train.main(["--config", str(folder / "config.json"), "--quiet"])
    return folder


@pytest.fixture
def run_copy(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture
def check(capsys, monkeypatch):
    """Call train.py with --check; returns {name: text} of what it prints."""
    monkeypatch.setattr(preflight, "TIMING_BUDGET_S", 0.0)

    def check(folder, *arguments):
        capsys.readouterr()
        assert train.main(["--config", str(folder / "config.json"), "--check", *arguments]) is None
        output = capsys.readouterr().out
        assert output.endswith("Nothing was written.\n")
        return dict(re.split(r" {2,}", line, maxsplit=1) for line in output.splitlines()[:-1])

    return check


def contents(folder):
    """Every path in a folder with its bytes and the time of its last change."""
    return {path: (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None) for path in folder.rglob("*")}


@pytest.mark.parametrize("arguments", [[], ["--resume"], ["--fresh"]])
def test_in_a_new_folder_it_says_all_and_makes_no_file(run_folder, check, arguments):
    before = contents(run_folder)
    said = check(run_folder, *arguments)
    assert contents(run_folder) == before and len(before) == 1
    assert {"device", "memory", "disk", "zeros", "one step", "forecast"} <= said.keys()
    assert said["device"].startswith(DEVICE) and "asked for" in said["device"] and "GB used" in said["memory"]


@pytest.mark.parametrize("arguments", [["--resume"], ["--fresh"]])
def test_a_run_that_is_there_is_left_as_it_is(trained, check, arguments):
    before = contents(trained)
    said = check(trained, *arguments)
    assert contents(trained) == before
    assert "ms" in said["one step"] and float(re.match(r"[\d.]+", said["memory"])[0]) > 0.1


def test_it_names_the_place_where_training_goes_on_and_the_steps_that_are_left(run_copy, check):
    assert " 30 steps" in check(run_copy, "--fresh")["forecast"]
    assert " 0 steps" in check(run_copy, "--resume")["forecast"]
    assert " 10 steps" in check(run_copy, "--resume", "--set", "data.K=3")["forecast"]
    for name, step in (("last.pt", 30), ("last.prev.pt", 30), ("round_2.pt", 30), ("round_1.pt", 20)):  # the latest that is left
        assert torch.load(run_copy / "checkpoints" / name, weights_only=True)["progress"]["step"] == step
        assert f" {30 - step} steps" in check(run_copy, "--resume")["forecast"]
        (run_copy / "checkpoints" / name).unlink()
    said = check(run_copy, "--resume")
    assert " 20 steps" in said["forecast"]
    train.main(["--config", str(run_copy / "config.json"), "--resume"])
    resumed = re.search(r"Resumed (.*) at (round .*)", (run_copy / "logs" / "rzz.log").read_text())
    assert said["checkpoint"] == f"goes on from {resumed[1]} at {resumed[2]}"


def test_the_first_loss_is_the_one_that_training_begins_with(run_folder, check):
    said = check(run_folder, "--set", "training.log_interval=1", "--set", "data.first_round=1")
    train.main(["--config", str(run_folder / "config.json"), "--set", "training.log_interval=1", "--set", "data.first_round=1"])
    first = re.search(r"step 1/20 · loss ([\d.]+)", (run_folder / "logs" / "training.log").read_text())
    assert said["one step"].endswith(f"loss {first[1]}")


@pytest.mark.parametrize("arguments, says", [([], "--resume"), (["--resume", "--set", "model.d_model=32"], "model.d_model")])
def test_what_training_refuses_the_check_refuses(trained, check, arguments, says):
    with pytest.raises(UserError, match=says):
        check(trained, *arguments)


def test_if_the_run_will_be_moved_aside_all_checkpoints_are_new(trained, check, monkeypatch):
    new = []
    monkeypatch.setattr(preflight, "check_disk_space", lambda config, intervals, size: new.append(size) or "")
    check(trained, "--resume")
    check(trained, "--fresh")
    assert new[1] == 6 * new[0] > 0  # last.pt, last.prev.pt, those of 3 rounds, and one while it is written


def test_zeros_that_have_a_file_are_not_counted_as_missing(run_copy, check):
    assert "1,199, all in" in check(run_copy, "--fresh")["zeros"]
    (run_copy / "data" / "zeros_300_300.npy").unlink()
    assert "1,199, of which 300 come from zeros_db.py" in check(run_copy, "--fresh")["zeros"]
    config = load_config(run_copy / "config.json", ["data.platt_tables=tables"])
    assert "2 h 46 min" in zeros_text(config, [(10**7, 10**6)], 0.01) and "tables in tables" in zeros_text(config, [(1, 9)], 1)


def test_with_all_zeros_stored_it_asks_zeros_db_for_none_as_training_does(run_copy, check, monkeypatch):
    def unreachable(config, first, count):
        raise UserError("zeros_db could not give a zero: the drive is not there")

    monkeypatch.setattr("data_utils.zeros_in_memory", unreachable)
    monkeypatch.setattr(preflight, "zeros_in_memory", unreachable)
    before = contents(run_copy)
    assert "all in" in check(run_copy, "--resume")["zeros"] and contents(run_copy) == before
    train.main(["--config", str(run_copy / "config.json"), "--resume", "--set", "training.epochs=3"])
    assert evaluate.main(["--config", str(run_copy / "config.json")]) is None


def test_space_is_counted_for_files_that_are_missing_and_a_lack_of_it_is_refused(run_copy, monkeypatch):
    config = load_config(run_copy / "config.json")
    assert check_disk_space(config, [(300, 300)]).startswith("0.0 MB")
    # one of the two intervals stands there twice while it is made: 3 × 8 MB, and 12 bytes for each parameter
    assert check_disk_space(config, [(10**6, 10**6), (2 * 10**6, 10**6)], 60 * 10**6).startswith("84.0 MB")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 10**7, 10**7))
    with pytest.raises(UserError, match="Not enough space: 16.0 MB needed"):
        check_disk_space(config, [(10**6, 10**6)])


def test_a_checkpoint_takes_12_bytes_a_parameter(run_folder):
    config = load_config(run_folder / "config.json", ["model.d_model=128", "model.num_layers=2"])
    model = build_model(config.model, 1)
    optimizer = make_optimizer(model, config.training)
    batch = next(iterate_batches(model, zeros_in_memory(config, 1, 8), 8))
    training_step(model, optimizer, batch, 1e-3, 1.0, (1, 0))
    save_checkpoint(make_checkpoint(model, optimizer, Progress(1), config, torch.device("cpu")), run_folder / "last.pt")
    size = (run_folder / "last.pt").stat().st_size
    assert size == pytest.approx(preflight.STATE_BYTES * parameter_count(model), rel=0.02)


def test_a_step_is_timed_by_the_median_without_the_first(monkeypatch):
    lasts = iter([100.0, 1.0, 5.0, 1.5, 9.0])
    now = [0.0]
    monkeypatch.setattr(preflight, "TIMING_BUDGET_S", 12.0)
    monkeypatch.setattr(preflight.time, "perf_counter", lambda: now[0])

    def work():
        now[0] += next(lasts)

    assert median_seconds(work, torch.device("cpu")) == 5.0
