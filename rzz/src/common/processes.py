"""Several processes: those of torchrun that train one model, and ending with all that were started.

    torchrun --standalone --nproc_per_node=4 rzz/src/train.py --resume

Each rank computes its own rows of every batch and the gradients are averaged (DistributedDataParallel), so that n devices make
the update of one. All of it is also right in a single process, at no cost.
"""

import atexit
import datetime
import multiprocessing
import os
import sys
import threading
import warnings
from contextlib import contextmanager, suppress

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from common.config import UserError
from common.devices import distributed_backend

TIMEOUT = datetime.timedelta(days=1)  # to wait for rank 0, which may be fetching zeros; when one process ends, torchrun ends all
AGREE_EVERY = 8  # steps; asking the other ranks costs a message to them
EXIT_SECONDS = 0.5  # that what is registered for Python's exit may take after a request to stop


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
    """End this process and those it has started with the exit code `code`: at once if other ranks still count on it.

    They end with it. After a request to stop neither threads nor the freeing of memory are waited for, which takes Python
    a second or more: what was to be saved is on the disk.
    """
    for child in multiprocessing.active_children():
        child.kill()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    if distributed.is_initialized():
        os._exit(code)
    if code > 128:
        timer = threading.Timer(EXIT_SECONDS, os._exit, (code,))
        timer.daemon = True
        timer.start()
        atexit._run_exitfuncs()  # of multiprocessing, which removes its semaphores
        os._exit(code)
    sys.exit(code)


def is_peer_failure(error):
    """Whether an exception says no more than that another process has ended."""
    return world_size() > 1 and (isinstance(error, distributed.DistError) or "gloo/transport" in str(error))


def exit_with_parent():
    """In a process of multiprocessing: end it as soon as its parent has ended, however that was."""

    def watch():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
