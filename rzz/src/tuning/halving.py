"""Successive halving as bookkeeping: which trials go on, what is known of each, which is best. Nothing here trains.

    search_log = SearchLog(config)                        # logs/tuning.jsonl
    going_on = promoted(config, trials, search_log, rung=1)
"""

import json
import math
from typing import NamedTuple

from common.files import append_json_lines, read_json_lines
from tuning.cost import parameter_forecast
from tuning.grid import Trial, key_of, requested_epochs, trial_key_settings

# -------------------------------------------------------------------------------------------------- successive halving


def rungs_of(config):
    """The numbers of epochs after which the better part of the points goes on; the last is the grid's largest."""
    last = requested_epochs(config)[-1]
    return [rung for rung in config.tuning.rungs if rung < last] + [last]


def target_epochs(point, rung):
    """Epochs that `point` has been trained for when it has finished `rung`."""
    return min(rung, point.epochs[-1])


def promoted(config, contenders, ledger, rung):
    """Return those of `contenders` that go on after `rung`: tuning.keep of the points of each batch size.

    Points of one batch size have made equally many updates; against another batch size, an early score says more about
    the number of updates than about the point. So each batch size has its best points trained to the end. What is not
    trainable does not go on. `contenders` may lack results still: what they leave out then is left out for sure.
    """
    going_on = []
    for peers in by_batch_size(contenders):
        scored = [(score(ledger.line(point, rung)), place) for place, point in enumerate(peers)
                  if (ledger.line(point, rung) or {}).get("trainable")]  # fmt: skip
        best = sorted(scored)[: num_promoted(config, len(peers))]
        going_on += [peers[place] for _, place in sorted(best, key=lambda entry: entry[1])]
    return going_on


def eliminated(config, peers, ledger, rung):
    """Return those of `peers`, all points of one batch size in a rung, that are known not to go on, whatever the others will do."""
    going_on = {point.key for point in promoted(config, peers, ledger, rung)}
    return [point for point in peers if ledger.line(point, rung) and point.key not in going_on]


def by_batch_size(points):
    sizes = dict.fromkeys(point.settings.training.batch_size for point in points)
    return [[point for point in points if point.settings.training.batch_size == size] for size in sizes]


def same_batch_size(points, point):
    """Return those of `points` that have the batch size of `point`."""
    return [peer for peer in points if peer.settings.training.batch_size == point.settings.training.batch_size]


def num_promoted(config, count):
    """How many of `count` points of one batch size go on."""
    return math.ceil(config.tuning.keep * count - 1e-9)


def score(line):
    """What points are ranked by, the smaller the better: cross entropy of the best epoch so far, then the MSE."""
    nats = [value for value in line["nats_per_zero"] if value is not None]
    return min(nats, default=math.inf), math.inf if line["mse"] is None else line["mse"]


def outcome(first_loss, last_losses, finite, nats):
    """Return {"stable", "trainable"} of a point: finished with finite numbers; and below its first loss at the end."""
    stable = finite and math.isfinite(nats)
    return {"stable": stable, "trainable": stable and sum(last_losses) / len(last_losses) < first_loss}


# --------------------------------------------------------------------------------------------------------- what is known


class SearchLog:
    """logs/tuning.jsonl: one line a finished rung of a point, found again by the point's settings."""

    def __init__(self, config):
        self.path = config.log_folder / "tuning.jsonl"
        self.lines = {}  # key of the settings: {epochs: line}
        for line in read_json_lines(self.path):
            if line.get("kind") == "rung":
                self.enter(line)

    def enter(self, line):
        self.lines.setdefault(key_of(line["settings"]), {})[line["epochs"]] = line

    def line(self, point, rung):
        """Return what is known of `point` after `rung`, or None: its line, its curve cut off there if it is a later one."""
        epochs = target_epochs(point, rung)
        later = [count for count in self.lines.get(point.key, ()) if count >= epochs]
        if not later:
            return None
        line = self.lines[point.key][min(later)]
        return {**line, "nats_per_zero": line["nats_per_zero"][:epochs]}

    def last_line(self, point):
        """Return the line of the longest training of `point` that the grid asks for."""
        lines = self.lines[point.key]
        return self.line(point, max(count for count in lines if count <= point.epochs[-1]))

    def write(self, points, epochs, results):
        """Add what was found of each of `points` after so many epochs, all of them in one piece."""
        lines = [{"kind": "rung", "point": point.values, "epochs": epochs, **result,
                  "parameters": parameter_forecast(point.settings.model),
                  "settings": trial_key_settings(point.settings)}
                 for point, result in zip(points, results, strict=True)]  # fmt: skip
        append_json_lines(self.path, lines)
        for line in lines:
            self.enter(line)

    def write_left_out(self, grid):
        """Add the points that are ruled out or shortened, each with its reason, unless the file says so already."""
        said = {json.dumps(line, sort_keys=True) for line in read_json_lines(self.path) if line.get("kind") != "rung"}
        lines = [{"kind": kind, "point": left_out.values, "reason": left_out.reason, "detail": left_out.detail}
                 for kind in ("ruled_out", "shortened") for left_out in getattr(grid, kind)]  # fmt: skip
        append_json_lines(self.path, [line for line in lines if json.dumps(line, sort_keys=True) not in said])


# ---------------------------------------------------------------------------------------------------------- what was found


class Ranked(NamedTuple):
    """A point that may win, with the number of epochs that served it best."""

    nats: float
    epochs: int
    line: dict
    point: Trial


def ranking(grid, ledger):
    """Return the trainable points of the grid as Ranked, the best first, each at the best of the epochs that it may have."""
    ranked = []
    for place, point in enumerate(grid.points):
        line = ledger.last_line(point)
        allowed = [count for count in point.epochs if count <= line["epochs"]]
        if line["trainable"] and allowed:
            nats, epochs = min((line["nats_per_zero"][count - 1], count) for count in allowed)
            ranked.append((nats, score(line), place, Ranked(nats, epochs, line, point)))
    return [entry[-1] for entry in sorted(ranked, key=lambda entry: entry[:-1])]


def best_so_far(ledger, points, rung):
    """Return the lowest cross entropy of the trainable `points` after `rung`, in nats per zero; infinity for none."""
    lines = (ledger.line(point, rung) for point in points)
    return min((score(line)[0] for line in lines if line and line["trainable"]), default=math.inf)
