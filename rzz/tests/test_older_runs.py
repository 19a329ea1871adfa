"""Runs of the version before the packages: their checkpoints load, resume and report, their search is not done again.

data/older_run was written by that version: conftest's SMALL_RUN after its search, last.pt of step 23 (round 2, third step), and the
logs of the same run when it had finished.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import DEVICE

import evaluate
import predict
import report
import train
import tune_hyper_parameters
from common.config import load_config
from model.network import build_model
from training.checkpoints import load_checkpoint, trained_model
from training.run import check_compatible

OLDER_RUN = Path(__file__).parent / "data" / "older_run"


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(OLDER_RUN, tmp_path / "run")


def options(folder):
    return ["--config", str(folder / "config.json"), "--device", DEVICE]


def logged(folder):
    return [json.loads(line) for line in (folder / "logs" / "training.jsonl").read_text().splitlines()]


def test_the_names_and_shapes_of_the_weights_are_those_of_before():
    checkpoint = load_checkpoint(OLDER_RUN / "checkpoints" / "last.pt")
    built = build_model(load_config(OLDER_RUN / "config.json").model, seed=1).state_dict()
    shapes = [{name: weight.shape for name, weight in weights.items()} for weights in (checkpoint["model"], built)]
    assert shapes[0] == shapes[1]
    model = trained_model(checkpoint, "last.pt")
    assert all(torch.equal(weight, model.state_dict()[name]) for name, weight in checkpoint["model"].items())


def test_a_resumed_run_ends_as_it_ended_before(folder):
    before = logged(folder)
    train.main([*options(folder), "--resume", "--set", "training.validation_share=1"])  # a bound that it did not know
    after = logged(folder)
    assert load_checkpoint(folder / "checkpoints" / "last.pt")["progress"]["step"] == 30
    # Newer versions also log the steps up to the end of a round, and of a validation how many zeros its MSE is of.
    after = [line for line in after if line["kind"] != "training" or line["step"] % 4 == 0]
    assert [(line["kind"], line["step"]) for line in after] == [(line["kind"], line["step"]) for line in before]
    for old, new in zip(before, after, strict=True):
        assert new.keys() >= old.keys() and new.keys() - old.keys() <= {"mse_zeros", "settings"}
        assert new.get("loss") == pytest.approx(old.get("loss"), abs=1e-3)


def test_a_setting_that_an_older_checkpoint_does_not_know_is_no_reason_to_refuse_it(folder):
    checkpoint = load_checkpoint(folder / "checkpoints" / "last.pt")
    del checkpoint["config"]["model"]["max_prime"], checkpoint["config"]["training"]["seed"]
    check_compatible(checkpoint, load_config(folder / "config.json"), "last.pt")


def test_evaluation_measures_what_it_measured_before(folder):
    before = json.loads((folder / "logs" / "evaluation.json").read_text())
    train.main([*options(folder), "--resume"])
    evaluate.main(options(folder))
    after = json.loads((folder / "logs" / "evaluation.json").read_text())
    assert after.keys() >= before.keys() and after["baselines"].keys() >= before["baselines"].keys()
    assert after["nats_per_zero"] == pytest.approx(before["nats_per_zero"], abs=1e-2)
    assert after["untrained"]["nats_per_zero"] == pytest.approx(before["untrained"]["nats_per_zero"], abs=1e-4)
    assert after["baselines"]["smooth count"]["mse"] == pytest.approx(before["baselines"]["smooth count"]["mse"])


def test_a_checkpoint_keeps_the_checksum_by_which_its_evaluation_knows_it(folder):
    content = torch.load(folder / "checkpoints" / "last.pt", weights_only=True)
    assert load_checkpoint(folder / "checkpoints" / "last.pt")["checksum"] == content["checksum"]


def test_a_finished_search_is_not_done_again(folder, monkeypatch, capsys):
    before = (folder / "config.json").read_text()
    monkeypatch.setattr("tuning.workers.train_job", lambda *given: pytest.fail("it is known already"))
    lines = (folder / "logs" / "tuning.jsonl").read_text()
    assert tune_hyper_parameters.main([*options(folder), "--set", "tuning.workers=1", "--set", "tuning.seeds=1"]) == 0
    assert "17.642" in capsys.readouterr().out and (folder / "logs" / "tuning.jsonl").read_text() == lines
    written, found = json.loads((folder / "config.json").read_text()), json.loads(before)
    # Newer versions lower the rate for the updates of the full training: 900 zeros for the search's 360.
    assert written["training"].pop("learning_rate") == float(f"{found['training'].pop('learning_rate') * 0.4 ** (1 / 3):.2g}")
    assert written == found


def test_its_logs_make_a_report_and_its_checkpoint_answers(folder, capsys):
    report.main(["--config", str(folder / "config.json")])
    page = (folder / "logs" / "report" / "report.html").read_text()
    assert all(title in page for title in ("Evaluation", "Training", "Tuning"))
    assert "smooth count" in page and "explicit formula" not in page and "control" not in page  # it had not measured them
    predict.main([*options(folder), "--json", "905"])
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert answer["index"] == 905 and len(answer["samples"]) == 3
