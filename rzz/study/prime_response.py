"""What a model that is told phases made of the primes: its response to the phase of each, beside the explicit formula.

    .venv/bin/python rzz/study/prime_response.py --config rzz/study/runs/10000_waves_1/config.json \
        --figure rzz/study/prime_response.png

The offset of a zero from the smooth count is, in mean spacings and to first order, -S(γ̄), and the explicit formula gives
-S(γ̄) = (1/π) Σ sin(γ̄ log p) / √p + terms of higher prime powers: for each prime a sine and no cosine, of amplitude
1 / (π √p). Here the offsets that the model predicts, the median of its runs, for zeros that it has never seen, are fitted by
least squares to the cosines and sines of all phases that it is told; and so are the offsets of the true zeros.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import numpy as np

from common.cli import run_script, stage_parser
from common.config import UserError, load_config
from common.logs import start_logging
from data_utils import interval, stored_zeros
from model.sampling import sampled_predictions
from model.tokenizer import SCALE
from model.waves import primes_up_to
from training.checkpoints import latest_checkpoint, trained_model
from zeta.riemann_siegel import mean_spacing, smooth_zeros

TABLE_PRIMES = (2, 3, 5, 7, 11, 13, 31, 101, 499, 997)


def main():
    parser = stage_parser(__doc__)
    parser.add_argument("--zeros", type=int, default=20_000, help="zeros after the last training interval (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=4, help="sampled runs whose median counts (default: %(default)s)")
    parser.add_argument("--figure", type=Path, help="write a figure to this PNG file")
    args = parser.parse_args()
    config = load_config(args.config, args.overrides, args.device)
    start_logging(config.log_folder, args.quiet)
    checkpoint, path = latest_checkpoint(config.checkpoint_folder)
    if checkpoint is None or checkpoint["config"]["model"]["index_embedding"] not in ("primes", "waves"):
        raise UserError(f"{config.checkpoint_folder} has no checkpoint of a model with primes or waves; train one first.")
    saved = checkpoint["config"]
    model = trained_model(checkpoint, path)
    config.data.interval_size, config.data.K = saved["data"]["interval_size"], saved["data"]["K"]

    zeros = stored_zeros(config, interval(config, config.data.K + 1)[0], args.zeros)
    smooth = smooth_zeros(zeros.indexes)
    predicted = np.nanmedian(sampled_predictions(model, zeros, args.runs, config.evaluation.top_p, seed=1), axis=1)
    primes = primes_up_to(saved["model"]["max_prime"])
    angles = smooth[:, None] * np.log(primes)
    waves = np.concatenate([np.ones((len(smooth), 1)), np.cos(angles), np.sin(angles)], axis=1)
    fits = {}
    for name, values in (("model", predicted), ("zeros", zeros.values / SCALE)):
        offsets = np.clip((values - smooth) / mean_spacing(smooth), -2, 2)  # one wrong leading digit must not decide the fit
        coefficients = np.linalg.lstsq(waves, offsets, rcond=None)[0]
        fits[name] = coefficients[1 : 1 + len(primes)], coefficients[1 + len(primes) :]
    formula = 1 / (np.pi * np.sqrt(primes))
    print(table(primes, formula, fits))
    if args.figure:
        draw(args.figure, primes, formula, fits)


def table(primes, formula, fits):
    """Return a Markdown table of sine and cosine coefficients, in mean spacings."""
    lines = ["| p | formula: sin, 1/(π√p) | model: sin | model: cos | true zeros: sin | true zeros: cos |"]
    lines.append("|---|---|---|---|---|---|")
    for prime in (p for p in TABLE_PRIMES if p <= primes[-1]):
        k = int(np.searchsorted(primes, prime))
        cells = (formula[k], fits["model"][1][k], fits["model"][0][k], fits["zeros"][1][k], fits["zeros"][0][k])
        lines.append(f"| {prime} | " + " | ".join(f"{cell:+.4f}" for cell in cells) + " |")
    correlation = np.corrcoef(fits["model"][1], fits["zeros"][1])[0, 1]
    lines.append(f"\nCorrelation of the sines of model and true zeros over all {len(primes)} primes: {correlation:.4f}.")
    return "\n".join(lines)


def draw(path, primes, formula, fits):
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("The figure needs matplotlib: .venv/bin/pip install -r rzz/tests/requirements.txt") from error
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(primes, formula, color="black", linewidth=1, label="explicit formula: 1/(π√p)")
    axes.plot(primes, fits["zeros"][1], "o", markersize=7, fillstyle="none", color="black", label="true zeros: sine")
    axes.plot(primes, fits["model"][1], "o", markersize=3.5, color="tab:blue", label="model: sine")
    axes.plot(primes, fits["model"][0], "x", markersize=3.5, color="tab:orange", label="model: cosine (formula: 0)")
    axes.set(xscale="log", xlabel="prime p", ylabel="response to the phase γ̄ log p (mean spacings)",
             title="What the transformer learned about the primes")  # fmt: skip
    axes.axhline(0, color="black", linewidth=0.5)
    axes.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    run_script(main)
