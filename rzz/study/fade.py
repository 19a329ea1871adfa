"""How well the sum of `waves` over whole numbers can be Z(t), by the steepness of its fade and the number of its splines.

    .venv/bin/python rzz/study/fade.py                   # at the heights of the default run

At random heights of the intervals that the settings name, Z(t) is fitted by least squares with the weights that the model learns.
The table shows the root mean square of what is left at other heights over π times that of Z: about how many mean spacings zeros
would be misplaced by.
"""

import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

import numpy as np

from common.cli import run_script, stage_parser
from common.config import load_config
from common.text import format_table
from model.waves import cubic_splines
from zeta.riemann_siegel import Z, smooth_zeros, theta

FADES, SPLINES = (5, 7.5, 10, 12, 14, 16, 20, 28), (6, 8, 10, 12)
HEIGHTS = 6000  # half of them are fitted


def main(argv=None):
    args = stage_parser(__doc__).parse_args(argv)
    config = load_config(args.config, args.overrides, args.device)
    first, size = config.data.first_round * config.data.interval_size, config.data.interval_size
    low, high = smooth_zeros(np.array([first, first + (config.data.K - config.data.first_round + 1) * size]))
    t = np.random.default_rng(1).uniform(low, high, HEIGHTS)
    values, numbers = np.array([float(Z(height)) for height in t]), config.model.max_number
    rows = [(f"{fade:g}", *(f"{left_of_Z(t, values, numbers, fade, splines):.6f}" for splines in SPLINES)) for fade in FADES]
    print("\n".join(format_table([("fade", *(f"{splines} splines" for splines in SPLINES)), *rows])))


def left_of_Z(t, values, max_number, fade, splines):
    """Return the root mean square of Z less its fit at every other one of the heights t, over π times that of Z.

    values: Z at these heights.
    """
    logs, edge = np.log(np.arange(1, max_number + 1)), np.log(t / (2 * math.pi)) / 2  # of √(t/2π)
    share = 1 / (1 + np.exp(fade * (logs - edge[:, None])))
    turned = np.exp(1j * (theta(t)[:, None] - np.outer(t, logs) % (2 * math.pi))) * share  # by θ, of which πr is the change
    sums = turned @ cubic_splines(logs / logs[-1], splines).T
    columns = np.concatenate([sums.real, sums.imag], axis=1)
    weights = np.linalg.lstsq(columns[::2], values[::2], rcond=None)[0]
    left = columns[1::2] @ weights - values[1::2]
    return math.sqrt((left**2).mean() / (values**2).mean()) / math.pi


if __name__ == "__main__":
    run_script(main)
