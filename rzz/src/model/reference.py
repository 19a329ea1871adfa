"""Slow, plain versions of what the rest of the program does fast: what benchmark.py and the tests compare it with.

    rows = encoded_one_by_one(indexes, values)
    plain = PlainGPT(model)
    losses = train_reference(plain, torch.optim.AdamW(plain.parameters()), [whole_rows(dataset, 0, 128)])

The stages use nothing of it.
"""

from copy import deepcopy
from importlib import import_module

import mpmath
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from common.config import CONTEXT
from model.tokenizer import END, PAD, encode, row_text, targets_of_rows, trajectories, zero_text
from transformer import nucleus_sample


def mpmath_zeros(first, count):
    """Return the zeros first … first + count - 1 as mpmath computes them."""
    return [mpmath.zetazero(i).imag for i in range(first, first + count)]


def flint_zeros(first, count):
    """Return the same by python-flint. Raises ModuleNotFoundError if it is not installed."""
    return [zero.imag.mid() for zero in import_module("flint").acb.zeta_zeros(first, count)]


def encoded_one_by_one(indexes, values):
    """Return the rows of zeros, uint8 (n, 32), one text after the other."""
    pairs = zip(indexes.tolist(), values.tolist(), strict=True)
    return np.array([encode(row_text(index, value)) for index, value in pairs], np.uint8)


class PlainGPT(nn.Module):
    """A textbook GPT with learned positions: the model that model.index_embedding "digits" stands for, on rows of 32."""

    def __init__(self, model):
        """Copy the weights of the Transformer `model`, whose index_embedding is "digits": both compute the same logits."""
        super().__init__()
        model = deepcopy(model)
        self.num_heads, self.token_embedding = model.config.num_heads, model.token_embedding
        positions = model.position_embedding.position.weight[:CONTEXT].detach().clone()
        self.position_embedding = nn.Embedding.from_pretrained(positions, freeze=False)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({
                "attention_norm": block.attention_norm,
                "query_key_value": concatenated(block.attention.query, block.attention.key_value),
                "attention_output": block.attention.output,
                "feed_forward_norm": block.feed_forward_norm,
                "hidden": block.feed_forward.hidden,
                "output": block.feed_forward.output,
            })
            for block in model.blocks
        )  # fmt: skip
        self.final_norm, self.head = model.final_norm, model.head

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


def concatenated(*layers):
    """Return one nn.Linear that computes what all of these nn.Linear `layers` do, side by side."""
    layer = nn.Linear(layers[0].in_features, sum(each.out_features for each in layers))
    layer.load_state_dict({name: torch.cat([getattr(each, name) for each in layers]) for name in ("weight", "bias")})
    return layer


def whole_rows(dataset, start, size):
    """Return (inputs, targets), int64 (size, 31): one row of 32 tokens a zero."""
    rows = encoded_one_by_one(dataset.indexes[start : start + size], dataset.values[start : start + size])
    return torch.from_numpy(rows[:, :-1]).long(), torch.from_numpy(targets_of_rows(rows)).long()


def literal_trajectories(dataset, start, size):
    """Return (inputs, targets), int64 (trajectories, 31): each prefix of a zero's text as a padded row of its own."""
    inputs, targets = [], []
    for k in range(start, min(start + size, len(dataset))):
        for prefix, character in trajectories(zero_text(int(dataset.indexes[k]), int(dataset.values[k]))):
            inputs.append(encode(prefix.ljust(CONTEXT - 1, "p")))
            targets.append(encode(character.rjust(len(prefix), "p").ljust(CONTEXT - 1, "p")))
    return torch.tensor(inputs), torch.tensor(targets)


def train_reference(model, optimizer, batches, gradient_clip=1.0):
    """Train a PlainGPT with one update for each of `batches`, (inputs, targets) of one of the above; return the losses."""
    device = model.head.weight.device
    losses = []
    for inputs, targets in batches:
        logits = model(inputs.to(device))
        loss = F.cross_entropy(logits.flatten(0, 1), targets.to(device).flatten(), ignore_index=PAD)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), gradient_clip)
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses).tolist()


@torch.no_grad()
def generate_without_cache(model, prompts, indexes, uniforms, p):
    """Return the rows, uint8 (n, runs, 32), of transformer.generate by computing the whole row again for each token."""
    n, runs, _ = uniforms.shape
    device = model.head.weight.device
    rows = np.repeat(np.pad(prompts, ((0, 0), (0, CONTEXT - prompts.shape[1])), constant_values=PAD), runs, axis=0)
    for column in range(prompts.shape[1], CONTEXT):
        logits = model(torch.from_numpy(rows).to(device).long(), model.features(rows, np.repeat(indexes, runs)))[:, column - 1]
        rows[:, column] = nucleus_sample(logits.cpu(), p, uniforms.reshape(n * runs, CONTEXT)[:, column]).numpy()
        if (rows == END).any(1).all():
            break
    return rows.reshape(n, runs, CONTEXT)
