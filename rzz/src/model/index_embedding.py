"""What the model is told about the index beyond its digits: four kinds, each told more than the one before.

    digits   a learned vector per column of the row: the specification read plainly
    place    a learned vector per distance from ':', so that a digit's place value is known
    smooth   also the smooth count γ̄ of the index, as what of it is left to write after the characters so far
    primes   also the phases γ̄·log p of the primes up to max_prime

    embedding = IndexEmbedding("primes", d_model=128, max_prime=1000)
    vectors = embedding(embedding.features(tokens, indexes))         # (B, T, 128)

γ̄(i) solves θ(γ̄)/π + 1 = i − 1/2: it is a formula of the index (riemann_siegel.smooth_zeros) and knows no zero. The zero
lies, to first order, −S(γ̄) mean spacings above it, formally the sum over primes (1/π) Σ sin(k γ̄ log p) / (k p^{k/2}), so
the phases are what a network needs to go on. The characters so far are those of the row itself, the model's
own when it generates: column c is told nothing that depends on a later column.

All of it is computed on the CPU in int64 and float64: γ̄·log p is 10^7 and more radians, whose fraction float32 does not hold.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from common.config import CONTEXT, INDEX_EMBEDDINGS
from model.tokenizer import COLON, DECIMALS, POINT
from zeta.riemann_siegel import smooth_zeros

FIXED = 10**6  # γ̄ and values so far are int64 in millionths
POWERS = 10 ** np.arange(19, dtype=np.int64)
LOWEST, HIGHEST = -2, 11  # the digit that is left, clipped: below 0 or above 9 says that a carry was missed
NEXT_IS_POINT, NEXT_IS_END, NOTHING_LEFT = HIGHEST - LOWEST + 1, HIGHEST - LOWEST + 2, HIGHEST - LOWEST + 3
CLIP_SPACINGS = 8.0  # mean spacings; what is farther away is told by the digit and the fraction alone
MAX_OFFSET = 2.0  # mean spacings from γ̄ within which a zero is looked for
DISTANCES = 4  # numbers a column that residual_features gives beside the digits


class IndexFeatures(NamedTuple):
    """What an IndexEmbedding reads; CPU tensors, or None where the kind has no use for them."""

    position: torch.Tensor  # int64 (B, T): the column, or 32 + its distance from ':'
    digit: torch.Tensor | None = None  # int64 (B, T): ⌊u⌋ - LOWEST, or one of the NEXT_ and NOTHING_ codes
    other: torch.Tensor | None = None  # int64 (B, T): the same for the digit across the nearer multiple of 10^k
    weight: torch.Tensor | None = None  # float32 (B, T): how possible that other digit is, 0 … 1
    distance: torch.Tensor | None = None  # float32 (B, T, 4): fraction of u; distances in mean spacings, see residual_features
    phase: torch.Tensor | None = None  # float32 (B, primes): γ̄ log p / 2π modulo 1


class IndexEmbedding(nn.Module):
    """The position embedding of a Transformer. kind: one of INDEX_EMBEDDINGS."""

    def __init__(self, kind, d_model, max_prime=1000):
        super().__init__()
        if kind not in INDEX_EMBEDDINGS:
            raise ValueError(f"index embedding {kind!r} is not one of {', '.join(INDEX_EMBEDDINGS)}")
        self.kind = kind
        self.position = nn.Embedding(2 * CONTEXT, d_model)
        if kind in ("smooth", "primes"):
            self.digit = nn.Embedding(NOTHING_LEFT + 1, d_model)
            self.other = nn.Embedding(NOTHING_LEFT + 1, d_model)
            self.distance = nn.Linear(DISTANCES, d_model)
        if kind == "primes":
            self.primes = primes_up_to(max_prime)
            self.phase_hidden = nn.Linear(2 * len(self.primes), d_model)
            self.phase_output = nn.Linear(d_model, d_model)

    def forward(self, features):
        """Return the vectors (B, T, d_model) of IndexFeatures on this module's device."""
        x = self.position(features.position)
        if self.kind in ("smooth", "primes"):
            x = x + self.digit(features.digit) + self.distance(features.distance)
            x = x + self.other(features.other) * features.weight[..., None]
        if self.kind == "primes":
            angle = features.phase * (2 * math.pi)
            waves = torch.cat([angle.cos(), angle.sin()], dim=-1)
            told = self.phase_output(F.gelu(self.phase_hidden(waves)))
            x = x + told[:, None] * features.weight[..., None]  # where the digit is certain, phases could only blur it
        return x

    def features(self, tokens, indexes, start=0):
        """Return the IndexFeatures of the columns from `start` on.

        tokens: uint8 (B, T), numpy or CPU tensor, of rows that begin 'b<index>:'. indexes: int64 (B,), at least 1.
        """
        tokens, indexes = np.asarray(tokens), np.asarray(indexes, np.int64)
        if self.kind == "digits":
            columns = np.arange(start, tokens.shape[1])
            return IndexFeatures(torch.from_numpy(np.tile(columns, (len(tokens), 1))))
        position = torch.from_numpy(position_from_colon(tokens, start))
        if self.kind == "place":
            return IndexFeatures(position)
        smooth = smooth_zeros(indexes)
        digit, other, weight, distance = residual_features(tokens, smooth, start)
        told = [torch.from_numpy(array) for array in (digit.astype(np.int64), other.astype(np.int64), weight, distance)]
        phase = torch.from_numpy(prime_phases(smooth, self.primes)) if self.kind == "primes" else None
        return IndexFeatures(position, *told, phase)


def position_from_colon(tokens, start=0):
    """Return int64 (B, T - start): 32 + column - column of the first ':'. The digit of 10^k of the index has 31 - k."""
    colon = (tokens == COLON).argmax(1)[:, None]
    return CONTEXT + np.arange(start, tokens.shape[1]) - colon


def residual_features(tokens, smooth, start=0):
    """Return what of the smooth count is left to write at each column: digit codes and distances.

    At a column after which the character of place value 10^k comes, the remainder of γ̄ after the characters so far is
    u · 10^k. The first code is ⌊u⌋, clipped to -2 … 11. A zero is within a spacing or two of γ̄, so where a multiple of
    10^k is near, the digit across it is possible too: the second code is that digit, with a weight that falls from 1 at
    the multiple to 0 at POSSIBLE mean spacings. The distances are the fraction of u and, in mean spacings over FARTHEST
    and clipped to [-1, 1], the remainder, how far γ̄ lies above ⌊u⌋ · 10^k, and how far below (⌊u⌋ + 1) · 10^k. Before
    the point, k counts down from γ̄'s own number of digits, for the value's is not known yet.

    tokens: uint8 (B, T). smooth: float64 (B,), γ̄. Returns (code, other code, weight, distances): uint8 (B, T - start)
    twice, float32 (B, T - start) and (B, T - start, 4).
    """
    B, T = tokens.shape
    columns = np.ascontiguousarray(tokens.T)
    goal = np.rint(smooth * FIXED).astype(np.int64)
    whole_digits = np.searchsorted(POWERS, goal // FIXED, side="right")  # of γ̄
    to_spacings = np.log(smooth / (2 * math.pi)) / (2 * math.pi) / FIXED / CLIP_SPACINGS
    code, other = (np.full((T - start, B), NOTHING_LEFT, np.uint8) for _ in range(2))
    weight = np.zeros((T - start, B), np.float32)
    distance = np.zeros((T - start, DISTANCES, B), np.float32)

    written = np.zeros(B, np.int64)  # the characters so far as a number, in millionths, places as γ̄ has them
    place = whole_digits - 1  # k of the next digit
    after_colon, after_point = np.zeros(B, bool), np.zeros(B, bool)
    for column in range(T):
        token = columns[column]
        if after_colon.any():
            is_digit = after_colon & (token < 10)
            unit = np.where(place >= -6, POWERS[np.clip(place + 6, 0, 18)], 0)
            written = np.where(is_digit, written + token * unit, written)
            is_point = after_colon & (token == POINT)
            # A point earlier or later than γ̄ has it settles the true places of what stands before it.
            shift = place + 1
            if (is_point & (shift != 0)).any():
                moved = np.where(shift > 0, written // POWERS[np.clip(shift, 0, 18)], written * POWERS[np.clip(-shift, 0, 18)])
                written = np.where(is_point & ~after_point, moved, written)
            place = np.where(is_digit, place - 1, np.where(is_point & ~after_point, -1, place))
            after_point |= is_point
        after_colon |= token == COLON
        if column < start or not after_colon.any():
            continue
        left = goal - written
        unit = POWERS[np.clip(place + 6, 0, 18)]
        u = np.floor_divide(left, unit)
        wants_point = after_colon & ~after_point & (place < 0)
        wants_end = after_colon & after_point & (place < -DECIMALS)
        wants_digit = after_colon & ~wants_point & ~wants_end
        above = left - u * unit
        below = unit - above
        across = u + np.where(above < below, -1, 1)
        code[column - start] = np.select(
            [wants_digit, wants_point, wants_end],
            [np.clip(u, LOWEST, HIGHEST) - LOWEST, NEXT_IS_POINT, NEXT_IS_END], NOTHING_LEFT)  # fmt: skip
        other[column - start] = np.where(wants_digit, np.clip(across, LOWEST, HIGHEST) - LOWEST, NOTHING_LEFT)
        nearness = 1 - np.minimum(above, below) * (to_spacings * CLIP_SPACINGS / MAX_OFFSET)
        weight[column - start] = np.where(wants_digit, np.maximum(nearness, 0), 0)
        told = distance[column - start]
        told[0] = np.where(wants_digit, above / unit, 0)
        told[1] = np.where(after_colon, np.clip(left * to_spacings, -1, 1), 0)
        told[2] = np.where(wants_digit, np.minimum(above * to_spacings, 1), 0)
        told[3] = np.where(wants_digit, np.minimum(below * to_spacings, 1), 0)
    by_row = (np.ascontiguousarray(array.T) for array in (code, other, weight))
    return *by_row, np.ascontiguousarray(distance.transpose(2, 0, 1))


def prime_phases(smooth, primes):
    """Return γ̄ log p / 2π modulo 1 as float32 (B, primes), reduced in float64."""
    turns = np.asarray(smooth)[:, None] * (np.log(primes) / (2 * math.pi))
    turns -= np.floor(turns)
    return turns.astype(np.float32)


def primes_up_to(limit):
    """Return the primes up to `limit` as an int64 array, by the sieve of Eratosthenes."""
    is_prime = np.ones(limit + 1, bool)
    is_prime[:2] = False
    for number in range(2, math.isqrt(limit) + 1):
        if is_prime[number]:
            is_prime[number * number :: number] = False
    return np.flatnonzero(is_prime)
