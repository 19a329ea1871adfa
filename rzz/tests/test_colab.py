"""The notebook runs from start to end in a kernel, keeps the torch that is there, and says what it needs."""

import html
import json
import locale
import os
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

PROJECT = Path(__file__).resolve().parent.parent.parent
NOTEBOOK = nbformat.read(PROJECT / "rzz" / "colab.ipynb", as_version=4)


@pytest.fixture
def checkout(tmp_path):
    """A copy of the project whose demo is a training of seconds; with RZZ_DEMO=1 the demo as it is, of minutes."""
    shutil.copytree(PROJECT / "rzz" / "src", tmp_path / "rzz" / "src", ignore=shutil.ignore_patterns("__pycache__"))
    demo = (PROJECT / "rzz" / "demo" / "config.json").read_text() if os.environ.get("RZZ_DEMO") == "1" else json.dumps(SMALL_RUN)
    (tmp_path / "rzz" / "demo").mkdir()
    (tmp_path / "rzz" / "demo" / "config.json").write_text(demo)
    shutil.copy(PROJECT / "rzz" / "config.json", tmp_path / "rzz")
    shutil.copy(PROJECT / "requirements.txt", tmp_path)
    return tmp_path


def cell(name):
    return next(cell for cell in NOTEBOOK.cells if cell.id == name)


def printed(cell):
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def test_it_runs_from_start_to_end_and_shows_the_report(checkout, monkeypatch):
    for name in ("JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(checkout / name))
    place = {"metadata": {"path": checkout / "rzz"}}
    notebook = NotebookClient(nbformat.from_dict(NOTEBOOK), timeout=1800, resources=place).execute()
    cells = {cell.id: cell for cell in notebook.cells}
    run = checkout / "rzz" / "colab_run" / "demo"
    assert "cpu" in printed(cells["packages"]) and printed(cells["run"]).strip() == str(run)
    assert f"Written to {run / 'config.json'}" in printed(cells["tune"])
    assert "Training is complete" in printed(cells["train"])
    assert "model, sampled" in printed(cells["evaluate"])
    (shown,) = [output.data["text/html"] for output in cells["report"].outputs if "data" in output]
    assert html.escape((run / "logs" / "report" / "report.html").read_text()) in shown


def test_it_is_kept_without_outputs_and_in_demo_size():
    codes = [cell for cell in NOTEBOOK.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in codes)
    assert codes[0].id == "parameters" and 'SIZE = "demo"' in codes[0].source
    nbformat.validate(NOTEBOOK)


@pytest.mark.parametrize("there", [True, False])
def test_a_torch_that_is_there_is_not_given_to_pip(monkeypatch, there):
    commands = []

    def note(command, **options):
        commands.append(command)
        return subprocess.CompletedProcess(command, 0, stdout="")

    monkeypatch.setattr("importlib.util.find_spec", lambda name: there or None)
    exec(cell("packages").source, {"root": PROJECT, "subprocess": types.SimpleNamespace(run=note, PIPE=subprocess.PIPE)})
    asked = [word for word in commands[0] if word.startswith("torch")]
    assert bool(asked) is not there and {"mpmath>=1.3,<2", "matplotlib"} <= set(commands[0])


def test_outside_of_a_checkout_it_clones_the_repository_or_asks_for_it(checkout, tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path_factory.mktemp("content"))
    with pytest.raises(ValueError, match="REPOSITORY"):
        exec(cell("checkout").source, {"REPOSITORY": ""})
    git = ["git", "-C", str(checkout), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for words in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "all"]):
        subprocess.run([*git, *words], check=True)
    for _ in range(2):  # the second time it finds the clone
        names = {"REPOSITORY": checkout.as_uri()}
        exec(cell("checkout").source, names)
        assert names["root"] == Path.cwd() / "rzz" and (names["root"] / "rzz" / "src" / "train.py").exists()


def test_with_drive_the_run_lies_there(tmp_path, monkeypatch):
    mounted = []
    drive = types.SimpleNamespace(mount=mounted.append)
    monkeypatch.setitem(sys.modules, "google.colab", types.SimpleNamespace(drive=drive))
    names = {"USE_DRIVE": True, "DRIVE_FOLDER": str(tmp_path), "SIZE": "small", "root": PROJECT, "Path": Path}
    exec(cell("run").source, names)
    assert mounted == ["/content/drive"] and names["run"] == tmp_path / "small"
    settings = json.loads((tmp_path / "small" / "config.json").read_text())
    assert settings["data"]["interval_size"] == 100_000


@pytest.fixture
def stage(checkout, monkeypatch):
    """The notebook's stage() on a run folder of its own."""
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    names = {"USE_DRIVE": False, "SIZE": "demo", "root": checkout, "Path": Path, "subprocess": subprocess, "sys": sys}
    exec(cell("run").source, names)
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


def test_the_stop_button_reaches_the_stage_which_saves_and_goes_on_when_run_again(stage, checkout, capsys):
    checkpoint = checkout / "rzz" / "colab_run" / "demo" / "checkpoints" / "last.pt"

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
