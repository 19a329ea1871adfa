"""Successive halving as bookkeeping: which trials go on, what is known of each, which is best. Nothing here trains.

    search_log = SearchLog(config)                        # logs/tuning.jsonl
    trials = promoted(config, trials, search_log, rung=1)
"""

import json
import math

from common.files import NUMBER_OR_NONE, append_json_lines, read_json_lines
from tuning.cost import parameters_of
from tuning.grid import key_of, requested_epochs, trial_key_settings

LINES = (  # what a line of tuning.jsonl has to have for those who read it
    {"kind": "rung", "point": dict, "epochs": int, "nats_per_zero": list, "mse": NUMBER_OR_NONE, "stable": bool, "trainable": bool,
     "parameters": int, "settings": {"training": {"seed": int}}},
    {"kind": ("ruled_out", "shortened"), "point": dict, "reason": str, "detail": str},
)  # fmt: skip


def rungs_of(config):
    """The numbers of epochs after which the best trials go on; the last is the grid's largest."""
    last = requested_epochs(config)[-1]
    return [rung for rung in config.tuning.rungs if rung < last] + [last]


def target_epochs(trial, rung):
    """Epochs that `trial` has been trained for when it has finished `rung`."""
    return min(rung, trial.epochs[-1])


def promoted(config, trials, search_log, rung):
    """Return those of `trials` that go on after `rung`: the best of each batch size, tuning.keep of them.

    Trials of one batch size have made equally many updates; compared with another batch size, an early score says more
    about the number of updates than about the trial. So the best of each batch size are trained to the end. What is not
    trainable does not go on. Results may still be missing: a trial with a result that is not promoted then never will be.
    """
    going_on = []
    for same_batch_size in by_batch_size(trials).values():
        results = {trial.key: search_log.result(trial, rung) for trial in same_batch_size}
        trainable = [key for key, result in results.items() if result and result["trainable"]]
        best = set(sorted(trainable, key=lambda key: score(results[key]))[: num_promoted(config, len(same_batch_size))])
        going_on += [trial for trial in same_batch_size if trial.key in best]
    return going_on


def repetitions(config, trials):
    """Return `trials`, of the last rung, with each of the other seeds: their scores differ by chance alone."""
    first = config.training.seed
    return [trial.with_seed(seed) for seed in range(first + 1, first + config.tuning.seeds) for trial in trials]


def eliminated(config, trials, search_log, rung):
    """Return those of `trials` that are known not to go on after `rung`, whatever results are still missing."""
    going_on = {trial.key for trial in promoted(config, trials, search_log, rung)}
    return [trial for trial in trials if search_log.result(trial, rung) and trial.key not in going_on]


def by_batch_size(trials):
    """Return {batch size: its trials}."""
    groups = {}
    for trial in trials:
        groups.setdefault(trial.settings.training.batch_size, []).append(trial)
    return groups


def num_promoted(config, count):
    """How many of `count` trials of one batch size go on."""
    return math.ceil(config.tuning.keep * count - 1e-9)


def score(result):
    """What trials are ranked by, the smaller the better: cross entropy of the best epoch so far, then the MSE."""
    nats = [value for value in result["nats_per_zero"] if value is not None]
    return min(nats, default=math.inf), math.inf if result["mse"] is None else result["mse"]


def outcome(first_loss, last_losses, finite, nats):
    """Return {"stable", "trainable"} of a trial: finished with finite numbers; and below its first loss at the end."""
    stable = finite and math.isfinite(nats)
    return {"stable": stable, "trainable": stable and sum(last_losses) / len(last_losses) < first_loss}


class SearchLog:
    """logs/tuning.jsonl: one line for each finished rung of a trial, found again by the trial's settings."""

    def __init__(self, config):
        self.path = config.log_folder / "tuning.jsonl"
        self.lines = {}  # key of the settings: {epochs: line}
        found = read_json_lines(self.path, LINES)
        self.enter(line for line in found if line["kind"] == "rung")
        self.excluded = {json.dumps(line, sort_keys=True) for line in found if line["kind"] != "rung"}

    def enter(self, lines):
        for line in lines:
            self.lines.setdefault(key_of(line["settings"]), {})[line["epochs"]] = line

    def result(self, trial, rung):
        """Return the line of `trial` after `rung`, a later one with its curve cut off there, or None."""
        epochs = target_epochs(trial, rung)
        later = [line for count, line in sorted(self.lines.get(trial.key, {}).items()) if count >= epochs]
        return {**later[0], "epochs": epochs, "nats_per_zero": later[0]["nats_per_zero"][:epochs]} if later else None

    def last_result(self, trial):
        """Return what the longest training of `trial` says of the epochs that the grid asks for."""
        return self.result(trial, min(max(self.lines[trial.key]), trial.epochs[-1]))

    def write(self, trials, epochs, results):
        """Add the result of each of `trials` after so many epochs, all of them in one write."""
        lines = [{"kind": "rung", "point": trial.values, "epochs": epochs, **result,
                  "parameters": parameters_of(trial.settings.model),
                  "settings": trial_key_settings(trial.settings)}
                 for trial, result in zip(trials, results, strict=True)]  # fmt: skip
        append_json_lines(self.path, lines)
        self.enter(lines)

    def write_excluded(self, grid):
        """Add the trials that are excluded or shortened, each with its reason, unless the file has the same line already."""
        kinds = {"ruled_out": grid.excluded, "shortened": grid.shortened}
        lines = [{"kind": kind, "point": entry.values, "reason": entry.reason, "detail": entry.detail}
                 for kind, entries in kinds.items() for entry in entries]  # fmt: skip
        append_json_lines(self.path, [line for line in lines if json.dumps(line, sort_keys=True) not in self.excluded])


def ranking(grid, search_log):
    """Return (nats per zero, epochs, result, trial) for each trainable trial, the best first, each at the best of its epochs."""
    ranked = []
    for trial in grid.trials:
        result = search_log.last_result(trial)
        allowed = [count for count in trial.epochs if count <= result["epochs"]]
        curve = [(result["nats_per_zero"][count - 1], count) for count in allowed]
        finite = [point for point in curve if point[0] is not None]
        if result["trainable"] and finite:
            ranked.append((*min(finite), result, trial))
    return sorted(ranked, key=lambda entry: (entry[0], score(entry[2])))
