"""Measures of predictions against the true zeros, and the baselines on the same zeros.

    scores(predictions, dataset)["mse"]         # predictions: float64 (N, runs), NaN if unreadable

All arithmetic is float64 on the CPU.
"""

import math

import numpy as np

from common.text import format_number
from model.tokenizer import SCALE
from zeta.riemann_siegel import mean_spacing, smooth_zeros

MEASURES = {"mse": "MSE", "rmse": "RMSE", "median_absolute_error": "median |error|", "median_error_in_spacings": "in spacings",
            "readable": "readable", "nats_per_zero": "nats/zero", "nats_per_token": "nats/token"}  # fmt: skip


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


def baselines(dataset, training):
    """Return {name: predictions (zeros, 1)} of methods that need no model.

    dataset: the zeros to predict. training: the interval before them. The smooth count is the Riemann–von Mangoldt
    formula, riemann_siegel.smooth_zeros; the straight line is fitted by least squares to the training interval.
    """
    known = training.values / SCALE
    centre = training.indexes.mean()  # centred, since the indexes are large and float64 is finite
    slope, height = np.polynomial.polynomial.polyfit(training.indexes - centre, known, 1)[::-1]
    return {
        "last training zero": np.full((len(dataset), 1), known[-1]),
        "straight line": (height + slope * (dataset.indexes - centre))[:, None],
        "smooth count": smooth_zeros(dataset.indexes)[:, None],
    }


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
            f"model, mean of {evaluation['runs']} runs": {"mse": mean, "rmse": mean and math.sqrt(mean)},
            "untrained model": evaluation["untrained"], **evaluation["baselines"]}  # fmt: skip
    forms = {"readable": "{:.4f}".format, "nats_per_zero": "{:.3f}".format, "nats_per_token": "{:.4f}".format}
    return [["", *MEASURES.values()],
            *([name, *(forms.get(key, format_number)(measured[key]) if key in measured else "" for key in MEASURES)]
              for name, measured in rows.items())]  # fmt: skip
