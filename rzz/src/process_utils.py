"""Several processes that train one model, a device each, as torchrun starts them.

    torchrun --standalone --nproc_per_node=4 rzz/src/train.py --resume

Each computes its share of every batch and the gradients are averaged (DistributedDataParallel), so that n devices make the
update of one. Everything here is also right in a process that is alone, where it costs nothing.
"""

import datetime
import os
import sys
import warnings
from contextlib import contextmanager

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from config_utils import UserError
from device_utils import messengers

TIMEOUT = datetime.timedelta(days=1)  # with the first process, which may be fetching zeros; when one ends, torchrun ends all
AGREE_EVERY = 8  # steps; a look at what the other processes want takes as long as a message to them


def is_alone():
    """Whether torchrun has started no other process beside this one."""
    return int(os.environ.get("WORLD_SIZE", 1)) == 1


def require_shareable(device):
    """Raise UserError where torchrun has started several processes on a device that they cannot train one model on."""
    if not is_alone() and device.type not in ("cpu", "cuda"):
        raise UserError(f"torchrun spreads a training over CPUs or CUDA devices, not over {device.type}: run train.py without it, "
                        "or with --device cpu.")


@contextmanager
def processes():
    """Join the other processes that torchrun has started, if there are any, for the block."""
    if is_alone():
        yield
        return
    distributed.init_process_group(messengers(), timeout=TIMEOUT)
    yield
    distributed.destroy_process_group()  # not after an error: NCCL would wait here for the others, and they for this one


def leave(code):
    """End this process with the exit code `code`: at once where others still count on it, who end with it."""
    if distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def has_lost_another(error):
    """Whether an exception says no more than that another process has ended."""
    return process_count() > 1 and (isinstance(error, distributed.DistError) or "gloo/transport" in str(error))


def process_count():
    return distributed.get_world_size() if distributed.is_initialized() else 1


def process_rank():
    """0 … process_count() - 1. The process of rank 0 is the one that writes files."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def wait_for_all():
    """Wait until every process is here. Where one has ended instead, it has said why, and this one ends too."""
    try:
        sum_over_processes(torch.zeros(1))
    except RuntimeError:
        leave(1)


def shared_among_processes(model):
    """Return `model` wrapped so that backward passes average its gradients over all processes; its buffers never change."""
    if process_count() == 1:
        return model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch 2.13 has a new name for the option, which older ones do not know
        return DistributedDataParallel(model, broadcast_buffers=False)


def sum_over_processes(tensor):
    """Add up, in place, a tensor that every process has, and return it."""
    if process_count() > 1:
        distributed.all_reduce(tensor)
    return tensor


def agreed(wanted, step):
    """Whether any process wants something at this step, the same answer in all; asked every few steps where they are many."""
    if process_count() == 1:
        return bool(wanted)
    return step % AGREE_EVERY == 0 and bool(sum_over_processes(torch.tensor(int(bool(wanted)))))
