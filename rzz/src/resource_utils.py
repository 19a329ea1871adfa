"""What a model costs on the host, from its sizes alone: parameters, memory for training, hours of training.

    hours(config, zeros=10_000_000)

The host is described by tuning.host_tflops (what it sustains on matrix products this small) and tuning.host_step_ms
(the fixed cost of an update, which is what launching some hundred small operations takes).
"""

from index_embedding import primes_up_to

BYTES = 4  # of a float32
OPTIMIZER_COPIES = 4  # weights, gradients, and the two averages of AdamW


def parameters(model):
    """Number of parameters of the Transformer that a ModelConfig describes."""
    d, heads = model.d_model, model.num_heads
    d_k, d_v, d_ff = model.head_sizes()
    attention = (d + 1) * heads * (2 * d_k + d_v) + (heads * d_v + 1) * d
    feed_forward = (d + 1) * d_ff + (d_ff + 1) * d
    count = model.num_layers * (attention + feed_forward + 4 * d) + 16 * d + 2 * d + (d + 1) * 16 + 64 * d
    if model.index_embedding in ("smooth", "primes"):
        count += 2 * 17 * d + 5 * d
    if model.index_embedding == "primes":
        count += (2 * len(primes_up_to(model.max_prime)) + 1) * d + (d + 1) * d
    return count


def columns(config):
    """Columns that the model computes for the longest row of the run: its characters without the last."""
    last = (config.data.K + 2) * config.data.interval_size
    return 2 * len(str(last)) + 7


def memory_gb(config):
    """Gigabytes for weights, gradients, optimizer and the activations of one batch that the backward pass needs."""
    model, T = config.model, columns(config)
    d_k, d_v, d_ff = model.head_sizes()
    per_token = 7 * model.d_model + model.num_heads * (2 * d_k + 2 * d_v + 3 * T) + 2 * d_ff
    activations = config.training.batch_size * T * (model.num_layers * per_token + 6 * model.d_model)
    return BYTES * (OPTIMIZER_COPIES * parameters(model) + activations) / 1e9


def flops_per_zero(config):
    """Floating-point operations of one forward and backward pass over one row, two for each multiply-add."""
    model, T = config.model, columns(config)
    d_k, d_v, _ = model.head_sizes()
    attention = 2 * model.num_layers * model.num_heads * T * T * (d_k + d_v)
    return 3 * (2 * T * parameters(model) + attention)


def hours(config, zeros):
    """Hours that the host needs to train on `zeros` zeros."""
    updates = zeros / config.training.batch_size
    compute = zeros * flops_per_zero(config) / (config.tuning.host_tflops * 1e12)
    return (compute + updates * config.tuning.host_step_ms / 1e3) / 3600


def run_zeros(config, epochs):
    """Zeros in the full training with `epochs` passes over each interval."""
    return (config.data.K - config.data.first_round + 1) * config.data.interval_size * epochs
