"""Training, resuming and evaluation run under torch_xla, without compiling anew, and checkpoints move to it and back.

    bash rzz/tests/xla_check.sh          # installs torch_xla and runs this with PJRT_DEVICE=CPU, no TPU needed
"""

import json

import pytest
import torch
from conftest import SMALL_RUN, stop_after_step, write_config

import evaluate
import train
from common.devices import make_device
from training import run
from training.checkpoints import load_checkpoint

metrics = pytest.importorskip("torch_xla.debug.metrics", reason="torch_xla is not installed; see xla_check.sh")
make_device("xla")  # autograd counts the devices when it first runs, here on the CPU
SETTINGS = ("--set", "model.dropout=0", "--set", "training.log_interval=1", "--set", "training.validation_interval=1000")


def stage(main, folder, device, *options):
    main(["--config", str(folder / "config.json"), "--device", device, *SETTINGS, *options])


def compilations():
    found = metrics.metric_data("CompileTime")
    return found[0] if found else 0


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cpu")
    write_config(folder, SMALL_RUN)
    stage(train.main, folder, "cpu")
    stage(evaluate.main, folder, "cpu")
    return folder


def losses(folder):
    lines = [json.loads(line) for line in (folder / "logs" / "training.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "training"]


def checkpoint(folder):
    return load_checkpoint(folder / "checkpoints" / "last.pt")


def test_a_run_on_xla_is_the_run_on_the_cpu_and_compiles_nothing_after_the_first_steps_of_a_round(on_cpu, tmp_path, monkeypatch):
    write_config(tmp_path, SMALL_RUN)
    counted, real = [], run.training_step

    def counting(*arguments, **options):
        loss = real(*arguments, **options)
        counted.append(compilations())
        return loss

    monkeypatch.setattr(run, "training_step", counting)
    stage(train.main, tmp_path, "xla")
    assert len(counted) == 30 and counted[0] > 0
    for first in (0, 10, 20):
        assert len(set(counted[first + 3 : first + 10])) == 1, counted
    assert losses(tmp_path) == pytest.approx(losses(on_cpu), abs=1e-3)
    stage(evaluate.main, tmp_path, "xla")
    ours, theirs = (json.loads((folder / "logs" / "evaluation.json").read_text()) for folder in (tmp_path, on_cpu))
    assert ours["nats_per_zero"] == pytest.approx(theirs["nats_per_zero"], abs=0.02)
    assert checkpoint(tmp_path)["meta"]["device"] == "xla"


@pytest.mark.parametrize(("first", "then"), [("xla", "cpu"), ("cpu", "xla"), ("xla", "xla")])
def test_a_run_moves_between_xla_and_the_cpu(on_cpu, tmp_path, monkeypatch, first, then):
    write_config(tmp_path, SMALL_RUN)
    with monkeypatch.context() as patch:
        patch.setattr(train, "catch_stop_signals", stop_after_step(3))
        stage(train.main, tmp_path, first)
    assert checkpoint(tmp_path)["progress"]["step"] == 3
    stage(train.main, tmp_path, then, "--resume")
    assert losses(tmp_path) == pytest.approx(losses(on_cpu), abs=1e-3)
    for part in ("model", "optimizer"):
        assert checkpoint(tmp_path)[part].keys() == checkpoint(on_cpu)[part].keys()
    torch.testing.assert_close(checkpoint(tmp_path)["model"], checkpoint(on_cpu)["model"], rtol=0.01, atol=2e-3)
