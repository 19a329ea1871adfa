"""What a model costs, forecast from its sizes alone: parameters, memory, operations, time of a step, hours of training.

    training_hours(config, epochs=1)        # the full training on tuning.host

A step takes as long as launching its operations, its multiply-adds and its memory traffic together, each at the speed
that tuning.host gives (common.config.Throughput); host_utils.py measures that speed and the forecasts.
"""

from common.config import CONTEXT
from model.index_embedding import DISTANCES, NOTHING_LEFT, primes_up_to

BYTES = 4  # of a float32
OPTIMIZER_COPIES = 4  # weights, gradients, and the two averages of AdamW
VOCABULARY = 16


def block_parameters(model):
    """Number of parameters of the matrices of one block, each of which meets every token once."""
    d_k, d_v, d_ff = model.head_sizes()
    return model.d_model * (model.num_heads * (2 * d_k + 2 * d_v) + 2 * d_ff)


def phase_parameters(model):
    """Number of parameters of the matrices that read the phases of the primes, once a row."""
    if model.index_embedding != "primes":
        return 0
    return 2 * len(primes_up_to(model.max_prime)) * model.d_model + model.d_model**2


def parameters(model):
    """Number of parameters of the Transformer that a ModelConfig describes."""
    d, heads = model.d_model, model.num_heads
    d_k, d_v, d_ff = model.head_sizes()
    biases_and_norms = heads * (2 * d_k + d_v) + d + d_ff + d + 4 * d
    count = model.num_layers * (block_parameters(model) + biases_and_norms)
    count += VOCABULARY * d + 2 * CONTEXT * d + 2 * d + (d + 1) * VOCABULARY  # embeddings, last norm, head
    if model.index_embedding in ("smooth", "primes"):
        count += 2 * (NOTHING_LEFT + 1) * d + (DISTANCES + 1) * d
    if model.index_embedding == "primes":
        count += phase_parameters(model) + 2 * d
    return count


def columns(last_index):
    """Columns that the model computes for the longest row up to `last_index`: its characters without the last."""
    return 2 * len(str(last_index)) + 7


def run_columns(config):
    """The same for the longest row of the full training."""
    return columns((config.data.K + 2) * config.data.interval_size)


def wanted_columns(T):
    """Of T columns those from the first ':' on, whose logits are wanted: the last block computes no others."""
    return T - (T - 7) // 2 - 1


def activation_bytes(model, T):
    """Bytes that the backward pass needs to find again of one row of T columns: what autograd saves."""
    d, heads = model.d_model, model.num_heads
    d_k, d_v, d_ff = model.head_sizes()
    seen = 2 * d + heads * (d_k + d_v)  # of a column that a block looks at
    computed = 2 * d + heads * (d_k + d_v + T) + 2 * d_ff  # of one that it computes
    if model.dropout:
        computed += 2 * d + 2 * heads * T
    R = wanted_columns(T)
    blocks = (model.num_layers - 1) * T * (seen + computed) + T * seen + R * (computed + d)
    return BYTES * (blocks + R * (2 * d + 3 * VOCABULARY))


def state_bytes(model):
    """Bytes of weights, gradients and AdamW's averages."""
    return BYTES * OPTIMIZER_COPIES * parameters(model)


def memory_gb(config):
    """Gigabytes that the full training holds at once: state, and the activations of one batch."""
    activations = config.training.batch_size * activation_bytes(config.model, run_columns(config))
    return (state_bytes(config.model) + activations) / 1e9


def flops_per_zero(model, T):
    """Floating-point operations of one forward and backward pass over a row of T columns, two for each multiply-add."""
    d_k, d_v, _ = model.head_sizes()
    R = wanted_columns(T)
    computed = (model.num_layers - 1) * T + R  # columns, over all blocks
    attention = computed * model.num_heads * T * (d_k + d_v)
    seen_only = (T - R) * model.d_model * model.num_heads * (d_k + d_v)  # keys and values
    products = computed * block_parameters(model) + seen_only + R * VOCABULARY * model.d_model + phase_parameters(model)
    return 3 * 2 * (products + attention)


def step_seconds(model, zeros, T, speed):
    """Seconds of one update with `zeros` rows of T columns, on a processor of the given SpeedConfig."""
    launches = speed.layer_ms / 1e3 * (model.num_layers + 1)
    arithmetic = zeros * flops_per_zero(model, T) / (speed.tflops * 1e12)
    traffic = zeros * activation_bytes(model, T) / (speed.gb_per_s * 1e9)
    return launches + arithmetic + traffic


def training_hours(config, epochs):
    """Hours of the full training on tuning.host with `epochs` passes over each interval."""
    zeros = (config.data.K - config.data.first_round + 1) * config.data.interval_size * epochs
    batch_size = config.training.batch_size
    return zeros / batch_size * step_seconds(config.model, batch_size, run_columns(config), config.tuning.host.device) / 3600
