"""Several processes: those of torchrun that train one model, and stopping all of them safely.

    torchrun --standalone --nproc_per_node=4 rzz/src/train.py --resume

    with catch_stop_signals() as stop:               # a list, in which a signal leaves its number

Each rank computes its own rows of every batch and the gradients are averaged (DistributedDataParallel), so that n devices make
the update of one. All of it is also right in a single process, at no cost.
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
TIMEOUT = datetime.timedelta(days=1)  # to wait for rank 0, which may be fetching zeros; when one process ends, torchrun ends all
AGREE_EVERY = 8  # steps; asking the other ranks costs a message to them


STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def is_distributed():
    """Whether torchrun has started other processes too. Raises UserError if something else has set its WORLD_SIZE."""
    size = os.environ.get("WORLD_SIZE", "1")
    if not size.isdigit() or int(size) > 1 and "MASTER_ADDR" not in os.environ:
        raise UserError(f"WORLD_SIZE is {size!r}, but torchrun has not started this process: unset it, or use torchrun.")
    return int(size) > 1


@contextmanager
def distributed_session(device):
    """Join the other processes that torchrun has started, if there are any, for the block.

    Raises UserError if they cannot train one model on such a device.
    """
    if not is_distributed():
        yield
        return
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"torchrun spreads a training over CPUs or CUDA devices, not over {device.type}: run train.py without it, "
                        "or with --device cpu.")
    distributed.init_process_group(distributed_backend(), timeout=TIMEOUT)
    yield
    distributed.destroy_process_group()  # not after an error: NCCL would wait here for the others, and they for this one


def world_size():
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank():
    """0 … world_size() - 1. Only rank 0 writes files."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def barrier():
    """Wait until every process is here. If one has ended instead, it has said why, and this one ends too."""
    try:
        all_reduce_sum(torch.zeros(1))
    except RuntimeError:
        exit_process(1)


def wrap_ddp(model):
    """Return `model` wrapped so that backward passes average its gradients over all ranks; its buffers never change."""
    if world_size() == 1:
        return model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch 2.13 has a new name for the option, which older ones do not know
        return DistributedDataParallel(model, broadcast_buffers=False)


def all_reduce_sum(tensor):
    """Add up, in place, a tensor that every rank has, and return it."""
    if world_size() > 1:
        distributed.all_reduce(tensor)
    return tensor


def any_rank(wanted, step):
    """Whether any rank wants something at this step, the same answer in all; several ranks ask every few steps only."""
    if world_size() == 1:
        return bool(wanted)
    return step % AGREE_EVERY == 0 and bool(all_reduce_sum(torch.tensor(int(bool(wanted)))))


def exit_process(code):
    """End this process with the exit code `code`: at once if other ranks still count on it, which end with it."""
    if distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def is_peer_failure(error):
    """Whether an exception says no more than that another process has ended."""
    return world_size() > 1 and (isinstance(error, distributed.DistError) or "gloo/transport" in str(error))


@contextmanager
def signals_blocked():
    """Start a process of multiprocessing within the block: no signal reaches it before it calls unblock_signals.

    The terminal sends Ctrl-C to all. A process that dies of it before it has read its arguments leaves its parent waiting forever.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def unblock_signals():
    """In a process that was started within signals_blocked: leave Ctrl-C and a closed terminal to the parent."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


@contextmanager
def catch_stop_signals():
    """Within the block Ctrl-C, SIGTERM and a closed terminal (SIGHUP) only leave their number in the list that is yielded.

    The loop looks at it once a step and ends safely. A second Ctrl-C interrupts at once; not so under torchrun, which passes
    on to its processes what the terminal has told them already.
    """
    received = []

    def note(number, frame):
        if received and world_size() > 1:
            return
        if received:
            raise KeyboardInterrupt
        received.append(number)
        log.info("Stopping after this step … (Ctrl-C once more stops at once and saves nothing)")

    ignored = [signal.SIGHUP] if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else []  # nohup: outlives its terminal
    before = {number: signal.signal(number, note) for number in STOP_SIGNALS if number not in ignored}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
