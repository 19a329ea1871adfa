"""The habits of a command line: help with examples, results apart from the rest, quiet, plain text in a pipe, exit codes."""

import errno
import os
import shutil
import signal
import subprocess
import sys

import pytest
from conftest import DEVICE, SMALL_RUN, SRC, write_config

STAGES = ("tune_hyper_parameters.py", "train.py", "evaluate.py", "predict.py")
SCRIPTS = sorted(path.name for path in SRC.glob("*.py") if "    run_script(main)" in path.read_text())
ASKED = {"predict.py": ["10", "905"], "train.py": ["--resume"]}


def call(script, *arguments, **variables):
    return subprocess.run([sys.executable, str(SRC / script), *arguments], capture_output=True, text=True, timeout=300,
                          env={**os.environ, **variables})  # fmt: skip


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """What the pipeline prints, stage after stage, as usual and with --quiet in a folder of its own."""
    found = {}
    for quiet in (False, True):
        config = write_config(tmp_path_factory.mktemp("quiet" if quiet else "usual"), SMALL_RUN)
        for script in STAGES:
            arguments = ["--config", str(config), *ASKED.get(script, []), *["--quiet"] * quiet]
            found[script, quiet] = call(script, *arguments)
        found["folder", quiet] = config.parent
    return found


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_shows_an_example(script):
    shown = call(script, "--help")
    assert shown.returncode == 0 and shown.stderr == ""
    assert f"    python rzz/src/{script}" in shown.stdout
    assert max(map(len, shown.stdout.splitlines())) <= 80


@pytest.mark.parametrize("script", STAGES)
def test_results_go_to_standard_output_and_all_else_to_standard_error(outputs, script):
    usual = outputs[script, False]
    assert usual.returncode == 0, usual.stderr
    assert f"device {DEVICE}" in usual.stderr and f"device {DEVICE}" not in usual.stdout
    assert (usual.stdout == "") == (script == "train.py")  # its result is a checkpoint


@pytest.mark.parametrize("script", STAGES)
def test_quiet_leaves_the_results_and_nothing_else(outputs, script):
    quiet, usual = outputs[script, True], outputs[script, False]
    assert quiet.returncode == 0 and quiet.stderr == ""
    assert quiet.stdout == usual.stdout


def test_quiet_changes_nothing_in_the_logs(outputs):
    for name in ("rzz.log", "training.log"):
        quiet, usual = ((outputs["folder", quiet] / "logs" / name).read_text().splitlines() for quiet in (True, False))
        assert len(quiet) == len(usual) > 5


@pytest.mark.parametrize("script", STAGES)
def test_nothing_but_plain_text_reaches_a_pipe(outputs, script):
    text = outputs[script, False].stdout + outputs[script, False].stderr
    assert not {"\x1b", "\r", "\b"} & set(text)


@pytest.mark.parametrize("script", STAGES)
def test_quiet_still_says_what_is_wrong(tmp_path, script):
    config = write_config(tmp_path, SMALL_RUN)
    failed = call(script, "--config", str(config), *ASKED.get(script, []), "--quiet", "--set", "data.K=-1")
    assert failed.returncode == 2 and failed.stdout == ""
    assert "data.K is -1" in failed.stderr and len(failed.stderr.splitlines()) == 1


@pytest.mark.parametrize("script, result", [("evaluate.py", "zeros 900 ? 919"), ("predict.py", "905")])
def test_results_can_be_shown_where_only_ascii_can(outputs, script, result):
    config = outputs["folder", False] / "config.json"
    shown = call(script, "--config", str(config), *ASKED.get(script, []), PYTHONIOENCODING="ascii")
    assert shown.returncode == 0 and shown.stdout.isascii() and result in shown.stdout


def test_ctrl_c_at_the_prompt_of_predict_ends_it_with_130(outputs):
    command = [sys.executable, str(SRC / "predict.py"), "--config", str(outputs["folder", False] / "config.json"), "--interactive"]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # which a shell's background jobs are born without
    said = ""
    while not said.endswith("end): "):
        said += process.stderr.read(1)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and output == "" and "Traceback" not in errors


def script_that_raises(tmp_path, body):
    """Call run_script of a main() with this body, in a process of its own; return (exit code, stderr, rzz.log)."""
    script = tmp_path / "script.py"
    script.write_text(f"import sys; sys.path.insert(0, {str(SRC)!r})\nimport errno, os\nfrom pathlib import Path\n"
                      "from common.cli import run_script\nfrom common.config import UserError\n"
                      "from common.logs import start_logging\n"
                      f"def main():\n    start_logging(Path({str(tmp_path)!r}))\n    {body}\nrun_script(main)\n")  # fmt: skip
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    return done.returncode, done.stderr, (tmp_path / "rzz.log").read_text()


@pytest.mark.parametrize("body, says", [
    ("raise UserError('this cannot be')", "this cannot be"),
    ("raise OSError(errno.ENOTCONN, 'x', '/a/b.pt')", f"/a/b.pt: {os.strerror(errno.ENOTCONN)}; make it accessible and run again."),
    ("raise OSError(errno.ENOSPC, 'x', 'a')", f"a: {os.strerror(errno.ENOSPC)}; free some space and run again."),
    ("raise OSError(errno.EMFILE, 'x')", f"The disk: {os.strerror(errno.EMFILE)}; make it accessible and run again."),
    ("raise MemoryError", "There is too little memory"),
])  # fmt: skip
def test_what_is_refused_is_one_line_and_the_log_has_where_it_came_from(tmp_path, body, says):
    code, errors, logged = script_that_raises(tmp_path, body)
    assert code == 2 and errors.startswith(says) and len(errors.splitlines()) == 1
    assert f" ERROR script.py:9 {says}" in logged and "Traceback" in logged and body in logged


def test_a_bug_shows_its_traceback(tmp_path):
    code, errors, logged = script_that_raises(tmp_path, "raise KeyError('x')")
    assert code == 1 and all("This is a bug" in text and "script.py" in text and "KeyError" in text for text in (errors, logged))


PACKAGES = ("torch", "numpy", "mpmath", "tqdm")


def call_without_site(script, folder, installed=()):
    """Call a script from a copy of the sources in `folder` with an interpreter that has no packages but empty ones, `installed`."""
    shutil.copytree(SRC, folder / "rzz" / "src", ignore=shutil.ignore_patterns("__pycache__"))
    for name in installed:
        (folder / "installed" / name).mkdir(parents=True)
        interrupted = "import os, signal; os.kill(os.getpid(), signal.SIGINT)" if name == "torch" else ""
        (folder / "installed" / name / "__init__.py").write_text(interrupted)
    return subprocess.run([sys.executable, "-S", str(folder / "rzz" / "src" / script)], capture_output=True, text=True, timeout=60,
                          env={**os.environ, "PYTHONPATH": str(folder / "installed")})  # fmt: skip


@pytest.mark.parametrize("script, missing", [
    *((script, PACKAGES) for script in SCRIPTS), *(("train.py", [name]) for name in PACKAGES),
])  # fmt: skip
def test_missing_packages_are_a_line_that_says_how_to_get_them(tmp_path, script, missing):
    failed = call_without_site(script, tmp_path, set(PACKAGES) - {*missing})
    assert failed.returncode == 2 and len(failed.stderr.splitlines()) == 1
    assert failed.stderr.startswith("Not installed for ")
    assert failed.stderr.endswith(f"-m pip install -r {tmp_path / 'requirements.txt'}\n")
    assert f": {', '.join(missing)}; " in failed.stderr


def test_missing_packages_are_a_line_that_names_the_environment_which_has_them(tmp_path):
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").touch()
    failed = call_without_site("train.py", tmp_path)
    assert failed.returncode == 2 and len(failed.stderr.splitlines()) == 1
    assert failed.stderr.endswith(f"; run this with {tmp_path / '.venv' / 'bin' / 'python'}\n")


@pytest.mark.parametrize("script", SCRIPTS)
def test_ctrl_c_while_torch_is_imported_ends_a_script_with_130(tmp_path, script):
    failed = call_without_site(script, tmp_path, PACKAGES)
    assert failed.returncode == 130 and failed.stderr == "Interrupted.\n"


@pytest.mark.parametrize("script", STAGES)
def test_with_its_standard_streams_closed_a_stage_does_its_work(tmp_path, outputs, script):
    """Closed as by `<&- >&- 2>&-`: the next files opened must not take their places."""
    folder = shutil.copytree(outputs["folder", False], tmp_path / "run")
    results = {"tune_hyper_parameters.py": "tuning.jsonl", "train.py": "training.jsonl", "evaluate.py": "evaluation.json"}
    if script == "tune_hyper_parameters.py":
        (folder / "logs" / "tuning.jsonl").unlink()  # so that workers start
    command = [sys.executable, str(SRC / script), "--config", str(folder / "config.json"), *ASKED.get(script, [])]
    if script == "predict.py":
        command.append("--interactive")  # ends, since there is nothing to read
    done = subprocess.run(["bash", "-c", '"$@" <&- >&- 2>&-', "bash", *command], timeout=300)
    assert done.returncode == 0
    for name in {results.get(script)} - {None}:
        assert "mse" in (folder / "logs" / name).read_text()
    assert "Traceback" not in (folder / "logs" / "rzz.log").read_text()
