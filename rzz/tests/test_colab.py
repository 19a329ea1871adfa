"""The notebook runs from start to end in a kernel, brings the project from wherever it is, and says what it needs."""

import html
import json
import locale
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import nbformat
import pytest
from conftest import SMALL_RUN
from nbclient import NotebookClient

from common.config import load_config
from data_utils import interval
from model.index_embedding import numbers_in_main_sum
from model.network import build_model, parameter_count
from training.preflight import STATE_BYTES, check_disk_space
from tuning.workers import state_folder

PROJECT = Path(__file__).resolve().parent.parent.parent
NOTEBOOK = nbformat.read(PROJECT / "rzz" / "colab.ipynb", as_version=4)


@pytest.fixture
def checkout(tmp_path):
    """A copy of the project whose demo is a training of seconds; with RZZ_DEMO=1 the demo as it is, of minutes."""
    folder = tmp_path / "checkout"
    shutil.copytree(PROJECT / "rzz" / "src", folder / "rzz" / "src", ignore=shutil.ignore_patterns("__pycache__"))
    demo = (PROJECT / "rzz" / "demo" / "config.json").read_text() if os.environ.get("RZZ_DEMO") == "1" else json.dumps(SMALL_RUN)
    (folder / "rzz" / "demo").mkdir()
    (folder / "rzz" / "demo" / "config.json").write_text(demo)
    shutil.copy(PROJECT / "rzz" / "config.json", folder / "rzz")
    shutil.copy(PROJECT / "requirements.txt", folder)
    return folder


@pytest.fixture
def content(tmp_path, monkeypatch):
    """An empty working directory, as Colab's /content is."""
    (tmp_path / "content").mkdir()
    monkeypatch.chdir(tmp_path / "content")
    return tmp_path / "content"


@pytest.fixture
def mounted(monkeypatch):
    """Where Drive was mounted, in a stand-in for Colab's own module."""
    folders = []
    drive = types.SimpleNamespace(mount=folders.append)
    monkeypatch.setitem(sys.modules, "google.colab", types.SimpleNamespace(drive=drive))
    return folders


def cell(name):
    return next(cell for cell in NOTEBOOK.cells if cell.id == name)


def printed(cell):
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def parameters(**values):
    """The names that the first cell sets, some of them changed as its form changes them."""
    names = {}
    exec(cell("parameters").source, names)
    assert values.keys() <= names.keys()
    return {**names, **values}


def run_cells(*names, **given):
    for name in names:
        exec(cell(name).source, given)
    return given


def test_it_runs_from_start_to_end_and_shows_the_report(checkout, monkeypatch):
    for name in ("JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(checkout / name))
    place = {"metadata": {"path": checkout / "rzz"}}
    notebook = NotebookClient(nbformat.from_dict(NOTEBOOK), timeout=1800, resources=place).execute()
    cells = {cell.id: cell for cell in notebook.cells}
    run = checkout / "rzz" / "colab_run" / "demo"
    assert printed(cells["project"]).strip() == str(checkout) and printed(cells["run"]).strip() == str(run)
    assert "device" in printed(cells["check"]) and "forecast" in printed(cells["check"])
    assert f"Written to {run / 'config.json'}" in printed(cells["tune"])
    assert "Training is complete" in printed(cells["train"])
    assert "model, sampled" in printed(cells["evaluate"])
    (shown,) = [output.data["text/html"] for output in cells["report"].outputs if "data" in output]
    assert html.escape((run / "logs" / "report" / "report.html").read_text()) in shown


def test_it_is_kept_without_outputs_and_in_demo_size():
    codes = [cell for cell in NOTEBOOK.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in codes)
    assert codes[0].id == "parameters"
    assert {name: value for name, value in parameters().items() if name.isupper()} == {
        "PROJECT": "", "SIZE": "demo", "TUNE": True, "USE_DRIVE": False, "DRIVE_FOLDER": "/content/drive/MyDrive/rzz"}  # fmt: skip
    nbformat.validate(NOTEBOOK)


def test_every_setting_is_a_field_of_the_form_and_explained():
    lines = cell("parameters").source.splitlines()
    fields = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Z_]+ = .*  # @param [{\[].*[}\]]", line) for line in fields)
    for name in (line.split(" = ")[0] for line in fields):
        assert f"`{name}`" in cell("title").source
    sizes = json.loads(next(line for line in lines if line.startswith("SIZE")).split("@param ")[1])
    assert [line.split("|")[1].strip(" `") for line in cell("title").source.splitlines() if line.startswith("| `")] == sizes


def test_the_disk_that_the_first_cell_names_is_what_a_run_needs(content, capsys):
    rows = {row[1].strip(" `"): row[3].strip() for row in (line.split("|") for line in cell("title").source.splitlines())
            if len(row) == 6 and "MB" in row[3]}  # fmt: skip
    for size, text in rows.items():
        names = run_cells("run", **parameters(SIZE=size), here=content, root=PROJECT, Path=Path, sys=sys, subprocess=subprocess)
        config = load_config(names["config"])
        intervals = [interval(config, t) for t in range(1, config.data.K + 2)]
        model = build_model(config.model, 1)
        needed = check_disk_space(config, intervals, STATE_BYTES * parameter_count(model) * (config.data.K + 3))
        assert text == needed.split(" needed")[0]
    assert len(rows) == 3


@pytest.mark.parametrize("there", [True, False])
def test_a_torch_that_is_there_is_not_given_to_pip(monkeypatch, there):
    commands = []
    monkeypatch.setattr("importlib.util.find_spec", lambda name: there or None)
    run_cells("packages", root=PROJECT, subprocess=types.SimpleNamespace(run=lambda command, **options: commands.append(command)))
    asked = [word for word in commands[0] if word.startswith("torch")]
    assert bool(asked) is not there and {"mpmath>=1.3,<2", "matplotlib"} <= set(commands[0])


def found_project(project):
    return run_cells("project", **parameters(PROJECT=project))["root"]


def test_the_project_is_cloned_from_an_address_once(checkout, content):
    git = ["git", "-C", str(checkout), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for words in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "all"]):
        subprocess.run([*git, *words], check=True)
    for _ in range(2):  # the second time it finds the clone
        root = found_project(checkout.as_uri())
        assert root == content / "rzz_project" / "checkout" and (root / ".git").exists()
        (root / "mine").touch()


@pytest.mark.parametrize("inside", ["", "rzz-main"])
def test_the_project_is_unpacked_from_an_uploaded_zip_and_a_newer_one_takes_effect(checkout, content, inside):
    for text in ("1", "2"):
        (checkout / "requirements.txt").write_text(text)
        (content / "up" / inside).parent.mkdir(exist_ok=True)
        shutil.copytree(checkout, content / "up" / inside, dirs_exist_ok=True)
        shutil.make_archive("rzz", "zip", content / "up")
        root = found_project("rzz.zip")
        assert root == content / "rzz_project" / "rzz.zip" / inside and (root / "requirements.txt").read_text() == text


def test_the_project_is_copied_from_a_folder_without_its_runs(checkout, content):
    for folder in (".venv/lib", "rzz/checkpoints", "rzz/demo/run"):
        (checkout / folder).mkdir(parents=True)
        (checkout / folder / "large").touch()
    root = found_project(str(checkout))
    assert root == content / "rzz_project" / "checkout" and (root / "rzz/src/training/run.py").exists()
    assert not list(root.glob("**/large"))


def test_a_folder_on_drive_is_looked_for_after_drive_was_mounted(content, mounted):
    with pytest.raises(FileNotFoundError, match="/content/drive/MyDrive/project"):
        found_project("/content/drive/MyDrive/project")
    assert mounted == ["/content/drive"]


def test_in_a_checkout_nothing_is_fetched(checkout, monkeypatch):
    monkeypatch.chdir(checkout / "rzz")
    assert found_project("") == checkout and not list(checkout.glob("**/rzz_project"))


@pytest.mark.parametrize("project", ["", "other.zip"])
def test_without_a_project_it_says_what_to_give(content, project):
    (content / "other").mkdir()
    shutil.make_archive("other", "zip", content / "other")
    with pytest.raises(ValueError) as error:
        found_project(project)
    assert all(words in str(error.value) for words in ("PROJECT", "https://", "rzz.zip", "/content/drive/MyDrive", project))


def run_folder(content, **values):
    given = parameters(**values)
    return run_cells("run", **given, root=PROJECT, here=content, Path=Path, sys=sys, subprocess=subprocess)


def test_with_drive_the_run_lies_there_and_what_only_the_search_needs_does_not(tmp_path, content, checkout, monkeypatch, mounted):
    monkeypatch.chdir(checkout)
    run_cells("project", **parameters(USE_DRIVE=True))
    assert mounted == ["/content/drive"]
    names = run_folder(content, USE_DRIVE=True, DRIVE_FOLDER=str(tmp_path / "drive"), SIZE="small")
    assert names["run"] == tmp_path / "drive" / "small"
    settings = json.loads((tmp_path / "drive" / "small" / "config.json").read_text())
    assert settings["data"]["interval_size"] == 100_000
    staged = []
    run_cells("tune", **{**names, "stage": lambda *words: staged.append(words)})
    (script, _, override), = staged
    assert script == "tune_hyper_parameters.py"
    folder = state_folder(load_config(names["config"], [override]))
    assert folder.is_relative_to(content) and not folder.is_relative_to(names["run"])


@pytest.mark.parametrize("size", ["demo", "small", "full"])
def test_every_size_has_the_whole_numbers_that_its_last_zeros_need(content, size):
    config = load_config(run_folder(content, SIZE=size)["config"])
    first, count = interval(config, config.data.K + 1)
    assert config.model.max_number >= 1.6 * numbers_in_main_sum(first + config.data.N)


def test_without_tune_nothing_is_searched(content):
    staged = []
    run_cells("tune", **parameters(TUNE=False), local=content, stage=lambda *words: staged.append(words))
    assert not staged


@pytest.mark.parametrize("values, colab, warns", [
    ({"SIZE": "full"}, True, True), ({"SIZE": "full", "USE_DRIVE": True}, True, False), ({"SIZE": "demo"}, True, False),
    ({"SIZE": "full"}, False, False),
])  # fmt: skip
def test_a_full_run_that_would_be_lost_is_warned_of(tmp_path, content, monkeypatch, capsys, values, colab, warns):
    monkeypatch.setitem(sys.modules, "google.colab", types.SimpleNamespace()) if colab else sys.modules.pop("google.colab", None)
    run_folder(content, DRIVE_FOLDER=str(tmp_path / "drive"), **values)
    assert ("WARNING" in capsys.readouterr().out) is warns


@pytest.fixture
def stage(checkout, content, monkeypatch):
    """The notebook's stage() on a run folder of its own."""
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    names = run_cells("run", **parameters(), root=checkout, here=content, Path=Path, subprocess=subprocess, sys=sys)
    return names["stage"]


def test_a_stage_is_shown_whatever_the_locale_of_the_kernel(stage, checkout, capsys):
    before = locale.setlocale(locale.LC_ALL)
    locale.setlocale(locale.LC_ALL, "C")
    try:
        stage("train.py", "--resume")
    finally:
        locale.setlocale(locale.LC_ALL, before)
    assert "round 0/2 · zero" in capsys.readouterr().out
    (checkout / "rzz" / "src" / "odd.py").write_text("import sys; sys.stdout.buffer.write(b'\\xff\\xfe\\n')")
    stage("odd.py")
    assert "\ufffd" in capsys.readouterr().out


def test_the_stop_button_reaches_the_stage_which_saves_and_goes_on_when_run_again(stage, content, capsys):
    checkpoint = content / "colab_run" / "demo" / "checkpoints" / "last.pt"

    def press_stop():
        while not checkpoint.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press_stop, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        stage("train.py", "--resume", "--set", "training.epochs=500")
    assert "and saved. Go on with" in capsys.readouterr().out
    stage("train.py", "--resume", "--set", "training.epochs=2", "--set", "data.K=0")
    assert "Training is complete" in capsys.readouterr().out


def test_a_stage_that_fails_stops_the_notebook(stage, capsys):
    with pytest.raises(RuntimeError, match="evaluate.py ended with exit code 2"):
        stage("evaluate.py")
    assert "train first" in capsys.readouterr().out


def test_a_tpu_that_torch_does_not_reach_stops_the_notebook_with_what_to_type(stage, checkout, content, capsys):
    devices = checkout / "rzz" / "src" / "common" / "devices.py"
    devices.write_text(devices.read_text().replace('PCI = Path("/sys/bus/pci/devices")', f"PCI = Path({str(content)!r})"))
    (content / "0000:00:05.0").mkdir()
    (content / "0000:00:05.0" / "vendor").write_text("0x1ae0\n")
    (content / "0000:00:05.0" / "device").write_text("0x0063\n")
    with pytest.raises(RuntimeError, match="train.py ended with exit code 2"):
        run_cells("check", stage=lambda *words: stage(*words, "--set", "runtime.device=auto"))
    assert "pip install torch==2.9.0 torch_xla[tpu]==2.9.0" in capsys.readouterr().out
