"""What one training step is, for the stages that train: the model, the loss, the optimizer, the schedule.

    model = build_model(config.model, seed=1).to(device)
    optimizer = make_optimizer(model, config.training)
    for step, batch in enumerate(batches(model, dataset, batch_size=128)):
        loss = training_step(model, optimizer, batch, learning_rate=1e-3, gradient_clip=1.0, seeds=(1, step))
"""

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from common.devices import end_step, fused_adamw, seed_device, slicing_device
from common.processes import all_reduce_sum, world_size
from data_utils import PAD
from index_embedding import IndexEmbedding, IndexFeatures
from transformer import Transformer, TransformerConfig, evaluating, on_device

CHUNK = 4096  # zeros whose features are prepared at once: enough that numpy's cost per call does not count, 8 MB
VALIDATION_BATCH = 512  # zeros; memory for activations alone, no effect on the result


def build_model(model, seed):
    """Return a new Transformer of the sizes in a ModelConfig, its weights drawn on the CPU from `seed`."""
    torch.manual_seed(seed)
    d_k, d_v, d_ff = model.head_sizes()
    config = TransformerConfig(model.d_model, model.num_layers, model.num_heads, d_k, d_v, d_ff, model.dropout)
    return Transformer(config, IndexEmbedding(model.index_embedding, model.d_model, model.max_prime))


def parameter_count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def make_optimizer(model, training):
    """Return AdamW over the model's parameters; weight decay on matrices alone, not on biases, norms and embeddings."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    decayed = [p for p in model.parameters() if p.dim() >= 2 and id(p) not in embeddings]
    others = [p for p in model.parameters() if p.dim() < 2 or id(p) in embeddings]
    groups = [{"params": decayed, "weight_decay": training.weight_decay}, {"params": others, "weight_decay": 0.0}]
    fused = fused_adamw(model.head.weight.device).there
    return torch.optim.AdamW(groups, lr=training.learning_rate, betas=(0.9, 0.95), fused=fused)


def learning_rate_at(step, total_steps, training):
    """Return the learning rate of update `step` (from 0) of `total_steps`: linear warm-up, then cosine decay to zero.

    A function of the step alone, so there is no scheduler to save.
    """
    if step < training.warmup_steps:
        return training.learning_rate * (step + 1) / (training.warmup_steps + 1)
    done = (step - training.warmup_steps) / max(1, total_steps - training.warmup_steps)
    return training.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


class Batch(NamedTuple):
    """B zeros in index order, as the model reads them."""

    tokens: torch.Tensor  # int64 (B, T)
    targets: torch.Tensor  # int64 (B, T - first): of the columns from the first ':' on
    features: IndexFeatures  # of all columns
    asked: int  # trajectories in the batch that is one update, of which this may be a piece

    @property
    def first(self):
        """The column of the first target."""
        return self.tokens.shape[1] - self.targets.shape[1]

    def piece(self, rows):
        """Return the part of it at `rows`, a slice."""
        features = IndexFeatures(*(None if part is None else part[rows] for part in self.features))
        return Batch(self.tokens[rows], self.targets[rows], features, self.asked)

    def to(self, device):
        return Batch(self.tokens.to(device), self.targets.to(device), on_device(self.features, device), self.asked)


def batches(model, dataset, batch_size, start=0, rank=0, processes=1):
    """Yield a Batch on the model's device for each update of an epoch, from row `start` on, a multiple of `batch_size`.

    All are of the same shape, the last one filled up with rows that carry no loss. They are prepared a chunk at a time,
    the next chunk in the background while this one is trained on, and chunks begin at the same rows wherever a training
    is resumed. Of several processes each gets its share of every batch, by its rank.
    """
    device = model.head.weight.device
    size = batch_size * max(1, CHUNK // batch_size)
    share = math.ceil(batch_size / processes)
    mine = rank * share + np.arange(share)  # rows of a batch; the last process may have too few

    def prepare(row):
        return background.submit(prepared, model.position_embedding, dataset, row, size, batch_size, mine)

    chunks = range(start // size * size, len(dataset), size)
    with ThreadPoolExecutor(max_workers=1) as background:
        upcoming = [prepare(row) for row in chunks[:1]]
        for row in chunks:
            chunk, asked = upcoming.pop().result()
            if row != chunks[-1]:
                upcoming.append(prepare(row + size))
            chunk = chunk.to(slicing_device(device))
            for number, asked_here in enumerate(asked):
                if row + number * batch_size >= start:
                    batch = chunk.piece(slice(number * share, (number + 1) * share)).to(device)
                    yield batch._replace(asked=asked_here)


def prepared(position_embedding, dataset, row, size, batch_size, mine):
    """Return (chunk, asked): of up to `size` rows from `row` on, in batches, the rows `mine` of each as one Batch on the CPU,
    and for each batch how many trajectories all of it has.

    By numpy alone: a second thread that calls torch's operations has threads of its own for them, more than there are
    cores, and OpenMP then lets all of them sleep between operations, which makes training on a CPU a quarter slower.
    """
    size = math.ceil(min(size, len(dataset) - row) / batch_size) * batch_size
    tokens, targets, indexes = dataset.batch(row, size)
    asked = (targets != PAD).reshape(size // batch_size, -1).sum(1).tolist()
    chosen = (np.arange(0, size, batch_size)[:, None] + np.minimum(mine, batch_size - 1)).ravel()
    tokens, targets, indexes = tokens[chosen], targets[chosen, dataset.first :], indexes[chosen]
    targets[np.tile(mine >= batch_size, size // batch_size)] = PAD
    features = position_embedding.features(tokens, indexes)
    tokens, targets = (torch.from_numpy(array.astype(np.int64)) for array in (tokens, targets))
    return Batch(tokens, targets, features, sum(asked)), asked


def logits_of(model, batch, dtype=torch.float32):
    """Return the logits (B, T - first, 16), float32, for the targets of a Batch. dtype: of its products, float32 or bfloat16."""
    with torch.autocast(batch.tokens.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
        return model(batch.tokens, batch.features, first=batch.first).float()


def cross_entropy(logits, targets, reduction="mean"):
    """Return the mean (or sum, or each) cross entropy over all trajectories of a batch, in nats per token.

    logits: (B, T, 16). targets: int64 (B, T), 'p' where there is nothing to predict. The same number, and the same
    gradients, as feeding each trajectory as a padded row of its own, because no position sees a later one.
    """
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=PAD, reduction=reduction)


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
    update_if(finite, optimizer, learning_rate)
    end_step(device)
    return torch.where(finite, loss, torch.nan)


def update_if(finite, optimizer, learning_rate):
    """Step `optimizer` where the boolean tensor `finite` says so.

    Most fused kernels look at it on the device (`found_inf`, made for torch.amp.GradScaler), so nobody waits for it.
    """
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    if fused_adamw(finite.device).heeds_found_inf:
        optimizer.found_inf, optimizer.grad_scale = (~finite).float(), None
        optimizer.step()
    elif bool(finite):
        optimizer.step()


@dataclass
class CrossEntropy:
    """Teacher-forced measures of a model on a set of zeros."""

    nats_per_zero: float
    nats_per_token: float
    accuracy_by_position: list[float]  # share of right most-probable characters: first character of the value, second, …


def cross_entropy_of(model, dataset):
    """Return the CrossEntropy of `model` over all of `dataset`. Sums are float64, on the CPU."""
    device = model.head.weight.device
    nats = 0.0
    right, asked = torch.zeros(dataset.width), torch.zeros(dataset.width)
    with evaluating(model):
        for batch in batches(model, dataset, min(VALIDATION_BATCH, len(dataset))):
            logits, targets = logits_of(model, batch), batch.targets
            losses = cross_entropy(logits, targets, reduction="none")
            hits = logits.argmax(-1) == targets
            end_step(device)
            nats += losses.cpu().double().sum().item()
            asked_here, hits = (targets != PAD).cpu(), hits.cpu()
            position = asked_here.long().cumsum(1) - 1  # which character of the value a column is
            right.index_add_(0, position[asked_here], hits[asked_here].float())
            asked.index_add_(0, position[asked_here], torch.ones(int(asked_here.sum())))
    tokens_in_all = asked.double().sum().item()
    reached = asked > 0
    return CrossEntropy(nats / len(dataset), nats / tokens_in_all, (right[reached] / asked[reached]).tolist())
