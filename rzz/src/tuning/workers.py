"""The search as work: stacks of trials trained by several processes at a time, each resumed from the states of its trials.

    with worker_pool(config, device) as submit:
        results = submit(job).result()          # for each trial {"nats_per_zero": [...], "mse": ..., "stable": True, ...}

On a CPU a process has one thread, since a model this small gains little from a second one: as many processes as fast
cores. On a GPU a process launches operations for stacks that are larger, and several of them keep it busy. The results
depend neither on the number of processes nor on their order. Several GPUs share the processes evenly.
"""

import hashlib
import json
import math
import multiprocessing
import os
import time
import traceback
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import NamedTuple

import torch

from common.config import UserError
from common.devices import device_count, device_of_worker, fast_cores, is_out_of_memory, tune_glibc_malloc
from common.files import quarantine
from common.logs import log
from common.processes import exit_with_parent
from common.signals import save_requested, signals_blocked, unblock_signals
from data_utils import tuning_splits
from model.batches import index_noise, iterate_batches
from model.metrics import scores
from model.network import VALIDATION_BATCH
from model.sampling import sampled_predictions
from training.checkpoints import DamagedError, read_torch_file, write_torch_file
from tuning.cost import columns, flops_per_zero, memory_gb, prepare_seconds, step_seconds
from tuning.grid import Trial, trial_key_settings
from tuning.halving import outcome, target_epochs
from tuning.stacked import StackedModels

STACKED_FLOPS = 2.4e9  # of a step on a CPU: beyond, launching does not count
STATE = {  # of a trial, in its file: see StackedModels.state
    "stack": {"steps": int, **dict.fromkeys(("weights", "averaged", "exp_avg", "exp_avg_sq", "finite", "first_loss", "last_losses"),
                                            torch.Tensor)},
    "curve": list,
}  # fmt: skip
GPU_WORKERS = 4  # processes for each GPU, each of which takes half a gigabyte of the GPU for itself


class Job(NamedTuple):
    """A stack to train: trials that differ in learning rate and dropout alone and have finished equally many epochs."""

    trials: list[Trial]
    first_epoch: int  # epochs that are finished
    last_epoch: int


def schedule_jobs(config, trials, rung, device):
    """Return the Jobs that bring `trials` to the end of `rung`, the longest first.

    Stacks are filled up in order, so that what is left of a rung after an interruption is the same stacks as before.
    """
    groups, jobs = {}, []
    for trial in trials:
        last = target_epochs(trial, rung)
        first = max((epochs for epochs in range(last) if state_file(config, trial, epochs).exists()), default=0)
        groups.setdefault((shape_of(trial.settings), first, last), []).append(trial)
    for (_, first, last), group in groups.items():
        group.sort(key=lambda trial: (trial.settings.model.dropout, trial.settings.training.learning_rate))
        size = stack_size(group[0].settings, device)
        jobs += [Job(group[start : start + size], first, last) for start in range(0, len(group), size)]
    return sorted(jobs, key=lambda job: -job_seconds(config, job, device))


def shape_of(settings):
    """What trials must have in common to be trained as one model, as text."""
    shape = trial_key_settings(settings)
    del shape["model"]["dropout"], shape["training"]["learning_rate"]
    return json.dumps(shape)


def stack_size(settings, device):
    """How many trials of this shape are trained as one model, 32 at most."""
    if device.type == "cpu":
        most = STACKED_FLOPS / settings.training.batch_size / flops_per_zero(settings.model, columns(settings.tuning.zeros))
    else:
        most = settings.tuning.max_memory_gb / GPU_WORKERS / memory_gb(settings)
    return max(1, min(32, int(most)))


def state_file(config, trial, epochs):
    """The file of the state of a trial after so many epochs, while the search goes on."""
    return state_folder(config) / f"{hashlib.sha256(trial.key.encode()).hexdigest()[:16]}_{epochs}.pt"


def state_folder(config):
    """The folder of these files, which holds nothing else: in tuning.state_folder one that no other run folder's search has."""
    if not config.tuning.state_folder:
        return config.checkpoint_folder / "tuning"
    run = hashlib.sha256(str(config.folder).encode()).hexdigest()[:16]
    return config.folder / os.path.expanduser(config.tuning.state_folder) / f"rzz_tuning_{run}"


def job_seconds(config, job, device):
    """Forecast of a Job on one worker of tuning.host."""
    return stack_seconds(config, job.trials[0].settings, len(job.trials), job.last_epoch - job.first_epoch, device)


def stack_seconds(config, settings, trials, epochs, device):
    """Forecast of so many epochs, with their validation, of a stack of so many trials on one worker of tuning.host."""
    speed = config.tuning.host.core if device.type == "cpu" else config.tuning.host.device
    validation = config.tuning.zeros // 10
    training, size = config.tuning.zeros - validation, settings.training.batch_size
    T = columns(training)
    updates = math.ceil(training / size) * step_seconds(settings.model, size, T, speed, trials)
    validated = step_seconds(settings.model, validation, T, speed, trials) / 3  # which has no backward pass
    return epochs * (updates + validated) + (training + validation) * prepare_seconds(settings.model, speed)  # of batches, once


def worker_count(config, device):
    """How many processes train at a time on this machine."""
    most = fast_cores() if device.type == "cpu" else GPU_WORKERS * device_count(device)
    return config.tuning.workers or min(most, fast_cores())


def tuning_device(chosen):
    """Return (device, why) to tune on, if all else runs on `chosen`: stacks on CUDA, else the cores of the CPU."""
    if chosen.type == "cuda":
        return chosen, "stacks of trials, a process each"
    why = {"mps": "an update of a model this small takes the cores no longer than launching it takes Apple's GPU",
           "xla": "a TPU serves one process and compiles each shape again",
           "cpu": "no CUDA device was found"}[chosen.type]  # fmt: skip
    return torch.device("cpu"), f"{why}; one process a core"


@contextmanager
def worker_pool(config, device):
    """Start the workers; yield submit(job), which returns a Future of train_job's result.

    When the block ends they are killed, whatever they are doing: what is finished is on the disk. A worker that dies raises
    BrokenProcessPool from its Future, an error in it raises that error with its traceback.
    """
    context = multiprocessing.get_context("spawn")  # fork is not safe with the threads that torch has
    train = train_job
    try:
        with signals_blocked():  # multiprocessing begins a process of its own for what is shared
            started = context.Value("i", 0)
        arguments = (config, device, started)  # few bytes: more than a pipe holds would keep this process until a worker reads them
        pool = ProcessPoolExecutor(worker_count(config, device), context, init_worker, arguments)
    except OSError as error:
        log.warning("Processes cannot share memory, which is /dev/shm on Linux (%s): one worker trains.", error.strerror)
        pool, train = ThreadPoolExecutor(1), single_worker(context, config, device)

    def submit(job):
        with signals_blocked():
            return pool.submit(train, job)

    try:
        yield submit
    finally:
        kill_workers()
        pool.shutdown(cancel_futures=True)
        for killed in multiprocessing.active_children():
            killed.join()


def single_worker(context, config, device):
    """Start one worker, with pipes alone; return train(job), which has it trained there. BrokenProcessPool if it dies."""
    ours, theirs = context.Pipe()
    with signals_blocked():
        context.Process(target=serve, args=(theirs, config, device), daemon=True).start()
    theirs.close()

    def train(job):
        try:
            ours.send((train_job, job))
            results, error, where = ours.recv()
        except (EOFError, OSError) as lost:
            raise BrokenProcessPool("the worker ended") from lost
        if error is not None:
            raise error from RuntimeError(where)
        return results

    return train


def serve(connection, config, device):
    """What the process of single_worker does: train the jobs that come through the connection."""
    init_worker(config, device)
    while True:
        train, job = connection.recv()
        try:
            connection.send((train(job), None, ""))
        except Exception as error:
            connection.send((None, error, traceback.format_exc()))


def kill_workers():
    for started in multiprocessing.active_children():
        started.kill()


def as_completed(submit, jobs, stop):
    """Train the `jobs`; yield each with its results when it is finished, in any order. Leave early if `stop` is filled."""
    try:
        waiting = {submit(job): job for job in jobs}
        while waiting:
            done, _ = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
            for future in done:
                yield waiting.pop(future), future.result()
            if stop:
                return
            if save_requested():
                log.info("Finished rungs and the states of their trials are saved already, as SIGUSR1 asks; the search goes on.")
    except RuntimeError as error:
        kill_workers()  # a pool that breaks forgets the one it was starting, and waits for it
        broken = isinstance(error, BrokenProcessPool)
        if broken and stop:  # SIGTERM ends the workers too if it is sent to all processes
            return
        if not broken and not is_out_of_memory(error):
            raise
        raise UserError("A worker found too little memory or was killed: set tuning.workers lower and run again; what is finished "
                        "is kept.") from error


worker = None  # in the processes of the pool: (config, device, training, validation)


def init_worker(config, device, started=None):
    """Prepare this process: it has one thread, ignores Ctrl-C, which the parent handles, and exits with its parent."""
    unblock_signals()
    global worker
    number = 0
    if started is not None:
        with started.get_lock():
            number, started.value = started.value, started.value + 1
    worker = (config, device_of_worker(device, number), *tuning_splits(config))
    torch.set_num_threads(1)
    tune_glibc_malloc()
    exit_with_parent()


def train_job(job):
    """Train the trials of a Job, write their states, and return the result of each."""
    config, device, training, validation = worker
    began = time.monotonic()
    size = job.trials[0].settings.training.batch_size
    stack = StackedModels([trial.settings for trial in job.trials], math.ceil(len(training) / size), device)
    first_epoch, curves, states = job.first_epoch, [[] for _ in job.trials], []
    for path in [state_file(config, trial, first_epoch) for trial in job.trials] if first_epoch else ():
        try:
            states.append(read_torch_file(path, STATE)[0])
        except DamagedError:
            log.warning("%s is damaged; moved to %s, and the trials of its stack begin again", path, quarantine(path).name)
            first_epoch = 0
    if first_epoch:
        stack.load_states([state["stack"] for state in states])
        curves = [state["curve"] for state in states]
    training_batches = list(iterate_batches(stack.model, training, size, noise=index_noise(job.trials[0].settings)))
    validation_batches = list(iterate_batches(stack.model, validation, min(VALIDATION_BATCH, len(validation))))
    for _ in range(first_epoch, job.last_epoch):
        for batch in training_batches:
            stack.step(batch)
        for curve, nats in zip(curves, stack.nats_per_zero(validation_batches, len(validation)), strict=True):
            curve.append(nats)
    for member, trial in enumerate(job.trials):
        if job.last_epoch < trial.epochs[-1]:
            write_torch_file(state_file(config, trial, job.last_epoch), {"stack": stack.state(member), "curve": curves[member]})
    results = [result_of(stack, member, curve, config, validation) for member, curve in enumerate(curves)]
    return [{**result, "seconds": (time.monotonic() - began) / len(results)} for result in results]


def result_of(stack, member, curve, config, validation):
    """Return what tuning.jsonl says of one trial of a trained stack."""
    training = stack.members[member].training
    first, last = stack.first_losses[member].item(), stack.last_losses[member].tolist()
    found, measured = outcome(first, last, bool(stack.finite[member]), curve[-1]), {"mse": None, "readable": 0.0}
    if found["stable"]:
        some = validation.subset(slice(None, None, math.ceil(len(validation) / training.mse_zeros)))
        measured = scores(sampled_predictions(stack.averaged_model(member), some, 1, config.evaluation.top_p, training.seed), some)
    return {"nats_per_zero": [nats if math.isfinite(nats) else None for nats in curve],  # JSON has no NaN
            "mse": measured["mse"], "readable": measured["readable"],
            "first_loss": first if math.isfinite(first) else None,
            "last_losses": sum(last) / len(last) if math.isfinite(sum(last)) else None, **found}  # fmt: skip
