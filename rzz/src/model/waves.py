"""Sums of waves over whole numbers and prime powers, at the heights where the next digit of a zero could end.

    waves = BoundaryWaves(config.model)
    vectors, above_ten = waves(features)                 # (B, T, d_model), (B, 1); features: what Boundaries.features returns

One of the parts of an index embedding is made of this (model.index_embedding.Boundaries).
"""

import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

# The heights at which phases are taken, as steps from where a slot begins: about the multiple of ten nearest to γ̄, for the carries
# of all higher digits; and at the eleven ends of the ten intervals that the units, tenths and hundredths cut.
STEPS = (np.arange(-1, 2), np.arange(11), np.arange(11) / 10, np.arange(11) / 100)
SIZES = [len(steps) for steps in STEPS]
NUMBER_CHANNELS, PRIME_CHANNELS, KNOTS = 4, 2, 8
HIDDEN, DECISIONS = 24, 8  # units of the two layers that read a boundary
FAINTEST = -30.0  # the logarithm of what the window lets through: less makes gradients subnormal, with which CPUs multiply slowly


class Waves(nn.Module):
    """Channels G_h(t) = Σ c_h(n) exp(−i t log n) at all STEPS, with complex weights c_h that are learned functions of log n.

    c_h(n) = n^(−s_h) · (piecewise linear in log n between KNOTS values); s_h begins at 0. A weight of its own for every n learns
    the zeros at one height and has forgotten them 10,000 zeros later. apart: None, or bool (N,): which n have knots of their own.
    """

    def __init__(self, numbers, channels, apart=None, std=0.1):
        super().__init__()
        logs = np.log(numbers)
        position = (logs - logs[0]) / max(logs.max() - logs[0], 1e-9) * (KNOTS - 1)
        hats = np.maximum(0, 1 - np.abs(position - np.arange(KNOTS)[:, None]))
        hats = hats if apart is None else np.concatenate([hats * ~apart, hats * apart])
        turns = np.concatenate(STEPS)[:, None, None] * logs  # (boundaries, 1, N)
        self.shape = nn.Parameter(torch.randn(2, channels, len(hats)) * std)
        self.fall = nn.Parameter(torch.zeros(channels, 1))
        for name, table in (("logs", logs), ("hats", hats), ("cos", np.cos(turns)), ("sin", np.sin(turns))):
            self.register_buffer(name, torch.tensor(table, dtype=torch.float32), persistent=False)

    def forward(self, waves):
        """waves: of each slot (2, B, N), cos and sin of t log n at its beginning. Returns (re, im), (B, boundaries, channels) each.

        Of the first so many slots: what no column asks for is not computed, see Boundaries.features.
        """
        re, im = (self.shape @ self.hats) * (-self.fall * self.logs).exp()
        weights, quarter_turn_back = torch.cat([re, im]), torch.cat([im, -re])  # (2 channels, N)
        sums = []
        for wave, cos, sin in zip(waves, self.cos.split(SIZES), self.sin.split(SIZES), strict=False):
            # A step of u turns wave n by −u log n. The weights are turned instead: they are few, and the same for all rows.
            turned = torch.addcmul(weights * cos, quarter_turn_back, sin)  # (steps, 2 channels, N)
            sums.append(F.linear(wave, turned.flatten(0, 1)).unflatten(-1, (len(cos), 2, -1)))
        (cos_re, cos_im), (sin_re, sin_im) = (each.unbind(2) for each in torch.cat(sums, dim=2))
        return cos_re + sin_im, cos_im - sin_re


class BoundaryWaves(nn.Module):
    """The two sums at all boundaries, and the layers that read them: the part of Boundaries (which see) that is learned."""

    def __init__(self, settings):
        super().__init__()
        base = prime_powers(max(settings.max_prime, settings.max_number))
        n = np.arange(len(base))
        kept = (n >= 1) & ((n <= settings.max_number) | ((base > 1) & (n <= settings.max_prime)))
        others, powers = n[kept & (base == 1)], n[kept & (base > 1)]
        self.numbers = np.concatenate([others, powers])  # so that both sums are over a slice
        self.summed, self.powers = int((self.numbers <= settings.max_number).sum()), len(powers)
        self.over_numbers = Waves(self.numbers[: self.summed], NUMBER_CHANNELS)
        self.over_powers = Waves(powers, PRIME_CHANNELS, apart=powers != base[powers], std=0.01)
        self.fade = nn.Parameter(torch.tensor([-0.8, 0.0]))
        inputs = 2 * (NUMBER_CHANNELS + PRIME_CHANNELS) + 1
        self.count, self.window = nn.Linear(2 * PRIME_CHANNELS, 1), nn.Parameter(torch.tensor([6.0, 0.5]))
        self.hidden, self.decision = nn.Linear(inputs, HIDDEN), nn.Linear(HIDDEN + inputs, DECISIONS)
        self.carry = nn.Linear(SIZES[0] * DECISIONS, 1)
        self.output = nn.ModuleList(nn.Linear(size * DECISIONS, settings.d_model) for size in SIZES[1:])
        self.digits = nn.Parameter(torch.randn(10, settings.d_model))  # as those before the units are told, see Boundaries
        tables = {"logs": np.log(self.numbers), "steps": np.concatenate(STEPS)}
        for name, table in tables.items():
            self.register_buffer(name, torch.tensor(table, dtype=torch.float32), persistent=False)
        self.register_buffer("slots", torch.arange(len(STEPS)), persistent=False)
        self.register_buffer("slot_of_step", self.slots.repeat_interleave(torch.tensor(SIZES)), persistent=False)

    def sums(self, features):
        """Return what is summed at every boundary: (turned, primes, above), float32 (B, boundaries, 2 NUMBER_CHANNELS),
        (B, boundaries, 2 PRIME_CHANNELS) and (B, boundaries, 1), real parts first. above is r."""
        offset, density = features["offset"], features["density"]
        phase = features["phase"] * (2 * math.pi)
        angles = (torch.addcmul(phase, begin[:, None], self.logs) for begin in offset.t())
        waves = [torch.stack([angle.cos(), angle.sin()]) for angle in angles]  # (2, B, N) of each slot, which a core's cache holds
        slope, shift = self.fade
        share = (10 * slope * (self.logs[: self.summed] - math.pi * density) + 10 * shift).sigmoid()  # of log(n / √(γ̄/2π))
        re, im = self.over_numbers([wave[..., : self.summed] * share for wave in waves])
        primes_re, primes_im = self.over_powers([wave[..., -self.powers :] for wave in waves])
        boundaries = sum(SIZES[: offset.shape[1]])
        above = ((offset[:, self.slot_of_step[:boundaries]] + self.steps[:boundaries]) * density)[..., None]
        cos, sin = (math.pi * above).cos(), (math.pi * above).sin()
        turned = torch.cat([cos * re - sin * im, cos * im + sin * re], dim=-1)
        return turned, torch.cat([primes_re, primes_im], dim=-1), above

    def forward(self, features):
        """Return the vectors (B, T, d_model) and how likely each zero lies above the multiple of ten nearest to γ̄, (B, 1).

        0 for what no column asks for.
        """
        slots = features["offset"].shape[1]
        if not slots:
            return 0.0, torch.zeros_like(features["density"])
        turned, primes, above = self.sums(features)
        turned = turned * (1 + turned.square().mean(-1, keepdim=True)).rsqrt()
        count = above + self.count(primes)  # about N(t) − (i − 1/2); where it is far from 0, the sign belongs to another zero
        window = self.window[0] * (self.window[1] - count.square())
        turned = turned * window.clamp(min=FAINTEST).sigmoid()
        read = torch.cat([turned, primes, count.clamp(-3, 3)], dim=-1)
        decided = self.decision(torch.cat([self.hidden(read).tanh(), read], dim=-1)).tanh()
        decided = [part.flatten(1) for part in decided.split(SIZES[:slots], dim=1)]
        above_ten = self.carry(decided[0]).sigmoid()
        if slots == 1:
            return 0.0, above_ten
        of_slots = [output(part) for output, part in zip(self.output, decided[1:], strict=False)]
        chosen = (features["slot"][..., None] == self.slots[1:slots]) * features["weight"][..., None]  # (B, T, slots - 1)
        return chosen @ torch.stack(of_slots, dim=1), above_ten


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
