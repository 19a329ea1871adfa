"""A finished training leaves a card that says what the checkpoint says, and nothing that was not measured."""

import json
import re

import pytest
import torch
from conftest import SMALL_RUN, write_config

import evaluate
import train
from common import VERSION
from common.config import load_config
from common.files import free_name
from data_utils import interval
from training.model_card import write_model_card


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("card")
    write_config(folder, SMALL_RUN)
    train.main(["--config", str(folder / "config.json"), "--set", "data.K=1", "--quiet"])
    return folder


def card_of(folder):
    return (folder / "checkpoints" / "model_card.md").read_text(encoding="utf-8")


def last_checkpoint(folder):
    return torch.load(folder / "checkpoints" / "last.pt", weights_only=True)


def test_the_card_of_a_training_says_what_its_checkpoint_says(trained):
    text, saved = card_of(trained), last_checkpoint(trained)
    assert f"{sum(weight.numel() for weight in saved['model'].values()):,} parameters" in text
    assert "Zeros 1 … 599 in index order: 2 round(s) of 300, 2 pass(es)" in text and "indexes of 1 to 3 digits" in text
    assert "20 steps of 64 zeros" in text and "`round_1.pt`" in text and saved["meta"]["saved"] in text
    assert f"{saved['progress']['validation']['loss']:.4f} nats per token" in text
    for package in ("torch", "numpy", "mpmath"):
        assert f"{package} {__import__(package).__version__}" in text
    assert "phases of the primes up to 30" in text and "{" not in text.split("```json")[0]


def test_the_settings_in_the_card_are_a_config_that_trains_the_same_model(trained, tmp_path, capsys):
    settings = re.search(r"```json\n(.*)```", card_of(trained), re.DOTALL)[1]
    (tmp_path / "config.json").write_text(settings)
    train.main(["--config", str(tmp_path / "config.json"), "--resume", "--quiet"])
    first, again = last_checkpoint(trained)["model"], last_checkpoint(tmp_path)["model"]
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_evaluation_adds_the_test_set_with_its_baselines_and_no_other_checkpoints_numbers(trained, capsys):
    config = load_config(trained / "config.json", ["data.K=1"])
    assert "has not been measured" in card_of(trained) and "smooth count |" not in card_of(trained)
    arguments = ["--config", str(config.path), "--set", "data.K=1", "--quiet"]
    evaluate.main(arguments)
    found = json.loads((trained / "logs" / "evaluation.json").read_text())
    text = card_of(trained)
    assert "has not been measured" not in text and f"zeros {interval(config, 2)[0]} … {interval(config, 2)[0] + 19}" in text
    lines = {line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ")[1:] for line in text.splitlines() if line[:2] == "| "}
    assert lines["smooth count"][0] == f"{found['baselines']['smooth count']['mse']:.3g}"
    assert lines["explicit formula"][0] == f"{found['baselines']['explicit formula']['mse']:.3g}"
    assert "\n- explicit formula: the same with primes up to 30; needs no training\n" in text
    assert lines["straight line"][1] == f"{found['baselines']['straight line']['rmse']:.3g}"
    assert lines["model, sampled"][4] == f"{found['readable']:.4f}"
    assert lines["model, sampled"][5:] == [f"{found['nats_per_zero']:.3f}"]

    train.main([*arguments, "--resume"])  # nothing is left to train
    assert card_of(trained) == text
    train.main([*arguments, "--resume", "--set", "training.epochs=3"])
    assert "has not been measured" in card_of(trained) and "25 steps" in card_of(trained)


@pytest.mark.parametrize("content", ["", "{}"])
def test_a_damaged_evaluation_is_no_reason_to_end_a_training_with_an_error(trained, content):
    path = trained / "logs" / "evaluation.json"
    path.write_text(content)
    aside = free_name(path, "{}.bad-{}")
    assert train.main(["--config", str(trained / "config.json"), "--resume", "--set", "data.K=1"]) == 0
    assert "has not been measured" in card_of(trained)
    assert aside.read_text() == content and not path.exists()


def test_the_card_names_the_version_that_trained(trained):
    assert f"Trained with rzz version {VERSION}, " in card_of(trained)


def test_an_unfinished_training_has_no_card_and_a_fresh_one_moves_the_card_aside(trained, tmp_path):
    write_config(tmp_path, SMALL_RUN)
    config = load_config(tmp_path / "config.json")
    checkpoint = torch.load(trained / "checkpoints" / "round_0.pt", weights_only=True)
    (tmp_path / "checkpoints").mkdir()
    write_model_card(config, checkpoint)
    assert not (tmp_path / "checkpoints" / "model_card.md").exists()

    before = card_of(trained)
    train.main(["--config", str(trained / "config.json"), "--fresh", "--quiet", "--set", "data.K=0"])
    (aside,) = (trained / "previous_runs").iterdir()
    assert (aside / "model_card.md").read_text() == before != card_of(trained)
