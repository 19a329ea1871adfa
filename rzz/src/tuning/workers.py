"""The search as work: stacks of points trained by several processes at a time, each going on where its points stand.

    with worker_pool(config, device, training, validation) as submit:
        results = submit(task).result()         # for each point {"nats_per_zero": [...], "mse": ..., "stable": True, ...}

On a CPU a process has one thread, since a model this small gains little from a second one: as many processes as fast
cores. On a GPU a process launches operations for stacks that are larger, and several of them keep it busy. What comes out
depends on neither the number of processes nor their order. Several GPUs share the processes evenly.
"""

import json
import math
import multiprocessing
import os
import threading
import time
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

from common.config import UserError
from common.devices import device_count, device_of_worker, fast_cores, is_out_of_memory, tune_glibc_malloc
from common.processes import signals_blocked, unblock_signals
from model.batches import iterate_batches
from model.metrics import scores
from model.network import VALIDATION_BATCH
from model.sampling import sampled_predictions
from training.checkpoints import write_torch_file
from tuning.cost import columns, flops_per_zero, memory_gb, step_seconds
from tuning.grid import Trial, trial_key_settings
from tuning.halving import outcome, target_epochs
from tuning.stacked import StackedModels

STACKED_FLOPS = 6e8  # of a step on a CPU: beyond, arithmetic outweighs launching and the caches are too small
GPU_STACK = 32  # points
GPU_WORKERS = 4  # processes for each GPU, each of which takes half a gigabyte of the GPU for itself
VALIDATION_COST = 1 / 3  # of a zero that is trained on: there is no backward pass


class Job(NamedTuple):
    """A stack to train: points that differ in learning rate and dropout alone and have finished equally many epochs."""

    points: list[Trial]
    first_epoch: int  # epochs that are finished
    last_epoch: int
    files: list[Path]  # where the states after first_epoch stand; none where that is 0
    new_files: list[Path]  # where the states after last_epoch go; none where no epoch is left


# --------------------------------------------------------------------------------------------------------- in the parent


def schedule_jobs(config, points, rung, device):
    """Return the Tasks that bring `points` to the end of `rung`, the longest first.

    Stacks are filled up in order, so that what is left of a rung after an interruption is the same stacks as before.
    """
    stacks = {}
    for point in points:
        last = target_epochs(point, rung)
        first = max((epochs for epochs in range(last) if state_file(config, point, epochs).exists()), default=0)
        stacks.setdefault((shape_of(point), first, last), []).append(point)
    tasks = []
    for (_, first, last), members in stacks.items():
        members.sort(key=lambda point: (point.settings.model.dropout, point.settings.training.learning_rate))
        size = stack_size(members[0].settings, device)
        for start in range(0, len(members), size):
            stack = members[start : start + size]
            files = [state_file(config, point, first) for point in stack] if first else []
            more = last < max(point.epochs[-1] for point in stack)
            tasks.append(Job(stack, first, last, files, [state_file(config, point, last) for point in stack] if more else []))
    return sorted(tasks, key=lambda task: -job_seconds(config, task, device))


def shape_of(point):
    """What the points of one stack have in common, as text."""
    settings = trial_key_settings(point.settings)
    del settings["model"]["dropout"], settings["training"]["learning_rate"]
    return json.dumps(settings)


def stack_size(settings, device):
    """How many points of this shape are trained as one model."""
    if device.type == "cpu":
        flops = settings.training.batch_size * flops_per_zero(settings.model, columns(settings.tuning.zeros))
        return max(1, int(STACKED_FLOPS / flops))
    return max(1, min(GPU_STACK, int(settings.tuning.max_memory_gb / GPU_WORKERS / memory_gb(settings))))


def state_file(config, point, epochs):
    """Where the state of a point after so many epochs stands while the search goes on."""
    return state_folder(config) / f"{point.digest}_{epochs}.pt"


def state_folder(config):
    return config.checkpoint_folder / "tuning"


def job_seconds(config, task, device):
    """Forecast of a Task on one worker of tuning.host."""
    return (task.last_epoch - task.first_epoch) * epoch_seconds(config, task.points[0].settings, len(task.points), device)


def epoch_seconds(config, settings, count, device):
    """Forecast of one epoch, with its validation, of a stack of `count` points on one worker of tuning.host."""
    speed = config.tuning.host.core if device.type == "cpu" else config.tuning.host.device
    validation = config.tuning.zeros // 10
    training = config.tuning.zeros - validation
    size = settings.training.batch_size
    T = columns(training)
    updates = math.ceil(training / size) * step_seconds(settings.model, count * size, T, speed)
    return updates + VALIDATION_COST * step_seconds(settings.model, count * validation, T, speed)


def worker_count(config, device):
    """How many processes train at a time on this machine."""
    most = fast_cores() if device.type == "cpu" else GPU_WORKERS * device_count(device)
    return config.tuning.workers or min(most, fast_cores())


def tuning_device(chosen):
    """Return (device, why) to tune on, where all else would run on `chosen`: stacks on CUDA, else the cores of the CPU."""
    if chosen.type == "cuda":
        return chosen, "stacks of points, a process each"
    why = {
        "mps": "an update of a model this small takes the cores no longer than launching it takes Apple's GPU",
        "xla": "a TPU serves one process and compiles each shape anew",
        "cpu": "no CUDA device was found",
    }[chosen.type]
    return torch.device("cpu"), f"{why}; one process a core"


@contextmanager
def worker_pool(config, device, training, validation):
    """Start the workers; yield submit(task), which returns a Future of train_task's result.

    When the block ends they stop at their next step, whatever they are doing. A worker that dies raises
    BrokenProcessPool from its Future, an error in it raises that error with its traceback.
    """
    context = multiprocessing.get_context("spawn")  # fork is not safe with the threads that torch has
    with signals_blocked():  # multiprocessing begins a process of its own for what is shared
        stop = context.Event()
        started = context.Value("i", 0)
    given = (config, device, training, validation, stop, started)
    pool = ProcessPoolExecutor(worker_count(config, device), context, init_worker, given)

    def submit(task):
        with signals_blocked():
            return pool.submit(train_job, task)

    try:
        yield submit
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


def as_completed(submit, tasks, stop):
    """Train the `tasks`; yield each with its results as it is finished, in whatever order. Leave early where `stop` says so."""
    try:
        waiting = {submit(task): task for task in tasks}
        while waiting:
            done, _ = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
            for future in done:
                yield waiting.pop(future), future.result()
            if stop:
                return
    except RuntimeError as error:
        for started in multiprocessing.active_children():  # a pool that breaks forgets whom it was just starting, and waits for it
            started.kill()
        broken = isinstance(error, BrokenProcessPool)
        if broken and stop:  # SIGTERM ends the workers too where it is sent to all processes
            return
        if not broken and not is_out_of_memory(error):
            raise
        raise UserError("A worker found too little memory or was killed: set tuning.workers lower and run again; what is finished "
                        "is kept.") from error


def drop_states(config, task, beaten, rung):
    """Remove the states that nobody will go on from: those before `task`, and those of points that are `beaten` in this rung."""
    for path in [*task.files, *(state_file(config, point, target_epochs(point, rung)) for point in beaten)]:
        path.unlink(missing_ok=True)


# ---------------------------------------------------------------------------------------------------------- in a worker

worker = None  # (config, device, training, validation, stop)


def init_worker(config, device, training, validation, stop, started):
    """Prepare this process: one thread, no ears for Ctrl-C, which is the parent's to handle, and no life without it."""
    unblock_signals()
    global worker
    with started.get_lock():
        number, started.value = started.value, started.value + 1
    worker = (config, device_of_worker(device, number), training, validation, stop)
    torch.set_num_threads(1)
    tune_glibc_malloc()
    threading.Thread(target=exit_with_parent, daemon=True).start()


def exit_with_parent():
    multiprocessing.parent_process().join()
    os._exit(1)


def train_job(task):
    """Train the points of a Task and return a dictionary for each, or None where the parent asked to stop."""
    config, device, training, validation, stop = worker
    return train_stack(task, config, device, training, validation, stop.is_set)


def train_stack(task, config, device, training, validation, stopped):
    """Train the points of a Task to its last epoch, write their states, and return a dictionary for each.

    stopped: a function that says before each step whether to leave; None is returned then, and nothing is written.
    """
    began = time.monotonic()
    settings = task.points[0].settings
    size = settings.training.batch_size
    stack = StackedModels([point.settings for point in task.points], math.ceil(len(training) / size), device)
    curves = [[] for _ in task.points]
    if task.files:
        states = [read_state(path) for path in task.files]
        stack.load_states([state["stack"] for state in states])
        curves = [state["curve"] for state in states]
    learned = list(iterate_batches(stack.model, training, size))
    checks = list(iterate_batches(stack.model, validation, min(VALIDATION_BATCH, len(validation))))
    for _ in range(task.first_epoch, task.last_epoch):
        for batch in learned:
            if stopped():
                return None
            stack.step(batch)
        for curve, nats in zip(curves, stack.nats_per_zero(checks, len(validation)), strict=True):
            curve.append(nats)
    for member, path in enumerate(task.new_files):
        write_torch_file(path, {"stack": stack.state(member), "curve": curves[member]})
    results = [result_of(stack, member, curve, config, validation) for member, curve in enumerate(curves)]
    return [{**result, "seconds": (time.monotonic() - began) / len(results)} for result in results]


def read_state(path):
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many kinds for a damaged file
        raise UserError(f"{path} is damaged; remove it and run again: its point begins anew.") from error


def result_of(stack, member, curve, config, validation):
    """Return what tuning.jsonl says of one point of a trained stack."""
    training = stack.members[member].training
    first, last = stack.first_losses[member].item(), torch.stack(stack.last_losses)[:, member].tolist()
    found = outcome(first, last, bool(stack.finite[member]), curve[-1])
    some = validation.subset(slice(None, None, math.ceil(len(validation) / training.mse_zeros)))
    measured = {"mse": None, "readable": 0.0}
    if found["stable"]:
        measured = scores(sampled_predictions(stack.averaged_model(member), some, 1, config.evaluation.top_p, training.seed), some)
    return {
        "nats_per_zero": [nats if math.isfinite(nats) else None for nats in curve],  # JSON has no NaN
        "mse": measured["mse"],
        "readable": measured["readable"],
        "first_loss": first if math.isfinite(first) else None,
        "last_losses": sum(last) / len(last) if math.isfinite(sum(last)) else None,
        **found,
    }
