"""One training step: AdamW, the learning-rate schedule, the update.

    optimizer = make_optimizer(model, config.training)
    for step, batch in enumerate(iterate_batches(model, dataset, batch_size=128)):
        loss = training_step(model, optimizer, batch, learning_rate=1e-3, gradient_clip=1.0, seeds=(1, step))
"""

import math

import torch

from common.devices import end_step, free_memory, fused_adamw, is_out_of_memory, precision, seed_device
from common.logs import log
from common.processes import all_reduce_sum, rank, world_size
from model.network import cross_entropy, logits_of

ADAMW = {"betas": (0.9, 0.95), "eps": 1e-8}  # of training, of tuning's stacks and of the plain GPT that benchmark.py compares with


def floats(losses):
    """Return tensors on a device as a list of floats, in one transfer, which waits for the device."""
    return torch.stack(losses).tolist() if losses else []


def train_step_with_oom_retry(config, trained, model, optimizer, batch, rate, progress, parts):
    """Return (loss, parts) of one training step, cutting the batch into more parts until the memory holds one.

    trained: what torch.compile has made of `model`. Parts go through `model` itself, since gradients cannot be added up in
    the CUDA graphs of torch.compile (pytorch#169545).
    """
    settings = config.training
    seeds = (settings.seed, progress.step, rank())
    dtype, _ = precision(batch.tokens.device, settings.precision)
    while True:
        try:
            used = trained if parts == 1 else model
            return training_step(used, optimizer, batch, rate, settings.gradient_clip, seeds, parts, dtype), parts
        except RuntimeError as error:
            if not is_out_of_memory(error) or 2 * parts > settings.batch_size or world_size() > 1:
                raise
        parts *= 2  # outside of the except block, which keeps the failed step's tensors alive
        free_memory(batch.tokens.device)
        log.warning("Out of memory with %d zeros at a time: from here on batches of %d are computed in %d parts, for the same "
                    "updates.", 2 * settings.batch_size // parts, settings.batch_size, parts)


def make_optimizer(model, training, fused=None):
    """Return AdamW over the model's parameters; weight decay on matrices alone, not on biases, norms and embeddings.

    fused: whether one launch updates all parameters; None does so on devices that can.
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    decayed = [p for p in model.parameters() if p.dim() >= 2 and id(p) not in embeddings]
    others = [p for p in model.parameters() if p.dim() < 2 or id(p) in embeddings]
    groups = [{"params": decayed, "weight_decay": training.weight_decay}, {"params": others, "weight_decay": 0.0}]
    fused = fused_adamw(model.head.weight.device).available if fused is None else fused
    return torch.optim.AdamW(groups, lr=training.learning_rate, fused=fused, **ADAMW)


def learning_rate_at(step, total_steps, training):
    """Return the learning rate of update `step` (from 0) of `total_steps`: linear warm-up, then cosine decay to zero.

    A function of the step alone, so there is no scheduler to save.
    """
    if step < training.warmup_steps:
        return training.learning_rate * (step + 1) / (training.warmup_steps + 1)
    done = (step - training.warmup_steps) / max(1, total_steps - training.warmup_steps)
    return training.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def training_step(model, optimizer, batch, learning_rate, gradient_clip, seeds, parts=1, dtype=torch.float32):
    """Make one update from one batch and return its loss as a tensor on the device, without waiting for it.

    Where the loss or a gradient is not finite, the update is skipped and the loss returned is NaN.

    model: a Transformer, or what torch.compile and shared_among_processes make of one; of several processes each brings
    its share of the batch. seeds: integers, for example (seed, step), of which the dropout is a function. parts: into how
    many pieces the batch is cut, their gradients added up: the same update within less memory. dtype: see logits_of.
    """
    device = batch.tokens.device
    seed_device(device, *seeds)
    optimizer.zero_grad(set_to_none=True)
    loss = torch.zeros((), device=device)
    size = -(-len(batch.tokens) // parts)
    for row in range(0, len(batch.tokens), size):
        piece = batch.piece(slice(row, row + size))
        share = cross_entropy(logits_of(model, piece, dtype), piece.targets, reduction="sum") / batch.asked
        (share * world_size()).backward()  # of which DistributedDataParallel takes the mean
        loss += share.detach()
    all_reduce_sum(loss)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]  # model.parameters() takes longer
    norm = torch.nn.utils.clip_grad_norm_(parameters, gradient_clip)
    finite = torch.isfinite(norm) & torch.isfinite(loss)
    step_if_finite(finite, optimizer, learning_rate)
    end_step(device)
    return torch.where(finite, loss, torch.nan)


def step_if_finite(finite, optimizer, learning_rate):
    """Step `optimizer` where the boolean tensor `finite` says so.

    Most fused kernels look at it on the device (`found_inf`, made for torch.amp.GradScaler), so nobody waits for it.
    """
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    if fused_adamw(finite.device).supports_found_inf:
        optimizer.found_inf, optimizer.grad_scale = (~finite).float(), None
        optimizer.step()
    elif bool(finite):
        optimizer.step()
