"""Several runs beside each other: what they reached in one table, their curves in one frame, the settings that tell them apart.

    body = [*comparison_section({"runs/a": run_a, "runs/b": run_b})]            # each a RunLogs
"""

import json
from pathlib import Path

import numpy as np

from common.text import format_number, short_number
from reporting.figures import compared_figure, of_kind
from reporting.pages import bullet_list, figure_grid, heading, paragraph, table
from reporting.sections import SETTINGS, is_complete, missing_stages, settings_of


def names_of(folders):
    """Return a name for each of some different folders: the last two parts of its path, or as many as tell them apart."""
    for length in range(2, max(2, *(len(folder.parts) for folder in folders)) + 1):
        names = [str(Path(*folder.parts[-length:])) for folder in folders]
        if len(set(names)) == len(names):
            break
    return names


def comparison_section(runs):
    """Yield the results of {name: run} as a table, curves of the trainings, and the settings in which they differ."""
    yield table(["run", "parameters", "steps", "nats per zero", "tested from", "MSE", "±", "MSE, mean",
                 "× smooth count", "× explicit formula", "readable"],
                [[name, *result_cells(run)] for name, run in runs.items()])  # fmt: skip
    yield paragraph("MSE: of sampled predictions, with its standard deviation over the samplings, and of their mean. ×: the first "
                    "as a multiple of what formulas have on the same zeros, the smooth count, which knows nothing of the "
                    "primes, and the explicit formula, a sum over primes that needs no training. Of runs that are tested on "
                    "different zeros, only these multiples can be compared.")  # fmt: skip
    yield figure_grid(comparison_figures(runs))
    trained = {name: flat_settings(run) for name, run in runs.items() if of_kind(run.training, "round")}
    keys = dict.fromkeys(key for settings in trained.values() for key in settings)
    rows = [[key, *(json.dumps(settings.get(key)) for settings in trained.values())] for key in keys]
    if differing := [row for row in rows if len(set(row[1:])) > 1]:
        yield heading("Settings that differ")
        yield table(["", *trained], differing)
    for name, run in runs.items():
        if missing := list(missing_stages(run)):
            yield heading(f"Left to do: {name}") + bullet_list(missing)


def result_cells(run):
    """Return what a run has reached as the cells of comparison_section's table, but for its name."""
    rounds, steps, validations = (of_kind(run.training, kind) for kind in ("round", "training", "validation"))
    parameters = f"{rounds[-1]['parameters']:,}" if rounds else "–"
    done = "" if is_complete(run.training) else " so far"
    cells = [parameters, f"{run.training[-1]['step']:,}{done}" if steps else "–",
             f"{validations[-1]['nats_per_zero']:.3f}" if validations else "–"]  # fmt: skip
    if run.evaluation is None:
        return [*cells, *["–"] * 7]
    measured = run.evaluation
    multiples = [measured["mse"] and measured["mse"] / baseline["mse"] if baseline else None
                 for baseline in map(measured["baselines"].get, ("smooth count", "explicit formula"))]  # fmt: skip
    return [*cells, f"{measured['first_index']:,}", format_number(measured["mse"]),
            short_number(measured["mse_spread"]), format_number(measured["mse_of_mean_prediction"]), *map(short_number, multiples),
            f"{measured['readable']:.4f}"]  # fmt: skip


def comparison_figures(runs):
    """Yield loss and squared error on the validation sample against the zeros trained on, all runs in one frame."""
    validated = {name: (of_kind(run.training, "validation"), batch_size(run)) for name, run in runs.items()
                 if of_kind(run.training, "validation")}  # fmt: skip
    for title, key, label, scale in (("Loss", "nats_per_zero", "nats per zero", "linear"),
                                     ("Squared error", "mse_validation", "mean squared error", "log")):  # fmt: skip
        curves = {name: (np.array([line["step"] for line in lines]) * size, [line[key] for line in lines])
                  for name, (lines, size) in validated.items()}  # fmt: skip
        if curves:
            yield compared_figure(title, label, curves, scale)


def batch_size(run):
    """The zeros of a step of a run that has trained."""
    return settings_of(run.config, of_kind(run.training, "round")[-1])["training"]["batch_size"]


def flat_settings(run):
    """Return {'model.d_model': 64, ...} of a run's last training."""
    settings = settings_of(run.config, of_kind(run.training, "round")[-1])
    return {f"{section}.{key}": value for section in SETTINGS for key, value in settings[section].items()}
