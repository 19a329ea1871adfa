"""What predict.py says of a zero is what the model says, compared with the true zero, and bad questions cost nothing.

The claims on model.sampling.predict are here too, since they need the same trained model.
"""

import io
import json
import subprocess
import sys

import mpmath
import numpy as np
import pytest
import torch
from conftest import DEVICE, SMALL_RUN, SRC, write_config

import predict as script
import train
from common.config import UserError, load_config
from common.logs import log, progress_bar, start_logging
from common.text import format_row
from model.sampling import character_probabilities, predict
from model.tokenizer import decode, encode
from reporting.prediction_card import TABLE_HEADER, card, column_widths, table_row
from training.checkpoints import latest_checkpoint, trained_model, trained_zeros


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run folder with a model that was trained on zeros 1 … 899 until it writes numbers."""
    folder = tmp_path_factory.mktemp("predict")
    write_config(folder, {**SMALL_RUN, "training": {**SMALL_RUN["training"], "epochs": 12}})
    subprocess.run([sys.executable, str(SRC / "train.py"), "--config", str(folder / "config.json"), "--quiet"], check=True)
    return folder


@pytest.fixture(scope="module")
def model(trained):
    checkpoint, path = latest_checkpoint(trained / "checkpoints")
    return trained_model(checkpoint, path)


@pytest.fixture
def ask(trained, capsys, monkeypatch):
    """Call predict.py's main() with arguments and what standard input holds; returns its output and errors."""

    def ask(*arguments, given=""):
        monkeypatch.setattr(sys, "stdin", io.StringIO(given))
        script.main(["--config", str(trained / "config.json"), *arguments])
        return capsys.readouterr()

    return ask


def records(captured):
    return [json.loads(line) for line in captured.out.splitlines()]


@torch.no_grad()
def step_by_step(model, index, length=32):
    """The most probable text and its probabilities by the plain model: a pass over the whole prefix for each character."""
    model.eval()
    text, probabilities = f"b{index}:", []
    while len(text) < length and not text.endswith("e"):
        tokens = np.array([encode(text)], np.uint8)
        given = model(torch.from_numpy(tokens).long(), model.features(tokens, np.array([index])))[0, -1].double().softmax(-1)
        probabilities.append(given.numpy())
        text += decode([int(given.argmax())])
    return text, np.array(probabilities)


@pytest.mark.parametrize("index", [7, 10, 99, 905, 11_000_000, 999_999_999_999])
def test_the_most_probable_text_and_its_probabilities_are_those_of_the_uncached_model_step_by_step(model, index):
    text, probabilities = step_by_step(model, index)
    found = predict(model, [1, index, 100_000], runs=0, top_p=0.9, seed=1)[1]
    assert found.text == text
    assert found.probabilities.shape == probabilities.shape
    assert np.abs(found.probabilities - probabilities).max() < 1e-6


def test_probabilities_can_be_asked_for_texts_of_different_lengths_and_do_not_see_what_comes_later(model):
    whole, shorter = character_probabilities(model, [10, 10], ["b10:49.7738e", "b10:49.7"])
    assert whole.shape == (8, 16) and shorter.shape == (4, 16)
    assert np.abs(whole[:4] - shorter).max() < 1e-6
    assert np.allclose(whole.sum(1), 1)


def test_the_true_zero_and_the_error_in_spacings_are_what_mpmath_says(ask):
    (found,) = records(ask("--json", "10"))
    zero = float(mpmath.zetazero(10).imag)
    assert found["true"] == 49.7738 and 0 <= zero - found["true"] < 1e-4
    assert found["error"] == pytest.approx(found["predicted"] - 49.7738)
    smooth = mpmath.findroot(lambda t: mpmath.siegeltheta(t) / mpmath.pi + 1 - 9.5, 50)
    assert found["smooth_count"] == pytest.approx(float(smooth), abs=1e-9)
    spacing = float(2 * mpmath.pi / mpmath.log(smooth / (2 * mpmath.pi)))
    assert found["error_in_spacings"] == pytest.approx((found["predicted"] - 49.7738) / spacing)


def test_predicted_and_spread_are_mean_and_standard_deviation_of_the_readable_samples(ask):
    found = records(ask("--json", "900..910", "--set", "evaluation.runs=7"))
    assert [zero["index"] for zero in found] == list(range(900, 911))
    for zero in found:
        samples = np.array([sample for sample in zero["samples"] if sample is not None])
        assert len(zero["samples"]) == 7 and len(samples) > 1
        assert zero["predicted"] == pytest.approx(samples.mean()) and zero["spread"] == pytest.approx(samples.std())
    assert len({tuple(zero["samples"]) for zero in found}) == 11


def test_a_zero_gets_the_same_samples_alone_in_a_table_and_asked_again(ask):
    (alone,) = records(ask("--json", "905"))
    among = records(ask("--json", "--file", "-", given="".join(f"{index}\n" for index in [*range(800, 905), 12, 905])))
    assert len(among) == 107
    alone["probabilities"] = [pytest.approx(given, abs=1e-5) for given in alone["probabilities"]]  # a larger batch rounds otherwise
    assert among[-1] == alone
    (otherwise,) = records(ask("--json", "905", "--set", "evaluation.seed=2"))
    assert otherwise["samples"] != alone["samples"] and otherwise["text"] == alone["text"]


def test_greedy_is_the_number_of_the_most_probable_text_with_no_spread(ask, model):
    (found,) = records(ask("--json", "--greedy", "905"))
    text, probabilities = step_by_step(model, 905)
    assert found["text"] == text and f"b905:{found['predicted']:.4f}e" == text
    assert found["spread"] is None and found["samples"] == []
    for written, given, expected in zip(text[5:], found["probabilities"], probabilities, strict=True):
        assert next(iter(given)) == written and given[written] == pytest.approx(expected.max(), abs=1e-6)
        assert len(given) == (expected >= 0.001).sum()


def test_it_says_whether_the_zero_was_trained_on(trained, ask):
    checkpoint, _ = latest_checkpoint(trained / "checkpoints")
    assert trained_zeros(checkpoint) == (1, 899)
    found = records(ask("--json", "899", "900"))
    assert [zero["trained_on"] for zero in found] == [True, False]
    assert "zero 899 was trained on (zeros 1 … 899)" in ask("899").out
    assert "zero 900 lies beyond the training (zeros 1 … 899)" in ask("900").out
    earlier = records(ask("--json", "299", "300", "--checkpoint", str(trained / "checkpoints" / "round_0.pt")))
    assert [zero["trained_on"] for zero in earlier] == [True, False]


def test_an_index_beyond_what_zeros_db_computes_has_a_prediction_and_says_that_the_truth_is_not_known(ask):
    (found,) = records(ask("--json", "10000000001", "--greedy"))
    assert found["true"] is None and found["error"] is None and len(found["text"]) > 10
    assert "not known" in ask("10000000001").out
    (left_out,) = records(ask("--json", "905", "--no-truth"))
    assert left_out["true"] is None and left_out["predicted"] is not None


def test_nothing_is_written_into_the_data_folder(trained, ask):
    before = {path.name for path in (trained / "data").iterdir()}
    ask("2000..2002")
    assert {path.name for path in (trained / "data").iterdir()} == before


@pytest.mark.parametrize("word, indexes", [
    ("11000000", [11_000_000]), ("11,000,000", [11_000_000]), ("11_000_000", [11_000_000]), ("007", [7]),
    ("999,999,999,999", [999_999_999_999]), ("9..12", [9, 10, 11, 12]), ("1_000..1,001", [1000, 1001]),
])  # fmt: skip
def test_an_index_may_be_typed_as_people_type_them(word, indexes):
    assert list(script.parse_indexes(word)) == indexes


@pytest.mark.parametrize("word, says", [
    ("0", "no zero 0"), ("-5", "not an index"), ("1e6", "not an index"), ("10,11,12", "not an index"), ("1.5", "not an index"),
    ("1_000,000", "not an index"), ("٣", "not an index"), ("9" * 5000, "not an index"), ("5..", "not an index"),
    ("1,000,000,000,000", "does not fit 32 tokens"), ("12..9", "not a range"), ("1..1000001", "not a range"),
])  # fmt: skip
def test_what_is_no_index_is_refused_in_one_line(word, says):
    with pytest.raises(UserError, match=says) as error:
        script.parse_indexes(word)
    assert len(str(error.value)) < 200 and "\n" not in str(error.value)


def test_a_bad_line_of_a_file_is_named_with_its_number_before_anything_is_computed(trained, tmp_path, ask):
    path = tmp_path / "indexes.txt"
    path.write_text("# asked for\n10\n\n905  # the last one\n11,000..11,001\n")
    assert [zero["index"] for zero in records(ask("--json", "--file", str(path), "3"))] == [3, 10, 905, 11000, 11001]
    path.write_text("10\n\nten\n")
    command = [sys.executable, str(SRC / "predict.py"), "--config", str(trained / "config.json"), "--file", str(path)]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 2 and process.stdout == ""
    assert f"{path}, line 3: 'ten' is not an index" in process.stderr and len(process.stderr.splitlines()) == 1


@pytest.mark.parametrize("arguments, says", [
    ([], "Name a zero"), (["--file", "/nowhere/indexes"], "Cannot read /nowhere/indexes"), (["--file", "-"], "no index in st"),
])  # fmt: skip
def test_asked_for_nothing_it_says_what_to_type(ask, arguments, says):
    with pytest.raises(UserError, match=says):
        ask(*arguments)


def test_interactive_answers_until_an_empty_line_and_survives_a_bad_one(ask):
    captured = ask("--interactive", "--greedy", "--json", given="905\nten\n10 11\n\n12\n")
    assert [zero["index"] for zero in records(captured)] == [905, 10, 11]
    assert "'ten' is not an index" in captured.err and "index" not in captured.out.replace('"index"', "")
    assert [zero["index"] for zero in records(ask("--interactive", "--json", "7", given="8"))] == [7, 8]


def test_a_card_fits_80_columns_and_becomes_ascii_where_it_must(ask, monkeypatch):
    for index in ("905", "10000000001", "999999999999"):
        shown = ask(index).out
        assert max(map(len, shown.splitlines())) < 80 and "█" in shown
    found = records(ask("--json", "905"))[0]
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert card(found, (1, 899), "").isascii() and table_row(found, column_widths([905])).isascii()


def test_several_zeros_are_a_table_whose_columns_line_up(ask):
    lines = ask("9", "905", "10_000_000").out.splitlines()
    assert len(lines) == 4 and lines[0].split() == ["index", "predicted", "spread", "true", "error", "spacings", "seen"]
    assert lines[0] == format_row(TABLE_HEADER, column_widths([9, 905, 10_000_000])) and len(lines[0]) < 80
    assert [line.split()[0] for line in lines[1:]] == ["9", "905", "10,000,000"]
    assert lines[1].split()[3] == "48.0051" and lines[1].endswith("yes") and lines[2].endswith(" no")
    assert len(lines[1]) == len(lines[0])


@pytest.mark.parametrize("quiet", [False, True])
def test_results_go_to_standard_output_and_the_rest_to_standard_error_or_nowhere(trained, quiet):
    command = [sys.executable, str(SRC / "predict.py"), "--config", str(trained / "config.json"), "905..907", *["--quiet"] * quiet]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    assert len(process.stdout.splitlines()) == 4
    assert process.stderr == "" if quiet else f"device {DEVICE}" in process.stderr and "last.pt" in process.stderr
    assert "\x1b" not in process.stdout + process.stderr and "\r" not in process.stdout + process.stderr


def test_quiet_keeps_the_logs_and_lets_warnings_through(trained, tmp_path, capsys):
    config = load_config(trained / "config.json")
    start_logging(tmp_path, quiet=True)
    log.info("said to the log")
    log.warning("said to both")
    with progress_bar(10, "work", "step") as bar:
        assert bar.disable
    assert capsys.readouterr().err == "said to both\n"
    assert "said to the log" in (tmp_path / "rzz.log").read_text()
    start_logging(config.log_folder)


def test_an_exported_model_has_no_optimizer_says_the_same_and_comes_with_its_card(trained, ask, tmp_path):
    asked = ask("110", "310", "--json").out
    assert ask("--export", str(tmp_path / "given")).out == ""
    path, last = tmp_path / "given" / "model.pt", trained / "checkpoints" / "last.pt"
    assert path.stat().st_size < last.stat().st_size / 2
    assert ask("110", "310", "--json", "--checkpoint", str(path)).out == asked
    assert torch.load(path, weights_only=True)["optimizer"] == {}
    text = (path.parent / "README.md").read_text()
    assert "`model.pt`" in text and "Zeros 1 … 899" in text
    with pytest.raises(UserError, match="exists; name another folder"):
        ask("--export", str(path.parent))


def test_training_does_not_go_on_from_an_exported_model(trained, ask, tmp_path):
    ask("--export", str(tmp_path / "given"))
    write_config(tmp_path / "run", {**SMALL_RUN, "training": {**SMALL_RUN["training"], "epochs": 13}})
    (tmp_path / "run" / "checkpoints").mkdir()
    (tmp_path / "given" / "model.pt").rename(tmp_path / "run" / "checkpoints" / "last.pt")
    with pytest.raises(UserError, match="cannot go on"):
        train.main(["--config", str(tmp_path / "run" / "config.json"), "--resume"])


def test_the_model_that_comes_with_the_project_gives_the_card_of_the_readme(tmp_path, capsys):
    """To what rounding changes from one processor to the next."""
    write_config(tmp_path, {})
    shipped = SRC.parent / "demo" / "model" / "model.pt"
    script.main(["--config", str(tmp_path / "config.json"), "--checkpoint", str(shipped), "110500"])
    written = capsys.readouterr().out.splitlines()
    readme = (SRC.parents[1] / "readme.md").read_text().split("```\n" + written[0])[1].split("```")[0].splitlines()[1:]
    for label in ("predicted", "true", "error", "smooth count"):
        ours, theirs = (next(line.split()[len(label.split())] for line in lines if line.strip().startswith(label))
                        for lines in (written, readme))  # fmt: skip
        assert float(ours) == pytest.approx(float(theirs), abs=0.003)
    greedy = [next(line.split()[-1] for line in lines if "most probable" in line) for lines in (written, readme)]
    assert greedy[0][:-4] == greedy[1][:-4] == "b110500:81915.4"
    assert abs(float(greedy[0].split(":")[1][:-1]) - 81915.4307) < 0.01
