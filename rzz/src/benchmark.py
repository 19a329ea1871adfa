"""How fast each part is on this machine, beside the plain way of doing the same in the same run.

    python rzz/src/benchmark.py zeros                    beside mpmath and python-flint
    python rzz/src/benchmark.py encode                   rows of a million zeros, beside a Python loop
    python rzz/src/benchmark.py train                    steps of training, beside a plain GPT and the literal trajectories
    python rzz/src/benchmark.py generate                 1,000 zeros × 10 runs, beside generation without a cache
    python rzz/src/benchmark.py tune                     forecasts beside what is measured; points an hour beside plain loops
    python rzz/src/benchmark.py train --device cuda --d-model 96 --num-layers 2

Prints a table and appends a line with the figures, the machine and the versions to rzz/logs/benchmarks.jsonl.
"""

import argparse
import dataclasses
import datetime
import math
import os
import statistics
import tempfile
import time
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import zeros_db
from common.cli import run_script
from common.config import CONTEXT, DEFAULT_CONFIG, Config, load_config, require_writable
from common.devices import DEVICES, choose_device, compiled, cpu_name, describe_device, fast_cores, precision, synchronize
from common.files import append_json_line
from data_utils import tuning_splits
from model.batches import PREFETCH_ZEROS, iterate_batches
from model.network import build_model, cross_entropy_of, parameter_count
from model.reference import (
    PlainGPT,
    encoded_one_by_one,
    flint_zeros,
    generate_without_cache,
    literal_trajectories,
    mpmath_zeros,
    train_reference,
    whole_rows,
)
from model.sampling import sampled_predictions, sampled_texts, up_to_end
from model.tokenizer import END, encode_prompts, encode_rows
from training.optimizer import learning_rate_at, make_optimizer, training_step
from transformer import generate
from tuning.cost import compare_forecasts, flops_per_zero, measure_hardware, single_thread, some_zeros
from tuning.grid import grid_of
from tuning.workers import as_completed, schedule_jobs, tuning_device, worker_count, worker_pool
from zeta import zeros as zeta_zeros

HEIGHTS = (1, 1_000_000, 10_000_000)  # first indexes
MPMATH_SAMPLE = 3  # zeros: 0.4 to 0.8 s each
FLINT_SAMPLE = 20  # zeros: 5 to 10 ms each
EQUAL_STEPS, EQUAL_BATCH = 50, 8  # after which the losses of all ways are compared
LEARNING_STEPS = 150  # after which a model writes rows of the usual length
TUNED = {  # a part of the default grid with all of its sizes, batch sizes and learning rates
    "learning_rate": [0.0005, 0.001, 0.002, 0.004],
    "batch_size": [16, 32, 64, 128],
    "d_model": [64, 128],
    "num_layers": [2, 4],
}
TUNED_ZEROS = 4000
REPEATS = 3  # of what is timed, taking turns; the median counts


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    zeros = commands.add_parser("zeros", help="zeros a second, beside mpmath and python-flint")
    zeros.add_argument("--count", type=positive, default=500_000, help="zeros at each height (default %(default)s)")
    commands.add_parser("encode", help="rows a second, beside a Python loop")
    for name in ("train", "generate"):
        command = commands.add_parser(name, help=f"zeros a second, beside plain ways to {name}")
        command.add_argument("--device", choices=DEVICES, default="auto")
        command.add_argument("--d-model", type=positive, default=128)
        command.add_argument("--num-layers", type=positive, default=4)
        command.add_argument("--batch-size", type=positive, default=128)
    tune = commands.add_parser("tune", help="forecasts beside what is measured; points an hour beside plain loops")
    tune.add_argument("--device", choices=DEVICES, default="auto")
    arguments = parser.parse_args()
    if getattr(arguments, "d_model", 0) % Config().model.num_heads:
        parser.error(f"--d-model must be a multiple of {Config().model.num_heads}, the number of heads")
    figures = {"zeros": benchmark_zeros, "encode": benchmark_encode, "train": benchmark_train,
               "generate": benchmark_generate, "tune": benchmark_tune}[arguments.command](arguments)  # fmt: skip
    log_folder = dataclasses.replace(Config(), path=DEFAULT_CONFIG).log_folder
    require_writable(log_folder)
    machine = {"cpu": cpu_name(), "cores": os.cpu_count(), "threads": torch.get_num_threads(), "torch": str(torch.__version__),
               "numpy": np.__version__}  # fmt: skip
    when = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    append_json_line(log_folder / "benchmarks.jsonl", {"when": when, **vars(arguments), **machine, **figures})


def positive(text):
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number


# -------------------------------------------------------------------------------------------------------------- zeros


def benchmark_zeros(arguments):
    count = arguments.count
    print(f"zeros a second of CPU time: rzz over {count:,} zeros, the others over {MPMATH_SAMPLE} and {FLINT_SAMPLE}")
    print(f"{'from index':>12} {'int64 blocks':>14} {'(i, mpf) pairs':>15} {'mpmath.zetazero':>16}"
          f" {'acb.zeta_zeros':>15} {'largest difference':>19}")
    figures = {}
    for first in HEIGHTS:
        consume(zeta_zeros.zeros(first + count, 1))  # make the tables that all blocks share
        blocks = count / cpu_seconds(consume, zeta_zeros.zeros(first, count))[0]
        pairs = count / cpu_seconds(consume, zeros_db.zeros_starting_at_N(first, count))[0]
        others = [sample_rate(mpmath_zeros, first, MPMATH_SAMPLE), sample_rate(flint_zeros, first, FLINT_SAMPLE)]
        rates = [f"{other[0]:,.1f}" if other else "not installed" for other in others]
        difference = max(other[1] for other in others if other)
        print(f"{first:>12,} {blocks:>14,.0f} {pairs:>15,.0f} {rates[0]:>16} {rates[1]:>15} {difference:>19.1e}", flush=True)
        figures[f"from_{first}"] = {"blocks": blocks, "pairs": pairs, "mpmath": others[0] and others[0][0],
                                    "flint": others[1] and others[1][0], "largest_difference": difference}  # fmt: skip
    return figures


def cpu_seconds(function, *arguments):
    """The CPU time of a call and its result."""
    start = time.process_time()
    result = function(*arguments)
    return time.process_time() - start, result


def consume(pairs):
    for _ in pairs:
        pass


def sample_rate(zeros, first, count):
    """Zeros a second of another library on a sample, and its largest difference from ours; None where it is missing."""
    try:
        seconds, theirs = cpu_seconds(zeros, first, count)
    except ModuleNotFoundError:
        return None
    ours = (zero for _, zero in islice(zeros_db.zeros_starting_at_N(first, count), count))
    return count / seconds, max(abs(float(zero) - float(other)) for zero, other in zip(ours, theirs, strict=True))


# ------------------------------------------------------------------------------------------------- encode, train, generate


def taking_turns(ways):
    """Call each of the functions `ways` {name: function} REPEATS times in turns; return {name: median seconds}."""
    seconds = {name: [] for name in ways}
    for _ in range(REPEATS):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(each) for name, each in seconds.items()}


def benchmark_encode(_):
    zeros, few = some_zeros(1_000_000), some_zeros(20_000)
    assert (encode_rows(few.indexes, few.values) == encoded_one_by_one(few.indexes, few.values)).all()
    seconds = taking_turns({"encode_rows": lambda: encode_rows(zeros.indexes, zeros.values),
                            "one by one": lambda: encoded_one_by_one(few.indexes, few.values)})  # fmt: skip
    rates = {"encode_rows": 1_000_000 / seconds["encode_rows"], "one by one": 20_000 / seconds["one by one"]}
    print_rates("rows encoded", "rows/s", rates)
    return rates


def model_and_device(arguments, embedding):
    device, reason = choose_device(arguments.device)
    settings = dataclasses.replace(Config().model, d_model=arguments.d_model, num_layers=arguments.num_layers,
                                   index_embedding=embedding)  # fmt: skip
    return build_model(settings, seed=1).to(device), device


def benchmark_train(arguments):
    zeros, size = some_zeros(100_000), arguments.batch_size
    told, device = model_and_device(arguments, "primes")
    blind, _ = model_and_device(arguments, "digits")
    dtype, _ = precision(device, "auto")
    print(f"{describe_device(device)}; {parameter_count(told):,} parameters, {size} zeros a batch, products in {dtype}")
    differences = losses_compared(arguments, zeros)

    def ours(model, steps):
        optimizer = make_optimizer(model, Config().training)
        step_model = compiled(model, device, "auto")

        def train():
            for step, batch in zip(range(steps), iterate_batches(model, zeros, size), strict=False):
                training_step(step_model, optimizer, batch, 1e-3, 1.0, (1, step), dtype=dtype)
            synchronize(device)

        train()  # what is compiled or allocated once is not timed
        return train

    def plainly(make_batch, steps):
        model, ready = PlainGPT.with_weights_of(blind), [make_batch(zeros, step * size, size) for step in range(steps)]
        return lambda: train_reference(model, ready)

    # Ours prepares its data as it goes, PREFETCH_ZEROS at a time, so that whole chunks are counted; the others' is made before.
    zeros_each = {"rzz, primes": 2 * PREFETCH_ZEROS, "rzz, digits": 2 * PREFETCH_ZEROS, "plain GPT, rows of 32": 2560,
                  "literal trajectories": 128}  # fmt: skip
    steps = {name: max(1, count // size) for name, count in zeros_each.items()}
    if device.type != "cpu":
        steps = {name: 10 * count for name, count in steps.items()}
    seconds = taking_turns({
        "rzz, primes": ours(told, steps["rzz, primes"]),
        "rzz, digits": ours(blind, steps["rzz, digits"]),
        "plain GPT, rows of 32": plainly(whole_rows, steps["plain GPT, rows of 32"]),
        "literal trajectories": plainly(literal_trajectories, steps["literal trajectories"]),
    })  # fmt: skip
    rates = {name: size * count / seconds[name] for name, count in steps.items()}
    print_rates("training", "zeros/s", rates)
    print(f"losses of {EQUAL_STEPS} steps with {EQUAL_BATCH} zeros, largest difference from rzz, digits: "
          + ", ".join(f"{name} {difference:.1e}" for name, difference in differences.items()))
    settings = dataclasses.replace(Config().model, d_model=arguments.d_model, num_layers=arguments.num_layers)
    needed = rates["rzz, primes"] * flops_per_zero(settings, zeros.width - 1)
    side = 2048 if device.type == "cpu" else 8192
    peak = products_per_second(device, dtype, side)
    print(f"floating-point operations: {needed / 1e9:,.0f} GFLOP/s of {peak / 1e9:,.0f} that products of {side} × {side} reach: "
          f"{needed / peak:.0%}")
    return {"device": describe_device(device), "dtype": str(dtype), **rates, "loss_differences": differences,
            "roofline": needed / peak}  # fmt: skip


def losses_compared(arguments, zeros):
    """Train the same weights the three ways; return each one's largest difference from ours over the losses."""
    model, device = model_and_device(arguments, "digits")
    plain, literal = PlainGPT.with_weights_of(model), PlainGPT.with_weights_of(model)
    optimizer = make_optimizer(model, Config().training)
    ours = [training_step(model, optimizer, batch, 1e-3, 1.0, (1, step)).item()
            for step, batch in zip(range(EQUAL_STEPS), iterate_batches(model, zeros, EQUAL_BATCH), strict=False)]  # fmt: skip
    found = {}
    for name, other, make_batch in (("plain GPT", plain, whole_rows), ("literal trajectories", literal, literal_trajectories)):
        losses = train_reference(other, [make_batch(zeros, step * EQUAL_BATCH, EQUAL_BATCH) for step in range(EQUAL_STEPS)])
        found[name] = max(abs(loss - own) for loss, own in zip(losses, ours, strict=True))
    return found


def products_per_second(device, dtype, size):
    """Floating-point operations a second that the device reaches on a large matrix product."""
    matrix = torch.randn(size, size, device="cpu").to(device, dtype)

    def product():
        matrix @ matrix
        synchronize(device)

    product()
    return 2 * size**3 / taking_turns({"product": product})["product"]


def benchmark_generate(arguments):
    model, device = model_and_device(arguments, "primes")
    optimizer = make_optimizer(model, Config().training)
    for step, batch in zip(range(LEARNING_STEPS), iterate_batches(model, some_zeros(100_000), arguments.batch_size), strict=False):
        training_step(model, optimizer, batch, 1e-3, 1.0, (1, step))
    print(f"{describe_device(device)}; {parameter_count(model):,} parameters, 10 runs, nucleus p = 0.9")
    indexes = np.arange(11_000_000, 11_001_000)
    ((_, prompts),) = encode_prompts(indexes[:100])
    few = torch.from_numpy(prompts), torch.from_numpy(indexes[:100])
    uniforms = torch.rand(100, 10, model.config.context, generator=torch.Generator().manual_seed(1))
    cached = generate(model, *few, uniforms, 0.9, END).view(-1, CONTEXT).tolist()
    uncached = generate_without_cache(model, prompts, indexes[:100], uniforms, 0.9).reshape(-1, CONTEXT).tolist()
    same = sum(up_to_end(one) == up_to_end(other) for one, other in zip(cached, uncached, strict=True))
    seconds = taking_turns({
        "rzz": lambda: sampled_texts(model, indexes, 10, 0.9, seed=1),
        "without a cache": lambda: generate_without_cache(model, prompts, indexes[:100], uniforms, 0.9),
    })  # fmt: skip
    rates = {"rzz": 10_000 / seconds["rzz"], "without a cache": 1_000 / seconds["without a cache"]}
    print_rates("generation", "rows/s", rates)
    print(f"1,000 zeros × 10 runs: {seconds['rzz']:.2f} s; {same} of 1,000 rows are the same without a cache")
    return {"device": describe_device(device), **rates, "seconds_1000x10": seconds["rzz"], "same_rows": same}


def print_rates(what, unit, rates):
    """Print each rate and how many times the others' the first, ours, is."""
    ours = next(iter(rates.values()))
    print(f"{what:<24} {unit:>12} {'ours is':>10}")
    for name, rate in rates.items():
        print(f"{name:<24} {rate:>12,.0f} {ours / rate:>9.2f}×")


# --------------------------------------------------------------------------------------------------------------- tune


def benchmark_tune(arguments):
    chosen, _ = choose_device(arguments.device)
    device, _ = tuning_device(chosen)
    host = measure_hardware(chosen)
    with single_thread():
        compared = {"a core": compare_forecasts(host.core, torch.device("cpu"))}
    compared[chosen.type] = compare_forecasts(host.device, chosen)
    print(f"{host.name}, {host.cores} cores; device {host.device}, core {host.core}")
    print(f"{'an update on':>12} {'d_model':>8} {'layers':>7} {'batch':>6}" + 2 * f" {'forecast':>12} {'measured':>12}")
    for where, rows in compared.items():
        for row in rows:
            print(f"{where:>12} {row['d_model']:>8} {row['num_layers']:>7} {row['batch_size']:>6} {row['forecast_ms']:>9.2f} ms"
                  f" {row['measured_ms']:>9.2f} ms {row['forecast_mb']:>9.1f} MB {row['measured_mb']:>9.1f} MB", flush=True)
    rates = points_an_hour(device)
    print_rates(f"one epoch of {TUNED_ZEROS:,} zeros", "points/h", rates)
    return {"host": dataclasses.asdict(host), "forecasts": compared, **rates}


def points_an_hour(device):
    """Train the grid TUNED for an epoch as the search does, then one point after the other with all cores, by the program's own
    steps and as a plain GPT; return the rates.
    """
    with tempfile.TemporaryDirectory() as folder:
        config = dataclasses.replace(load_config(), path=Path(folder) / "config.json")
        config.tuning.zeros, config.tuning.grid = TUNED_ZEROS, TUNED | {"epochs": [1]}
        points = grid_of(config).points
        training, validation = tuning_splits(config)
        tasks = schedule_jobs(config, points, 1, device)
        with worker_pool(config, device, training, validation) as submit:
            consume(as_completed(submit, tasks[-worker_count(config, device) :], []))  # a search outlasts their start
            began = time.perf_counter()
            consume(as_completed(submit, tasks, []))
            search = time.perf_counter() - began
        torch.set_num_threads(fast_cores())
        rates = {"the search": 3600 * len(points) / search}
        for name, way in (("one after the other", one_point), ("plain GPTs, no scores", one_plain_gpt)):
            began = time.perf_counter()
            for point in points:
                way(point.settings, training, validation, device)
            synchronize(device)
            rates[name] = 3600 * len(points) / (time.perf_counter() - began)
        return rates


def one_point(settings, training, validation, device):
    """Train one point alone with the program's own steps: an epoch with averaged weights, then the scores that the search takes."""
    model = build_model(settings.model, settings.training.seed).to(device)
    optimizer = make_optimizer(model, settings.training)
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    for step, batch in enumerate(iterate_batches(model, training, settings.training.batch_size)):
        rate = learning_rate_at(step, math.inf, settings.training)
        training_step(model, optimizer, batch, rate, settings.training.gradient_clip, (1, step))
        averaged.update_parameters(model)
    cross_entropy_of(averaged.module, validation)
    sampled_predictions(averaged.module, validation.subset(slice(0, settings.training.mse_zeros)), 1, 0.9, 1)


def one_plain_gpt(settings, training, _, device):
    """Train a plain GPT of the sizes of one point for an epoch."""
    model = build_model(dataclasses.replace(settings.model, index_embedding="digits"), settings.training.seed).to(device)
    size = settings.training.batch_size
    rows = [whole_rows(training, start, size) for start in range(0, len(training), size)]
    train_reference(PlainGPT.with_weights_of(model), rows, settings.training.learning_rate)


if __name__ == "__main__":
    run_script(main)
