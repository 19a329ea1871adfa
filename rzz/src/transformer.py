"""The decoder-only transformer, from basic building blocks, and its token-by-token generation.

    config = TransformerConfig(d_model=128, num_layers=4, num_heads=4, d_k=32, d_v=32, d_ff=512)
    model = Transformer(config, position_embedding)
    logits = model(tokens, features)            # (B, T) -> (B, T, 16)

What a token's place in the row means is not decided here: `position_embedding` is a module that turns `features` into
vectors of size d_model, which are added to the token embeddings (model/index_embedding.py has the kinds).

Pre-norm blocks as in Xiong et al., "On layer normalization in the transformer architecture" (2020); attention as in
Vaswani et al., "Attention is all you need" (2017), masked explicitly and in float32: the fused kernels have given wrong
results on Apple's GPUs, and at 32 tokens they are no faster.
"""

from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of the model. d_k and d_v are the dimensions of one head's keys and values."""

    d_model: int
    num_layers: int
    num_heads: int
    d_k: int
    d_v: int
    d_ff: int
    dropout: float = 0.0
    vocabulary_size: int = 16
    context: int = 32


class CausalSelfAttention(nn.Module):
    """Multi-head attention in which a position sees itself and those before it."""

    def __init__(self, config):
        super().__init__()
        self.num_heads, self.d_k, self.d_v = config.num_heads, config.d_k, config.d_v
        self.query = nn.Linear(config.d_model, config.num_heads * config.d_k)
        self.key_value = nn.Linear(config.d_model, config.num_heads * (config.d_k + config.d_v))
        self.output = nn.Linear(config.num_heads * config.d_v, config.d_model)
        self.attention_dropout = nn.Dropout(config.dropout)
        later = torch.ones(config.context, config.context, dtype=torch.bool).triu(diagonal=1)
        self.register_buffer("later", later, persistent=False)

    def forward(self, x, cache=None, start=0, first=0):
        """x: (B, T, d_model), standing at positions start … start + T - 1. Returns (B, T - first, d_model).

        cache: None, or this layer's (keys, values) of shapes (B, H, context, d_k) and (B, H, context, d_v), which hold
        what came before `start` and take in what is new. first: the first of the T columns whose result is wanted.
        """
        B, T, _ = x.shape
        query = self.query(x[:, first:].contiguous())  # Apple's F.linear has been wrong if it is not (pytorch#161640)
        key, value = self.key_value(x).split([self.num_heads * self.d_k, self.num_heads * self.d_v], dim=-1)
        query = query.view(B, T - first, self.num_heads, self.d_k).transpose(1, 2)  # (B, H, T - first, d_k)
        key = key.view(B, T, self.num_heads, self.d_k).transpose(1, 2)
        value = value.view(B, T, self.num_heads, self.d_v).transpose(1, 2)
        if cache is not None:
            keys, values = cache
            keys[:, :, start : start + T], values[:, :, start : start + T] = key, value
            key, value = keys[:, :, : start + T], values[:, :, : start + T]
        scores = (query @ key.transpose(-2, -1)) * self.d_k**-0.5  # (B, H, T - first, start + T)
        scores = scores.masked_fill(self.later[start + first : start + T, : start + T], float("-inf"))
        mixed = self.attention_dropout(scores.softmax(dim=-1)) @ value  # (B, H, T - first, d_v)
        return self.output(mixed.transpose(1, 2).reshape(B, T - first, self.num_heads * self.d_v))


class FeedForward(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.hidden = nn.Linear(config.d_model, config.d_ff)
        self.output = nn.Linear(config.d_ff, config.d_model)

    def forward(self, x):
        return self.output(F.gelu(self.hidden(x)))


class Block(nn.Module):
    """Attention, then feed-forward, each normalised before and added to what went in."""

    def __init__(self, config):
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.d_model)
        self.attention = CausalSelfAttention(config)
        self.feed_forward_norm = nn.LayerNorm(config.d_model)
        self.feed_forward = FeedForward(config)
        self.residual_dropout = nn.Dropout(config.dropout)

    def forward(self, x, cache=None, start=0, first=0):
        x = x[:, first:] + self.residual_dropout(self.attention(self.attention_norm(x), cache, start, first))
        return x + self.residual_dropout(self.feed_forward(self.feed_forward_norm(x)))


class Transformer(nn.Module):
    """Decoder-only transformer over a small vocabulary.

    position_embedding: a module with
        features(tokens, indexes, start=0) -> dictionary of CPU tensors for the columns from `start` of uint8 tokens (B, T),
        given the int64 indexes (B,) of the rows,
        prepare(features) -> what of it, on the device, needs no weights, and
        forward(features) -> (B, T, d_model) tensor of what `prepare` returns.
    """

    def __init__(self, config, position_embedding):
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocabulary_size, config.d_model)
        self.position_embedding = position_embedding
        self.embedding_dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.final_norm = nn.LayerNorm(config.d_model)
        self.head = nn.Linear(config.d_model, config.vocabulary_size)
        self.apply(self.initialise)
        for block in self.blocks:  # the sum of 2 · num_layers residuals starts with the variance of one (GPT-2)
            for last in (block.attention.output, block.feed_forward.output):
                nn.init.normal_(last.weight, std=0.02 * (2 * config.num_layers) ** -0.5)

    @staticmethod
    def initialise(module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)

    def forward(self, tokens, features, cache=None, start=0, first=0):
        """Return the logits (B, T - first, vocabulary_size) of the token after each of `tokens` (B, T), int64.

        features: what `features` returns for these columns. cache, start: see
        new_cache and CausalSelfAttention; without a cache the columns are 0 … T - 1. first: the first of the T columns
        whose logits are wanted; those before it need not go through the last block, only be seen by it.
        """
        x = self.embedding_dropout(self.token_embedding(tokens) + self.position_embedding(features))
        last = len(self.blocks) - 1
        for layer, block in enumerate(self.blocks):
            x = block(x, None if cache is None else cache[layer], start, first if layer == last else 0)
        return self.head(self.final_norm(x))

    def features(self, tokens, indexes, start=0):
        """Return what forward takes for the columns from `start` of uint8 tokens (B, T), given the int64 indexes (B,)."""
        features = self.position_embedding.features(tokens, indexes, start)
        return self.position_embedding.prepare(on_device(features, self.head.weight.device))

    def new_cache(self, batch_size):
        """Return empty keys and values of every layer for `batch_size` rows, on the model's device."""
        shape = (batch_size, self.config.num_heads, self.config.context)
        zeros = self.head.weight.new_zeros
        return [(zeros(*shape, self.config.d_k), zeros(*shape, self.config.d_v)) for _ in self.blocks]


def nucleus_sample(logits, p, uniform):
    """Draw one token a row by nucleus sampling (Holtzman et al., "The curious case of neural text degeneration", 2020).

    The nucleus is the smallest set of most probable tokens whose probabilities reach `p`; p = 0 is greedy. logits: (B, V) on
    the CPU, so that sampling is exact on every machine. uniform: (B,) random numbers in [0, 1) that decide. Returns int64 (B,).
    """
    probability, token = logits.double().softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
    cumulated = probability.cumsum(dim=-1)
    outside = cumulated - probability >= p
    outside[:, 0] = False
    cumulated = probability.masked_fill(outside, 0.0).cumsum(dim=-1)
    drawn = (cumulated <= uniform.double()[:, None] * cumulated[:, -1:]).sum(dim=-1)
    last_inside = (~outside).sum(dim=-1) - 1  # rounding must not draw a token outside of the nucleus
    return token.gather(1, torch.minimum(drawn, last_inside)[:, None])[:, 0]


@contextmanager
def evaluating(model):
    """No dropout and no gradient within the block; after it `model` is in the mode that it was in."""
    mode = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(mode)


def generate(model, prompts, indexes, uniforms, p, end_token):
    """Continue `prompts` until every row has `end_token` or the context is full.

    prompts: uint8 (n, P) on the CPU, one per zero. indexes: int64 (n,). uniforms: (n, runs, context) random numbers in
    [0, 1) on the CPU; run r of zero k draws column c with uniforms[k, r, c]. Returns the rows, uint8
    (n, runs, context) on the CPU, undefined after a row's end_token.

    The runs of a zero share the keys and values of its prompt; after that each step computes one column. Sampling happens
    on the CPU: Apple's device-side sampling has returned tokens of probability zero.
    """
    device = model.head.weight.device
    n, length = prompts.shape
    runs, context = uniforms.shape[1], model.config.context
    rows = torch.zeros(n * runs, context, dtype=torch.uint8)
    rows[:, :length] = prompts.repeat_interleave(runs, dim=0)
    row_indexes = indexes.repeat_interleave(runs)
    row_uniforms = uniforms.reshape(n * runs, -1)
    finished = torch.zeros(n * runs, dtype=torch.bool)

    with evaluating(model):
        cache = model.new_cache(n)
        features = model.features(prompts, indexes)
        logits = model(prompts.to(device).long(), features, cache, first=length - 1)[:, 0].repeat_interleave(runs, dim=0)
        cache = [tuple(part.repeat_interleave(runs, dim=0) for part in layer) for layer in cache]
        for column in range(length, context):
            rows[:, column] = nucleus_sample(logits.cpu(), p, row_uniforms[:, column]).to(torch.uint8)
            finished |= rows[:, column] == end_token
            if column == context - 1 or bool(finished.all()):
                break
            features = model.features(rows[:, : column + 1], row_indexes, start=column)
            logits = model(rows[:, column : column + 1].to(device).long(), features, cache, column)[:, 0]
    return rows.view(n, runs, context)


def on_device(features, device):
    """Return the dictionary of tensors `features` with every tensor on `device`."""
    return {name: feature.to(device) for name, feature in features.items()}
