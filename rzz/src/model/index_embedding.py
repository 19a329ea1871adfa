"""What the model is told about the index: kinds of embedding, each a list of parts whose vectors are added up.

    digits   a learned vector per column of the row, and nothing else
    place    a learned vector per distance from ':', so that a digit's place value is known
    smooth   also the smooth count γ̄ of the index, as what of it is left to write after the characters so far
    primes   also the phases γ̄·log p of the primes up to max_prime
    waves    instead of them the phases of all whole numbers and of prime powers at the heights where the next digit could end

    embedding = IndexEmbedding(config.model)
    vectors = embedding(embedding.features(tokens, indexes))         # (B, T, d_model)

KINDS lists the parts of each kind: a new kind is a class and a line. A part is a module made from a ModelConfig, with

    description             what it tells the model, in words, for the help and the model card
    features(rows)          {name: CPU tensor of shape (B, T, ...) or (B, ...)} of some IndexRows
    prepare(features)       if it has it: the features of all parts on the device, with what is computed there without weights
    forward(features)       the vectors that it adds, a list of (B, T, d_model); features: those of all parts
    cost(settings, T)       the PartCost of rows of T columns, for the forecasts

γ̄(i) solves θ(γ̄)/π + 1 = i − 1/2: a formula of the index alone (zeta.riemann_siegel.smooth_zeros), not of any zero. The zero
lies, to first order, −S(γ̄) mean spacings above it, formally the sum over primes (1/π) Σ sin(k γ̄ log p) / (k p^{k/2}), so
the phases are what a network can learn it from. The characters so far are those of the row itself, the model's
own when it generates: the features of column c depend on no later column.

All of it is computed on the CPU in int64 and float64: γ̄·log p is 10^7 and more radians, whose fraction float32 does not hold.
"""

import math
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from common.config import CONTEXT, UserError
from model.tokenizer import COLON, DECIMALS, POINT
from model.waves import (
    DECISIONS,
    HIDDEN,
    NUMBER_CHANNELS,
    PRIME_CHANNELS,
    SIZES,
    SPLINES,
    STEPS,
    BoundaryWaves,
    largest_power,
    prime_powers,
    primes_up_to,
)
from zeta.riemann_siegel import smooth_zeros, theta

FIXED = 10**6  # γ̄ and values so far are int64 in millionths
POWERS = 10 ** np.arange(19, dtype=np.int64)
LOWEST, HIGHEST = -2, 11  # the digit that is left, clipped: below 0 or above 9 says that a carry was missed
NEXT_IS_POINT, NEXT_IS_END, NOTHING_LEFT = HIGHEST - LOWEST + 1, HIGHEST - LOWEST + 2, HIGHEST - LOWEST + 3
CLIP_SPACINGS = 8.0  # distances in mean spacings are clipped here; the digit and the fraction tell what is farther away
MAX_OFFSET = 2.0  # mean spacings from γ̄ within which a zero is looked for
DISTANCES = 4  # per column, see residual_features
NO_SLOT = DECIMALS + 2  # of a column after which no digit of the value comes; 0 before the units, then one for each digit
NUMBERS_MARGIN = 1.6  # of max_number over √(t/2π): the largest whole numbers of the main sum begin to count before it ends
MAX_WRITTEN_OFFSET = 12.0  # what is written minus γ̄ is clipped here: the characters so far may be wrong


class PartCost(NamedTuple):
    """What a part takes."""

    parameters: int
    products: int = 0  # multiply-adds of the forward pass of a row
    row_floats: int = 0  # that autograd keeps of a row for the backward pass
    data_products: int = 0  # multiply-adds of preparing a row
    data_floats: int = 0  # that are made for them


@dataclass
class IndexRows:
    """Rows of which the features of the columns from `start` on are asked for, on the CPU."""

    tokens: np.ndarray  # uint8 (B, T): each begins 'b<index>:'
    indexes: np.ndarray  # int64 (B,)
    start: int

    @cached_property
    def smooth(self):
        """γ̄ of each index, float64 (B,)."""
        return smooth_zeros(self.indexes)

    @cached_property
    def residual(self):
        """What residual_features returns."""
        return residual_features(self.tokens, self.smooth, self.start)


class ColumnPosition(nn.Module):
    """A learned vector per column of the row."""

    description = "its digits"

    def __init__(self, settings):
        super().__init__()
        self.position = nn.Embedding(2 * CONTEXT, settings.d_model)

    def features(self, rows):
        columns = np.arange(rows.start, rows.tokens.shape[1])
        return {"position": torch.from_numpy(np.tile(columns, (len(rows.tokens), 1)))}

    def forward(self, features):
        return [self.position(features["position"])]

    @staticmethod
    def cost(settings, T):
        return PartCost(2 * CONTEXT * settings.d_model)


class PlaceValue(ColumnPosition):
    """A learned vector per distance from ':'."""

    description = "its digits and their place values"

    def features(self, rows):
        return {"position": torch.from_numpy(position_from_colon(rows.tokens, rows.start))}


class SmoothCount(nn.Module):
    """What of the smooth count γ̄ is left to write: the next digit, the other one that is possible, and distances."""

    description = "where the smooth count puts the zero"

    def __init__(self, settings):
        super().__init__()
        self.digit = nn.Embedding(NOTHING_LEFT + 1, settings.d_model)
        self.other = nn.Embedding(NOTHING_LEFT + 1, settings.d_model)
        self.distance = nn.Linear(DISTANCES, settings.d_model)

    def features(self, rows):
        names = ("digit", "neighbor_digit", "weight", "distance")
        return {name: torch.from_numpy(array) for name, array in zip(names, rows.residual, strict=False)}

    def forward(self, features):
        neighbor = self.other(features["neighbor_digit"]) * features["weight"][..., None]
        return [self.digit(features["digit"]), self.distance(features["distance"]), neighbor]

    @staticmethod
    def cost(settings, T):
        return PartCost((2 * (NOTHING_LEFT + 1) + DISTANCES + 1) * settings.d_model, T * DISTANCES * settings.d_model)


class PrimePhases(nn.Module):
    """A small network over cos and sin of γ̄·log p, added if another digit is possible: it could only blur a certain one."""

    description = "the phases of the primes up to {max_prime} at that height"

    def __init__(self, settings):
        super().__init__()
        self.primes = primes_up_to(settings.max_prime)
        self.phase_hidden = nn.Linear(2 * len(self.primes), settings.d_model)
        self.phase_output = nn.Linear(settings.d_model, settings.d_model)

    def features(self, rows):
        return {"phase": torch.from_numpy(phases_of(rows.smooth, self.primes))}

    def prepare(self, features):
        angle = features["phase"] * (2 * math.pi)
        return features | {"wave": torch.cat([angle.cos(), angle.sin()], dim=-1)}

    def forward(self, features):
        vector = self.phase_output(F.gelu(self.phase_hidden(features["wave"])))
        return [vector[:, None] * features["weight"][..., None]]

    @staticmethod
    def cost(settings, T):
        matrices = (2 * len(primes_up_to(settings.max_prime)) + settings.d_model) * settings.d_model  # once a row
        return PartCost(matrices + 2 * settings.d_model, matrices)


class Boundaries(SmoothCount):
    """What the phases say of the next digit: whether the zero lies before or after each height at which the digit would change.

    At a height t, r = (t − γ̄) · density is how many zeros the smooth count has more than i − 1/2. Two sums are learned there:
    over whole numbers, turned by exp(iπr) as the main sum of the Riemann-Siegel formula changes its sign at every zero, fading
    about n = √(t/2π); and over prime powers, as S(t) is made up. Two layers, the same at every boundary, read both sums and r,
    and a linear layer for each of units, tenths and hundredths reads what they say of it.

    For the digits before the units, they say on which side of the multiple of ten nearest to γ̄ the zero lies: that chooses
    between the digit that γ̄ has left and the one across, and nothing else is told there. So a carry at the thousands, which
    hardly any zero has, is learned from those at the tens. The vector of that digit is the same in all of these columns and
    far longer than that of the character before, and none of them is told its place: leading digits stay the same for a million
    zeros, and weights that can tell their columns apart learn the digit instead of copying it, and write it when it has changed.
    """

    description = (f"{SmoothCount.description}, the phases of whole numbers to {{max_number}} and prime powers to {{max_power}} "
                   "where its next digit could end")  # fmt: skip

    def __init__(self, settings):
        super().__init__(settings)
        self.place = nn.Embedding(NO_SLOT + 1, settings.d_model)
        self.waves = BoundaryWaves(settings)

    def features(self, rows):
        numbers, offset, slot = self.waves.numbers, *rows.residual[4:]
        begin = [(np.rint(rows.smooth / 10) * 10 - rows.smooth).astype(np.float32)]
        begin += [np.where(slot == number, offset, np.float32(0)).sum(1) for number in range(1, len(STEPS))]
        asked = np.unique(slot[slot < len(STEPS)])  # what no column asks for is not computed; in training all are
        density = (np.log(rows.smooth / (2 * math.pi)) / (2 * math.pi)).astype(np.float32)[:, None]
        arrays = {"phase": phases_of(rows.smooth, numbers if len(asked) else numbers[:0]), "density": density, "slot": slot,
                  **{f"begin_{number}": begin[number] for number in asked}}  # fmt: skip
        return super().features(rows) | {name: torch.from_numpy(array) for name, array in arrays.items()}

    def prepare(self, features):
        code, neighbor = features["digit"], features["neighbor_digit"]
        is_open = (features["weight"] > 0).float()
        up = (neighbor > code).float()
        # Where the digits so far leave no choice, both are the same: 9 for what is above it, 0 for what is below.
        choice = {"own": (code + LOWEST).clamp(0, 9), "across": (neighbor + LOWEST).clamp(0, 9),
                  "before_units": (features["slot"] == 0)[..., None],
                  "share": (is_open * (1 - up))[..., None], "share_above": (is_open * (2 * up - 1))[..., None]}  # fmt: skip
        return self.waves.prepare(features) | choice

    def forward(self, features):
        with torch.autocast(features["density"].device.type, enabled=False):  # bfloat16 would lose the sums
            vectors, above_ten = self.waves(features)
        # One of the two digits and not a mixture, which may be read as a third; its gradient is the mixture's.
        above_ten = (above_ten > 0.5).float() + (above_ten - above_ten.detach())
        share = torch.addcmul(features["share"], features["share_above"], above_ten[..., None])  # of the digit across
        own, across = (F.embedding(features[name], self.waves.digits) for name in ("own", "across"))
        from_units_on = sum(super().forward(features)) + self.place(features["slot"])
        return [torch.where(features["before_units"], own + share * (across - own), from_units_on), vectors]

    @staticmethod
    def cost(settings, T):
        is_power = prime_powers(largest_power(settings)) > 1
        numbers, powers, beyond = settings.max_number, int(is_power.sum()), int(is_power[settings.max_number + 1 :].sum())
        inputs = NUMBER_CHANNELS + PRIME_CHANNELS + 1
        sums = 2 * SPLINES * (NUMBER_CHANNELS + 2 * PRIME_CHANNELS)
        layers = (inputs + 1) * HIDDEN + (inputs + HIDDEN + 1) * DECISIONS
        output = (sum(SIZES[1:]) * DECISIONS + len(SIZES[1:])) * settings.d_model + SIZES[0] * DECISIONS + 1
        over_splines = sum(SIZES) * 4 * SPLINES * (numbers + 2 * powers)
        products = sum(SIZES) * (sums + layers) + output
        row_floats = sum(SIZES) * (6 * SPLINES + 5 * HIDDEN)
        waves = len(STEPS) * 2 * (numbers + beyond)
        smooth = SmoothCount.cost(settings, T)
        parameters = smooth.parameters + sums + PRIME_CHANNELS + 3 + layers + output + (NO_SLOT + 1 + 10) * settings.d_model
        return PartCost(parameters, smooth.products + products, row_floats, over_splines, waves)


KINDS = {
    "digits": (ColumnPosition,),
    "place": (PlaceValue,),
    "smooth": (PlaceValue, SmoothCount),
    "primes": (PlaceValue, SmoothCount, PrimePhases),
    "waves": (Boundaries,),
}


class IndexEmbedding(nn.Module):
    """The position embedding of a Transformer. settings: a ModelConfig, of which each part takes what it needs."""

    def __init__(self, settings):
        super().__init__()
        # Not an nn.ModuleList: the modules of all parts keep the names in state_dict that they had before there were parts.
        self.parts = tuple(part(settings) for part in parts_of(settings.index_embedding))
        for part in self.parts:
            for name, module in part.named_children():
                assert not hasattr(self, name), f"two parts of {settings.index_embedding!r} have a module {name!r}"
                self.add_module(name, module)
        parameters = [parameter for part in self.parts for parameter in part.parameters()]
        assert len(parameters) == len(list(self.parameters())), "a part keeps its parameters in modules, under their own names"

    @torch.no_grad()
    def prepare(self, features):
        """Return what forward takes, for a dictionary of features on this module's device: no gradient goes through this."""
        for part in self.parts:
            features = part.prepare(features) if hasattr(part, "prepare") else features
        return features

    def forward(self, features):
        """Return the vectors (B, T, d_model) of what `prepare` returns."""
        return reduce(torch.add, [vector for part in self.parts for vector in part(features)])

    def features(self, tokens, indexes, start=0):
        """Return the features of the columns from `start` on, as a dictionary of CPU tensors.

        tokens: uint8 (B, T), numpy or CPU tensor, of rows that begin 'b<index>:'. indexes: int64 (B,), at least 1.
        """
        rows = IndexRows(np.asarray(tokens), np.asarray(indexes, np.int64), start)
        return {name: feature for part in self.parts for name, feature in part.features(rows).items()}


def parts_of(kind):
    """Return the classes of the parts of a kind; UserError for an unknown one."""
    if kind not in KINDS:
        raise UserError(f"model.index_embedding is {kind!r}, not one of {', '.join(KINDS)}.")
    return KINDS[kind]


def embedding_cost(settings, T):
    """Return the PartCost of all parts of the embedding of a ModelConfig together, for rows of T columns."""
    return PartCost(*map(sum, zip(*(part.cost(settings, T) for part in parts_of(settings.index_embedding)), strict=True)))


def describe_embedding(settings, kind=None):
    """Return what a model of these settings is told about the index, as a phrase. kind: another one than the settings'."""
    parts = parts_of(kind or settings.index_embedding)
    values = {**vars(settings), "max_power": largest_power(settings)}
    return ", ".join(part.description.format_map(values) for part in parts)


def numbers_in_main_sum(index):
    """Return √(t/2π) at the height of a zero: how many whole numbers the main sum of the Riemann-Siegel formula has there."""
    return math.sqrt(smooth_zeros(index) / (2 * math.pi))


def last_zero_of_numbers(max_number):
    """Return the index of the last zero t at which `max_number` is NUMBERS_MARGIN √(t/2π) or more; 0 if there is none."""
    height = 2 * math.pi * (max_number / NUMBERS_MARGIN) ** 2
    return max(0, math.floor(theta(height) / math.pi + 1)) if height > 7 else 0  # θ(t)/π + 1 is the smooth count; no zero below 14


def position_from_colon(tokens, start=0):
    """Return int64 (B, T - start): 32 + column - column of the first ':'. The digit of 10^k of the index has 31 - k."""
    colon = (tokens == COLON).argmax(1)[:, None]
    return CONTEXT + np.arange(start, tokens.shape[1]) - colon


def residual_features(tokens, smooth, start=0):
    """Return what of the smooth count is left to write at each column: digit codes and distances.

    At a column after which the character of place value 10^k comes, the remainder of γ̄ after the characters so far is
    u · 10^k. The first code is ⌊u⌋, clipped to -2 … 11. A zero is within a spacing or two of γ̄, so if a multiple of
    10^k is near, the digit across it is possible too: the second code is that digit, with a weight that falls from 1 at
    the multiple to 0 at MAX_OFFSET mean spacings. The distances are the fraction of u and, in mean spacings over
    CLIP_SPACINGS and clipped to [-1, 1], the remainder, how far γ̄ lies above ⌊u⌋ · 10^k, and how far below (⌊u⌋ + 1) · 10^k.
    Before the point, k counts down from γ̄'s own number of digits, for the value's is not known yet.

    tokens: uint8 (B, T). smooth: float64 (B,), γ̄. Returns (code, neighbor's code, weight, distances, offset, slot): int64
    (B, T - start) twice, float32 (B, T - start) and (B, T - start, 4); what is written minus γ̄, float32 (B, T - start), clipped;
    and the slot, int64 (B, T - start): 0 for k ≥ 1, one for each of k = 0, -1, …, of which the first have STEPS; else NO_SLOT.
    """
    B, T = tokens.shape
    columns = np.ascontiguousarray(tokens.T)
    target = np.rint(smooth * FIXED).astype(np.int64)
    to_spacings = np.log(smooth / (2 * math.pi)) / (2 * math.pi) / FIXED / CLIP_SPACINGS
    code, neighbor_code = (np.full((T - start, B), NOTHING_LEFT, np.int64) for _ in range(2))
    weight = np.zeros((T - start, B), np.float32)
    distance = np.zeros((T - start, DISTANCES, B), np.float32)
    offset, slot = np.zeros((T - start, B), np.float32), np.full((T - start, B), NO_SLOT, np.int64)
    rows, seen = np.arange(B), np.zeros((NO_SLOT + 1, B), bool)  # seen: slots of earlier columns

    written = np.zeros(B, np.int64)  # the characters so far as a number, in millionths, places as γ̄ has them
    exponent = np.searchsorted(POWERS, target // FIXED, side="right") - 1  # k of the next digit
    after_colon, after_point = np.zeros(B, bool), np.zeros(B, bool)
    for column in range(T):
        token = columns[column]
        if after_colon.any():
            is_digit = after_colon & (token < 10)
            unit = np.where(exponent >= -6, POWERS[np.clip(exponent + 6, 0, 18)], 0)
            written = np.where(is_digit, written + token * unit, written)
            is_point = after_colon & (token == POINT)
            # A point earlier or later than γ̄ has it settles the true places of the digits before it.
            shift = exponent + 1
            if (is_point & (shift != 0)).any():
                moved = np.where(shift > 0, written // POWERS[np.clip(shift, 0, 18)], written * POWERS[np.clip(-shift, 0, 18)])
                written = np.where(is_point & ~after_point, moved, written)
            exponent = np.where(is_digit, exponent - 1, np.where(is_point & ~after_point, -1, exponent))
            after_point |= is_point
        after_colon |= token == COLON
        wants_point = after_colon & ~after_point & (exponent < 0)
        wants_end = after_colon & after_point & (exponent < -DECIMALS)
        wants_digit = after_colon & ~wants_point & ~wants_end
        here = np.where(wants_digit, np.clip(1 - exponent, 0, NO_SLOT), NO_SLOT)
        repeated = seen[here, rows] & (here > 0)  # only where characters do not make a number, as padding
        seen[here, rows] = True
        if column < start or not after_colon.any():
            continue
        left = target - written
        unit = POWERS[np.clip(exponent + 6, 0, 18)]
        u = np.floor_divide(left, unit)
        above = left - u * unit
        below = unit - above
        neighbor = u + np.where(above < below, -1, 1)
        code[column - start] = np.select(
            [wants_digit, wants_point, wants_end],
            [np.clip(u, LOWEST, HIGHEST) - LOWEST, NEXT_IS_POINT, NEXT_IS_END], NOTHING_LEFT)  # fmt: skip
        neighbor_code[column - start] = np.where(wants_digit, np.clip(neighbor, LOWEST, HIGHEST) - LOWEST, NOTHING_LEFT)
        nearness = 1 - np.minimum(above, below) * (to_spacings * CLIP_SPACINGS / MAX_OFFSET)
        weight[column - start] = np.where(wants_digit, np.maximum(nearness, 0), 0)
        offset[column - start] = np.clip(left / -FIXED, -MAX_WRITTEN_OFFSET, MAX_WRITTEN_OFFSET)
        slot[column - start] = np.where(repeated, NO_SLOT, here)
        distance[column - start] = (
            np.where(wants_digit, above / unit, 0),
            np.where(after_colon, np.clip(left * to_spacings, -1, 1), 0),
            np.where(wants_digit, np.minimum(above * to_spacings, 1), 0),
            np.where(wants_digit, np.minimum(below * to_spacings, 1), 0),
        )
    by_row = [np.ascontiguousarray(array.T) for array in (code, neighbor_code, weight, offset, slot)]
    return *by_row[:3], np.ascontiguousarray(distance.transpose(2, 0, 1)), *by_row[3:]


def phases_of(smooth, numbers):
    """Return γ̄ log n / 2π modulo 1 as float32 (B, numbers), reduced in float64."""
    turns = np.asarray(smooth)[:, None] * (np.log(numbers) / (2 * math.pi))
    turns -= np.floor(turns)
    return turns.astype(np.float32)
