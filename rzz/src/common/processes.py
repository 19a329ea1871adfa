"""Several processes: those of torchrun that train one model, and stopping all of them where it is safe.

    torchrun --standalone --nproc_per_node=4 rzz/src/train.py --resume

    with catch_stop_signals() as stop:               # a list, in which a signal leaves its number
        for batch in batches:
            ...
            if stop:
                break

Each process computes its share of every batch and the gradients are averaged (DistributedDataParallel), so that n devices make
the update of one. Everything here is also right in a single process, where it costs nothing.
"""

import datetime
import logging
import os
import signal
import sys
import warnings
from contextlib import contextmanager

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from common.config import UserError
from common.devices import distributed_backend

log = logging.getLogger("rzz")
TIMEOUT = datetime.timedelta(days=1)  # with the first process, which may be fetching zeros; when one ends, torchrun ends all
AGREE_EVERY = 8  # steps; a look at what the other processes want takes as long as a message to them


def is_alone():
    """Whether torchrun has started no other process beside this one."""
    return int(os.environ.get("WORLD_SIZE", 1)) == 1


def require_distributable(device):
    """Raise UserError where torchrun has started several processes on a device that they cannot train one model on."""
    if not is_alone() and device.type not in ("cpu", "cuda"):
        raise UserError(f"torchrun spreads a training over CPUs or CUDA devices, not over {device.type}: run train.py without it, "
                        "or with --device cpu.")


@contextmanager
def distributed_session():
    """Join the other processes that torchrun has started, if there are any, for the block."""
    if is_alone():
        yield
        return
    distributed.init_process_group(distributed_backend(), timeout=TIMEOUT)
    yield
    distributed.destroy_process_group()  # not after an error: NCCL would wait here for the others, and they for this one


def exit_process(code):
    """End this process with the exit code `code`: at once where others still count on it, who end with it."""
    if distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def is_peer_failure(error):
    """Whether an exception says no more than that another process has ended."""
    return world_size() > 1 and (isinstance(error, distributed.DistError) or "gloo/transport" in str(error))


def world_size():
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank():
    """0 … process_count() - 1. The process of rank 0 is the one that writes files."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def barrier():
    """Wait until every process is here. Where one has ended instead, it has said why, and this one ends too."""
    try:
        all_reduce_sum(torch.zeros(1))
    except RuntimeError:
        exit_process(1)


def wrap_ddp(model):
    """Return `model` wrapped so that backward passes average its gradients over all processes; its buffers never change."""
    if world_size() == 1:
        return model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch 2.13 has a new name for the option, which older ones do not know
        return DistributedDataParallel(model, broadcast_buffers=False)


def all_reduce_sum(tensor):
    """Add up, in place, a tensor that every process has, and return it."""
    if world_size() > 1:
        distributed.all_reduce(tensor)
    return tensor


def any_rank(wanted, step):
    """Whether any process wants something at this step, the same answer in all; asked every few steps where they are many."""
    if world_size() == 1:
        return bool(wanted)
    return step % AGREE_EVERY == 0 and bool(all_reduce_sum(torch.tensor(int(bool(wanted)))))


STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def signals_blocked():
    """Start a process of multiprocessing within the block: no signal reaches it before it calls hear_signals.

    The terminal sends Ctrl-C to all processes at once. One that dies of it before it has read what it is given leaves
    its parent waiting for ever.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def unblock_signals():
    """In a process that was started within signals_held: leave Ctrl-C and a closed terminal to the parent, and hear the rest."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


@contextmanager
def catch_stop_signals():
    """Within the block Ctrl-C, SIGTERM and a closed terminal (SIGHUP) only leave their number in the list that is yielded.

    The loop looks at it once a step and ends where it is safe. A second Ctrl-C interrupts at once; not so where torchrun
    passes on to its processes what the terminal has told them already.
    """
    received = []

    def note(number, frame):
        if received and world_size() > 1:
            return
        if received:
            raise KeyboardInterrupt
        received.append(number)
        log.info("Stopping after this step … (Ctrl-C once more stops at once and saves nothing)")

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # under nohup a training outlives its terminal
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
