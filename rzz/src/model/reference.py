"""The slow, plain ways of doing what the rest of the program does fast: what benchmark.py measures it against.

    rows = encoded_one_by_one(indexes, values)
    losses = train_plainly(PlainGPT.with_weights_of(model), [whole_rows(dataset, 0, 128)])

Nothing here is used by the stages.
"""

from importlib import import_module

import mpmath
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from common.config import CONTEXT
from model.tokenizer import END, PAD, encode, row_text, targets_of_rows, token_ids, trajectories, zero_text
from transformer import nucleus_sample, on_device


def mpmath_zeros(first, count):
    return [mpmath.zetazero(i).imag for i in range(first, first + count)]


def flint_zeros(first, count):
    return [zero.imag.mid() for zero in import_module("flint").acb.zeta_zeros(first, count)]


def encoded_one_by_one(indexes, values):
    """Return the rows (n, 32) of zeros, one text after the other."""
    pairs = zip(indexes.tolist(), values.tolist(), strict=True)
    return np.array([encode(row_text(index, value)) for index, value in pairs], np.uint8)


class PlainGPT(nn.Module):
    """A GPT as the textbooks have it, with learned positions: what model.index_embedding "digits" is, on rows of 32."""

    def __init__(self, d_model, num_layers, num_heads):
        super().__init__()
        self.num_heads = num_heads
        self.token_embedding = nn.Embedding(len(token_ids), d_model)
        self.position_embedding = nn.Embedding(CONTEXT, d_model)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({
                "attention_norm": nn.LayerNorm(d_model),
                "query_key_value": nn.Linear(d_model, 3 * d_model),
                "attention_output": nn.Linear(d_model, d_model),
                "feed_forward_norm": nn.LayerNorm(d_model),
                "hidden": nn.Linear(d_model, 4 * d_model),
                "output": nn.Linear(4 * d_model, d_model),
            })
            for _ in range(num_layers)
        )  # fmt: skip
        self.final_norm = nn.LayerNorm(d_model)
        self.head = nn.Linear(d_model, len(token_ids))

    @classmethod
    def with_weights_of(cls, model):
        """A PlainGPT that computes what the Transformer `model`, of index_embedding "digits", computes."""
        plain = cls(model.config.d_model, model.config.num_layers, model.config.num_heads).to(model.head.weight.device)
        plain.token_embedding.load_state_dict(model.token_embedding.state_dict())
        plain.position_embedding.weight.data.copy_(model.position_embedding.position.weight[:CONTEXT])
        for block, ours in zip(plain.blocks, model.blocks, strict=True):
            for part in ("weight", "bias"):
                both = torch.cat([getattr(ours.attention.query, part), getattr(ours.attention.key_value, part)])
                getattr(block["query_key_value"], part).data.copy_(both)
            block["attention_norm"].load_state_dict(ours.attention_norm.state_dict())
            block["attention_output"].load_state_dict(ours.attention.output.state_dict())
            block["feed_forward_norm"].load_state_dict(ours.feed_forward_norm.state_dict())
            block["hidden"].load_state_dict(ours.feed_forward.hidden.state_dict())
            block["output"].load_state_dict(ours.feed_forward.output.state_dict())
        plain.final_norm.load_state_dict(model.final_norm.state_dict())
        plain.head.load_state_dict(model.head.state_dict())
        return plain

    def forward(self, tokens):
        """Return the logits (B, T, 16) of the token after each of `tokens` (B, T), int64."""
        B, T = tokens.shape
        x = self.token_embedding(tokens) + self.position_embedding(torch.arange(T, device=tokens.device))
        for block in self.blocks:
            query_key_value = block["query_key_value"](block["attention_norm"](x))
            query, key, value = (part.view(B, T, self.num_heads, -1).transpose(1, 2) for part in query_key_value.chunk(3, dim=-1))
            mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
            x = x + block["attention_output"](mixed.transpose(1, 2).reshape(B, T, -1))
            x = x + block["output"](F.gelu(block["hidden"](block["feed_forward_norm"](x))))
        return self.head(self.final_norm(x))


def whole_rows(dataset, start, size):
    """Return (inputs, targets), int64 (size, 31): one row of 32 a zero."""
    rows = encoded_one_by_one(dataset.indexes[start : start + size], dataset.values[start : start + size])
    return torch.from_numpy(rows[:, :-1]).long(), torch.from_numpy(targets_of_rows(rows)).long()


def literal_trajectories(dataset, start, size):
    """Return (inputs, targets), int64 (trajectories, 31), of the specification read literally: each in a padded row of its own."""
    inputs, targets = [], []
    for k in range(start, min(start + size, len(dataset))):
        for prefix, character in trajectories(zero_text(int(dataset.indexes[k]), int(dataset.values[k]))):
            inputs.append(encode(prefix.ljust(CONTEXT - 1, "p")))
            targets.append([PAD] * (CONTEXT - 1))
            targets[-1][len(prefix) - 1] = token_ids[character]
    return torch.tensor(inputs), torch.tensor(targets)


def train_reference(model, batches, learning_rate=1e-3):
    """Train a PlainGPT the usual way, one update for each of `batches`, and return the losses. batches: see the two above."""
    device = model.head.weight.device
    embeddings = [model.token_embedding.weight, model.position_embedding.weight]
    matrices = [p for p in model.parameters() if p.dim() >= 2 and not any(p is embedding for embedding in embeddings)]
    others = [p for p in model.parameters() if not any(p is matrix for matrix in matrices)]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95))
    losses = []
    for inputs, targets in batches:
        logits = model(inputs.to(device))
        loss = F.cross_entropy(logits.flatten(0, 1), targets.to(device).flatten(), ignore_index=PAD)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses).tolist()


@torch.no_grad()
def generate_without_cache(model, prompts, indexes, uniforms, p):
    """What transformer.generate does, the whole row computed anew for each token. Returns rows (n, runs, 32)."""
    n, runs, _ = uniforms.shape
    device = model.head.weight.device
    rows = np.full((n * runs, CONTEXT), PAD, np.uint8)
    rows[:, : prompts.shape[1]] = np.repeat(prompts, runs, axis=0)
    uniforms = uniforms.reshape(n * runs, CONTEXT)
    finished = np.zeros(n * runs, bool)
    for column in range(prompts.shape[1], CONTEXT):
        features = on_device(model.position_embedding.features(rows, np.repeat(indexes, runs)), device)
        logits = model(torch.from_numpy(rows).to(device).long(), features)[:, column - 1]
        rows[:, column] = nucleus_sample(logits.cpu(), p, uniforms[:, column]).numpy()
        finished |= rows[:, column] == END
        if finished.all():
            break
    return rows.reshape(n, runs, CONTEXT)
