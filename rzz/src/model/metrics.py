"""Measures of predictions against the true zeros, and on the same zeros the baselines and the controls.

    scores(predictions, dataset)["mse"]         # predictions: float64 (N, runs), NaN if unreadable

All arithmetic is float64 on the CPU.
"""

import math

import numpy as np

from common.devices import derive_seed
from common.files import NUMBER, NUMBER_OR_NONE
from common.text import short_number
from model.index_embedding import primes_up_to
from model.tokenizer import SCALE
from zeta.riemann_siegel import gram_point, mean_spacing, smooth_zeros, theta

MEASURES = {"mse": "MSE", "rmse": "RMSE", "median_absolute_error": "median", "median_error_in_spacings": "spacings",
            "readable": "readable", "nats_per_zero": "nats"}  # fmt: skip
REACH, GRID, HALVINGS = 4, 16, 24  # of explicit_formula: mean spacings to either side, grid points in each, bisections
LOWEST_HEIGHT = 7.0  # height below which there is no zero and, from 2π down, theta falls
WAVES_AT_ONCE = 1 << 15  # zeros × prime powers, so that they stay in the cache: 0.5 MB

MEASURED = {"mse": NUMBER_OR_NONE, "rmse": NUMBER_OR_NONE, "median_absolute_error": NUMBER_OR_NONE,
            "median_error_in_spacings": NUMBER_OR_NONE, "readable": NUMBER}  # fmt: skip
IN_NATS = {"nats_per_zero": NUMBER, "nats_per_token": NUMBER}
EVALUATION = {  # what logs/evaluation.json has to have for those who read it
    **MEASURED, **IN_NATS, "mse_spread": NUMBER_OR_NONE, "mse_of_mean_prediction": NUMBER_OR_NONE, "accuracy_by_position": list,
    "untrained": IN_NATS, "baselines": {...: MEASURED, "smooth count": dict}, "runs": int, "top_p": NUMBER, "parameters": int,
    "first_index": int, "last_index": int, "trained_up_to": int, "seconds_trained": NUMBER, "checksum": str,
}  # fmt: skip


def scores(predictions, dataset):
    """Return the measures of float64 predictions (zeros, runs), NaN if unreadable, against the true zeros.

    mse                       mean over the runs of each run's MSE over its readable predictions
    mse_spread                standard deviation of the runs' MSE
    readable                  share of predictions that are a number
    rmse                      square root of mse
    median_absolute_error     over all readable predictions
    median_error_in_spacings  the same in units of the local mean spacing of zeros
    mse_of_mean_prediction    MSE of the mean of a zero's readable predictions
    """
    truth = dataset.values / SCALE
    error = predictions - truth[:, None]
    readable = ~np.isnan(error)
    if not readable.any():
        nothing = dict.fromkeys(("mse", "mse_spread", "rmse", "median_absolute_error", "median_error_in_spacings",
                                 "mse_of_mean_prediction"))
        return {**nothing, "readable": 0.0}
    squared = np.where(readable, error, 0.0) ** 2
    runs = readable.any(0)
    mse_of_run = squared.sum(0)[runs] / readable.sum(0)[runs]
    zeros = readable.any(1)
    mean_error = np.where(readable, error, 0.0).sum(1)[zeros] / readable.sum(1)[zeros]
    in_spacings = np.abs(error) / mean_spacing(truth)[:, None]
    return {
        "mse": float(mse_of_run.mean()),
        "mse_spread": float(mse_of_run.std()),
        "readable": float(readable.mean()),
        "rmse": float(np.sqrt(mse_of_run.mean())),
        "median_absolute_error": float(np.median(np.abs(error[readable]))),
        "median_error_in_spacings": float(np.median(in_spacings[readable])),
        "mse_of_mean_prediction": float((mean_error**2).mean()),
    }


def pooled_deviation(groups):
    """Return the standard deviation within groups of repeated measurements, pooled over all of them; None if no group has two."""
    freedom = sum(len(group) - 1 for group in groups)
    squares = sum(float(((np.asarray(group) - np.mean(group)) ** 2).sum()) for group in groups)
    return math.sqrt(squares / freedom) if freedom else None


def baselines(dataset, training, max_prime):
    """Return {name: predictions (zeros, 1)} of methods that need no model.

    dataset: the zeros to predict. training: the interval before them. The straight line is fitted to it by least squares. The
    smooth count is the Riemann–von Mangoldt formula, riemann_siegel.smooth_zeros; the explicit formula has the primes up to
    `max_prime`.
    """
    known = training.values / SCALE
    centre = training.indexes.mean()  # centred, since the indexes are large and float64 is finite
    slope, height = np.polynomial.polynomial.polyfit(training.indexes - centre, known, 1)[::-1]
    return {
        "last training zero": np.full((len(dataset), 1), known[-1]),
        "straight line": (height + slope * (dataset.indexes - centre))[:, None],
        "smooth count": smooth_zeros(dataset.indexes)[:, None],
        "explicit formula": explicit_formula(dataset.indexes, max_prime)[:, None],
    }


def explicit_formula(indexes, max_prime):
    """Return where the explicit formula with the primes up to `max_prime` = X puts the zeros: float64 (n,) for indexes i >= 1.

    The zeros up to height t number N(t) = θ(t)/π + 1 + S(t) (Backlund 1918; Titchmarsh 9.3), and S(t) is formally, and in mean
    square up to a bounded error (Selberg 1946), a sum over the powers of primes. So this is the t with

        θ(t)/π + 1 + S_X(t) = i − 1/2,    S_X(t) = −(1/π) Σ sin(k t log p) / (k p^{k/2})  over p ≤ X and p^k ≤ X²:

    of several the one nearest to the smooth count γ̄, and γ̄ itself if none lies within REACH mean spacings. Two crossings between
    neighbouring points of the grid, GRID in a mean spacing, go unseen. The t found is right to 1e-8 mean spacings, or to the
    phases' rounding where that is more: 2^-53 t log X² radians, 1e-8 at index 11,000,000. A thousand zeros take 0.6 s on a core at
    X = 1000, and time grows with the number of primes.
    """
    indexes = np.asarray(indexes, np.int64)
    powers = [(p, k) for p in primes_up_to(max_prime).tolist() for k in range(1, 2 * max_prime.bit_length())
              if p**k <= max_prime**2]  # fmt: skip
    p, k = np.array(powers, np.float64).T
    size = max(1, WAVES_AT_ONCE // len(powers))
    found = [_solve(indexes[first : first + size], k * np.log(p), p ** (-k / 2) / (k * math.pi))
             for first in range(0, len(indexes), size)]  # fmt: skip
    return np.concatenate([np.empty(0), *found])


def _solve(indexes, frequency, weight):
    """explicit_formula for a few indexes, with the frequency k log p and the weight 1 / (π k p^{k/2}) of each prime power."""
    smooth = smooth_zeros(indexes)
    spacing = mean_spacing(smooth)
    turns = smooth[:, None] * (frequency / (2 * math.pi))
    phases = (turns - np.floor(turns)) * (2 * math.pi)  # at γ̄

    offsets = np.arange(-REACH * GRID, REACH * GRID + 1) * (spacing / GRID)[:, None]  # (zeros, points), from γ̄
    waves = np.exp(1j * (phases + offsets[:, :1] * frequency)) * weight
    step = np.exp(1j * (spacing / GRID)[:, None] * frequency)
    sums = np.empty(offsets.shape)
    for point in range(offsets.shape[1]):
        sums[:, point] = waves.imag.sum(1)
        waves *= step
    heights = smooth[:, None] + offsets
    below = theta(np.maximum(heights, LOWEST_HEIGHT)) / math.pi + 1.5 - indexes[:, None] < sums
    rows, cells = np.nonzero((below[:, :-1] != below[:, 1:]) & (heights[:, :-1] >= LOWEST_HEIGHT))

    # The crossing nearest to γ̄ lies in one of the two cells nearest to it.
    order = np.lexsort((np.abs(cells + 0.5 - REACH * GRID), rows))
    rows, cells = rows[order], cells[order]
    nearest_two = np.arange(len(rows)) - np.searchsorted(rows, rows) < 2
    rows, cells = rows[nearest_two], cells[nearest_two]
    low, high, rises = offsets[rows, cells], offsets[rows, cells + 1], below[rows, cells]
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        count = theta(smooth[rows] + middle) / math.pi + 1.5 - indexes[rows]
        is_left = (count < np.sin(phases[rows] + middle[:, None] * frequency) @ weight) == rises
        low, high = np.where(is_left, middle, low), np.where(is_left, high, middle)
    order = np.lexsort((np.abs(low), rows))
    solved, first = np.unique(rows[order], return_index=True)
    offset = np.zeros(len(indexes))
    offset[solved] = low[order][first]
    return smooth + offset


def controls(predictions, indexes, seed):
    """Return {name: predictions (n, runs)} that must do badly, from the model's predictions (n, runs) of consecutive `indexes`.

    A single zero cannot be shuffled.
    """
    shuffled = {"shuffled index": shuffled_predictions(predictions, indexes, derive_seed(seed, 1))}
    spacings = {"independent spacings": independent_spacings(indexes, predictions.shape[1], derive_seed(seed, 2))}
    return {**shuffled, **spacings} if len(indexes) > 1 else spacings


def independent_spacings(indexes, runs, seed):
    """Return float64 (n, runs): zeros as dense as the true ones, with spacings drawn independently from gue_spacing_density.

    indexes: n consecutive ones. The first zero is at the smooth count; from one to the next, θ(t)/π grows by a spacing. A control:
    this renewal process has the density and the distribution of spacings that zeros have, and nothing of how they are arranged.
    Independent deviations add up, 3π/8 − 1 = 0.178 squared mean spacings a zero, while true zeros stay within a few spacings of
    the smooth count.
    """
    normal = np.random.default_rng(seed).standard_normal((len(indexes) - 1, runs, 3))
    spacings = math.sqrt(math.pi / 8) * np.linalg.norm(normal, axis=2)  # the density is that of the length of three normals
    walk = np.concatenate([np.zeros((1, runs)), spacings.cumsum(0)])
    return gram_point(indexes[0] - 1.5 + walk)


def shuffled_predictions(predictions, indexes, seed):
    """Return the predictions (n, runs) of the `indexes` with each index replaced by another one of them, float64 (n, runs).

    A control: zero i gets what was predicted for a zero i' plus γ̄(i) − γ̄(i'), the difference of the smooth counts. So the trend
    is right and what was predicted beyond it belongs to another zero: for perfect predictions the MSE is twice the smooth count's.
    No index keeps its own prediction (n >= 2). The indexes 11,000,000 … 11,000,999 differ in their last three digits, so
    it is those that are shuffled.
    """
    order = np.random.default_rng(seed).permutation(len(indexes))
    other = np.empty_like(order)
    other[order] = np.roll(order, 1)
    smooth = smooth_zeros(indexes)
    return predictions[other] + (smooth - smooth[other])[:, None]


def gue_spacing_density(s):
    """Density of the spacings of neighbouring zeros in units of their mean: Wigner's surmise for the GUE, an array for an array.

    (32/π²) s² exp(−4s²/π). Zeros repel each other as the eigenvalues of random Hermitian matrices do (Montgomery, "The
    pair correlation of zeros of the zeta function", 1973; Odlyzko, "On the distribution of spacings between zeros of
    the zeta function", 1987), not as those of real symmetric ones, the GOE.
    """
    s = np.asarray(s, np.float64)
    return 32 / np.pi**2 * s**2 * np.exp(-4 * s**2 / np.pi)


def gue_share_below(s):
    """Share of spacings below `s` under gue_spacing_density: its integral from 0."""
    return math.erf(2 * s / math.sqrt(math.pi)) - 4 * s / math.pi * math.exp(-4 * s**2 / math.pi)


def result_table(evaluation):
    """Return rows of cells, a header first, of what evaluate.py found: the model, and on the same zeros what needs no model."""
    mean = evaluation["mse_of_mean_prediction"]
    rows = {"model, sampled": evaluation,
            f"mean of {evaluation['runs']} runs": {"mse": mean, "rmse": mean and math.sqrt(mean)},
            "untrained model": evaluation["untrained"], **evaluation["baselines"],
            **evaluation.get("controls", {})}  # evaluations of older versions have none  # fmt: skip
    forms = {"readable": "{:.4f}".format, "nats_per_zero": "{:.3f}".format}
    return [["", *MEASURES.values()],
            *([name, *(forms.get(key, short_number)(measured[key]) if key in measured else "" for key in MEASURES)]
              for name, measured in rows.items())]  # fmt: skip


def table_notes(evaluation):
    """Return sentences, less than 80 characters each, on columns and rows of result_table whose names do not say it all."""
    notes = {
        "smooth count": "Riemann–von Mangoldt formula, solved for the zero",
        "explicit formula": f"the same with primes up to {evaluation.get('max_prime', 0):,}; needs no training",
        "shuffled index": "control, the model's answers for others, moved by the trend",
        "independent spacings": "control, right density, GUE spacings drawn one by one",
    }
    rows = {**evaluation["baselines"], **evaluation.get("controls", {})}
    columns = "median: absolute error; spacings: in mean spacings; nats: cross entropy a zero"
    return [columns, *(f"{name}: {note}" for name, note in notes.items() if name in rows)]
