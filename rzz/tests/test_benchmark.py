"""Every part of the benchmark runs, measures the same thing on both sides, and leaves its figures in the log."""

import subprocess
import sys

import pytest
from conftest import SMALL_RUN, SRC, write_config

import benchmark
from common.config import HardwareProfile, UserError
from common.files import read_json_lines


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A function that runs a part on little data and returns its line in the log."""
    for name, value in {"HEIGHTS": (1, 1000), "MPMATH_SAMPLE": 1, "FLINT_SAMPLE": 2, "EQUAL_STEPS": 3, "LEARNING_STEPS": 20,
                        "PREFETCH_ZEROS": 64, "REPEATS": 1, "TUNED_ZEROS": 400,
                        "TUNED": {"epochs": [1], "learning_rate": [0.001, 0.002], "batch_size": [64]}}.items():  # fmt: skip
        monkeypatch.setattr(benchmark, name, value)
    monkeypatch.setattr(benchmark, "fast_cores", lambda: 1)
    config = write_config(tmp_path, SMALL_RUN)

    def run(part, *arguments):
        benchmark.main([part, "--config", str(config), "--device", "cpu", "--set", "model.d_model=32", *arguments])
        return read_json_lines(tmp_path / "logs" / "benchmarks.jsonl")[-1]

    return run


def test_zeros_are_those_of_the_other_libraries(run, capsys):
    figures = run("zeros", "--count", "50")
    assert figures["command"] == "zeros" and figures["count"] == 50
    assert all(figures[f"from_{first}"]["largest_difference"] < 1e-8 for first in (1, 1000))
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_a_library_that_is_not_installed_is_said_to_be_missing(run, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "flint", None)
    assert run("zeros", "--count", "50")["from_1"]["flint"] is None
    assert "not installed" in capsys.readouterr().out


def test_the_three_ways_of_training_have_the_same_losses(run, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "multiplies_bfloat16", lambda device: False)
    figures = run("train")
    assert figures["d_model"] == 32 and figures["num_layers"] == 1 and figures["batch_size"] == 64
    assert set(figures["loss_differences"]) == {"plain GPT", "literal trajectories"}
    assert max(figures["loss_differences"].values()) < 1e-3
    assert max(figures["operations"].values()) < 400  # of one layer
    assert "rzz, primes, float32" in capsys.readouterr().out and set(figures["roofline"]) == {"float32"}


def test_generation_without_a_cache_writes_the_same_rows(run):
    assert run("generate")["same_rows"] == 1000


def test_the_search_and_both_plain_loops_train_the_same_grid(run, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "measure_hardware", lambda device: HardwareProfile())
    compared = {"d_model": 48, "num_layers": 2, "batch_size": 32, "forecast_ms": 1.0, "measured_ms": 1.5, "forecast_mb": 2.0,
                "measured_mb": 2.5}  # fmt: skip
    monkeypatch.setattr(benchmark, "compare_forecasts", lambda throughput, device: [compared])
    figures = run("tune", "--set", "tuning.workers=1")
    assert figures["the search"] > 0 and figures["one after the other"] > 0 and figures["plain GPTs, no scores"] > 0
    assert figures["forecasts"] == {"a core": [compared], "cpu": [compared]}
    assert "1.50 ms" in capsys.readouterr().out


@pytest.mark.parametrize("arguments, message", [
    (["everything"], "invalid choice: 'everything'"),
    (["zeros", "--count", "0"], "--count is 0"),
    (["train", "--set", "model.d_model=30"], "not divisible by model.num_heads"),
    (["train", "--device", "abacus"], "'abacus'"),
])  # fmt: skip
def test_bad_input_is_refused_in_one_line(tmp_path, arguments, message):
    with pytest.raises(UserError, match=message) as refused:
        benchmark.main(["--config", str(write_config(tmp_path, {})), *arguments])
    assert len(str(refused.value).splitlines()) == 1


def test_a_missing_part_is_one_line_and_exit_code_2():
    failed = subprocess.run([sys.executable, str(SRC / "benchmark.py")], capture_output=True, text=True, timeout=120)
    assert failed.returncode == 2 and failed.stdout == ""
    assert "arguments are required: part" in failed.stderr and len(failed.stderr.splitlines()) == 1
