"""One update: AdamW, the learning-rate schedule, the training step.

    optimizer = make_optimizer(model, config.training)
    for step, batch in enumerate(iterate_batches(model, dataset, batch_size=128)):
        loss = training_step(model, optimizer, batch, learning_rate=1e-3, gradient_clip=1.0, seeds=(1, step))
"""

import math

import torch

from common.devices import end_step, fused_adamw, seed_device
from common.processes import all_reduce_sum, world_size
from common.signals import interruptible
from model.network import cross_entropy, logits_of

ADAMW = {"betas": (0.9, 0.95), "eps": 1e-8}  # of training, of tuning's stacks and of the plain GPT that benchmark.py compares with


def make_optimizer(model, training, fused=True):
    """Return AdamW over the model's parameters; weight decay on matrices alone, not on biases, norms and embeddings.

    fused: one launch updates all parameters on devices that can; otherwise torch does it in its usual way.
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    decayed = [p for p in model.parameters() if p.dim() >= 2 and id(p) not in embeddings]
    others = [p for p in model.parameters() if p.dim() < 2 or id(p) in embeddings]
    groups = [{"params": decayed, "weight_decay": training.weight_decay}, {"params": others, "weight_decay": 0.0}]
    fused = fused_adamw(model.head.weight.device).available if fused else None
    return torch.optim.AdamW(groups, lr=training.learning_rate, fused=fused, **ADAMW)


def learning_rate_at(step, total_steps, training):
    """Return the learning rate of update `step` (from 0) of `total_steps`: linear warm-up, then cosine decay to zero.

    A function of the step alone, so there is no scheduler to save.
    """
    if step < training.warmup_steps:
        return training.learning_rate * (step + 1) / (training.warmup_steps + 1)
    done = (step - training.warmup_steps) / max(1, total_steps - training.warmup_steps)
    return training.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def training_step(model, optimizer, batch, learning_rate, gradient_clip, seeds, micro_batches=1, dtype=torch.float32):
    """Make one update from one batch and return its loss as a tensor on the device, without a device sync.

    If the loss or a gradient is not finite, the update is skipped and the loss returned is NaN.

    model: a Transformer, or what torch.compile and wrap_ddp make of one; each rank brings its own rows of the batch.
    seeds: integers of which the dropout is a function. micro_batches: into how many the batch is cut, their gradients added
    up: without dropout the same update within less memory. dtype: see logits_of.
    """
    device = batch.tokens.device
    seed_device(device, *seeds)
    optimizer.zero_grad(set_to_none=True)
    loss = torch.zeros((), device=device)
    size = math.ceil(len(batch.tokens) / micro_batches)
    with interruptible(world_size() == 1):  # torch.compile may take minutes here, and nothing but gradients has changed yet
        for row in range(0, len(batch.tokens), size):
            micro_batch = batch.rows(slice(row, row + size))
            part = cross_entropy(logits_of(model, micro_batch, dtype), micro_batch.targets, reduction="sum") / batch.num_targets
            (part * world_size()).backward()  # DistributedDataParallel takes the mean over the ranks
            loss += part.detach()
    all_reduce_sum(loss)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]  # model.parameters() takes longer
    norm = torch.nn.utils.clip_grad_norm_(parameters, gradient_clip)
    finite = torch.isfinite(norm + loss)
    step_if_finite(finite, optimizer, learning_rate)
    end_step(device)
    return torch.where(finite, loss, torch.nan)


def step_if_finite(finite, optimizer, learning_rate):
    """Step `optimizer` if the tensor `finite` says so, without a device sync if its kernel knows torch.amp's `found_inf`."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    if optimizer.defaults.get("fused") and fused_adamw(finite.device).supports_found_inf:
        optimizer.found_inf, optimizer.grad_scale = (~finite).float(), None
        optimizer.step()
    elif bool(finite):
        optimizer.step()
