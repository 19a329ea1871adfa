"""train.py --check: preview the run on this machine, from a few steps on real zeros in memory; nothing is written.

    print_preflight(config, args, device, reason)
"""

import os
import shutil
import time

import numpy as np

from common.config import UserError
from common.devices import describe_device, memory, synchronize
from common.processes import is_distributed
from common.text import format_duration
from data_utils import (
    RiemannZerosDataset,
    interval,
    interval_file,
    is_stored,
    load_values,
    missing_zeros,
    require_zeros,
    zeros_in_memory,
)
from model.batches import first_batch
from model.network import parameter_count
from training.checkpoints import LAST, PREVIOUS
from training.progress import validation_share
from training.run import TrainingRun, refuse_to_overwrite

SAMPLE = 8192  # zeros, most that are computed for a look
TIMING_BUDGET_S = 2.0  # seconds that may be spent on timing
STATE_BYTES = 12  # of a parameter in a checkpoint: weight and two averages of AdamW, float32
ZERO_BYTES = 8  # of a zero in an interval file


def print_preflight(config, args, device, reason):
    """Refuse what the training would refuse, and print what it needs, where it begins and how long it would take."""
    if is_distributed():
        raise UserError("--check looks at one process: run it without torchrun.")
    refuse_to_overwrite(config, args)
    require_zeros(config)
    run = TrainingRun.load_or_create(config, device, args.fresh)
    why_threads, why_dtype = run.choose_threads_and_precision()
    intervals = [interval(config, t) for t in range(run.progress.round, config.data.K + 2)]
    names = {LAST, PREVIOUS, *(f"round_{t}.pt" for t in range(run.progress.round, config.data.K + 1))}
    new = 1 + sum(args.fresh or not (config.checkpoint_folder / name).exists() for name in names)  # and one while it is written
    disk = check_disk_space(config, intervals, STATE_BYTES * parameter_count(run.model) * new)
    position, steps = run.position_text(), run.total_steps - run.progress.step

    missing = [each for each in intervals if not is_stored(config, *each)]
    first, count = (missing or intervals)[0][0], max(1, min(intervals[0][1] // 2, SAMPLE))
    seconds_each = 0.0
    if missing:
        run.training = zeros_in_memory(config, first, count)  # not timed, since zeros_db may prepare tables for the first ones
        began = time.perf_counter()
        zeros_in_memory(config, first + count, count)
        seconds_each = (time.perf_counter() - began) / count
    else:
        values, _ = load_values(interval_file(config, *intervals[0]), intervals[0][1])
        run.training = RiemannZerosDataset(np.arange(first, first + count), values[:count])
    batch = first_batch(run.model, run.training, config.training.batch_size)
    run.losses.clear()
    seconds = median_seconds(lambda: run.train_step(batch.prepared(run.model)), device)
    used, total = memory(device)
    threads = {"threads": f"{run.progress.threads}: {why_threads}"} if why_threads else {}
    hours_text = format_duration(steps * seconds * (1 + validation_share(config)))
    facts = {
        "device": f"{describe_device(device)}: {reason}",
        **threads,
        "precision": f"{run.progress.precision}: {why_dtype}",
        "memory": "the device does not say" if used is None else f"{used / 1e9:.2f} of {total / 1e9:.1f} GB used at most",
        "disk": disk,
        "zeros": zeros_text(config, intervals, seconds_each),
        "checkpoint": (f"goes on from {run.path} at " if run.path else "begins at ") + position,
        "one step": f"{config.training.batch_size} zeros in {1000 * seconds:.0f} ms, loss {run.losses[0].item():.4f}",
        "forecast": f"{hours_text} for {steps:,} steps, validation included, without the zeros",
    }
    for name, text in facts.items():
        print(f"{name:<{max(map(len, facts))}}  {text}")
    print("Nothing was written.")


def median_seconds(work, device):
    """Return the median seconds of a call of `work`, after a first call that is not timed."""
    work()
    seconds = []
    while not seconds or (sum(seconds) < TIMING_BUDGET_S and len(seconds) < 20):
        synchronize(device)
        began = time.perf_counter()
        work()
        synchronize(device)
        seconds.append(time.perf_counter() - began)
    return sorted(seconds)[len(seconds) // 2]


def zeros_text(config, intervals, seconds_each):
    """Where the zeros of `intervals`, pairs (first, count), come from. seconds_each: what one takes to compute."""
    missing, total = missing_zeros(config, intervals), sum(count for _, count in intervals)
    source = f"Platt's tables in {config.data.platt_tables}" if config.data.platt_tables else "zeros_db.py"
    if not missing:
        return f"{total:,}, all in {config.data_folder}"
    return f"{total:,}, of which {missing:,} come from {source}, in {format_duration(missing * seconds_each)}"


def check_disk_space(config, intervals, checkpoint_bytes=0):
    """Return what will be written as text; UserError if the folders cannot be written to or have not enough space."""
    for folder in (config.data_folder, config.checkpoint_folder, config.log_folder):
        if not os.access(folder if folder.exists() else config.folder, os.W_OK):
            raise UserError(f"Cannot write to {folder}; change its permissions or copy config.json to a folder of yours.")
    missing = [interval for interval in intervals if missing_zeros(config, [interval])]
    zeros = sum(count for _, count in missing) + max((count for _, count in missing), default=0)  # one of them is there twice
    needed = ZERO_BYTES * zeros + checkpoint_bytes
    free = shutil.disk_usage(config.folder).free
    text = f"{needed / 1e6:,.1f} MB needed for zeros and checkpoints, {free / 1e9:,.1f} GB free in {config.folder}"
    if needed > free:
        raise UserError(f"Not enough space: {text}. Free some, or copy config.json to another disk and name it with --config.")
    return text
