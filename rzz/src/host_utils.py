"""How fast this machine is, and how good the forecasts of resource_utils are here.

    host = measured_host(device)            # a HostConfig for tuning.host, in about a minute
    compare_forecasts(host.device, device)  # forecast and measured time and memory of three models

A time is the least of several updates, so that whatever else the machine does counts as little as may be.
"""

import platform
import time
from contextlib import contextmanager

import numpy as np
import torch

from common.config import HardwareProfile, ModelConfig, Throughput, TrainingConfig
from common.devices import describe_device, fast_cores, synchronize
from data_utils import RiemannZerosDataset
from model.batches import iterate_batches
from model.network import build_model, cross_entropy, logits_of, parameter_count
from model.tokenizer import SCALE
from resource_utils import activation_bytes, flops_per_zero, state_bytes, step_seconds
from training.optimizer import make_optimizer, training_step
from zeta.riemann_siegel import smooth_zeros

# (d_model, layers, batch size): launching decides the first, arithmetic the last. Those compared are none of those fitted.
FITTED = [(d_model, layers, size) for d_model, layers in ((32, 1), (64, 2), (64, 4), (128, 4)) for size in (16, 64, 128)]
COMPARED = [(48, 2, 32), (96, 3, 64), (160, 4, 128)]
SECONDS = 2.0  # of updates of each size
UPDATES = 5  # at least
FASTEST = 1e6  # TFLOP/s or GB/s, for what is too small to be seen


def measured_host(device):
    """Measure this machine and return it as a HostConfig: the `device` that trains, and one core of those that tune."""
    with single_thread():
        core = fitted_speed(torch.device("cpu"))
    alike = device.type == "cpu" and torch.get_num_threads() == 1
    name = f"{platform.node()}: {describe_device(device)}"
    return HardwareProfile(name, core if alike else fitted_speed(device), core, fast_cores())


@contextmanager
def single_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fitted_speed(device):
    """Return the SpeedConfig that explains the measured times of FITTED best: least squares of the relative errors."""
    T = some_zeros(1).width - 1
    models = [(ModelConfig(d_model=d_model, num_layers=layers), size) for d_model, layers, size in FITTED]
    seconds = np.array([measured_step_seconds(model, size, device) for model, size in models])
    costs = np.array([[model.num_layers + 1, size * flops_per_zero(model, T), size * activation_bytes(model, T)]
                      for model, size in models])  # fmt: skip
    layer, flop, byte = positive_least_squares(costs / seconds[:, None], np.ones(len(models)))
    return Throughput(min(FASTEST, 1e-12 / flop), min(FASTEST, 1e-9 / byte), 1e3 * layer)


def positive_least_squares(matrix, goal):
    """Return the x that minimises |matrix · x - goal| among those without a negative entry, with 1e-30 for 0.

    The columns with the most negative entry are left out one by one, which is enough for a matrix of three columns.
    """
    columns, found = list(range(matrix.shape[1])), np.full(matrix.shape[1], 1e-30)
    while columns:
        x = np.linalg.lstsq(matrix[:, columns], goal, rcond=None)[0]
        if x.min() > 0:
            found[columns] = x
            break
        del columns[int(x.argmin())]
    return found.tolist()


def some_zeros(count):
    """A dataset as wide as the rows of a long training, of numbers that are no zeros but as good for a clock."""
    indexes = np.arange(5_000_000, 5_000_000 + count, dtype=np.int64)
    return RiemannZerosDataset(indexes, (smooth_zeros(indexes) * SCALE).astype(np.int64))


def measured_step_seconds(model, size, device):
    """Seconds of one update of a model of these sizes with `size` zeros: CPU time on one thread, else by the clock."""
    clock = time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    training, built = TrainingConfig(batch_size=size), build_model(model, seed=1).to(device)
    batch = next(iterate_batches(built, some_zeros(size), size))
    optimizer = make_optimizer(built, training)
    times = []
    while len(times) < UPDATES or sum(times) < SECONDS:
        synchronize(device)
        began = clock()
        training_step(built, optimizer, batch, training.learning_rate, training.gradient_clip, (1, len(times)))
        synchronize(device)
        times.append(clock() - began)
    return min(times)


def measured_bytes(model, size):
    """Bytes that an update holds at once, counted on the CPU: weights, gradients, AdamW's averages, what autograd saves."""
    built = build_model(model, seed=1)
    batch = next(iterate_batches(built, some_zeros(size), size))
    parameters = {parameter.untyped_storage().data_ptr() for parameter in built.parameters()}
    saved = {}  # the tensors are held as well, so that no address is given out twice

    def note(tensor):
        if tensor.untyped_storage().data_ptr() not in parameters:
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = cross_entropy(logits_of(built, batch), batch.targets)
    loss.backward()
    optimizer = make_optimizer(built, TrainingConfig())
    optimizer.step()
    averages = sum(value.nbytes for state in optimizer.state.values() for value in state.values() if value.dim())
    weights = sum(parameter.nbytes + parameter.grad.nbytes for parameter in built.parameters())
    return weights + averages + sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


def compare_forecasts(speed, device):
    """Return a dictionary for each of COMPARED: forecast and measured milliseconds of an update and megabytes."""
    T = some_zeros(1).width - 1
    compared = []
    for d_model, layers, size in COMPARED:
        model = ModelConfig(d_model=d_model, num_layers=layers)
        compared.append({
            "d_model": d_model, "num_layers": layers, "batch_size": size, "parameters": parameter_count(build_model(model, seed=1)),
            "forecast_ms": 1e3 * step_seconds(model, size, T, speed),
            "measured_ms": 1e3 * measured_step_seconds(model, size, device),
            "forecast_mb": (state_bytes(model) + size * activation_bytes(model, T)) / 1e6,
            "measured_mb": measured_bytes(model, size) / 1e6,
        })  # fmt: skip
    return compared
