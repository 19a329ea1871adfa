"""The network as the stages use it: built from the settings, its logits and loss on a batch, its measures on a dataset.

    model = build_model(config.model, seed=1).to(device)
    cross_entropy_of(model, dataset).nats_per_zero
"""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from common.devices import end_step
from model.batches import iterate_batches
from model.index_embedding import IndexEmbedding
from model.tokenizer import PAD
from transformer import Transformer, TransformerConfig, evaluating

VALIDATION_BATCH = 512  # zeros; memory for activations alone, no effect on the result


def build_model(settings, seed):
    """Return a new Transformer of the sizes in a ModelConfig, its weights drawn on the CPU from `seed`."""
    torch.manual_seed(seed)
    d_k, d_v, d_ff = settings.head_sizes()
    sizes = TransformerConfig(settings.d_model, settings.num_layers, settings.num_heads, d_k, d_v, d_ff, settings.dropout)
    return Transformer(sizes, IndexEmbedding(settings))


def parameter_count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def logits_of(model, batch, dtype=torch.float32):
    """Return the logits (B, T - first, 16), float32, for the targets of a Batch. dtype: of its products, float32 or bfloat16."""
    with torch.autocast(batch.tokens.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
        return model(batch.tokens, batch.features, first=batch.first).float()


def cross_entropy(logits, targets, reduction="mean"):
    """Return the mean (or sum, or each) cross entropy over all trajectories of a batch, in nats per token.

    logits: (B, T, 16). targets: int64 (B, T), 'p' if there is nothing to predict. Value and gradients are those of feeding
    each trajectory as a padded row of its own, because no position sees a later one.
    """
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=PAD, reduction=reduction)


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
    right, count = torch.zeros(dataset.width), torch.zeros(dataset.width)
    with evaluating(model):
        for batch in iterate_batches(model, dataset, min(VALIDATION_BATCH, len(dataset))):
            logits, targets = logits_of(model, batch), batch.targets
            losses = cross_entropy(logits, targets, reduction="none")
            hits = logits.argmax(-1) == targets
            end_step(device)
            nats += losses.cpu().double().sum().item()
            is_target, hits = (targets != PAD).cpu(), hits.cpu()
            position = is_target.long().cumsum(1) - 1  # which character of the value a column is
            right.index_add_(0, position[is_target], hits[is_target].float())
            count.index_add_(0, position[is_target], torch.ones(int(is_target.sum())))
    reached = count > 0
    return CrossEntropy(nats / len(dataset), nats / count.double().sum().item(), (right[reached] / count[reached]).tolist())
