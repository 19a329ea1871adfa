"""The report says what the logs say, in both of its forms, at any moment of a run, and opens without a network."""

import html.parser
import json
import math
import re
import shutil
import sys

import numpy as np
import pytest
from conftest import SMALL_RUN, write_config

import evaluate
import report
import train
import tune_hyper_parameters
from common.config import UserError, load_config
from data_utils import validation_zeros
from model.metrics import gue_share_below, gue_spacing_density
from model.tokenizer import SCALE
from reporting.pages import Figures, Sentences, Table
from reporting.sections import evaluation_section, prediction_blocks, sentence, training_section, tuning_section
from zeta.riemann_siegel import smooth_zeros


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that was tuned, trained and evaluated."""
    folder = tmp_path_factory.mktemp("finished")
    settings = {**SMALL_RUN, "tuning": {"zeros": 200, "grid": {"learning_rate": [0.001, 0.01], "num_layers": [1, 2]}}}
    config = str(write_config(folder, settings))
    for stage in (tune_hyper_parameters, train, evaluate, report):
        stage.main(["--config", config])
    return folder


@pytest.fixture
def logs_of(finished, tmp_path):
    """Return a function that makes a run folder with some of the logs, of training.jsonl only the first characters."""

    def make(*names, characters=None):
        (tmp_path / "logs").mkdir()
        shutil.copy(finished / "config.json", tmp_path)
        for name in names:
            shutil.copy(finished / "logs" / name, tmp_path / "logs")
        if characters is not None:
            text = (finished / "logs" / "training.jsonl").read_text()
            (tmp_path / "logs" / "training.jsonl").write_text(text[:characters])
        return tmp_path

    return make


def lines(folder, name):
    return [json.loads(line) for line in (folder / "logs" / name).read_text().splitlines()]


def evaluation(folder):
    return json.loads((folder / "logs" / "evaluation.json").read_text())


def written(folder):
    """Write the report; return the texts of its HTML and Markdown forms."""
    assert report.main(["--config", str(folder / "config.json")]) is None
    return read(folder)


def read(folder):
    place = folder / "logs" / "report"
    return (place / "report.html").read_text(), (place / "report.md").read_text()


class Page(html.parser.HTMLParser):
    """What a page says, without its drawings and style, its tables, and what it would load."""

    def __init__(self, text):
        super().__init__()
        self.hidden, self.words, self.tables, self.loads, self.tags = 0, [], [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.hidden += tag in ("svg", "style", "title")
        self.loads += [value for name, value in attributes if name in ("src", "href", "xlink:href", "data", "srcset")]
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        self.hidden -= tag in ("svg", "style", "title")

    def handle_data(self, text):
        if not self.hidden:
            self.words.append(text)
            if text.strip() and self.tables and self.tables[-1] and self.tables[-1][-1]:
                self.tables[-1][-1][-1] += text


def numbers(text):
    return re.findall(r"\d[\d,.]*(?:e[+-]\d+)?", text)


def test_html_and_markdown_say_the_same_numbers_in_the_same_order(finished):
    page, markdown = read(finished)
    assert numbers(" ".join(Page(page).words)) == numbers(re.sub(r"!\[.*", "", markdown))
    assert len(numbers(markdown)) > 150


def test_the_pictures_of_the_markdown_are_there_and_in_the_html_too(finished):
    page, markdown = read(finished)
    names = re.findall(r"!\[.*\]\((.*)\)", markdown)
    assert len(names) == len(set(names)) == page.count("<svg")
    assert all((finished / "logs" / "report" / name).read_bytes()[:4] == b"\x89PNG" for name in names)


def test_the_table_of_the_evaluation_is_that_of_the_log(finished):
    measured = evaluation(finished)
    table = next(table for table in Page(read(finished)[0]).tables if "RMSE" in table[0])
    rows = {row[0]: row[1:] for row in table[1:]}
    for name, values in {"model, sampled": measured, **measured["baselines"]}.items():
        wanted = [values[key] for key in ("mse", "rmse", "median_absolute_error", "median_error_in_spacings")]
        assert [float(cell) for cell in rows[name][:4]] == pytest.approx(wanted, rel=1e-3)
        assert float(rows[name][4]) == pytest.approx(values["readable"], abs=1e-4)
    assert float(rows["model, mean of 3 runs"][0]) == pytest.approx(measured["mse_of_mean_prediction"], rel=1e-3)


def test_the_table_of_the_rounds_has_the_last_validation_of_each(finished):
    log = lines(finished, "training.jsonl")
    table = next(table for table in Page(read(finished)[0]).tables if table[0][0] == "round")
    assert [row[0] for row in table[1:]] == ["0", "1", "2"]
    for t, row in enumerate(table[1:]):
        last = [line for line in log if line["kind"] == "validation" and line["round"] == t][-1]
        smooth = next(line for line in log if line["kind"] == "round" and line["round"] == t)["mse_baselines"]["smooth count"]
        assert int(row[1]) == last["step"] and float(row[3]) == pytest.approx(last["loss"], rel=1e-3)
        for cell, value in ((row[5], last["mse_training"]), (row[6], last["mse_validation"]), (row[7], smooth)):
            assert cell == "–" if value is None else float(cell) == pytest.approx(value, rel=1e-3)


def test_the_answer_on_top_is_the_evaluation_and_the_last_line_of_the_training(finished):
    measured, log = evaluation(finished), lines(finished, "training.jsonl")
    top = read(finished)[1].split("## ")[0]
    tiles = dict(re.findall(r"- \*\*(.*)\*\* (.*)", top))
    mse, smooth = measured["mse"], measured["baselines"]["smooth count"]["mse"]
    (ratio,) = [value for value, label in tiles.items() if "than the smooth count's" in label]
    assert float(ratio[:-1]) == pytest.approx(max(mse / smooth, smooth / mse), rel=1e-2)
    assert ("larger" in tiles[ratio]) == (mse > smooth)
    assert f"{mse:.4g}" in tiles and f"{100 * measured['readable']:.4g}%" in tiles
    speed = [line for line in log if line["kind"] == "training"][-1]["zeros_per_second"]
    assert f"{speed:,.0f}" in tiles and "in 30 steps" in tiles["done"]
    assert f"{measured['parameters']:,} parameters" in top and "K = 2" in top and "primes" in top


def test_it_opens_offline(finished):
    page = Page(read(finished)[0])
    assert page.loads and all(address.startswith(("#", "data:")) for address in page.loads)
    assert not page.tags & {"script", "link", "iframe", "object", "embed", "base"}
    text = read(finished)[0]
    assert "@import" not in text and all(inside.startswith(("#", '"#', "&quot;#")) for inside in re.findall(r"url\(([^)]*)", text))


def test_without_any_log_it_says_what_to_do_first(logs_of):
    with pytest.raises(UserError, match="tune_hyper_parameters.py"):
        written(logs_of())


def test_without_matplotlib_it_says_what_to_install(logs_of, monkeypatch):
    folder = logs_of("training.jsonl")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match="pip install matplotlib"):
        written(folder)
    assert not (folder / "logs" / "report").exists()


@pytest.mark.parametrize("share", [0.0, 0.05, 0.35, 0.9])
def test_while_it_trains_it_shows_the_last_whole_line(logs_of, finished, share):
    text = (finished / "logs" / "training.jsonl").read_text()
    characters = text.index("\n") + 1 + int(share * (len(text) - text.index("\n")))
    log = [json.loads(line) for line in text[:characters].splitlines() if line.endswith("}")]
    page, _ = written(logs_of(characters=characters))
    assert f"got to step {log[-1]['step']}" in page
    for stage in ("tune_hyper_parameters", "evaluate"):
        assert f"{stage}.py" in page.split("<h2>")[0]
    steps = [line for line in log if line["kind"] == "training"]
    if steps:
        assert f"of training left after step {steps[-1]['step']} of 30" in page


def test_tuning_alone_is_shown_and_the_rest_is_called_for(logs_of):
    folder = logs_of()
    (folder / "logs" / "tuning.jsonl").write_text(json.dumps(rung(0.1, 16, [9.0])) + "\n")
    page, _ = written(folder)
    assert re.findall("<h2>(.*)</h2>", page) == ["Tuning"]
    assert "train.py --resume" in page and "evaluate.py" in page


def test_an_evaluation_alone_is_shown_and_the_rest_is_called_for(logs_of):
    page, _ = written(logs_of("evaluation.json"))
    assert re.findall("<h2>(.*)</h2>", page) == ["Evaluation"]
    assert "train.py --resume" in page and "tune_hyper_parameters.py" in page


def test_a_damaged_evaluation_is_named(logs_of):
    folder = logs_of("evaluation.json")
    (folder / "logs" / "evaluation.json").write_text('{"mse": ')
    with pytest.raises(UserError, match="evaluation.json is damaged"):
        written(folder)


def test_an_evaluation_older_than_the_training_is_said_to_be(logs_of):
    folder = logs_of("training.jsonl", "evaluation.json")
    assert "gone on since" not in written(folder)[0]
    path = folder / "logs" / "evaluation.json"
    path.write_text(json.dumps({**evaluation(folder), "seconds_trained": 1e-6}))
    assert "gone on since" in written(folder)[0]


def blocks_of(section, kind):
    return [block for block in section if isinstance(block, kind)]


def curves(section, name):
    """Return {label: (x, y)} of the lines of a figure."""
    figures = {each.name: each.figure for block in blocks_of(section, Figures) for each in block.items}
    axes = figures[name].axes[0]
    return axes, {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines}


def test_the_curves_are_the_logs_and_squared_errors_are_on_a_log_scale(finished):
    log = lines(finished, "training.jsonl")
    section = list(training_section(log))
    steps, validations = ([line for line in log if line["kind"] == kind] for kind in ("training", "validation"))
    _, loss = curves(section, "loss")
    assert loss["training"] == ([line["step"] for line in steps], [line["loss"] for line in steps])
    assert loss["validation"] == ([line["step"] for line in validations], [line["loss"] for line in validations])
    axes, mse = curves(section, "mse")
    measured = [math.nan if line["mse_validation"] is None else line["mse_validation"] for line in validations]
    assert axes.get_yscale() == "log" and np.array_equal(mse["model, validation zeros"][1], measured, equal_nan=True)
    smooth = [line["mse_baselines"]["smooth count"] for line in log if line["kind"] == "round"]
    assert mse["smooth count"][1][:-1] == smooth
    assert curves(section, "speed")[1].popitem()[1][1] == [line["zeros_per_second"] for line in steps]


def test_the_map_of_characters_is_aligned_by_place_value(finished):
    log = lines(finished, "training.jsonl")
    log = [{**line, "accuracy_by_position": [0.25] * (9 if line["round"] == 0 else 10)} if line["kind"] == "validation" else line
           for line in log]  # fmt: skip
    axes, _ = curves(list(training_section(log)), "accuracy")
    shown = np.ma.filled(axes.collections[0].get_array().reshape(10, -1), np.nan)
    first = [line["round"] == 0 for line in log if line["kind"] == "validation"]
    assert np.isnan(shown[0]).tolist() == first and (shown[1:] == 0.25).all()
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "10³", "10²", "10", "1", ".", "0.1", "0.01", "0.001", "0.0001", "end"]  # fmt: skip


def test_each_round_logs_the_smooth_counts_error_on_the_zeros_of_its_validation(finished):
    config = load_config(finished / "config.json")
    for line in lines(finished, "training.jsonl"):
        if line["kind"] == "round":
            zeros = validation_zeros(config, line["round"])  # 30 of them, of which every sixth is written out for the MSE
            errors = (smooth_zeros(zeros.indexes) - zeros.values / SCALE)[::6]
            assert line["mse_baselines"]["smooth count"] == pytest.approx((errors**2).mean())


def test_the_time_left_is_the_zeros_left_at_the_last_speed(finished):
    last = [line for line in lines(finished, "training.jsonl") if line["kind"] == "training"][-1]
    assert (last["step"], last["steps_in_run"]) == (28, 30)  # batches of 64, the last one of an interval of 300 has 44
    assert last["seconds_left"] * last["zeros_per_second"] == pytest.approx(64 + 44)


def test_predictions_are_those_that_were_evaluated(finished):
    measured, log = evaluation(finished), lines(finished, "predictions.jsonl")
    assert [line["index"] for line in log] == list(range(measured["first_index"], measured["last_index"] + 1))
    errors = np.array([line["predicted"] for line in log], float) - np.array([line["true"] for line in log])[:, None]
    assert np.mean([np.nanmean(run**2) for run in errors.T]) == pytest.approx(measured["mse"])


def predictions(true, runs):
    return [{"index": 1000 + k, "true": value, "predicted": row} for k, (value, row) in enumerate(zip(true, runs, strict=True))]


def test_best_and_worst_are_those_whose_mean_is_nearest_and_farthest():
    generator = np.random.default_rng(1)
    true = 1419.4 + np.cumsum(generator.uniform(0.5, 1.5, 60)).round(4)
    runs = true[:, None] + generator.normal(0, 0.2, (60, 4))
    errors = np.abs(runs.mean(1) - true)
    best, worst = (block.items for block in blocks_of(prediction_blocks(predictions(true, runs.tolist())), Sentences))
    named = [[int(text.split()[1].replace(",", "")) - 1000 for text in texts] for texts in (best, worst)]
    assert named[0] == np.argsort(errors)[:5].tolist() and named[1] == np.argsort(errors)[::-1][:5].tolist()
    assert f"is {true[named[0][0]]:.4f}; the model said {runs[named[0][0]].mean():.1f} ± {runs[named[0][0]].std():.1f}" in best[0]


def test_a_zero_for_which_no_number_was_written_is_among_the_worst():
    true = [1419.4228, 1420.4165, 1421.8506]
    lists = blocks_of(prediction_blocks(predictions(true, [[1419.5, None], [None, None], [1430.0, 1430.0]])), Sentences)
    assert lists[1].items[0] == "zero 1,001 is 1420.4165; the model wrote nothing that is a number"
    assert lists[1].items[1] == "zero 1,002 is 1421.8506; the model said 1430.0000 ± 0.0000"
    assert lists[0].items[0] == "zero 1,000 is 1419.4228; the model said 1419.5000 ± 0.0000"


def test_a_sentence_has_as_many_decimals_as_the_runs_agree_on():
    runs = np.array([5453540.4, 5453540.6])
    assert sentence(11_000_412, 5453540.6071, runs) == "zero 11,000,412 is 5453540.6071; the model said 5453540.5 ± 0.1"
    assert sentence(10, 49.7738, np.array([0.0, 100.0])) == "zero 10 is 49.7738; the model said 50 ± 50"


def test_one_zero_and_nothing_readable_are_enough_for_a_report(finished):
    for runs in ([1419.5, None], [None, None]):
        section = list(evaluation_section(evaluation(finished), predictions([1419.4228], [runs])))
        assert len(blocks_of(section, Figures)[0].items) == (2 if runs[0] else 0)


def test_what_lies_outside_of_a_picture_is_counted():
    true = [1419.4228, 1420.4165, 1421.8506]
    runs = [[value, value] for value in true[:2]] + [[1.0, 1421.8506]]
    captions = [each.caption for block in blocks_of(prediction_blocks(predictions(true, runs)), Figures) for each in block.items]
    assert captions[0].endswith("Outside of the frame: 1 of 3 zeros.")
    assert "All 6 sampled predictions" in captions[1] and captions[1].endswith("not in the picture: 1.")
    assert captions[2].endswith("in the wrong order: 1.")


def test_the_gue_curve_has_area_one_and_mean_one():
    s, step = np.linspace(0, 12, 120_001, retstep=True)
    density = gue_spacing_density(s)
    assert (density * step).sum() == pytest.approx(1) and (s * density * step).sum() == pytest.approx(1)
    assert gue_spacing_density(0.01) / gue_spacing_density(0.005) == pytest.approx(4, rel=1e-3)  # repulsion by s², not s
    for limit in (0.3, 1.0, 2.5):
        assert gue_share_below(limit) == pytest.approx((density * step)[s < limit].sum(), rel=1e-3)


def rung(rate, size, nats, stable=True, trainable=True, **more):
    point = {"learning_rate": rate, "batch_size": size, "d_model": 64, **more}
    return {"kind": "rung", "point": point, "epochs": len(nats), "nats_per_zero": nats, "mse": 0.5, "stable": stable,
            "trainable": trainable, "parameters": 1234}  # fmt: skip


def test_a_heat_map_shows_the_best_of_each_pair_and_which_were_stable_and_trainable():
    log = [rung(0.1, 16, [1.0], dropout=0.1), {"kind": "ruled_out", "point": {}, "reason": "too large", "detail": "9 GB"},
           rung(0.001, 16, [9.0]), rung(0.001, 16, [9.0, 8.5, 8.75]), rung(0.002, 16, [8.0, 7.0]),
           rung(0.002, 16, [3.0], trainable=False) | {"point": {"learning_rate": 0.002, "batch_size": 16, "d_model": 32}},
           rung(0.001, 32, [6.0], trainable=False), rung(0.002, 32, [9.0, None], stable=False, trainable=False)]  # fmt: skip
    section = list(tuning_section(log))
    figure = blocks_of(section, Figures)[0].items[0].figure
    texts = {text.get_position(): text.get_text() for text in figure.axes[0].texts}
    assert texts == {(0, 0): "8.500\n● 1", (1, 0): "7.000\n● 1  ○ 1", (0, 1): "–\n○ 1", (1, 1): "–\n× 1"}
    assert figure.axes[0].get_xlabel() == "learning_rate" and figure.axes[0].get_ylabel() == "batch_size"
    assert blocks_of(section, Sentences)[0].items == ["● 2 trainable", "○ 2 stable, but learned nothing", "× 1 diverged",
                                                      "ruled out before: 1, too large"]  # fmt: skip
    (table,) = blocks_of(section, Table)
    assert table.header[:4] == ["learning_rate", "batch_size", "d_model", "nats per zero"]
    assert [row[:4] for row in table.rows[:2]] == [["0.002", "16", "64", "7.000"], ["0.001", "16", "64", "8.500"]]


def test_an_evaluation_with_nothing_readable_is_reported_as_that(finished):
    measured = {**evaluation(finished), "mse": None, "readable": 0.0, "mse_of_mean_prediction": None}
    (table, _) = blocks_of(evaluation_section(measured, []), Table)
    assert table.rows[0][1] == "–" and table.rows[1][1] == "–"
    assert "nothing that is a number" in report.headline([], measured)


def test_an_error_is_compared_with_the_smooth_counts():
    assert report.against_smooth(0.004, 0.05) == ("12.5", "smaller")
    assert report.against_smooth(0.085, 0.05) == ("1.7", "larger")
    assert report.against_smooth(0.0, 0.05) == ("inf", "smaller")
