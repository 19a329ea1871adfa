"""The report says what the logs say, at any moment of a run, and opens without a network."""

import html
import html.parser
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import SMALL_RUN, SRC, write_config
from test_sections import rung

import evaluate
import report
import train
import tune_hyper_parameters
from common.config import UserError, load_config
from data_utils import validation_zeros
from model.metrics import explicit_formula
from model.tokenizer import SCALE
from reporting.comparison import names_of
from reporting.pages import paragraph, table
from reporting.sections import accuracy_summary, evaluation_section
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
    """Write the report; return its HTML."""
    assert report.main(["--config", str(folder / "config.json")]) is None
    return read(folder)


def read(folder):
    return (folder / "logs" / "report" / "report.html").read_text()


class Page(html.parser.HTMLParser):
    """What a page says, without its drawings and style, its tables, and what it would load."""

    def __init__(self, text):
        super().__init__()
        self.hidden, self.words, self.tables, self.loads, self.tags, self.in_table = 0, [], [], [], set(), False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.hidden += tag in ("svg", "style", "title")
        self.loads += [value for name, value in attributes if name in ("src", "href", "xlink:href", "data", "srcset")]
        if tag == "table":
            self.tables.append([])
            self.in_table = True
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        self.hidden -= tag in ("svg", "style", "title")
        self.in_table &= tag != "table"

    def handle_data(self, text):
        if not self.hidden:
            self.words.append(text)
            if text.strip() and self.in_table:
                self.tables[-1][-1][-1] += text


def test_the_table_of_the_evaluation_is_that_of_the_log(finished):
    measured = evaluation(finished)
    table = next(table for table in Page(read(finished)).tables if "RMSE" in table[0])
    rows = {row[0]: row[1:] for row in table[1:]}
    for name, values in {"model, sampled": measured, **measured["baselines"], **measured["controls"]}.items():
        wanted = [values[key] for key in ("mse", "rmse", "median_absolute_error", "median_error_in_spacings")]
        assert [float(cell) for cell in rows[name][:4]] == pytest.approx(wanted, rel=5e-3)
        assert float(rows[name][4]) == pytest.approx(values["readable"], abs=1e-4)
    for name, values in {"model, sampled": measured, "untrained model": measured["untrained"]}.items():
        assert [float(cell) for cell in rows[name][5:]] == pytest.approx([values["nats_per_zero"]], abs=1e-3)
    assert float(rows["mean of 3 runs"][0]) == pytest.approx(measured["mse_of_mean_prediction"], rel=5e-3)


def test_the_explicit_formula_has_the_primes_that_the_model_may_be_told(finished):
    measured, log = evaluation(finished), lines(finished, "predictions.jsonl")
    errors = explicit_formula([line["index"] for line in log], 30) - [line["true"] for line in log]
    assert measured["max_prime"] == 30
    assert measured["baselines"]["explicit formula"]["mse"] == pytest.approx((errors**2).mean())
    page = html.unescape(read(finished))
    assert "explicit formula: the same with primes up to 30; needs no training" in page
    assert "compared with the smooth count and the explicit formula" in page


def test_the_table_of_the_rounds_has_the_last_validation_of_each(finished):
    log = lines(finished, "training.jsonl")
    table = next(table for table in Page(read(finished)).tables if table[0][0] == "round")
    assert [row[0] for row in table[1:]] == ["0", "1", "2"]
    for t, row in enumerate(table[1:]):
        last = [line for line in log if line["kind"] == "validation" and line["round"] == t][-1]
        smooth = next(line for line in log if line["kind"] == "round" and line["round"] == t)["mse_baselines"]["smooth count"]
        assert int(row[1]) == last["step"] and float(row[3]) == pytest.approx(last["loss"], rel=1e-3)
        for cell, value in ((row[5], last["mse_training"]), (row[6], last["mse_validation"]), (row[7], smooth)):
            assert cell == "–" if value is None else float(cell) == pytest.approx(value, rel=1e-3)


def test_the_answer_on_top_is_the_evaluation_and_the_last_line_of_the_training(finished):
    measured, log = evaluation(finished), lines(finished, "training.jsonl")
    top = html.unescape(read(finished).split("<h2>")[0])
    tiles = dict(re.findall("<div><b>(.*?)</b><span>(.*?)</span></div>", top))
    mse, smooth = measured["mse"], measured["baselines"]["smooth count"]["mse"]
    (ratio,) = [value for value, label in tiles.items() if "than the smooth count's" in label]
    assert float(ratio[:-1]) == pytest.approx(max(mse / smooth, smooth / mse), rel=1e-2)
    assert ("larger" in tiles[ratio]) == (mse > smooth)
    assert f"{mse:.4g}" in tiles and f"{100 * measured['readable']:.4g}%" in tiles
    explicit = measured["baselines"]["explicit formula"]["mse"]
    assert f"{mse / explicit:.3g} times larger than that of the explicit formula, {explicit:.4g}, a sum over primes" in top
    last = [line for line in log if line["kind"] == "training"][-1]
    assert f"{30 * 64 / last['seconds']:,.0f}" in tiles and "in 30 steps" in tiles["done"]
    assert f"{measured['parameters']:,} parameters" in top and "K = 2" in top and "primes" in top


def test_the_settings_are_those_of_the_training_and_not_of_the_file(logs_of):
    folder = logs_of("training.jsonl")
    write_config(folder, {**SMALL_RUN, "data": {**SMALL_RUN["data"], "interval_size": 777}})
    assert "of 300 zeros each" in written(folder)


def test_it_opens_offline(finished):
    page = Page(read(finished))
    assert page.loads and all(address.startswith(("#", "data:")) for address in page.loads)
    assert not page.tags & {"script", "link", "iframe", "object", "embed", "base"}
    text = read(finished)
    assert text.count("<svg") == text.count("<figure>") > 5
    assert "@import" not in text and all(inside.startswith(("#", '"#', "&quot;#")) for inside in re.findall(r"url\(([^)]*)", text))


def test_texts_are_shown_as_they_are_and_what_stands_between_backticks_as_code():
    page = Page(paragraph("a < b & `c<d>`") + table(["", "x"], [["<i>", "&amp;"]]))
    assert page.words[:2] == ["a < b & ", "c<d>"] and page.tags == {"p", "code", "div", "table", "tr", "th", "td"}
    assert page.tables == [[["", "x"], ["<i>", "&amp;"]]]


def test_without_any_log_it_says_what_to_do_first(logs_of):
    with pytest.raises(UserError, match="tune_hyper_parameters.py"):
        written(logs_of())


def test_without_matplotlib_there_are_the_tables_and_what_to_install(logs_of):
    """In a process of its own, which has never seen matplotlib."""
    folder = logs_of("tuning.jsonl", "training.jsonl", "evaluation.json", "predictions.jsonl")
    tables = Page(written(folder)).tables
    block = "import sys; sys.modules['matplotlib'] = None; import report; report.main(['--config', sys.argv[1]])"
    subprocess.run([sys.executable, "-c", block, folder / "config.json"], cwd=SRC, check=True)
    page = read(folder)
    assert Page(page).tables == tables and "<svg" not in page and "-m pip install matplotlib" in page


def test_two_runs_are_laid_over_each_other(logs_of, finished, capsys):
    folder = logs_of("training.jsonl", "evaluation.json")
    text, rate = (folder / "logs" / "training.jsonl").read_text(), load_config(finished / "config.json").training.learning_rate
    (folder / "logs" / "training.jsonl").write_text(text.replace(f'"learning_rate": {rate}', '"learning_rate": 0.123'))
    assert report.main([str(finished), str(folder / "config.json")]) is None
    path = finished / "logs" / "report" / "comparison.html"
    assert capsys.readouterr().out.strip() == str(path)
    results, differing = Page(path.read_text()).tables
    names = names_of([finished, folder])
    measured = evaluation(finished)
    for row, name in zip(results[1:], names, strict=True):
        cells = dict(zip(results[0], row, strict=True))
        assert cells["run"] == name and cells["steps"] == "30"
        assert float(cells["MSE"]) == pytest.approx(measured["mse"], rel=1e-3)
        for baseline in ("smooth count", "explicit formula"):
            multiple = measured["mse"] / measured["baselines"][baseline]["mse"]
            assert float(cells[f"× {baseline}"]) == pytest.approx(multiple, rel=5e-3)
    assert differing == [["", *names], ["training.learning_rate", str(rate), "0.123"]]
    assert path.read_text().count("<svg") == 2


def test_runs_are_named_by_as_much_of_their_paths_as_tells_them_apart():
    assert names_of([Path("/data/waves/1")]) == ["waves/1"]
    assert names_of([Path("/data/waves/1"), Path("/data/primes/1")]) == ["waves/1", "primes/1"]
    assert names_of([Path("/a/waves/1"), Path("/b/waves/1")]) == ["a/waves/1", "b/waves/1"]
    assert names_of([Path("/")]) == ["/"]


@pytest.mark.parametrize("wrong", [["nowhere"], ["--config", "some/config.json"]])
def test_a_run_that_is_not_there_and_two_ways_to_name_runs_are_refused(finished, wrong):
    with pytest.raises(UserError, match=wrong[0]):
        report.main([str(finished), *wrong])


def test_a_watched_page_is_written_again_when_a_log_has_changed_until_it_is_told_to_stop(logs_of, monkeypatch):
    folder = logs_of("training.jsonl")
    pages = []

    def wait(seconds):
        pages.append(read(folder))
        if len(pages) == 2:
            text = (folder / "logs" / "training.jsonl").read_text()
            (folder / "logs" / "training.jsonl").write_text(text[: text.index('"kind": "validation"')])
        if len(pages) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(report.time, "sleep", wait)
    assert report.main(["--config", str(folder / "config.json"), "--watch"]) is None
    first, second, third = pages
    assert first == second != third and all(page.count('http-equiv="refresh"') == 1 for page in pages)
    assert "refresh" not in read(folder)


@pytest.mark.parametrize("share", [0.0, 0.05, 0.35, 0.9])
def test_while_it_trains_it_shows_the_last_whole_line(logs_of, finished, share):
    text = (finished / "logs" / "training.jsonl").read_text()
    characters = text.index("\n") + 1 + int(share * (len(text) - text.index("\n")))
    log = [json.loads(line) for line in text[:characters].splitlines() if line.endswith("}")]
    page = written(logs_of(characters=characters))
    assert f"got to step {log[-1]['step']}" in page
    for stage in ("tune_hyper_parameters", "evaluate"):
        assert f"{stage}.py" in page.split("<h2>")[0]
    steps = [line for line in log if line["kind"] == "training"]
    if steps:
        assert f"of training left after step {steps[-1]['step']} of 30" in page


def test_tuning_alone_is_shown_and_the_rest_is_called_for(logs_of):
    folder = logs_of()
    (folder / "logs" / "tuning.jsonl").write_text(json.dumps(rung(0.1, 16, [9.0])) + "\n")
    page = written(folder)
    assert re.findall("<h2>(.*)</h2>", page) == ["Tuning"]
    assert "train.py --resume" in page and "errors are" not in page and "Learning rate" not in page


def test_an_evaluation_alone_is_shown_and_the_rest_is_called_for(logs_of):
    page = written(logs_of("evaluation.json"))
    assert re.findall("<h2>(.*)</h2>", page) == ["Evaluation"]
    assert "train.py --resume" in page and "tune_hyper_parameters.py" in page


@pytest.mark.parametrize("content", ["", '{"mse": ', "[]", '{"mse": 1.0}', "\udcff"])
def test_a_damaged_evaluation_is_moved_aside_and_called_for(logs_of, content):
    folder = logs_of("evaluation.json", "training.jsonl")
    path = folder / "logs" / "evaluation.json"
    path.write_text(content, errors="surrogateescape")
    assert "No evaluation is in the logs" in written(folder)
    assert not path.exists() and (folder / "logs" / "evaluation.json.bad-1").read_text(errors="surrogateescape") == content
    assert "evaluation.json is damaged" in (folder / "logs" / "rzz.log").read_text()


@pytest.mark.parametrize("name", ["training.jsonl", "predictions.jsonl", "tuning.jsonl"])
def test_a_line_without_one_of_its_keys_or_with_another_type_is_left_out(logs_of, name):
    folder = logs_of("training.jsonl", "evaluation.json", "predictions.jsonl")
    path = folder / "logs" / name
    if name == "tuning.jsonl":
        path.write_text(json.dumps(rung(0.1, 16, [9.0])) + "\n")
    lines = {line.get("kind"): line for line in map(json.loads, path.read_text().splitlines())}.values()
    damaged = [{k: v for k, v in line.items() if k != key} for line in lines for key in line]
    damaged += [{**line, key: {"of another": "type"}} for line in lines for key in line]
    before = written(folder)
    with path.open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in damaged)
        file.write("null\n[]\n" + "[" * 100_000 + "\n")
    assert re.findall("<h2>(.*)</h2>", written(folder)) == re.findall("<h2>(.*)</h2>", before)
    assert f"{name}: left out lines" in (folder / "logs" / "rzz.log").read_text()


def test_an_evaluation_older_than_the_training_is_said_to_be(logs_of):
    folder = logs_of("training.jsonl", "evaluation.json")
    assert "gone on since" not in written(folder)
    path = folder / "logs" / "evaluation.json"
    path.write_text(json.dumps({**evaluation(folder), "seconds_trained": 1e-6}))
    assert "gone on since" in written(folder)


def test_each_round_logs_the_smooth_counts_error_on_the_zeros_of_its_validation(finished):
    config = load_config(finished / "config.json")
    for line in lines(finished, "training.jsonl"):
        if line["kind"] == "round":
            zeros = validation_zeros(config, line["round"])
            errors = smooth_zeros(zeros.indexes) - zeros.values / SCALE
            assert line["mse_baselines"]["smooth count"] == pytest.approx((errors**2).mean())


def test_the_time_left_is_the_zeros_left_at_the_last_speed(finished):
    last = [line for line in lines(finished, "training.jsonl") if line["kind"] == "training"][-2]
    assert (last["step"], last["steps_in_run"]) == (28, 30)  # batches of 64, the last one of an interval of 300 has 44
    assert last["seconds_left"] * last["zeros_per_second"] == pytest.approx(64 + 44)


def test_predictions_are_those_that_were_evaluated(finished):
    measured, log = evaluation(finished), lines(finished, "predictions.jsonl")
    assert [line["index"] for line in log] == list(range(measured["first_index"], measured["last_index"] + 1))
    errors = np.array([line["predicted"] for line in log], float) - np.array([line["true"] for line in log])[:, None]
    assert np.mean([np.nanmean(run**2) for run in errors.T]) == pytest.approx(measured["mse"])


def test_an_evaluation_with_nothing_readable_is_reported_as_that(finished):
    measured = {**evaluation(finished), "mse": None, "readable": 0.0, "mse_of_mean_prediction": None}
    rows = Page("".join(evaluation_section(measured, []))).tables[0]
    assert [row[0] for row in rows[1:3]] == ["model, sampled", "mean of 3 runs"] and rows[1][1] == rows[2][1] == "–"
    assert "nothing that is a number" in accuracy_summary([], measured)[0]


@pytest.mark.parametrize("variables", [
    {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}, {"MPLBACKEND": "TkAgg", "DISPLAY": ""}, {"MATPLOTLIBRC": "{rc}"},
])  # fmt: skip
def test_the_page_does_not_depend_on_the_users_backend_or_style(tmp_path, variables):
    """As in a notebook's kernel, or with a matplotlibrc that sets all text with LaTeX; in a folder of another encoding."""
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nsavefig.format: pdf\nfont.size: 40\n")
    pages = []
    for number, extra in enumerate(({}, variables)):
        folder = os.fsencode(tmp_path) + b"/%d/caf\xe9" % number
        shutil.copytree(os.fsencode(Path(__file__).parent / "data" / "older_run"), folder)
        extra = {name: value.format(rc=tmp_path / "matplotlibrc") for name, value in extra.items()}
        command = [sys.executable, SRC / "report.py", "--config", folder + b"/config.json"]
        subprocess.run(command, env={**os.environ, **extra}, check=True)
        with open(folder + b"/logs/report/report.html", encoding="utf-8") as file:
            pages.append(re.sub(r"<p>Written .*?</p>", "", file.read()).replace(f"{number}/caf", "caf"))
    assert pages[0] == pages[1] and pages[0].count("<svg") >= 6
