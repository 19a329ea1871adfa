"""What is shown of the search: the whole grid with its forecasts, a line for each rung, the tables."""

import re
from contextlib import closing

import pytest
from searches import CPU, GRID, rung_lines, with_grid

from common.config import load_config
from model.network import build_model, parameter_count
from tuning.display import SearchProgress, description, job_seconds, search_seconds
from tuning.grid import grid_of
from tuning.halving import SearchLog, repetitions, rungs_of
from tuning.workers import schedule_jobs


def test_the_description_counts_the_trials_and_each_reason_with_an_example(search_folder):
    config = with_grid(search_folder, {**GRID, "num_heads": [1, 2, 3]})
    text = description(config, grid_of(config), CPU, "the reason")
    assert "3 learning_rate × 2 batch_size × 2 dropout × 3 num_heads = 36 trials; with 3 numbers of epochs 108 settings" in text
    assert "excluded: 12\n    12: d_model is not divisible by num_heads, e.g. learning_rate 0.0003, " in text
    assert "num_heads 3 (16 by 3)\ntrained for fewer epochs: 0\n" in text
    assert "to train: 24 to 1, 8 to 2, 4 to 3 epochs of 200 zeros" in text and "the reason; " in text
    nothing = load_config(config.path, ["tuning.max_memory_gb=1e-9"])
    assert description(nothing, grid_of(nothing), CPU, "").splitlines()[1] == "excluded: 36"


@pytest.mark.parametrize("keep, states", [(1.0, 2), (0.5, 1)])  # of 2 learning rates with one head; three do not fit d_model
def test_the_states_of_the_trials_that_may_go_on_are_counted(run_folder, keep, states):
    config = load_config(run_folder / "config.json", ["model.d_model=1024", f"tuning.keep={keep}"])
    gigabytes = 16 * parameter_count(build_model(config.model, seed=1)) / 1e9  # weights, their running average, and AdamW's two
    assert f"up to {states * gigabytes:.2f} GB on disk" in description(config, grid_of(config), CPU, "")


def test_the_time_of_the_repetitions_is_counted_once(search_folder):
    config = with_grid(search_folder, GRID, seeds=3)
    again = repetitions(config, grid_of(config).trials[:2])
    jobs = schedule_jobs(config, again, rungs_of(config)[-1], CPU)
    with closing(SearchProgress(config, SearchLog(config), CPU)) as progress:
        progress.begin_rung(rungs_of(config)[-1], again, jobs)
        assert progress.bar.total == pytest.approx(sum(job_seconds(config, job, CPU) for job in jobs))


def test_the_default_grid_takes_three_quarters_of_an_hour_at_most_and_two_gigabytes():
    config = load_config()
    first, likely, most = search_seconds(config, grid_of(config).trials, rungs_of(config), CPU)
    assert first + likely <= first + most <= 0.75 * 3600 * config.tuning.host.cores
    disk = re.search(r"up to ([0-9.]+) GB on disk", description(config, grid_of(config), CPU, ""))
    assert float(disk[1]) <= 2


def test_the_log_says_at_the_end_of_each_rung_who_goes_on_and_the_best_so_far(whole_search):
    folder, _, _ = whole_search
    lines, log = rung_lines(folder), (folder / "logs" / "rzz.log").read_text()
    for number, count, going_on in ((1, 24, "8 go on"), (2, 8, "4 go on"), (3, 4, "the end")):
        best = min(min(line["nats_per_zero"]) for line in lines if line["epochs"] == number)
        assert (f"rung {number}/3 · {count} of {count} trials after {number} epoch{'s' * (number > 1)} · best {best:.3f} nats/zero"
                f" · 0 diverged, 0 stable but learned nothing · {going_on}\n") in log  # fmt: skip


def test_the_tables_show_the_best_trials_and_what_each_value_is_worth(whole_search):
    folder, _, output = whole_search
    lines = rung_lines(folder)
    best, axes = output.split("what each value is worth")
    assert max(map(len, output.splitlines())) <= 80
    first = next(row.split() for row in best.splitlines() if row.startswith("nats/zero "))
    lowest = {str(line["point"]): min(line["nats_per_zero"]) for line in sorted(lines, key=lambda line: line["epochs"])}
    assert first[1:] == [f"{nats:.3f}" for nats in sorted(lowest.values())[:6]]
    for value in GRID["learning_rate"]:
        of_value = [line for line in lines if line["point"]["learning_rate"] == value]
        first = [line["nats_per_zero"][0] for line in of_value if line["epochs"] == 1]
        (row,) = [row for row in axes.splitlines() if row.split()[:2] == ["learning_rate", str(value)]]
        assert row.split()[2:] == ["8", "8", f"{sum(first) / 8:.3f}", f"{min(min(line['nats_per_zero']) for line in of_value):.3f}"]
    longest = [line["nats_per_zero"] for line in lines if line["epochs"] == 3]
    for count in (1, 2, 3):
        scores = [nats[count - 1] for nats in longest]
        assert ["epochs", str(count), "4", "4", f"{sum(scores) / 4:.3f}", f"{min(scores):.3f}"] in map(str.split, axes.splitlines())
