"""How fast each part is on this machine, compared in the same run with a plain way of doing the same.

    python rzz/src/benchmark.py zeros                    with mpmath and python-flint
    python rzz/src/benchmark.py encode                   rows of a million zeros, with a Python loop
    python rzz/src/benchmark.py train                    steps of training, with a plain GPT and the literal trajectories
    python rzz/src/benchmark.py generate                 1,000 zeros × 10 runs, with generation without a cache
    python rzz/src/benchmark.py tune                     forecasts with measurements; trials an hour with plain loops
    python rzz/src/benchmark.py train --device cuda --set model.d_model=96

The sizes of model and batches are those of the settings, except d_k, d_v, d_ff and dropout, which are those of a plain GPT.
Prints a table and appends a line with the figures, the machine and the versions to logs/benchmarks.jsonl.
"""

import datetime
import math
import os
import statistics
import tempfile
import time
from collections import deque
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from common.cli import run_script, stage_parser  # isort: skip - first, since it says which package is missing

import numpy as np
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils._python_dispatch import TorchDispatchMode

from common.config import CONTEXT, check_config, check_value, load_config
from common.devices import (
    PRECISIONS,
    choose_device,
    compiled,
    cpu_name,
    describe_device,
    fast_cores,
    multiplies_bfloat16,
    synchronize,
)
from common.files import append_json_lines
from common.logs import start_logging
from common.text import format_row, format_table
from data_utils import some_zeros, tuning_splits
from model import reference
from model.batches import PREFETCH_ZEROS, iterate_batches
from model.network import build_model, cross_entropy_of, parameter_count
from model.sampling import sampled_predictions, sampled_texts, up_to_end
from model.tokenizer import END, encode_prompts, encode_rows
from training.optimizer import learning_rate_at, make_optimizer, training_step
from transformer import generate
from tuning.cost import compare_forecasts, flops_per_zero, measure_hardware, single_thread
from tuning.grid import grid_of
from tuning.workers import as_completed, schedule_jobs, tuning_device, worker_count, worker_pool
from zero_values import load_zeros_db
from zeta import zeros as zeta_zeros

HEIGHTS = (1, 1_000_000, 10_000_000)  # first indexes
MPMATH_SAMPLE = 3  # zeros: 0.4 to 0.8 s each
FLINT_SAMPLE = 20  # zeros: 5 to 10 ms each
EQUAL_STEPS, EQUAL_BATCH = 50, 8  # steps and zeros of the training whose losses are compared
LEARNING_RATE = 1e-3  # constant, without a warm-up; tune takes those of TUNED
LEARNING_STEPS = 150  # after which a model writes rows of the usual length
# All batch sizes of the default grid, with larger models
TUNED = {"epochs": [1], "learning_rate": [0.0005, 0.001, 0.002, 0.004], "batch_size": [16, 32, 64, 128], "d_model": [64, 128],
         "num_layers": [2, 4]}  # fmt: skip
TUNED_ZEROS = 4000
REPEATS = 3  # of each measurement, interleaved; the median counts
consume = deque(maxlen=0).extend  # runs an iterator to its end


def main(argv=None):
    parts = {"zeros": benchmark_zeros, "encode": benchmark_encode, "train": benchmark_train, "generate": benchmark_generate,
             "tune": benchmark_tune}  # fmt: skip
    parser = stage_parser(__doc__)
    parser.add_argument("part", choices=parts, help="what to measure")
    parser.add_argument("--count", type=int, default=500_000, help="zeros: how many at each height (default %(default)s)")
    args = parser.parse_args(argv)
    config = load_config(args.config, args.overrides, args.device)
    check_value("--count", args.count, low=1, high=zeta_zeros.LAST_INDEX - HEIGHTS[-1])
    config.model = replace(config.model, d_k=None, d_v=None, d_ff=None, dropout=0.0)
    config.training = replace(config.training, learning_rate=LEARNING_RATE)
    check_config(config)
    start_logging(config.log_folder, args.quiet)
    figures = parts[args.part](config, args.count)
    append_json_lines(config.log_folder / "benchmarks.jsonl", [{
        "when": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": args.part, "count": args.count, "device": config.runtime.device,
        "d_model": config.model.d_model, "num_layers": config.model.num_layers, "batch_size": config.training.batch_size,
        "cpu": cpu_name(), "cores": os.cpu_count(), "threads": torch.get_num_threads(), "torch": str(torch.__version__),
        "numpy": np.__version__, **figures,
    }])  # fmt: skip


def timed(function, *arguments, clock=time.perf_counter):
    """Return (seconds, result) of a call."""
    began = clock()
    result = function(*arguments)
    return clock() - began, result


def interleaved_medians(functions):
    """Call each of `functions` {name: function} REPEATS times in turn; return {name: median seconds}."""
    seconds = {name: [] for name in functions}
    for _ in range(REPEATS):
        for name, function in functions.items():
            seconds[name].append(timed(function)[0])
    return {name: statistics.median(each) for name, each in seconds.items()}


def print_rates(title, unit, rates):
    """Print each rate and how many times as high the first one, ours, is."""
    ours, *_ = rates.values()
    rows = [(name, f"{rate:,.0f}", f"{ours / rate:.2f}×") for name, rate in rates.items()]
    print("\n".join(format_table([(title, unit, "ours is"), *rows])))


def benchmark_zeros(_, count):
    print(f"zeros a second of CPU time: rzz over {count:,} zeros, the others over {MPMATH_SAMPLE} and {FLINT_SAMPLE}")
    header = ["from index", "blocks of ints", "(i, mpf) pairs", "mpmath.zetazero", "acb.zeta_zeros", "largest difference"]
    widths = [max(12, len(name)) for name in header]
    print(format_row(header, widths), flush=True)
    figures = {}
    for first in HEIGHTS:
        consume(zeta_zeros.zeros(first + count, 1))  # make the tables that all blocks share
        blocks = count / timed(consume, zeta_zeros.zeros(first, count), clock=time.process_time)[0]
        pairs = count / timed(consume, load_zeros_db().zeros_starting_at_N(first, count), clock=time.process_time)[0]
        mpmath, mpmath_difference = sample_rate(reference.mpmath_zeros, first, MPMATH_SAMPLE)
        flint, flint_difference = sample_rate(reference.flint_zeros, first, FLINT_SAMPLE)
        difference = max(mpmath_difference, flint_difference)
        others = ["not installed" if rate is None else f"{rate:,.1f}" for rate in (mpmath, flint)]
        print(format_row([f"{first:,}", f"{blocks:,.0f}", f"{pairs:,.0f}", *others, f"{difference:.1e}"], widths), flush=True)
        figures[f"from_{first}"] = {"blocks": blocks, "pairs": pairs, "mpmath": mpmath, "flint": flint,
                                    "largest_difference": difference}  # fmt: skip
    return figures


def sample_rate(zeros, first, count):
    """Return another library's zeros a second on a sample, and its largest difference from ours; (None, 0) without the library."""
    try:
        seconds, theirs = timed(zeros, first, count, clock=time.process_time)
    except ModuleNotFoundError:
        return None, 0.0
    pairs = zip(theirs, load_zeros_db().zeros_starting_at_N(first, count), strict=False)
    return count / seconds, max(abs(float(other) - float(zero)) for other, (_, zero) in pairs)


def benchmark_encode(*_):
    many, few = some_zeros(1_000_000), some_zeros(20_000)
    ways = {"encode_rows": (encode_rows, many), "one by one": (reference.encoded_one_by_one, few)}
    assert (encode_rows(few.indexes, few.values) == reference.encoded_one_by_one(few.indexes, few.values)).all()
    seconds = interleaved_medians({name: partial(way, zeros.indexes, zeros.values) for name, (way, zeros) in ways.items()})
    rates = {name: len(zeros) / seconds[name] for name, (_, zeros) in ways.items()}
    print_rates("rows encoded", "rows/s", rates)
    return rates


def model_and_device(config, embedding):
    device, _ = choose_device(config.runtime.device)
    return build_model(replace(config.model, index_embedding=embedding), seed=1).to(device), device


def reference_training(model, zeros, training, make_batch, steps):
    """Return a function that makes `steps` updates of a PlainGPT, at first with the weights of `model`; it returns the losses."""
    plain = reference.PlainGPT(model)
    batches = [make_batch(zeros, step * training.batch_size, training.batch_size) for step in range(steps)]
    optimizer = make_optimizer(plain, training, fused=False)
    return lambda: reference.train_reference(plain, optimizer, batches, training.gradient_clip)


def train_steps(model, step_model, optimizer, zeros, training, steps, dtype=torch.float32):
    """Make `steps` updates of `model` as train.py does, with a constant learning rate; return the losses as tensors."""
    batches = iterate_batches(model, zeros, training.batch_size)
    return [training_step(step_model, optimizer, batch, training.learning_rate, training.gradient_clip, (1, step), dtype=dtype)
            for step, batch in zip(range(steps), batches, strict=False)]  # fmt: skip


def benchmark_train(config, _):
    zeros, training, size = some_zeros(100_000), config.training, config.training.batch_size
    device, _ = choose_device(config.runtime.device)
    models = {kind: model_and_device(config, kind)[0] for kind in ("primes", "waves", "digits")}
    dtypes = dict(PRECISIONS) if multiplies_bfloat16(device) else {"float32": torch.float32}
    sizes = ", ".join(f"{kind} {parameter_count(model):,}" for kind, model in models.items())
    print(f"{describe_device(device)}; parameters: {sizes}; {size} zeros a batch")
    differences = loss_differences(config, zeros)

    def ours(model, dtype, steps):
        optimizer, step_model = make_optimizer(model, training), compiled(model, device, training.compile)

        def train():
            train_steps(model, step_model, optimizer, zeros, training, steps, dtype)
            synchronize(device)

        train()  # what is compiled or allocated once is not timed
        return train

    plain = partial(reference_training, models["digits"], zeros, training)
    # Ours prepares its data as it goes, PREFETCH_ZEROS at a time, so whole chunks are timed; the others' is prepared before.
    ways = {f"rzz, {kind}, {name}": (partial(ours, models[kind], dtype), 2 * PREFETCH_ZEROS)
            for kind in models for name, dtype in dtypes.items()}  # fmt: skip
    ways |= {"plain GPT, rows of 32": (partial(plain, reference.whole_rows), 2560),
             "literal trajectories": (partial(plain, reference.literal_trajectories), 128)}  # fmt: skip
    longer = 1 if device.type == "cpu" else 10
    steps = {name: longer * max(1, count // size) for name, (_, count) in ways.items()}
    seconds = interleaved_medians({name: way(steps[name]) for name, (way, _) in ways.items()})
    rates = {name: size * steps[name] / seconds[name] for name in ways}
    print_rates("training", "zeros/s", rates)
    print(f"losses of {EQUAL_STEPS} steps with {EQUAL_BATCH} zeros, largest difference from rzz, digits: "
          + ", ".join(f"{name} {difference:.1e}" for name, difference in differences.items()))
    operations = {f"rzz, {kind}": operations_of_a_step(model, zeros, training) for kind, model in models.items()}
    operations["plain GPT"] = count_operations(plain(reference.whole_rows, 1))
    print("operations that a step launches: " + ", ".join(f"{name} {count}" for name, count in operations.items()))
    side, roofline = 2048 if device.type == "cpu" else 8192, {}
    flops = flops_per_zero(replace(config.model, index_embedding="primes"), zeros.width - 1)
    for name, dtype in dtypes.items():
        matrix = torch.randn(side, side).to(device, dtype)
        product = partial(lambda matrix: (matrix @ matrix, synchronize(device)), matrix)
        needed, peak = flops * rates[f"rzz, primes, {name}"], 2 * side**3 / interleaved_medians({"product": product})["product"]
        roofline[name] = needed / peak
        print(f"floating-point operations of primes, {name}: {needed / 1e9:,.0f} GFLOP/s of {peak / 1e9:,.0f} that products of "
              f"{side} × {side} reach: {needed / peak:.0%}")  # fmt: skip
    return {"device": describe_device(device), **rates, "loss_differences": differences, "operations": operations,
            "roofline": roofline}  # fmt: skip


class OperationCount(TorchDispatchMode):
    """How many operations that compute something, and not only look at a tensor in another way, torch is asked for."""

    count = 0

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        self.count += not operation.is_view
        return operation(*arguments, **(options or {}))


def count_operations(work):
    """Return how many operations `work` launches: what binds a small model on a GPU, if they are not compiled."""
    with OperationCount() as counter:
        work()
    return counter.count


def operations_of_a_step(model, zeros, training):
    """Return how many operations an update from a prepared batch launches without torch.compile."""
    optimizer, batch = make_optimizer(model, training), next(iterate_batches(model, zeros, training.batch_size))
    step = partial(training_step, model, optimizer, batch, training.learning_rate, training.gradient_clip, (1, 0))
    step()  # which makes the optimizer's state
    return count_operations(step)


def loss_differences(config, zeros):
    """Train the same weights in all three ways; return {name: largest difference of a loss from ours}."""
    model, training = model_and_device(config, "digits")[0], replace(config.training, batch_size=EQUAL_BATCH)
    makers = {"plain GPT": reference.whole_rows, "literal trajectories": reference.literal_trajectories}
    plain = {name: reference_training(model, zeros, training, make, EQUAL_STEPS)() for name, make in makers.items()}
    ours = train_steps(model, model, make_optimizer(model, training), zeros, training, EQUAL_STEPS)
    return {name: max(abs(loss - own.item()) for loss, own in zip(losses, ours, strict=True)) for name, losses in plain.items()}


def benchmark_generate(config, _):
    model, device = model_and_device(config, "primes")
    train_steps(model, model, make_optimizer(model, config.training), some_zeros(100_000), config.training, LEARNING_STEPS)
    print(f"{describe_device(device)}; {parameter_count(model):,} parameters, 10 runs, nucleus p = 0.9")
    indexes = np.arange(11_000_000, 11_001_000)
    few, ((_, prompts),) = indexes[:100], encode_prompts(indexes[:100])
    uniforms = torch.rand(100, 10, CONTEXT, generator=torch.Generator().manual_seed(1))
    without_cache = partial(reference.generate_without_cache, model, prompts, few, uniforms, 0.9)
    cached = generate(model, torch.from_numpy(prompts), torch.from_numpy(few), uniforms, 0.9, END)
    pairs = zip(*(rows.reshape(-1, CONTEXT).tolist() for rows in (cached, without_cache())), strict=True)
    same = sum(up_to_end(one) == up_to_end(other) for one, other in pairs)
    seconds = interleaved_medians({"rzz": partial(sampled_texts, model, indexes, 10, 0.9, 1), "without a cache": without_cache})
    rates = {"rzz": 10_000 / seconds["rzz"], "without a cache": 1_000 / seconds["without a cache"]}
    print_rates("generation", "rows/s", rates)
    print(f"1,000 zeros × 10 runs: {seconds['rzz']:.2f} s; {same} of 1,000 rows are the same without a cache")
    return {"device": describe_device(device), **rates, "seconds_1000x10": seconds["rzz"], "same_rows": same}


def benchmark_tune(config, _):
    chosen, _ = choose_device(config.runtime.device)
    host = measure_hardware(chosen)
    with single_thread():
        compared = {"a core": compare_forecasts(host.core, torch.device("cpu"))}
    compared[chosen.type] = compare_forecasts(host.device, chosen)
    print(f"{host.name}, {host.cores} cores; device {host.device}, core {host.core}")
    formats = {"d_model": "{}", "num_layers": "{}", "batch_size": "{}", "forecast_ms": "{:.2f} ms", "measured_ms": "{:.2f} ms"}
    rows = [(name, *(form.format(row[key]) for key, form in formats.items())) for name, found in compared.items() for row in found]
    print("\n".join(format_table([("an update on", "d_model", "layers", "batch", "forecast", "measured"), *rows])))
    rates = trials_per_hour(config, tuning_device(chosen)[0])
    print_rates(f"one epoch of {TUNED_ZEROS:,} zeros", "trials/h", rates)
    return {"host": asdict(host), "forecasts": compared, **rates}


def trials_per_hour(config, device):
    """Train the grid TUNED as the search does, then one trial after the other with all cores in two ways; return the rates."""
    with tempfile.TemporaryDirectory() as folder:
        tuning = replace(config.tuning, zeros=TUNED_ZEROS, grid=TUNED, max_memory_gb=math.inf, max_training_hours=math.inf)
        config = replace(config, path=Path(folder) / "config.json", tuning=tuning)
        trials = grid_of(config).trials
        training, validation = tuning_splits(config)
        jobs = schedule_jobs(config, trials, 1, device)
        with worker_pool(config, device) as submit:
            consume(as_completed(submit, jobs[-worker_count(config, device) :], []))  # starts the workers, which is not timed
            seconds = {"the search": timed(consume, as_completed(submit, jobs, []))[0]}
    torch.set_num_threads(fast_cores())

    def train_all(train_trial):
        for trial in trials:
            train_trial(trial.settings, training, validation, device)
        synchronize(device)

    seconds["one after the other"] = timed(train_all, train_alone)[0]
    seconds["plain GPTs, no scores"] = timed(train_all, train_plain_gpt)[0]
    return {name: 3600 * len(trials) / taken for name, taken in seconds.items()}


def train_alone(settings, training, validation, device):
    """Train one trial for an epoch with the program's own steps and averaged weights, then score it as the search does."""
    model = build_model(settings.model, settings.training.seed).to(device)
    optimizer = make_optimizer(model, settings.training)
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    for step, batch in enumerate(iterate_batches(model, training, settings.training.batch_size)):
        rate = learning_rate_at(step, math.inf, settings.training)
        training_step(model, optimizer, batch, rate, settings.training.gradient_clip, (1, step))
        averaged.update_parameters(model)
    cross_entropy_of(averaged.module, validation)
    sampled_predictions(averaged.module, validation.subset(slice(0, settings.training.mse_zeros)), 1, 0.9, 1)


def train_plain_gpt(settings, training, _, device):
    """Train a plain GPT of the sizes of one trial for an epoch."""
    model = build_model(replace(settings.model, index_embedding="digits"), settings.training.seed).to(device)
    steps = math.ceil(len(training) / settings.training.batch_size)
    reference_training(model, training, settings.training, reference.whole_rows, steps)()


if __name__ == "__main__":
    run_script(main)
