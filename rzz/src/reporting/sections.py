"""What the report says of a run: lines of its logs in, pieces of HTML out.

    body = [*training_section(run.training)]            # run: a RunLogs
"""

import math
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass

import numpy as np

from common.cli import command, from_here
from common.config import Config
from common.files import NUMBER, has_shape
from common.text import format_duration, format_number
from model.metrics import explicit_formula, result_table, table_notes
from model.tokenizer import DECIMALS
from reporting import figures
from reporting.figures import baselines_by_round, best_nats, of_kind, outcome_counts, position_names
from reporting.pages import bullet_list, definition_list, figure_grid, heading, number_tiles, paragraph, table
from zeta.riemann_siegel import mean_spacing, smooth_zeros

NUM_EXAMPLES = 5  # best and worst predictions that are shown
NUM_ON_LINE = 14  # zeros of the picture of Z(t)
NUM_TRIALS = 10  # of the tuning grid that are listed
SETTINGS = {  # of a training, what is said of it
    "data": {"K": int, "first_round": int, "interval_size": int},
    "model": {"index_embedding": str, "d_model": int, "num_layers": int, "num_heads": int, "dropout": NUMBER},
    "training": {"learning_rate": NUMBER, "batch_size": int, "epochs": int},
}


@dataclass
class RunLogs:
    """What a run has logged. tuning, training, predictions: the lines of their logs. evaluation: evaluation.json, or None."""

    config: Config
    tuning: list
    training: list
    evaluation: dict | None
    predictions: list


def overview_section(run):
    """Yield the run's result as a sentence and in large numbers, what is still missing, and its settings."""
    sentence, numbers = accuracy_summary(run.training, run.evaluation)
    yield paragraph(sentence)
    if numbers := [*numbers, *speed_numbers(run.config, run.training)]:
        yield number_tiles(numbers)
    if missing := list(missing_stages(run)):
        yield bullet_list(missing)
    for line in of_kind(run.training, "round")[-1:]:
        data, model, settings = (settings_of(run.config, line)[section] for section in SETTINGS)
        yield paragraph(f"K = {data['K']}: rounds {data['first_round']} … {data['K']} of {data['interval_size']:,} zeros each. "
                        f"Index embedding {model['index_embedding']}, {line['parameters']:,} parameters, d_model "
                        f"{model['d_model']}, layers {model['num_layers']}, heads {model['num_heads']}, dropout "
                        f"{model['dropout']:g}. Learning rate {settings['learning_rate']:g}, batch size "
                        f"{settings['batch_size']}, epochs {settings['epochs']}.")  # fmt: skip


def terms_section(runs):
    """Yield, once, what the words mean that the sections of these runs use."""
    terms = {"nats per zero": "cross entropy of a whole value, all of its characters together: the model gives the right value the "
                              "probability e to the minus nats. A digit guessed blindly costs 2.303."}  # fmt: skip
    if any(run.training or run.evaluation for run in runs):
        terms["readable"] = "what the model writes is a number. Errors are those of the readable ones."
    if any(run.evaluation for run in runs):
        terms["mean spacing"] = ("the average distance of neighbouring zeros there. In mean spacings, errors of all heights can be "
                                 "compared.")  # fmt: skip
    yield definition_list(terms)


def settings_of(config, line):
    """Return the settings of a training, as in config.json: those of a 'round' line of its log, or the file's (older versions)."""
    return line["settings"] if has_shape(line.get("settings"), SETTINGS) else config.settings


def accuracy_summary(training, evaluation):
    """Return (sentence, [(number, label)]) on the model's error in the evaluation or, without one, in the last validation."""
    if evaluation:
        first, last = evaluation["first_index"], evaluation["last_index"]
        where = f"On zeros {first:,} … {last:,}, which it has never seen,"
        spread = format_number(evaluation["mse_spread"])
        label = f"mean squared error on {last - first + 1:,} unseen zeros, ± {spread} over the runs"
        mse, readable = evaluation["mse"], evaluation["readable"]
        baselines = {name: measured["mse"] for name, measured in evaluation["baselines"].items()}
    elif validations := of_kind(training, "validation"):
        last = validations[-1]
        where = f"In round {last['round']}, on zeros of the interval after the one it is trained on,"
        label = f"mean squared error on validation zeros at step {last['step']:,}"
        mse, readable, baselines = last["mse_validation"], last["readable_validation"], baselines_by_round(training)[last["round"]]
    else:
        return "No model has been measured yet.", []
    readable_tile = (f"{100 * readable:.4g}%", "of what the model writes is a number")
    if mse is None:
        return f"{where} the model wrote nothing that is a number.", [("–", label), readable_tile]
    smooth, explicit = baselines["smooth count"], baselines.get("explicit formula")  # older versions have no explicit formula
    ratio, comparison = compare_mse(mse, smooth)
    sentence = (f"{where} the model's mean squared error is {format_number(mse)}: {ratio} times {comparison} than that of the "
                f"smooth count, {format_number(smooth)}, a formula that knows nothing of the primes")  # fmt: skip
    if explicit is not None:
        sentence += (f", and {' times '.join(compare_mse(mse, explicit))} than that of the explicit formula, "
                     f"{format_number(explicit)}, a sum over primes that needs no training")  # fmt: skip
    return f"{sentence}.", [(format_number(mse), label), (f"{ratio}×", f"{comparison} than the smooth count's"), readable_tile]


def compare_mse(mse, reference):
    """('12.5', 'smaller') or ('1.7', 'larger'): an MSE compared with a reference. Whole numbers from 1,000 to a billion."""
    ratio = max(mse, reference) / min(mse, reference) if mse else math.inf
    return f"{ratio:,.0f}" if 999.5 <= ratio < 1e9 else f"{ratio:.3g}", "larger" if mse > reference else "smaller"


def speed_numbers(config, training):
    """Yield (number, label) of the throughput over the whole run and the time left."""
    for last in of_kind(training, "training")[-1:]:
        zeros = last["step"] * settings_of(config, of_kind(training, "round")[-1])["training"]["batch_size"]
        yield f"{zeros / max(last['seconds'], 1e-9):,.0f}", "zeros per second in training"
        if is_complete(training):
            yield "done", f"in {last['steps_in_run']:,} steps and {format_duration(training[-1]['seconds'])}"
        else:
            yield format_duration(last["seconds_left"]), f"of training left after step {last['step']:,} of {last['steps_in_run']:,}"


def missing_stages(run):
    """Yield a sentence for each stage that has yet to run, with its command."""
    config, tuning, training, evaluation = run.config, run.tuning, run.training, run.evaluation
    if not figures.can_draw():
        yield f"Figures need matplotlib: `{from_here(sys.executable)} -m pip install matplotlib`"
    if not tuning:
        yield f"No tuning is in the logs: `{command(config, 'tune_hyper_parameters.py')}`"
    if not training:
        yield f"No training is in the logs: `{command(config, 'train.py --resume')}`"
    elif not is_complete(training):
        yield f"The training has got to step {training[-1]['step']:,}; if it was stopped: `{command(config, 'train.py --resume')}`"
    if not evaluation and training:
        yield f"No evaluation is in the logs, so errors are those on the validation sample: `{command(config, 'evaluate.py')}`"
    elif evaluation and training and training[-1]["seconds"] > evaluation["seconds_trained"]:
        yield f"The training has gone on since it was evaluated: `{command(config, 'evaluate.py')}`"


def evaluation_section(evaluation, predictions):
    """Yield what the model is worth on the test zeros, from evaluation.json and the lines of predictions.jsonl."""
    yield heading("Evaluation")
    yield paragraph(f"Zeros {evaluation['first_index']:,} … {evaluation['last_index']:,}, each written {evaluation['runs']} times "
                    f"by nucleus sampling with p = {evaluation['top_p']:g}. The model was trained for "
                    f"{format_duration(evaluation['seconds_trained'])}, up to zero {evaluation['trained_up_to']:,}.")  # fmt: skip
    if predictions:
        yield figure_grid(stretch_figures(predictions))
    header, *rows = result_table(evaluation)
    yield table(header, rows)
    yield bullet_list(table_notes(evaluation))
    accuracies = evaluation["accuracy_by_position"]
    yield table(["position of the character", *position_names(len(accuracies))],
                [["right, in %", *(f"{100 * accuracy:.0f}" for accuracy in accuracies)]])  # fmt: skip
    yield figure_grid(evaluation_figures(evaluation, predictions))
    if predictions:
        yield from examples_section(predictions)


def read_predictions(lines):
    """Return indexes, true values (n,), and runs (n, runs) with NaN for what was no number, and their mean (n,)."""
    indexes, true = (np.array([line[key] for line in lines]) for key in ("index", "true"))
    runs = np.array([line["predicted"] for line in lines], np.float64)  # (zeros, runs), NaN for None
    readable = ~np.isnan(runs)
    return indexes, true, runs, np.where(readable, runs, 0).sum(1) / np.where(readable.any(1), readable.sum(1), np.nan)


def stretch_figures(predictions):
    """Yield the first of the zeros on their line."""
    indexes, true, _, mean = (part[:NUM_ON_LINE] for part in read_predictions(predictions))
    yield figures.zeros_figure(indexes, true, mean)


def evaluation_figures(evaluation, predictions):
    """Yield figures of the sampled predictions, and of the characters that are right."""
    if predictions:
        indexes, true, runs, mean = read_predictions(predictions)
        smooth, spacing, readable = smooth_zeros(indexes), mean_spacing(true), ~np.isnan(runs)
        if readable.any():
            errors = ((runs - true[:, None]) / spacing[:, None])[readable]
            baselines = {"smooth count": (smooth - true) / spacing}
            if max_prime := evaluation.get("max_prime"):  # evaluations of older versions have none
                baselines["explicit formula"] = (explicit_formula(indexes, max_prime) - true) / spacing
            yield figures.offsets_figure((true - smooth) / spacing, (mean - smooth) / spacing)
            yield figures.errors_figure(errors, baselines, spacing.mean())
        if np.isfinite(np.diff(mean)).any():
            yield figures.spacings_figure(np.diff(true) / spacing[:-1], np.diff(mean) / spacing[:-1])
    yield figures.characters_figure(evaluation["accuracy_by_position"])


def examples_section(predictions):
    """Yield the best and the worst of the predictions as sentences."""
    indexes, true, runs, mean = read_predictions(predictions)
    order = np.argsort(np.where(np.isnan(mean), np.inf, np.abs(mean - true)), kind="stable")
    for name, chosen in (("best", order[:NUM_EXAMPLES]), ("worst", order[::-1][:NUM_EXAMPLES])):
        yield paragraph(f"The {len(chosen)} {name} predictions, as mean ± standard deviation of the runs:")
        yield bullet_list(prediction_text(indexes[k], true[k], runs[k]) for k in chosen)


def prediction_text(index, true, runs):
    """'zero 11,000,412 is 5453540.6071; the model said 5453540.5 ± 0.1, 0.0821 too low' of readings with a mean of 5453540.525.

    As many decimals as the spread has to its first digit.
    """
    readable = runs[~np.isnan(runs)]
    begin = f"zero {index:,} is {true:.{DECIMALS}f}; the model"
    if not len(readable):
        return f"{begin} wrote nothing that is a number"
    spread = readable.std()
    decimals = min(DECIMALS, max(0, -int(f"{spread:.0e}".split("e")[1]))) if spread else DECIMALS
    error = round(readable.mean() - true, DECIMALS)
    side = f"{abs(error):.{DECIMALS}f} too {'high' if error > 0 else 'low'}" if error else "right to the last digit"
    return f"{begin} said {readable.mean():.{decimals}f} ± {spread:.{decimals}f}, {side}"


def is_complete(training):
    """Whether the last step of the run is in the log."""
    steps = of_kind(training, "training")
    return bool(steps) and training[-1]["step"] >= steps[-1]["steps_in_run"]


def training_section(training):
    """Yield how the training went so far: the last measurements of each round as a table, and figures."""
    steps, validations = of_kind(training, "training"), of_kind(training, "validation")
    yield heading("Training")
    if validations:
        losses, baselines, rows = {line["round"]: line["loss"] for line in steps}, baselines_by_round(training), []
        for t, last in {line["round"]: line for line in validations}.items():
            mse = (format_number(value) for value in (last["mse_training"], last["mse_validation"], baselines[t]["smooth count"]))
            rows.append([str(t), f"{last['step']:,}", format_number(losses.get(t)), format_number(last["loss"]),
                         f"{last['nats_per_zero']:.3f}", *mse, f"{last['readable_validation']:.4f}"])  # fmt: skip
        yield table(["round", "step", "loss, training", "loss, validation", "nats per zero", "MSE, training zeros",
                     "MSE, validation zeros", "smooth count", "readable"], rows)  # fmt: skip
    if not steps and not validations:
        yield paragraph("Nothing has been logged but the beginning.")
    yield figure_grid(training_figures(training))


def training_figures(training):
    """Yield figures of the lines of training.jsonl, of those that have something to show."""
    steps, validations = of_kind(training, "training"), of_kind(training, "validation")
    if steps or validations:
        yield figures.loss_figure(training)
    if validations:
        yield figures.mse_figure(training)
        yield figures.accuracy_figure(training)
    if steps:
        yield figures.speed_figure(training)


def trial_settings(line):
    """Return all that a line of tuning.jsonl was trained with as one dictionary."""
    settings = line["settings"]
    return {**settings.get("model", {}), **settings["training"], "zeros": settings.get("zeros"), "top_p": settings.get("top_p")}


def tuning_section(lines, seed):
    """Yield what the search found: heat maps over the learning rate and each other axis, and the best trials.

    seed: of the settings; the trials are those with it if a search began with it, else those with the seed that most have.
    """
    rungs = [line for line in lines if line["kind"] == "rung"]
    names = list(rungs[-1]["point"])  # the axes of the last grid
    wanted, apart = trial_settings(rungs[-1]), {*names, "seed", "d_k", "d_v", "d_ff"}  # the sizes follow from others
    last = defaultdict(dict)  # seed: {point: its last line}
    for line in rungs:
        settings = trial_settings(line)
        if all(wanted.get(key, value) == value for key, value in settings.items() if key not in apart):
            point = {axis: {**settings, **line["point"]}.get(axis) for axis in names}  # an axis that is new had one value before
            last[settings["seed"]][tuple(point.values())] = {**line, "point": point}
    fewest = min(line["epochs"] for line in rungs)  # repetitions are trained to the end at once
    whole = {line["settings"]["training"]["seed"] for line in rungs if line["epochs"] == fewest}
    found = last[seed if seed in whole & last.keys() else max(last, key=lambda each: len(last[each]))]
    trials = list(found.values())
    most = max(trial["epochs"] for trial in trials)
    longest = [point for point, trial in found.items() if trial["epochs"] == most and trial["trainable"]]
    repeated = [[lines[point] for lines in last.values() if point in lines and lines[point]["epochs"] == most] for point in longest]
    tried = {axis: {trial["point"][axis] for trial in trials} for axis in names}
    axes = {axis: sorted(values, key=lambda value: (value is not None, value)) for axis, values in tried.items() if len(values) > 1}
    excluded = Counter(line["reason"] for line in lines if line["kind"] == "ruled_out" and line["point"].keys() == set(names)
                       and tuple(map(line["point"].get, names)) not in found)  # fmt: skip
    yield heading("Tuning")
    yield paragraph(f"{len(trials):,} trials of the grid were trained:")
    yield bullet_list([*(f"{mark} {count:,} {name}" for mark, name, count in outcome_counts(trials)),
                       *(f"excluded before: {count:,}, {reason}" for reason, count in excluded.most_common())])  # fmt: skip
    if "learning_rate" in axes and len(axes) > 1:
        yield paragraph("The maps show the lowest validation cross entropy, in nats per zero, of all trainable trials with these "
                        "two values, the darker, the better, on one scale, and the marks of all trials there. Trials that were "
                        "given up early count with what they had reached.")  # fmt: skip
    yield figure_grid(tuning_figures(trials, axes, repeated))
    best = sorted(trials, key=lambda trial: (not trial["trainable"], best_nats(trial)))[:NUM_TRIALS]
    yield table([*axes, "nats per zero", "MSE", "epochs trained", "parameters"],
                [[*(str(trial["point"][axis]) for axis in axes), f"{best_nats(trial):.3f}", format_number(trial["mse"]),
                  str(trial["epochs"]), f"{trial['parameters']:,}"] for trial in best])  # fmt: skip


def tuning_figures(trials, axes, repeated):
    """Yield what each value is worth, the finalists' curves, and heat maps of learning rate and each other axis, on one scale.

    trials: last lines of one seed. axes: {axis: its values}. repeated: for each finalist its lines with all seeds.
    """
    if axes:
        yield figures.worth_figure(trials, axes, repeated)
    if any(len(lines[0]["nats_per_zero"]) > 1 for lines in repeated):
        yield figures.epochs_figure(repeated)
    if rates := axes.get("learning_rate"):
        others = [axis for axis in axes if axis != "learning_rate"]
        scores = [figures.tuning_cells(trials, axis, rates, axes[axis])[1].ravel() for axis in others]
        finite = [score for score in np.concatenate([*scores, []]) if np.isfinite(score)]
        limits = (min(finite), max(finite)) if finite else (None, None)
        for axis in others:
            yield figures.tuning_figure(trials, axis, rates, axes[axis], limits)
