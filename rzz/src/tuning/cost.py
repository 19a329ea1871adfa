"""What a model costs, forecast from its sizes: parameters, memory, operations, time of a step; and how fast this machine is.

    training_hours(config, epochs=1)        # the full training on tuning.host
    measure_hardware(device)                # a HardwareProfile for tuning.host, in about a minute

A step takes as long as launching its operations, its multiply-adds and its memory traffic together, each at the
speed that tuning.host gives (common.config.Throughput). A measured time is the least of several updates, so that whatever else
the machine does counts as little as may be.
"""

import math
import platform
import time
from contextlib import contextmanager

import numpy as np
import torch

from common.config import HardwareProfile, ModelConfig, Throughput, TrainingConfig
from common.devices import describe_device, fast_cores, synchronize
from data_utils import some_zeros
from model.batches import first_batch
from model.index_embedding import embedding_cost
from model.network import build_model
from model.tokenizer import vocabulary
from training.optimizer import make_optimizer, training_step
from training.progress import validation_share

ENOUGH_ZEROS = 500_000  # trained on so many, counting each pass, a model is not better for another: rzz/results.md
BYTES = 4  # of a float32
OPTIMIZER_COPIES = 4  # weights, gradients, and the two averages of AdamW
STATE_BYTES = 16  # of a parameter in a trial's file: weights, their running average, and the two averages of AdamW
# Models and batch sizes: launching decides the first, arithmetic the last. Those compared are none of those fitted.
FITTED = [(ModelConfig(d_model=d_model, num_layers=layers), size)
          for d_model, layers in ((32, 1), (64, 2), (64, 4), (128, 4)) for size in (16, 64, 128)]  # fmt: skip
COMPARED = [(ModelConfig(d_model=d_model, num_layers=layers), size)
            for d_model, layers, size in ((48, 2, 32), (96, 3, 64), (160, 4, 128))]  # fmt: skip
SECONDS, UPDATES = 2.0, 5  # at least, of each size
FASTEST = 1e6  # TFLOP/s, GB/s or layers a millisecond, for what is too small to be seen


def block_parameters(model):
    """Number of parameters of the matrices of one block, each of which meets every token once."""
    d_k, d_v, d_ff = model.head_sizes()
    return model.d_model * (model.num_heads * (2 * d_k + 2 * d_v) + 2 * d_ff)


def parameters_of(model):
    """Number of parameters of the Transformer that a ModelConfig describes."""
    d, heads = model.d_model, model.num_heads
    d_k, d_v, d_ff = model.head_sizes()
    biases_and_norms = heads * (2 * d_k + d_v) + d + d_ff + d + 4 * d
    token_embedding_norm_and_head = len(vocabulary) * d + 2 * d + (d + 1) * len(vocabulary)
    others = token_embedding_norm_and_head + embedding_cost(model, 0).parameters
    return model.num_layers * (block_parameters(model) + biases_and_norms) + others


def columns(last_index):
    """Columns that the model computes for the longest row up to `last_index`: its characters without the last."""
    return 2 * len(str(last_index)) + 7


def wanted_columns(T):
    """Of T columns those from the first ':' on, whose logits are wanted: the last block computes no others."""
    return T - (T - 7) // 2 - 1


def activation_bytes(model, T):
    """Bytes that autograd saves of one row of T columns for the backward pass."""
    d, heads = model.d_model, model.num_heads
    d_k, d_v, d_ff = model.head_sizes()
    seen = 2 * d + heads * (d_k + d_v)  # of a column that a block looks at
    computed = 2 * d + heads * (d_k + d_v + T) + 2 * d_ff  # of one that it computes
    if model.dropout:
        computed += 2 * d + 2 * heads * T
    R = wanted_columns(T)
    blocks = (model.num_layers - 1) * T * (seen + computed) + T * seen + R * (computed + d)
    return BYTES * (blocks + R * (2 * d + 3 * len(vocabulary)) + embedding_cost(model, T).row_floats)


def state_bytes(model):
    """Bytes that do not depend on the batch size: weights, gradients, and AdamW's averages."""
    return BYTES * OPTIMIZER_COPIES * parameters_of(model)


def memory_gb(config):
    """Gigabytes that the full training holds at once: state, and the activations of one batch."""
    T = columns((config.data.K + 2) * config.data.interval_size)
    return (state_bytes(config.model) + config.training.batch_size * activation_bytes(config.model, T)) / 1e9


def flops_per_zero(model, T):
    """Floating-point operations of one forward and backward pass over a row of T columns, two for each multiply-add."""
    d_k, d_v, _ = model.head_sizes()
    R = wanted_columns(T)
    computed = (model.num_layers - 1) * T + R  # columns, over all blocks
    attention = computed * model.num_heads * T * (d_k + d_v)
    keys_and_values = (T - R) * model.d_model * model.num_heads * (d_k + d_v)  # of columns that the last block only looks at
    head = R * len(vocabulary) * model.d_model
    products = computed * block_parameters(model) + keys_and_values + head + embedding_cost(model, T).products
    return 3 * 2 * (products + attention)


def step_seconds(model, zeros, T, speed, trials=1):
    """Seconds of one update of a stack from a prepared batch, `zeros` rows of T columns, on a processor of the given Throughput."""
    launches = speed.layer_ms / 1e3 * (model.num_layers + 1)
    arithmetic = trials * zeros * flops_per_zero(model, T) / (speed.tflops * 1e12)
    traffic = trials * zeros * activation_bytes(model, T) / (speed.gb_per_s * 1e9)
    return launches + arithmetic + traffic


def prepare_seconds(model, speed):
    """Seconds that it takes to prepare a zero for training: see IndexEmbedding.prepare."""
    cost = embedding_cost(model, 0)
    return 2 * cost.data_products / (speed.tflops * 1e12) + BYTES * cost.data_floats / (speed.gb_per_s * 1e9)


def training_zeros_of(config):
    """Zeros of all intervals of the full training together."""
    return (config.data.K - config.data.first_round + 1) * config.data.interval_size


def zeros_of_search(config):
    """Zeros that a trial is trained on in an epoch; the rest of tuning.zeros validates."""
    return config.tuning.zeros - config.tuning.zeros // 10


def passes(config, epochs):
    """Passes over each interval that full training makes where a trial has made `epochs`: no more, and enough for ENOUGH_ZEROS.

    If the grid has no epochs they are the user's, and stay.
    """
    if "epochs" not in config.tuning.grid:
        return epochs
    return min(epochs, max(1, math.ceil(ENOUGH_ZEROS / training_zeros_of(config))))


def training_hours(config, epochs):
    """Hours of the full training on tuning.host with `epochs` passes over each interval, validation included."""
    zeros = training_zeros_of(config) * epochs
    T, size = columns((config.data.K + 2) * config.data.interval_size), config.training.batch_size
    speed = config.tuning.host.device
    hours = zeros * (step_seconds(config.model, size, T, speed) / size + prepare_seconds(config.model, speed)) / 3600
    return hours * (1 + validation_share(config))


def measure_hardware(device):
    """Measure this machine and return it as a HardwareProfile: the `device` that trains, and one core of those that tune."""
    with single_thread():
        core = fitted_speed(torch.device("cpu"))
    speed = core if device.type == "cpu" and torch.get_num_threads() == 1 else fitted_speed(device)
    return HardwareProfile(f"{platform.node()}: {describe_device(device)}", speed, core, fast_cores())


@contextmanager
def single_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fitted_speed(device):
    """Return the Throughput that explains the measured times of FITTED best: least squares of the relative errors.

    What would become negative, the most negative first, is left out, which is enough for three columns.
    """
    T = some_zeros(1).width - 1
    seconds = np.array([measured_step_seconds(model, size, device) for model, size in FITTED])
    costs = np.array([[model.num_layers + 1, size * flops_per_zero(model, T), size * activation_bytes(model, T)]
                      for model, size in FITTED])  # fmt: skip
    kept, found = [0, 1, 2], np.full(3, 1e-30)
    while kept and found.max() == 1e-30:
        x = np.linalg.lstsq((costs / seconds[:, None])[:, kept], np.ones(len(FITTED)), rcond=None)[0]
        if x.min() > 0:
            found[kept] = x
        else:
            del kept[int(x.argmin())]
    layer, flop, byte = found.tolist()
    return Throughput(min(FASTEST, 1e-12 / flop), min(FASTEST, 1e-9 / byte), max(1 / FASTEST, 1e3 * layer))


def measured_step_seconds(model, size, device):
    """Seconds of one update of a model of these sizes with `size` zeros: CPU time on one thread, else by the clock."""
    clock = time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    training, built = TrainingConfig(batch_size=size), build_model(model, seed=1).to(device)
    batch = first_batch(built, some_zeros(size), size).prepared(built)
    optimizer = make_optimizer(built, training)
    times = []
    while len(times) < UPDATES or sum(times) < SECONDS:
        synchronize(device)
        began = clock()
        training_step(built, optimizer, batch, training.learning_rate, training.gradient_clip, (1, len(times)))
        synchronize(device)
        times.append(clock() - began)
    return min(times)


def compare_forecasts(speed, device):
    """Return a dictionary for each of COMPARED: forecast and measured milliseconds of an update."""
    T = some_zeros(1).width - 1
    return [{"d_model": model.d_model, "num_layers": model.num_layers, "batch_size": size, "parameters": parameters_of(model),
             "forecast_ms": 1e3 * step_seconds(model, size, T, speed),
             "measured_ms": 1e3 * measured_step_seconds(model, size, device)} for model, size in COMPARED]  # fmt: skip
