"""Sums of waves over whole numbers and prime powers, at the heights where the next digit of a zero could end.

    waves = BoundaryWaves(config.model)
    features = waves.prepare(features)                   # what Boundaries.features returns, with the sums
    vectors, above_ten = waves(features)                 # (B, T, d_model), (B, 1)

One of the parts of an index embedding is made of this (model.index_embedding.Boundaries).
"""

import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from common.devices import rows_at_once

# The heights at which phases are taken, as steps from where a slot begins: about the multiple of ten nearest to γ̄, for the carries
# of all higher digits; and at the eleven ends of the ten intervals that the units, tenths and hundredths cut.
STEPS = (np.arange(-1, 2), np.arange(11), np.arange(11) / 10, np.arange(11) / 100)
SIZES = [len(steps) for steps in STEPS]
NUMBER_CHANNELS, PRIME_CHANNELS, SPLINES = 8, 4, 10
FADE = 14.0  # how steeply whole numbers fade about √(t/2π), in log n; rzz/results.md says why
HIDDEN, DECISIONS = 24, 8  # units of the two layers that read a boundary
FAINTEST = -30.0  # the logarithm of what the window lets through: less makes gradients subnormal, with which CPUs multiply slowly


class Waves(nn.Module):
    """Channels G_h(t) = Re Σ c_h(n) exp(−i t log n) at all STEPS; the complex weights c_h(n) are splines of log n that are learned.

    A weight of its own for every n learns the zeros at one height and has forgotten them 10,000 zeros later. With splines, all
    that is done for each n is the same whatever has been learned: no gradient goes through it, and trials that are trained as
    one model share it. apart: None, or bool (N,): which n have splines of their own.
    """

    def __init__(self, numbers, channels, apart=None, std=0.1):
        super().__init__()
        logs = np.log(numbers)
        basis = cubic_splines((logs - logs[0]) / max(logs.max() - logs[0], 1e-9), SPLINES)
        basis = basis if apart is None else np.concatenate([basis * ~apart, basis * apart])  # (K, N)
        turns = np.concatenate(STEPS)[:, None, None] * logs  # (boundaries, 1, N)
        cos, sin = basis * np.cos(turns), basis * np.sin(turns)
        # Of exp(−i(a + b)) the real part is cos a cos b − sin a sin b, the imaginary part −cos a sin b − sin a cos b.
        table = np.concatenate([np.concatenate([cos, -sin], axis=2), np.concatenate([-sin, -cos], axis=2)], axis=1)
        self.register_buffer("table", torch.tensor(table, dtype=torch.float32), persistent=False)  # (boundaries, 2 K, 2 N)
        self.weight = nn.Parameter(torch.randn(channels, 2 * len(basis)) * std)  # of c_h, real parts and −1 times imaginary ones

    def sums(self, wave, slot):
        """Return Σ b(n) exp(−i t log n) for the K splines b at the boundaries of a slot: (B, steps, 2 K), real parts first.

        wave: (B, 2 N), cos and sin of t log n where the slot begins.
        """
        table = self.table.split(SIZES)[slot]
        return F.linear(wave, table.flatten(0, 1)).unflatten(-1, (len(table), -1))

    def forward(self, sums):
        """Return the channels (B, boundaries, channels). sums: what `sums` returns, of all boundaries."""
        return F.linear(sums, self.weight)


def largest_power(settings):
    """Return up to where prime powers are summed: those among the whole numbers have their phases already."""
    return max(settings.max_prime, settings.max_number)


class BoundaryWaves(nn.Module):
    """The two sums at all boundaries, and the layers that read them: the part of Boundaries (which see) that is learned."""

    def __init__(self, settings):
        super().__init__()
        base = prime_powers(largest_power(settings))
        n = np.arange(len(base))
        kept = (n >= 1) & ((n <= settings.max_number) | (base > 1))
        others, powers = n[kept & (base == 1)], n[kept & (base > 1)]
        self.numbers = np.concatenate([others, powers])  # so that both sums are over a slice
        self.summed, self.powers = int((self.numbers <= settings.max_number).sum()), len(powers)
        self.over_numbers = Waves(self.numbers[: self.summed], NUMBER_CHANNELS)
        self.over_powers = Waves(powers, PRIME_CHANNELS, apart=powers != base[powers], std=0.01)
        inputs = NUMBER_CHANNELS + PRIME_CHANNELS + 1
        self.count, self.window = nn.Linear(PRIME_CHANNELS, 1), nn.Parameter(torch.tensor([6.0, 0.5]))
        self.hidden, self.decision = nn.Linear(inputs, HIDDEN), nn.Linear(HIDDEN + inputs, DECISIONS)
        self.carry = nn.Linear(SIZES[0] * DECISIONS, 1)
        self.output = nn.ModuleList(nn.Linear(size * DECISIONS, settings.d_model) for size in SIZES[1:])
        self.digits = nn.Parameter(torch.randn(10, settings.d_model))  # as those before the units are told, see Boundaries
        tables = {"logs": np.log(self.numbers), "steps": np.concatenate(STEPS)}
        for name, table in tables.items():
            self.register_buffer(name, torch.tensor(table, dtype=torch.float32), persistent=False)

    def prepare(self, features):
        """Return `features` with the sums instead of the phases, and how much each column is told of each slot."""
        kept = {name: feature for name, feature in features.items() if name != "phase"}
        if not begins(features):
            return kept
        rows, numbers = features["phase"].shape
        size = rows_at_once(features["phase"].device, 2 * numbers)
        starts = range(0, rows, size)
        pieces = [self.sums({name: feature[row : row + size] for name, feature in features.items()}) for row in starts]
        sums = {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}
        chosen = [features["slot"] == slot for slot in begins(features) if slot > 0]
        told = {"told": torch.stack(chosen, dim=-1) * features["weight"][..., None]} if chosen else {}  # (B, T, slots)
        return kept | sums | told

    def sums(self, features):
        """Return what is summed at every boundary: Waves.sums "over_numbers", faded and turned, and "over_powers", and "above",
        which is r, (B, boundaries, 1)."""
        density = features["density"]
        share = (FADE * (math.pi * density - self.logs[: self.summed])).sigmoid()[:, None]  # of log(√(γ̄/2π) / n)
        phase = 2 * math.pi * torch.stack([features["phase"], features["phase"] - 0.25], dim=1)  # sin x = cos(x − π/2)
        over_numbers, over_powers, above = [], [], []
        for slot, begin in begins(features).items():
            above.append((begin[:, None] + self.steps.split(SIZES)[slot]) * density)
            wave = torch.addcmul(phase, begin[:, None, None], self.logs).cos_()  # (B, 2, N)
            over_powers.append(self.over_powers.sums(wave[..., -self.powers :].flatten(1), slot))
            over_numbers.append(self.over_numbers.sums((wave[..., : self.summed] * share).flatten(1), slot))
        re, im = torch.cat(over_numbers, dim=1).chunk(2, dim=-1)
        above = torch.cat(above, dim=1)[..., None]
        cos, sin = (math.pi * above).cos(), (math.pi * above).sin()
        turned = torch.cat([cos * re - sin * im, cos * im + sin * re], dim=-1)
        return {"over_numbers": turned, "over_powers": torch.cat(over_powers, dim=1), "above": above}

    def forward(self, features):
        """Return the vectors (B, T, d_model) and how likely each zero lies above the multiple of ten nearest to γ̄, (B, 1).

        0 for what no column asks for.
        """
        slots = list(begins(features))
        if not slots:
            return 0.0, torch.zeros_like(features["density"])
        turned, primes = self.over_numbers(features["over_numbers"]), self.over_powers(features["over_powers"])
        turned = turned * (1 + turned.square().mean(-1, keepdim=True)).rsqrt()
        # About N(t) − (i − 1/2); where it is far from 0, the sign belongs to another zero.
        count = features["above"] + self.count(primes)
        window = self.window[0] * (self.window[1] - count.square())
        turned = turned * window.clamp(min=FAINTEST).sigmoid()
        read = torch.cat([turned, primes, count.clamp(-3, 3)], dim=-1)
        decided = self.decision(torch.cat([self.hidden(read).tanh(), read], dim=-1)).tanh()
        decided = dict(zip(slots, (part.flatten(1) for part in decided.split([SIZES[slot] for slot in slots], dim=1)), strict=True))
        above_ten = self.carry(decided.pop(0)).sigmoid() if 0 in decided else torch.zeros_like(features["density"])
        if not decided:
            return 0.0, above_ten
        of_slots = torch.stack([self.output[slot - 1](part) for slot, part in decided.items()], dim=1)  # (B, slots, d_model)
        return features["told"] @ of_slots, above_ten


def begins(features):
    """Return {slot: where it begins, (B,), as height above γ̄} of the slots that a column asks for: all of them in training."""
    return {slot: features[f"begin_{slot}"] for slot in range(len(STEPS)) if f"begin_{slot}" in features}


def cubic_splines(x, count):
    """Return the basis of the cubic splines on [0, 1] over count − 3 equal intervals, at the points x (N,): float64 (count, N).

    The uniform B-splines (de Boor, "A practical guide to splines", 1978): at every point four are above 0, and all add up to 1.
    """
    distance = np.abs(np.asarray(x) * (count - 3) - np.arange(-1, count - 1)[:, None])
    return np.where(distance < 1, 4 - 6 * distance**2 + 3 * distance**3, np.maximum(0, 2 - distance) ** 3) / 6


def primes_up_to(limit):
    """Return the primes up to `limit` as an int64 array, by the sieve of Eratosthenes."""
    is_prime = np.ones(limit + 1, bool)
    is_prime[:2] = False
    for number in range(2, math.isqrt(limit) + 1):
        if is_prime[number]:
            is_prime[number * number :: number] = False
    return np.flatnonzero(is_prime)


def prime_powers(limit):
    """Return for each of 0 … limit the prime of which it is a power, else 1; int64 (limit + 1,)."""
    base = np.ones(limit + 1, np.int64)
    for prime in primes_up_to(limit).tolist():
        power = prime
        while power <= limit:
            base[power], power = prime, power * prime
    return base
