"""A finished training leaves a card that says what the checkpoint says, and nothing that was not measured."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from conftest import SMALL_RUN, SRC, write_config

import evaluate
import predict
import train
from common import ROOT, VERSION
from common.config import ModelConfig, load_config
from common.files import free_name
from data_utils import interval
from model.index_embedding import last_zero_of_numbers, numbers_in_main_sum
from training.checkpoints import load_checkpoint
from training.model_card import card_text, metadata, write_model_card, yaml_number

SHIPPED = SRC.parent / "demo" / "model"


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
    assert "Zeros 1 … 599 in index order: 2 round(s) of 300, 2 pass(es)" in text and "indexes 1 … 599, 1 to 3 digits long" in text
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
    assert f"\nMSE {found['mse']:.4g} ± {found['mse_spread']:.4g}, the standard deviation over 3 runs.\n" in text

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


def header_of(text):
    """The metadata of a card, read as the hubs read them."""
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed; run.sh installs it")
    _, header, rest = text.split("---\n", 2)
    assert rest.startswith("# Model card")
    return yaml.safe_load(header)


def test_the_header_gives_the_hubs_the_numbers_of_the_evaluation():
    found = {"runs": 10, "top_p": 0.9, "first_index": 11_000_000, "last_index": 11_000_999, "mse": 8e-6, "mse_spread": 1.25e-7,
             "mse_of_mean_prediction": 4.56789, "median_absolute_error": 3.7e10, "readable": 1.0, "nats_per_zero": 4.9137}
    header = header_of(metadata("waves", found) + "# Model card")
    assert header["library_name"] == "pytorch" and header["metrics"] == ["mse"] and "transformer" in header["tags"]
    (model,) = header["model-index"]
    (result,) = model["results"]
    assert model["name"] == "rzz-waves" and result["task"]["type"] == "text-generation" and result["dataset"]["split"] == "test"
    assert "11,000,000 … 11,000,999" in result["dataset"]["name"]
    values = [(metric["type"], metric["value"]) for metric in result["metrics"]]
    assert values == [("mse", 8e-6), ("mse_standard_deviation", 1.25e-7), ("mse", 4.568), ("median_absolute_error", 3.7e10),
                      ("readable", 1), ("cross_entropy", 4.914)]  # fmt: skip
    unreadable = dict.fromkeys(("mse", "mse_spread", "mse_of_mean_prediction", "median_absolute_error"))
    (result,) = header_of(metadata("waves", {**found, **unreadable}) + "# Model card")["model-index"][0]["results"]
    assert [metric["type"] for metric in result["metrics"]] == ["readable", "cross_entropy"]
    assert "model-index" not in header_of(metadata("waves", None) + "# Model card")


@pytest.mark.parametrize("value", [8e-6, 2.486e-5, 1.47e5, 1.0, 0.0, 3e39, 0.00499, 12345.0])
def test_every_number_of_the_header_is_one_to_yaml(value):
    yaml = pytest.importorskip("yaml")
    read = yaml.safe_load(yaml_number(value))
    assert isinstance(read, (int, float)) and read == pytest.approx(value, rel=1e-3)


def test_the_license_is_that_of_the_project():
    assert "\nlicense: mit\n" in metadata("waves", None) and (ROOT / "rzz" / "LICENSE").read_text().startswith("MIT License\n")


@pytest.mark.parametrize("shipped", [True, False])
def test_the_code_of_the_card_runs_as_it_stands_and_gives_what_predict_gives(trained, tmp_path, capsys, shipped):
    config = str(trained / "config.json")
    if not shipped:
        predict.main(["--config", config, "--export", str(tmp_path / "given"), "--quiet"])
    folder = SHIPPED if shipped else tmp_path / "given"
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(code.splitlines()) == 5
    environment = {**os.environ, "PYTHONPATH": str(SRC), "PYTHONIOENCODING": "utf-8"}
    printed = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=True)
    text, samples = printed.stdout.split(" ", 1)
    index = text[1:].split(":")[0]
    options = ["--set", "evaluation.runs=10", "--set", "evaluation.seed=1", "--checkpoint", str(folder / "model.pt"), "--json"]
    predict.main(["--config", config, index, "--no-truth", *options])
    found = json.loads(capsys.readouterr().out)
    assert not found["trained_on"] and text == found["text"] and samples == f"{found['samples']}\n".replace("null", "None")
    plain = re.search(r"`(torch\.load\(.*\)\[\"model\"\])`", (folder / "README.md").read_text(encoding="utf-8"))[1]
    weights = eval(plain.replace("model.pt", str(folder / "model.pt")), {"torch": torch})
    assert weights.keys() == load_checkpoint(folder / "model.pt")["model"].keys()


def test_the_card_of_the_shipped_model_is_the_one_that_is_written_today():
    """But for the test set's measures, which are not in its file."""
    shipped = (SHIPPED / "README.md").read_text(encoding="utf-8")
    assert "has not been measured" not in shipped and "model-index" in shipped
    written = card_text(load_checkpoint(SHIPPED / "model.pt"), None, "model.pt")

    def without_measures(text):
        text = re.sub(r"metrics:\n- mse\n(model-index.*?)?---\n", "", text, flags=re.DOTALL)
        return re.sub(r"\n(The test set has not|Test set:).*?\n(?=## Limits)", "", text, flags=re.DOTALL)

    assert without_measures(shipped) == without_measures(written)


@pytest.mark.parametrize("max_number", [3, 30, 200, 1500])
def test_the_whole_numbers_reach_up_to_the_last_zero_for_which_they_are_enough(max_number):
    last = last_zero_of_numbers(max_number)
    assert 1.6 * numbers_in_main_sum(max(last, 1)) <= max_number + 1e-9 or last == 0
    assert 1.6 * numbers_in_main_sum(last + 2) > max_number


def test_the_card_says_how_far_the_whole_numbers_reach_only_if_the_model_is_told_them(trained):
    checkpoint = load_checkpoint(SHIPPED / "model.pt")
    assert ModelConfig(**checkpoint["config"]["model"]).max_number == 200
    assert "end at 200,\n  which is enough up to zero 135,260 (1.6 times" in card_text(checkpoint, None)
    assert "enough up to zero" not in card_of(trained)


def test_the_card_of_a_training_that_has_not_ended_says_so():
    checkpoint = load_checkpoint(SHIPPED / "model.pt")
    assert "had not ended" not in card_text(checkpoint, None)
    checkpoint["progress"]["round"] = 4
    assert "had not ended: it was in round 4 of 10." in card_text(checkpoint, None)
    checkpoint["progress"]["validation"] = None
    assert "There is no validation yet." in card_text(checkpoint, None)
