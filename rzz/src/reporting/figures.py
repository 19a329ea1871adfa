"""The figures of the report, one function each: lines of the logs in; a title, a caption and a drawing out.

    figure = loss_figure(read_json_lines(config.log_folder / "training.jsonl"))
    svg_text(figure.drawing)             # for the page: its ink takes the colour of the text around it

One colour means one thing in all figures of a run: the model is blue, methods without a model are orange, the true zeros
and axes are ink, theory is grey. Their contrast with the page is 3 to 1 at least, light or dark, and what shares a frame
also differs in its form, so that it can be told apart without colours. Drawing needs matplotlib.
"""

import importlib.util
import io
import itertools
import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.text import format_duration, format_number
from model.metrics import gue_share_below, gue_spacing_density, pooled_deviation
from model.tokenizer import DECIMALS
from zeta.riemann_siegel import Z, mean_spacing, smooth_zeros

WIDTH, HEIGHT = 4.8, 3.1  # inches: two beside each other on a desktop, one on a phone, both with text of about 10 points
INK = "#010203"  # stands for the colour of text, which svg_text leaves to the page
MODEL, MODEL_LIGHT, BASELINE, THEORY = "#2a6fc4", "#6f97c8", "#c96f00", "#808890"
RUN_COLOURS = (MODEL, BASELINE, "#2e8b57", "#9a62c7")  # where several runs are compared
RUN_LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
BASELINE_LINES = {"smooth count": "-", "explicit formula": "-."}
DARKER_IS_BETTER = "Blues"
STYLE = {
    "font.size": 9.5, "legend.fontsize": 8.5, "legend.frameon": False, "lines.linewidth": 1.5,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": THEORY, "grid.alpha": 0.25,
    "figure.facecolor": "none", "axes.facecolor": "none", "svg.hashsalt": "rzz",
}  # fmt: skip
ERROR_LIMIT = 1.5  # mean spacings, of the histogram
CLOSE = 0.3  # mean spacings: true neighbours are seldom nearer
SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass
class Figure:
    title: str
    caption: str
    drawing: Any  # matplotlib.figure.Figure


def can_draw():
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def new_axes(height=HEIGHT, width=WIDTH):
    """Return (drawing, axes) in the style of the report, so many inches large."""
    import matplotlib.figure

    matplotlib.rcdefaults()  # no style of the user's, and no LaTeX
    matplotlib.rcParams.update(STYLE)
    drawing = matplotlib.figure.Figure(figsize=(width, height), layout="constrained")
    return drawing, drawing.subplots()


def svg_text(drawing):
    """Return the drawing as an <svg> element without a reference to anything outside of it."""
    buffer = io.StringIO()
    drawing.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    _, element, content = buffer.getvalue().partition("<svg")
    return element + re.sub(r'<g id="[^"]*"', "<g", content).replace(INK, "currentColor")  # figures of a page would share the ids


def zeros_figure(indexes, true, predicted):
    """Z(t) on a stretch of the critical line, where it is zero, and where zeros are predicted. All of the same length (n,)."""
    drawing, axes = new_axes(width=2 * WIDTH)
    smooth = smooth_zeros(indexes)
    margin = mean_spacing(true[0])
    t = np.linspace(true[0] - margin, true[-1] + margin, 100 * len(true))
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.plot(t, Z(t), color=THEORY, label="Z(t), 0 at the zeros")
    axes.plot(smooth, np.zeros(len(smooth)), "|", color=BASELINE, markersize=14, markeredgewidth=2, label="smooth count")
    axes.plot(predicted, np.zeros(len(predicted)), "o", color=MODEL, markersize=5, label="model")
    for end in (0, -1):
        axes.annotate(f"zero {indexes[end]:,}", (true[end], 0), (0, -20), textcoords="offset points", ha="center", fontsize="small")
    axes.set(xlabel="t", xlim=(t[0], t[-1]))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    legend_above(drawing, ncols=3)
    caption = ("Z(t) is the zeta function on its critical line, turned so that it is real. It crosses the axis at the zeros: there "
               "the dots of the model (mean of its runs) belong.")  # fmt: skip
    return Figure("Where the zeros are, and where the model puts them", caption, drawing)


def offsets_figure(true, predicted):
    """Predictions against true zeros. true, predicted: distances (n,) from the smooth count, in mean spacings."""
    drawing, axes = new_axes()
    limit = 1.1 * np.abs(true).max()
    axes.axhline(0, color=BASELINE, label="smooth count")
    axes.plot([-limit, limit], [-limit, limit], color=THEORY, linewidth=1, label="predicted = true")
    axes.plot(true, predicted, ".", color=MODEL, markersize=3.5, alpha=0.6, markeredgewidth=0, rasterized=True, label="model")
    axes.set(xlim=(-limit, limit), ylim=(-limit, limit), xlabel="true − smooth count (mean spacings)",
             ylabel="predicted − smooth count")  # fmt: skip
    axes.locator_params(nbins=7)
    axes.legend(loc="upper left", markerscale=2.5)
    outside = np.sum(~(np.abs(predicted) <= limit))
    caption = ("Each dot is a zero: how far it lies from where the smooth count puts it, and how far the model (mean of its runs) "
               "says that it does. On the grey diagonal the model is right; on the orange line it would know no more than the "
               f"smooth count. Outside of the frame: {outside:,} of {len(true):,} zeros.")  # fmt: skip
    return Figure("Predicted against true", caption, drawing)


def characters_figure(accuracies):
    """How often each character of a value is right, given those before it. accuracies: shares, in the order of the value."""
    drawing, axes = new_axes()
    axes.barh(range(len(accuracies)), accuracies, color=MODEL)
    axes.axvline(0.1, color=BASELINE, label="a digit that is guessed blindly")
    axes.set_yticks(range(len(accuracies)), position_names(len(accuracies)), fontsize="small")
    axes.invert_yaxis()
    axes.set(ylabel="position of the character", xlim=(0, 1))
    axes.xaxis.set_major_formatter(lambda share, _: f"{100 * share:g}%")
    axes.grid(axis="y", visible=False)
    legend_above(drawing)
    caption = "How often the most probable character is the right one, given the true ones before it."
    return Figure("Right characters", caption, drawing)


def errors_figure(model, baselines, spacing):
    """Histogram of errors. model and {name: baseline}: in mean spacings. spacing: the mean spacing averaged over the zeros."""
    drawing, axes = new_axes()
    bins = np.linspace(-ERROR_LIMIT, ERROR_LIMIT, 61)
    axes.hist(model, bins, weights=np.full(len(model), 1 / len(model)), color=MODEL, label="model, sampled")
    for name, errors in baselines.items():
        axes.hist(errors, bins, weights=np.full(len(errors), 1 / len(errors)), color=BASELINE, histtype="step", linewidth=1.5,
                  linestyle=BASELINE_LINES[name], label=name)  # fmt: skip
    axes.set(xlabel="predicted − true (mean spacings)", ylabel="share of predictions", xlim=(-ERROR_LIMIT, ERROR_LIMIT))
    axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g}%")
    axes.legend(loc="upper left")
    caption = (f"All {len(model):,} sampled predictions compared with the {' and the '.join(baselines)}, in units of "
               f"the mean distance of neighbouring zeros, {spacing:.4f}. Narrower is better. Off by more than {ERROR_LIMIT} and "
               f"not in the picture: {np.sum(np.abs(model) > ERROR_LIMIT):,}.")  # fmt: skip
    return Figure("Errors", caption, drawing)


def spacings_figure(true, predicted):
    """Densities of the distances of neighbours (n - 1,), in mean spacings, NaN next to an unreadable zero."""
    drawing, axes = new_axes()
    predicted = predicted[~np.isnan(predicted)]
    bins, s = np.linspace(0, 3, 31), np.linspace(0, 3, 301)
    for values, options in ((predicted, {"color": MODEL, "alpha": 0.75, "label": "predicted zeros"}),
                            (true, {"color": INK, "histtype": "step", "linewidth": 1.2, "label": "true zeros"})):  # fmt: skip
        axes.hist(values, bins, weights=np.full(len(values), 1 / (len(values) * (bins[1] - bins[0]))), **options)
    axes.plot(s, gue_spacing_density(s), color=THEORY, linewidth=2, label="GUE: (32/π²) s² exp(−4s²/π)")
    axes.set(xlabel="spacing of neighbours s (mean spacings)", ylabel="density", xlim=(0, 3))
    axes.legend()
    caption = ("How far each zero is from the next. True zeros repel each other, as the eigenvalues of random Hermitian matrices "
               "do (GUE). Errors that are independent from one zero to the next widen the predicted distribution and fill the gap "
               "near 0; predictions that dare too little, as means of several do, make it narrower. "
               f"Below {CLOSE} are {100 * np.mean(predicted < CLOSE):.1f}% of the predicted distances (mean of the runs), "
               f"{100 * np.mean(true < CLOSE):.1f}% of the true ones, and {100 * gue_share_below(CLOSE):.1f}% under the curve. "
               f"Negative, two zeros in the wrong order: {np.sum(predicted < 0):,}.")  # fmt: skip
    return Figure("Distances of neighbours", caption, drawing)


def of_kind(training, kind):
    """The lines of training.jsonl that are about a 'round', 'training' steps or a 'validation'."""
    return [line for line in training if line["kind"] == kind]


def baselines_by_round(training):
    """Return {round: {baseline: its MSE on the zeros whose MSE is logged in that round}}."""
    return {line["round"]: line["mse_baselines"] for line in of_kind(training, "round")}


def loss_figure(training):
    """Cross entropy against the step."""
    drawing, axes = new_axes()
    last = []
    for kind, form, color in (("training", "-", MODEL_LIGHT), ("validation", ".-", MODEL)):
        lines = of_kind(training, kind)
        losses = np.array([line["loss"] for line in lines], float)  # NaN for None, a gap in the curve
        axes.plot([line["step"] for line in lines], losses, form, color=color, label=kind, clip_on=False)
        last += [f"{kind} {format_number(lines[-1]['loss'])} at step {lines[-1]['step']:,}"] if lines else []
    axes.set(ylabel="loss (nats per token)")
    legend_above(drawing)
    step_axis(axes, round_spans(training))
    caption = ("Cross entropy over the characters of the value, on the zeros trained on and on a sample of the interval after "
               f"them, which the model has not seen. Lower is better. Last: {', '.join(last)}.")  # fmt: skip
    return Figure("Loss", caption, drawing)


def mse_figure(training):
    """Mean squared error of sampled predictions against the step, on a log scale, and that of both formulas in each round."""
    drawing, axes = new_axes()
    lines, rounds = of_kind(training, "validation"), round_spans(training)
    measured = [baselines_by_round(training)[number] for number, _, _ in rounds]
    last = []
    for kind, form, color in (("training", "-", MODEL_LIGHT), ("validation", ".-", MODEL)):
        errors = np.array([line[f"mse_{kind}"] for line in lines], float)  # NaN for None, a gap in the curve
        axes.plot([line["step"] for line in lines], errors, form, color=color, label=f"model, {kind} zeros", clip_on=False)
        last.append(f"{kind} {format_number(lines[-1][f'mse_{kind}'])}")
    edges = [first for _, first, _ in rounds] + [rounds[-1][2]]
    for name in BASELINE_LINES:
        if name not in measured[-1]:  # older versions had no explicit formula
            continue
        errors = [each.get(name, np.nan) for each in measured]
        axes.step(edges, [*errors, errors[-1]], BASELINE_LINES[name], where="post", color=BASELINE, label=name)
    axes.set(yscale="log", ylabel="mean squared error")
    legend_above(drawing)
    step_axis(axes, rounds)
    smooth = format_number(measured[-1]["smooth count"])
    caption = ("One sampled prediction for each of some zeros, compared with formulas on the same validation zeros. A single wrong "
               f"leading digit decides the mean, hence the peaks. Last: {', '.join(last)}, smooth count {smooth}.")  # fmt: skip
    return Figure("Squared error against the baselines", caption, drawing)


def accuracy_figure(training):
    """How often the most probable character at each position is right, against the step."""
    drawing, axes = new_axes(height=3.4)
    lines, rounds = of_kind(training, "validation"), round_spans(training)
    count = max(len(line["accuracy_by_position"]) for line in lines)
    accuracies = np.full((count, len(lines)), np.nan)
    for column, line in enumerate(lines):  # aligned at the end, so that a value with one more digit does not move the others
        accuracies[count - len(line["accuracy_by_position"]) :, column] = line["accuracy_by_position"]
    edges = [rounds[0][1], *(line["step"] for line in lines)]
    rows = np.arange(count + 1)
    axes.pcolormesh(edges, rows, accuracies, cmap=DARKER_IS_BETTER, vmin=0, vmax=1, rasterized=True)
    axes.set_yticks(rows[:-1] + 0.5, position_names(count))
    axes.invert_yaxis()
    axes.set(ylabel="position of the character")
    axes.grid(False)
    right = axes.secondary_yaxis("right")
    right.set_yticks(rows[:-1] + 0.5, [f"{100 * row[-1]:.0f}%" for row in accuracies])
    hide_ticks(axes, right)
    step_axis(axes, rounds)
    caption = ("How often the most probable character is the right one, given the true characters before it, on the validation "
               "sample: the darker, the more often. The numbers on the right are those of the last column. A digit that is guessed "
               "blindly is right in 10%.")  # fmt: skip
    return Figure("Right characters, position by position", caption, drawing)


def position_names(count):
    """Return what the `count` characters of a value are: '10⁴', …, '1', '.', '0.1', …, 'end'."""
    exponents = range(count - DECIMALS - 3, -1, -1)  # apart from the decimals there are '.' and 'e'
    whole = [f"10{str(exponent).translate(SUPERSCRIPTS)}" if exponent > 1 else str(10**exponent) for exponent in exponents]
    return [*whole, ".", *(f"{10**-exponent:.{exponent}f}" for exponent in range(1, DECIMALS + 1)), "end"]


def speed_figure(training):
    """Throughput against the time spent in training."""
    drawing, axes = new_axes()
    lines = of_kind(training, "training")
    last, speeds = lines[-1], [line["zeros_per_second"] for line in lines]
    unit, name = next((unit, name) for unit, name in ((3600, "hours"), (60, "minutes"), (1, "seconds"))
                      if last["seconds"] > 3 * unit or unit == 1)  # fmt: skip
    axes.plot([line["seconds"] / unit for line in lines], speeds, color=MODEL)
    axes.set(xlabel=f"time in training ({name})", ylabel="zeros per second", xlim=(0, None), ylim=(0, 1.1 * max(speeds)))
    axes.yaxis.set_major_formatter("{x:,.0f}")
    caption = (f"Zeros trained on in a second, over {format_duration(last['seconds'])} of training. Last: "
               f"{speeds[-1]:,.0f}; left then: {format_duration(last['seconds_left'])}.")  # fmt: skip
    return Figure("Speed", caption, drawing)


def compared_figure(title, ylabel, curves, yscale="linear"):
    """Curves of several runs in one frame. curves: {name of a run: (zeros trained on, values)}, NaN or None for a gap."""
    drawing, axes = new_axes()
    for (name, (zeros, values)), color, form in zip(curves.items(), itertools.cycle(RUN_COLOURS), itertools.cycle(RUN_LINES)):
        axes.plot(zeros, np.array(values, float), color=color, linestyle=form, label=name)
    axes.set(xlabel="zeros trained on, with repetitions", ylabel=ylabel, xlim=(0, None), yscale=yscale)
    axes.locator_params(axis="x", nbins=5)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    legend_above(drawing)
    return Figure(title, "On the validation sample of the round in which it is measured, which a model has not seen.", drawing)


def legend_above(drawing, ncols=2):
    """The legend of all that a drawing holds, above its frame, where it hides nothing."""
    drawing.legend(loc="outside upper center", ncols=ncols, columnspacing=1.2, handlelength=2.4)


def round_spans(training):
    """Return [(round, first step, last step)] of the rounds in which steps were made."""
    begun = of_kind(training, "round")
    ends = [line["step"] for line in begun[1:]] + [training[-1]["step"]]
    return [(line["round"], line["step"], end) for line, end in zip(begun, ends, strict=True) if end > line["step"]]


def step_axis(axes, rounds):
    """Label the horizontal axis as steps, and mark the rounds of round_spans on top of it."""
    axes.set(xlabel="step", xlim=(rounds[0][1], rounds[-1][2]))
    axes.locator_params(axis="x", nbins=5)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    for _, first, _ in rounds[1:]:
        axes.axvline(first, color=THEORY, linewidth=0.6, alpha=0.5)
    labelled = rounds[:: math.ceil(len(rounds) / 12)]
    top = axes.secondary_xaxis("top")
    top.set_xticks([(first + last) / 2 for _, first, last in labelled], [str(number) for number, _, _ in labelled])
    top.set_xlabel("round", fontsize="small")
    hide_ticks(top)


def hide_ticks(*many_axes):
    """Keep the labels of axes, without tick marks and lines around."""
    for axes in many_axes:
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)


def tuning_cells(trials, axis, rates, values):
    """Return (trials, best score or NaN) for each pair of a learning rate and a value of `axis`, as rows of the values."""
    cells = [[[trial for trial in trials if (trial["point"]["learning_rate"], trial["point"][axis]) == (rate, value)]
              for rate in rates] for value in values]  # fmt: skip
    return cells, np.array([[min((best_nats(trial) for trial in cell if trial["trainable"]), default=np.nan) for cell in row]
                            for row in cells])  # fmt: skip


def tuning_figure(trials, axis, rates, values, limits=(None, None)):
    """A heat map of the best score for each pair of one of the learning `rates` and one of the `values` of `axis`.

    limits: the scores of the darkest and of the lightest colour, by default the extremes of this map.
    """
    drawing, axes = new_axes(height=1.1 + 0.6 * len(values))
    cells, scores = tuning_cells(trials, axis, rates, values)
    colours = axes.imshow(scores, cmap=f"{DARKER_IS_BETTER}_r", aspect="auto", vmin=limits[0], vmax=limits[1])
    for (row, column), score in np.ndenumerate(scores):
        number, ink = ("–", INK) if np.isnan(score) else (f"{score:.3f}", text_colour_on(colours.to_rgba(score)))
        marks = "  ".join(f"{mark} {count}" for mark, _, count in outcome_counts(cells[row][column]) if count)
        axes.text(column, row, f"{number}\n{marks}", ha="center", va="center", color=ink)
    axes.set_xticks(range(len(rates)), map(str, rates))
    axes.set_yticks(range(len(values)), map(str, values))
    axes.set(xlabel="learning_rate", ylabel=axis)
    axes.grid(False)
    hide_ticks(axes)
    caption = "No trial was trainable."
    if best := min((trial for trial in trials if trial["trainable"]), key=best_nats, default=None):
        caption = f"Best: {best_nats(best):.3f} at learning_rate {best['point']['learning_rate']}, {axis} {best['point'][axis]}."
    return Figure(f"learning_rate and {axis}", caption, drawing)


def worth_figure(trials, axes, repeated):
    """What each value of each axis costs compared with the best one of its axis, all else equal, after the first epoch.

    axes: {axis: values}. repeated: lists of lines of one trial with several seeds, whose deviation is drawn as a band.
    """
    scores = {tuple(trial["point"].items()): trial["nats_per_zero"][0] for trial in trials
              if trial["trainable"] and trial["nats_per_zero"][0] is not None}  # fmt: skip
    rows = []  # (label, differences)
    for axis, values in axes.items():
        losses = {value: {} for value in values}  # value: {all other values: score}
        for point, score in scores.items():
            losses[dict(point)[axis]][tuple(item for item in point if item[0] != axis)] = score
        shared = set.intersection(*map(set, losses.values()))
        best = min(values, key=lambda value: sum(losses[value][others] for others in shared))
        rows += [(f"{axis} {value}", [losses[value][others] - losses[best][others] for others in shared]) for value in values]
    rows = [(label, differences) for label, differences in rows if differences]
    drawing, frame = new_axes(height=0.9 + 0.19 * len(rows))
    noise = deviation_between_seeds(repeated, 0)
    if noise is not None:
        reach = 2 * math.sqrt(2) * noise
        frame.axvspan(-reach, reach, color=THEORY, alpha=0.25, linewidth=0, label="by chance alone: twice the noise between seeds")
        frame.legend(loc="lower right", bbox_to_anchor=(1, 1))
    for row, (_, differences) in enumerate(rows):
        low, high = np.percentile(differences, [10, 90])
        frame.plot([low, high], [row, row], color=MODEL_LIGHT, linewidth=3, solid_capstyle="butt")
        frame.plot(np.mean(differences), row, "o", color=MODEL, markersize=4)
    frame.set_yticks(range(len(rows)), [label for label, _ in rows], fontsize="small")
    frame.invert_yaxis()
    frame.set(xlabel="nats per zero, above the best value of the axis")
    frame.grid(axis="y", visible=False)
    caption = ("What a value costs after one epoch, compared with trials that differ from it in this axis alone and have its best "
               "value there: the mean as a dot, 80% of the pairs as a bar.")  # fmt: skip
    return Figure("What each value is worth", caption, drawing)


def epochs_figure(repeated):
    """Score against epochs of the trials that were trained to the end, with all of their seeds. repeated: lists of lines."""
    drawing, axes = new_axes()
    points = [lines[0]["point"] for lines in repeated]
    differing = [axis for axis in points[0] if len({point[axis] for point in points}) > 1]
    for lines, point, style in zip(repeated, points, itertools.cycle(RUN_LINES)):
        curves = np.array([line["nats_per_zero"] for line in lines], float)
        epochs, label = np.arange(1, curves.shape[1] + 1), " / ".join(str(point[axis]) for axis in differing)
        axes.fill_between(epochs, curves.min(0), curves.max(0), color=MODEL_LIGHT, alpha=0.5, linewidth=0)
        axes.plot(epochs, curves.mean(0), style, color=MODEL, label=label)
    axes.set(xlabel="epochs", ylabel="nats per zero", xlim=(1, None))
    if differing:
        axes.legend(title=" / ".join(differing), fontsize="x-small", title_fontsize="x-small")
    noise = deviation_between_seeds(repeated, -1)
    seeds = max(map(len, repeated))
    caption = "The trials that were trained to the end"
    caption += f": the mean of {seeds} seeds, and from the lowest to the highest of them in light blue." if seeds > 1 else "."
    if noise is not None:
        caption += f" In the end, seeds differ by {noise:.3f} (standard deviation)."
    return Figure("Epochs", caption, drawing)


def text_colour_on(background):
    """Black or white, whichever has the larger contrast with an RGBA colour: at least 4.5 to 1 (WCAG 2, relative luminance)."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in background[:3]]
    luminance = np.dot((0.2126, 0.7152, 0.0722), linear)
    return "black" if (luminance + 0.05) / 0.05 > 1.05 / (luminance + 0.05) else "white"


def deviation_between_seeds(repeated, epoch):
    """Standard deviation of the scores after an epoch, as an index of the curves, of trials with several seeds; None if unknown."""
    scores = [[line["nats_per_zero"][epoch] for line in lines] for lines in repeated]
    return pooled_deviation([group for group in scores if None not in group])


def best_nats(trial):
    """The lowest cross entropy of a trial after any number of epochs; infinity if there is none."""
    return min((nats for nats in trial["nats_per_zero"] if nats is not None), default=math.inf)


def outcome_counts(trials):
    """Return [(mark, what it means, how many of `trials` have it)]."""
    trainable, stable = (sum(trial[label] for trial in trials) for label in ("trainable", "stable"))
    return [("●", "trainable", trainable), ("○", "stable, but learned nothing", stable - trainable),
            ("×", "diverged", len(trials) - stable)]  # fmt: skip
