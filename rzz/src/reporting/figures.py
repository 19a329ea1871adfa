"""The figures of the report, one function each: plain numbers in, a matplotlib Figure out.

    figure = loss_curves(steps, losses, validation_steps, validation_losses, rounds)
    svg_text(figure)                     # for the page: its ink takes the colour of the text around it
    figure.savefig("loss.png", dpi=150)  # for Markdown

One colour means one thing in all figures: the model is blue, methods without a model are orange, the true zeros and
axes are ink, theory is grey.
"""

import io
import math
import re
import sys

import numpy as np

from common.config import UserError
from model.metrics import gue_spacing_density

WIDTH, HEIGHT = 4.8, 3.1  # inches: two beside each other on a desktop, one on a phone, both with text of about 10 points
INK = "#010203"  # stands for the colour of text: black in PNG files, the page's own in svg_text
MODEL, MODEL_LIGHT, BASELINE, THEORY = "#3a86e0", "#9cc4f2", "#e0861a", "#808890"
BASELINE_LINES = {"smooth count": "-", "straight line": "--", "last training zero": ":"}
DARKER_IS_BETTER = "Blues"
STYLE = {
    "font.size": 9.5, "legend.fontsize": 8.5, "legend.frameon": False, "lines.linewidth": 1.5,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": THEORY, "grid.alpha": 0.25,
    "figure.facecolor": "none", "axes.facecolor": "none", "svg.hashsalt": "rzz",
}  # fmt: skip


def new_axes(height=HEIGHT):
    """Return (figure, axes) in the style of the report. Raises UserError where matplotlib is not installed."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError(f"The report draws with matplotlib; install it: {sys.executable} -m pip install matplotlib") from error
    matplotlib.rcParams.update(STYLE)
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots()


def svg_text(figure):
    """Return the figure as an <svg> element without a reference to anything outside of it."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = buffer.getvalue()
    text = re.sub(r'<g id="[^"]*"', "<g", text[text.index("<svg"):])  # names that several figures of a page would share
    return text.replace(INK, "currentColor")


def loss_curves(steps, losses, validation_steps, validation_losses, rounds):
    """Cross entropy against the step. rounds: [(number, first step, last step)]."""
    figure, axes = new_axes()
    axes.plot(steps, with_gaps(losses), color=MODEL_LIGHT, label="training")
    axes.plot(validation_steps, validation_losses, ".-", color=MODEL, label="validation")
    axes.set(ylabel="loss (nats per token)")
    axes.legend()
    step_axis(axes, rounds)
    return figure


def mse_curves(steps, training, validation, rounds, baselines):
    """Mean squared error of sampled predictions against the step, on a log scale, and that of the baselines in each round.

    training, validation: one number a step, None where nothing was readable. baselines: {name: one number a round}.
    """
    figure, axes = new_axes()
    axes.plot(steps, with_gaps(training), ".-", color=MODEL_LIGHT, label="model, training zeros")
    axes.plot(steps, with_gaps(validation), ".-", color=MODEL, label="model, validation zeros")
    edges = [first for _, first, _ in rounds] + [rounds[-1][2]]
    for name, values in baselines.items():
        axes.step(edges, [*values, values[-1]], BASELINE_LINES[name], where="post", color=BASELINE, label=name)
    axes.set(yscale="log", ylabel="mean squared error")
    low, high = axes.get_ylim()
    axes.set_ylim(low, high * (high / low) ** 0.45)  # room for the legend
    axes.legend(ncols=2, loc="upper center", columnspacing=1.0, handlelength=1.6)
    step_axis(axes, rounds)
    return figure


def accuracy_map(steps, accuracies, places, rounds):
    """How often each character is right, against the step. accuracies: (places, steps), NaN where there is no such place."""
    figure, axes = new_axes(height=3.4)
    edges = [rounds[0][1], *steps]
    rows = np.arange(len(places) + 1)
    axes.pcolormesh(edges, rows, np.asarray(accuracies), cmap=DARKER_IS_BETTER, vmin=0, vmax=1, rasterized=True)
    axes.set_yticks(rows[:-1] + 0.5, places)
    axes.invert_yaxis()
    axes.set(ylabel="place of the character")
    axes.grid(False)
    right = axes.secondary_yaxis("right")
    right.set_yticks(rows[:-1] + 0.5, [f"{100 * row[-1]:.0f}%" for row in np.asarray(accuracies)])
    plain_ticks(axes, right)
    step_axis(axes, rounds)
    return figure


def speed_curve(seconds, zeros_per_second):
    """Throughput against the time spent in training."""
    figure, axes = new_axes()
    unit, name = next((unit, name) for unit, name in ((3600, "hours"), (60, "minutes"), (1, "seconds"))
                      if seconds[-1] > 3 * unit or unit == 1)  # fmt: skip
    axes.plot(np.asarray(seconds) / unit, zeros_per_second, color=MODEL)
    axes.set(xlabel=f"time in training ({name})", ylabel="zeros per second", xlim=(0, None), ylim=(0, 1.1 * max(zeros_per_second)))
    axes.yaxis.set_major_formatter("{x:,.0f}")
    return figure


def tuning_map(names, columns, rows, scores, marks):
    """Scores of the tuning grid as colours and numbers. names: of the two axes. scores: (rows, columns), NaN where there is none.

    marks: (rows, columns), texts under the numbers.
    """
    figure, axes = new_axes(height=1.1 + 0.6 * len(rows))
    finite = scores[np.isfinite(scores)]
    axes.imshow(scores, cmap=f"{DARKER_IS_BETTER}_r", aspect="auto")
    for (row, column), score in np.ndenumerate(scores):
        number, ink = ("–", INK) if math.isnan(score) else (f"{score:.3f}", "white" if score <= finite.mean() else "black")
        axes.text(column, row, f"{number}\n{marks[row, column]}", ha="center", va="center", color=ink)
    axes.set_xticks(range(len(columns)), map(str, columns))
    axes.set_yticks(range(len(rows)), map(str, rows))
    axes.set(xlabel=names[0], ylabel=names[1])
    axes.grid(False)
    plain_ticks(axes)
    return figure


def predicted_against_true(true, predicted, limit):
    """Distances from the smooth count, in mean spacings: what the model says of them against what they are."""
    figure, axes = new_axes(height=WIDTH)
    axes.axhline(0, color=BASELINE, label="smooth count")
    axes.plot([-limit, limit], [-limit, limit], color=THEORY, linewidth=1, label="predicted = true")
    axes.plot(true, predicted, ".", color=MODEL, markersize=3.5, alpha=0.6, markeredgewidth=0, rasterized=True,
              label="model")  # fmt: skip
    axes.set(xlim=(-limit, limit), ylim=(-limit, limit), xlabel="true zero − smooth count (mean spacings)",
             ylabel="predicted − smooth count (mean spacings)")  # fmt: skip
    axes.locator_params(nbins=7)
    axes.legend(loc="upper left", markerscale=2.5)
    return figure


def error_histogram(model, smooth, limit):
    """How the errors, in mean spacings, of the model and of the smooth count are spread over [-limit, limit]."""
    figure, axes = new_axes()
    bins = np.linspace(-limit, limit, 61)
    axes.hist(model, bins, weights=np.full(len(model), 1 / len(model)), color=MODEL, label="model, sampled")
    axes.hist(smooth, bins, weights=np.full(len(smooth), 1 / len(smooth)), color=BASELINE, histtype="step", linewidth=1.5,
              label="smooth count")  # fmt: skip
    axes.set(xlabel="predicted − true (mean spacings)", ylabel="share of predictions", xlim=(-limit, limit))
    axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g}%")
    axes.legend(loc="upper left")
    return figure


def spacing_distribution(true, predicted):
    """Densities of the spacings of neighbouring zeros, in mean spacings, beside the GUE's."""
    figure, axes = new_axes()
    bins, s = np.linspace(0, 3, 31), np.linspace(0, 3, 301)
    width = bins[1] - bins[0]
    for values, options in ((predicted, {"color": MODEL, "alpha": 0.75, "label": "predicted zeros"}),
                            (true, {"color": INK, "histtype": "step", "linewidth": 1.2, "label": "true zeros"})):  # fmt: skip
        axes.hist(values, bins, weights=np.full(len(values), 1 / (len(values) * width)), **options)
    axes.plot(s, gue_spacing_density(s), color=THEORY, linewidth=2, label="GUE: (32/π²) s² exp(−4s²/π)")
    axes.set(xlabel="spacing of neighbours s (mean spacings)", ylabel="density", xlim=(0, 3))
    axes.legend()
    return figure


def step_axis(axes, rounds):
    """Label the horizontal axis as steps, and mark where the rounds lie on top of it."""
    axes.set(xlabel="step", xlim=(rounds[0][1], rounds[-1][2]))
    axes.locator_params(axis="x", nbins=5)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    for _, first, _ in rounds[1:]:
        axes.axvline(first, color=THEORY, linewidth=0.6, alpha=0.5)
    named = rounds[:: math.ceil(len(rounds) / 12)]
    top = axes.secondary_xaxis("top")
    top.set_xticks([(first + last) / 2 for _, first, last in named], [str(number) for number, _, _ in named])
    top.set_xlabel("round", fontsize="small")
    plain_ticks(top)


def plain_ticks(*axes):
    """Leave labels alone: no tick marks and no lines around."""
    for each in axes:
        each.tick_params(length=0)
        each.spines[:].set_visible(False)


def with_gaps(values):
    """Floats, with NaN for None, where a curve has a gap."""
    return [math.nan if value is None else value for value in values]
