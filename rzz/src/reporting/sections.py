"""What the report says of each stage: its log in, blocks of the page out.

    blocks = [*training_section(read_json_lines(config.log_folder / "training.jsonl"))]
"""

import math
from collections import Counter

import numpy as np

from common.text import format_duration, format_number
from model.metrics import gue_share_below, result_table
from model.tokenizer import DECIMALS
from reporting.figures import (
    accuracy_map,
    error_histogram,
    loss_curves,
    mse_curves,
    predicted_against_true,
    spacing_distribution,
    speed_curve,
    tuning_map,
)
from reporting.pages import Figure, Figures, Heading, Paragraph, Sentences, Table
from zeta.riemann_siegel import mean_spacing, smooth_zeros

ENDS = 5  # best and worst predictions that are shown
BEST_POINTS = 10  # of the tuning grid that are listed
HISTOGRAM_LIMIT = 1.5  # mean spacings
CLOSE = 0.3  # mean spacings: true neighbours are seldom nearer
SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


# ---------------------------------------------------------------------------------------------------------- evaluation


def evaluation_section(evaluation, predictions):
    """Yield what the model is worth on the test zeros, from evaluation.json and the lines of predictions.jsonl."""
    yield Heading("Evaluation")
    yield Paragraph(f"Zeros {evaluation['first_index']:,} … {evaluation['last_index']:,}, each written {evaluation['runs']} times "
                    f"by nucleus sampling with p = {evaluation['top_p']:g}. The model was trained for "
                    f"{format_duration(evaluation['seconds_trained'])}, up to zero {evaluation['trained_up_to']:,}.")  # fmt: skip
    header, *rows = result_table(evaluation)
    yield Table(header, rows)
    shares = evaluation["accuracy_by_position"]
    yield Table(["place of the character", *place_names(len(shares))], [["right, in %", *(f"{100 * each:.0f}" for each in shares)]])
    trained, untrained = (f"{each['nats_per_zero']:.3f} nats per zero, {each['nats_per_token']:.4f} per character"
                          for each in (evaluation, evaluation["untrained"]))  # fmt: skip
    yield Paragraph(f"Cross entropy: {trained}; before training {untrained}.")
    if predictions:
        yield from prediction_blocks(predictions)


def prediction_blocks(lines):
    """Yield figures of what was written for each zero, and the best and worst of it as sentences."""
    indexes = np.array([line["index"] for line in lines])
    true = np.array([line["true"] for line in lines])
    runs = np.array([line["predicted"] for line in lines], np.float64)  # (zeros, runs), NaN for None
    readable = ~np.isnan(runs)
    mean = np.where(readable, runs, 0).sum(1) / np.where(readable.any(1), readable.sum(1), np.nan)
    smooth, unit = smooth_zeros(indexes), mean_spacing(true)

    figures = []
    if readable.any():
        figures.append(offsets_figure((true - smooth) / unit, (mean - smooth) / unit))
        figures.append(errors_figure(((runs - true[:, None]) / unit[:, None])[readable], (smooth - true) / unit, unit.mean()))
    if np.isfinite(np.diff(mean)).any():
        figures.append(spacings_figure(np.diff(true) / unit[:-1], np.diff(mean) / unit[:-1]))
    yield Figures(figures)
    order = np.argsort(np.where(np.isnan(mean), np.inf, np.abs(mean - true)), kind="stable")
    for name, chosen in (("best", order[:ENDS]), ("worst", order[::-1][:ENDS])):
        yield Paragraph(f"The {len(chosen)} {name} predictions, as mean ± standard deviation of the runs:")
        yield Sentences([sentence(indexes[k], true[k], runs[k]) for k in chosen])


def offsets_figure(true, predicted):
    """true, predicted: distances (n,) from the smooth count, in mean spacings."""
    limit = 1.1 * np.abs(true).max()
    outside = np.sum(~(np.abs(predicted) <= limit))
    caption = ("Each dot is a zero: how far it lies from where the smooth count puts it, and how far the model (mean of its runs) "
               "says that it does. On the grey diagonal the model is right; on the orange line it would know no more than the "
               f"smooth count. Outside of the frame: {outside:,} of {len(true):,} zeros.")  # fmt: skip
    return Figure("predicted_against_true", "Predicted against true", caption, predicted_against_true(true, predicted, limit))


def errors_figure(model, smooth, unit):
    """model, smooth: errors of all predictions, in mean spacings. unit: of which this is the mean."""
    beyond = np.sum(np.abs(model) > HISTOGRAM_LIMIT)
    caption = (f"All {len(model):,} sampled predictions beside the smooth count, in units of the mean distance of neighbouring "
               f"zeros, {unit:.4f}. Narrower is better. Off by more than {HISTOGRAM_LIMIT} and not in the picture: "
               f"{beyond:,}.")  # fmt: skip
    return Figure("errors", "Errors", caption, error_histogram(model, smooth, HISTOGRAM_LIMIT))


def spacings_figure(true, predicted):
    """true, predicted: distances of neighbours (n - 1,), in mean spacings, NaN beside an unreadable zero."""
    predicted = predicted[~np.isnan(predicted)]
    shares = [f"{100 * np.mean(each < CLOSE):.1f}%" for each in (predicted, true)]
    caption = ("How far each zero is from the next. True zeros repel each other, as the eigenvalues of random Hermitian matrices "
               "do (GUE). Errors that are independent from one zero to the next widen the predicted distribution and fill the gap "
               "near 0; predictions that dare too little, as means of several do, make it narrower. "
               f"Below {CLOSE} are {shares[0]} of the predicted distances (mean of the runs), {shares[1]} of the true ones, and "
               f"{100 * gue_share_below(CLOSE):.1f}% under the curve. Negative, two zeros in the wrong order: "
               f"{np.sum(predicted < 0):,}.")  # fmt: skip
    return Figure("spacings", "Distances of neighbours", caption, spacing_distribution(true, predicted))


def sentence(index, true, runs):
    """'zero 11,000,412 is 5453540.6071; the model said 5453540.5 ± 0.1': as many decimals as the spread has to its first digit."""
    values = runs[~np.isnan(runs)]
    begin = f"zero {index:,} is {true:.{DECIMALS}f}; the model"
    if not len(values):
        return f"{begin} wrote nothing that is a number"
    spread = values.std()
    decimals = min(DECIMALS, max(0, -int(f"{spread:.0e}".split("e")[1]))) if spread else DECIMALS
    return f"{begin} said {values.mean():.{decimals}f} ± {spread:.{decimals}f}"


def place_names(count):
    """Return what the `count` characters of a value are: '10⁴', …, '1', '.', '0.1', …, 'end'."""
    powers = range(count - DECIMALS - 3, -1, -1)  # besides the decimals there are '.' and 'e'
    whole = [f"10{str(power).translate(SUPERSCRIPTS)}" if power > 1 else str(10**power) for power in powers]
    return [*whole, ".", *(f"{10**-power:.{power}f}" for power in range(1, DECIMALS + 1)), "end"]


# ------------------------------------------------------------------------------------------------------------ training


def of_kind(training, kind):
    """The lines of training.jsonl that are about a 'round', 'training' steps or a 'validation'."""
    return [line for line in training if line["kind"] == kind]


def training_section(training):
    """Yield how the training went so far."""
    steps, validations = of_kind(training, "training"), of_kind(training, "validation")
    yield Heading("Training")
    if validations:
        yield Table(["round", "step", "loss, training", "loss, validation", "nats per zero", "MSE, training zeros",
                     "MSE, validation zeros", "smooth count", "readable"], list(round_rows(training)))  # fmt: skip
    figures = [loss_figure(training)] if steps or validations else []
    figures += [mse_figure(training), accuracy_figure(training)] if validations else []
    figures += [speed_figure(steps)] if steps else []
    yield Figures(figures) if figures else Paragraph("Nothing has been logged but the beginning.")


def round_rows(training):
    """Yield the last that was measured in each round, as cells."""
    for line in of_kind(training, "round"):
        steps, validations = ([each for each in of_kind(training, kind) if each["round"] == line["round"]][-1:]
                              for kind in ("training", "validation"))  # fmt: skip
        for last in validations:
            loss = format_number(steps[0]["loss"]) if steps else "–"
            yield [str(last["round"]), f"{last['step']:,}", loss, format_number(last["loss"]), f"{last['nats_per_zero']:.3f}",
                   format_number(last["mse_training"]), format_number(last["mse_validation"]),
                   format_number(line["mse_baselines"]["smooth count"]),
                   f"{last['readable_validation']:.4f}"]  # fmt: skip


def round_spans(training):
    """Return [(round, first step, last step)] of the rounds in which steps were made."""
    begun = of_kind(training, "round")
    ends = [line["step"] for line in begun[1:]] + [training[-1]["step"]]
    return [(line["round"], line["step"], end) for line, end in zip(begun, ends, strict=True) if end > line["step"]]


def loss_figure(training):
    series, last = [], []
    for kind in ("training", "validation"):
        lines = of_kind(training, kind)
        series += [[line["step"] for line in lines], [line["loss"] for line in lines]]
        last += [f"{kind} {format_number(lines[-1]['loss'])} at step {lines[-1]['step']:,}"] if lines else []
    caption = ("Cross entropy over the characters of the value, on the zeros trained on and on a sample of the interval after "
               f"them, which the model has not seen. Lower is better. Last: {', '.join(last)}.")  # fmt: skip
    return Figure("loss", "Loss", caption, loss_curves(*series, round_spans(training)))


def mse_figure(training):
    lines, begun = of_kind(training, "validation"), of_kind(training, "round")
    rounds = round_spans(training)
    baselines = {name: [line["mse_baselines"][name] for line in begun[: len(rounds)]] for name in begun[0]["mse_baselines"]}
    last = lines[-1]
    caption = ("One sampled prediction for each of some zeros, beside methods without a model on the same validation zeros. A "
               "single wrong leading digit decides the mean, hence the peaks. A model below the smooth count knows more than how "
               f"zeros lie on the average. Last: training {format_number(last['mse_training'])}, validation "
               f"{format_number(last['mse_validation'])}, smooth count "
               f"{format_number(baselines['smooth count'][-1])}.")  # fmt: skip
    drawing = mse_curves([line["step"] for line in lines], [line["mse_training"] for line in lines],
                         [line["mse_validation"] for line in lines], rounds, baselines)  # fmt: skip
    return Figure("mse", "Squared error against the baselines", caption, drawing)


def accuracy_figure(training):
    lines = of_kind(training, "validation")
    count = max(len(line["accuracy_by_position"]) for line in lines)
    shares = np.full((count, len(lines)), np.nan)
    for column, line in enumerate(lines):  # by place value, so that a value that is longer by a digit does not move the others
        shares[count - len(line["accuracy_by_position"]) :, column] = line["accuracy_by_position"]
    caption = ("How often the most probable character is the right one, given the true characters before it, on the validation "
               "sample: the darker, the more often. The numbers on the right are those of the last column. A digit that is guessed "
               "blindly is right in 10%.")  # fmt: skip
    drawing = accuracy_map([line["step"] for line in lines], shares, place_names(count), round_spans(training))
    return Figure("accuracy", "Right characters, place by place", caption, drawing)


def speed_figure(steps):
    last = steps[-1]
    caption = (f"Zeros trained on in a second, over {format_duration(last['seconds'])} of training. Last: "
               f"{last['zeros_per_second']:,.0f}; left then: {format_duration(last['seconds_left'])}.")  # fmt: skip
    drawing = speed_curve([line["seconds"] for line in steps], [line["zeros_per_second"] for line in steps])
    return Figure("speed", "Speed", caption, drawing)


# -------------------------------------------------------------------------------------------------------------- tuning


def tuning_section(lines):
    """Yield what the search found: heat maps over pairs of axes, and the best points."""
    points = tuning_points(lines)
    axes = searched_axes(points)
    ruled_out = Counter(line["reason"] for line in lines if line["kind"] == "ruled_out")
    yield Heading("Tuning")
    yield Paragraph(f"{len(points):,} points of the grid were trained:")
    yield Sentences([*(f"{mark} {count:,} {name}" for mark, name, count in marks_of(points)),
                     *(f"ruled out before: {count:,}, {reason}" for reason, count in ruled_out.most_common())])  # fmt: skip
    if "learning_rate" in axes and len(axes) > 1:
        yield Paragraph("The maps show the lowest validation cross entropy, in nats per zero, of all trainable points with these "
                        "two values, the darker, the better, and the marks of all points there. Points that were given up early "
                        "count with what they had reached.")  # fmt: skip
        yield Figures([tuning_figure(points, "learning_rate", axis, axes) for axis in axes if axis != "learning_rate"])
    best = sorted(points, key=lambda point: (not point["trainable"], best_nats(point)))[:BEST_POINTS]
    yield Table([*axes, "nats per zero", "MSE", "epochs trained", "parameters"],
                [[*(str(point["point"][axis]) for axis in axes), f"{best_nats(point):.3f}", format_number(point["mse"]),
                  str(point["epochs"]), f"{point['parameters']:,}"] for point in best])  # fmt: skip


def tuning_points(lines):
    """Return the last line of each point of the last grid: {"point": {axis: value}, "nats_per_zero": [per epoch], …}."""
    rungs = [line for line in lines if line["kind"] == "rung"]
    axes = rungs[-1]["point"].keys()
    return list({tuple(line["point"].values()): line for line in rungs if line["point"].keys() == axes}.values())


def best_nats(point):
    """The lowest cross entropy of a point after any number of epochs; infinity where there is none."""
    return min((nats for nats in point["nats_per_zero"] if nats is not None), default=math.inf)


def searched_axes(points):
    """Return {axis: its values in order} of the axes of the grid that have more than one value."""
    axes = {}
    for point in points:
        for axis, value in point["point"].items():
            axes.setdefault(axis, set()).add(value)
    return {axis: sorted(values, key=lambda value: (value is not None, value)) for axis, values in axes.items() if len(values) > 1}


def tuning_figure(points, across, down, axes):
    """A heat map of the best score for each pair of values of the axes `across` and `down`."""
    scores = np.full((len(axes[down]), len(axes[across])), np.nan)
    marks = np.full(scores.shape, "", object)
    for row, column in np.ndindex(scores.shape):
        here = [point for point in points if point["point"][down] == axes[down][row]
                and point["point"][across] == axes[across][column]]  # fmt: skip
        scores[row, column] = min((best_nats(point) for point in here if point["trainable"]), default=math.nan)
        marks[row, column] = "  ".join(f"{mark} {count}" for mark, _, count in marks_of(here) if count)
    best = min((point for point in points if point["trainable"]), key=best_nats, default=None)
    caption = "No point was trainable." if best is None else (
        f"Best: {best_nats(best):.3f} at {across} {best['point'][across]}, {down} {best['point'][down]}.")  # fmt: skip
    drawing = tuning_map((across, down), axes[across], axes[down], scores, marks)
    return Figure(f"tuning_{down}", f"{across} and {down}", caption, drawing)


def marks_of(points):
    """Return [(mark, what it means, how many of `points` have it)]."""
    trainable, stable = (sum(point[label] for point in points) for label in ("trainable", "stable"))
    return [("●", "trainable", trainable), ("○", "stable, but learned nothing", stable - trainable),
            ("×", "diverged", len(points) - stable)]  # fmt: skip
