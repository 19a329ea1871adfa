"""The search as bookkeeping: the grid and what is ruled out of it, which points go on, what is known of each.

    grid = grid_of(config)                                # every combination, each to be trained or ruled out
    ledger = Ledger(config)                               # logs/tuning.jsonl
    going_on = better_part(config, contenders, ledger, rung=1)

Nothing here trains; tuning_workers.py does.
"""

import dataclasses
import hashlib
import itertools
import json
import math
from typing import NamedTuple

from common.config import GRID_AXES, Config, has_valid_head_dims
from common.files import append_json_lines, read_json_lines
from resource_utils import memory_gb, parameters, training_hours


class Point(NamedTuple):
    """A combination of the grid's axes without epochs, which are read off its curve."""

    values: dict  # axis: value
    settings: Config  # with these values in place
    epochs: list[int]  # numbers of epochs of the grid for which the host can carry the full training, ascending
    key: str  # searched_settings as text

    @property
    def digest(self):
        return hashlib.sha256(self.key.encode()).hexdigest()[:16]


class LeftOut(NamedTuple):
    """What will not be trained: a point, or the larger numbers of epochs of a point."""

    values: dict
    reason: str  # the same for all points that it concerns
    detail: str  # in figures


class Grid(NamedTuple):
    points: list[Point]  # to train
    ruled_out: list[LeftOut]
    shortened: list[LeftOut]  # points to train, for fewer epochs than the grid asks for


def grid_of(config):
    """Return the whole Grid: every combination of tuning.grid stands in `points` or in `ruled_out`."""
    axes = {axis: values for axis, values in config.tuning.grid.items() if axis != "epochs"}
    grid, known = Grid([], [], []), {}
    for combination in itertools.product(*axes.values()):
        values = dict(zip(axes, combination, strict=True))
        settings = settings_of(config, values)
        longest = config.tuning.max_training_hours / training_hours(settings, 1)
        epochs = [count for count in epochs_asked(config) if count <= longest]
        key = key_of(searched_settings(settings))
        against = reason_against(settings, epochs, known.get(key))
        if against is not None:
            grid.ruled_out.append(LeftOut(values, *against))
            continue
        known[key] = values
        grid.points.append(Point(values, settings, epochs, key))
        if epochs != epochs_asked(config):
            grid.shortened.append(LeftOut(values, *too_long(settings, epochs_asked(config)[-1])))
    return grid


def reason_against(settings, epochs, twin):
    """Return (reason, detail) why a point is not trained, or None. twin: values of the same point met before, or None."""
    if not has_valid_head_dims(settings.model):
        return "d_model is not divisible by num_heads", f"{settings.model.d_model} by {settings.model.num_heads}"
    if twin is not None:
        return "the same as another point", f"as {point_text(twin)}"
    if memory_gb(settings) > settings.tuning.max_memory_gb:
        return f"needs more than tuning.max_memory_gb = {settings.tuning.max_memory_gb:g}", f"{memory_gb(settings):.3g} GB"
    if not epochs:
        return too_long(settings, epochs_asked(settings)[0])
    return None


def too_long(settings, epochs):
    return (f"full training would take more than tuning.max_training_hours = {settings.tuning.max_training_hours:g}",
            f"{training_hours(settings, epochs):.3g} h with epochs {epochs}")


def epochs_asked(config):
    """The numbers of epochs that the grid asks for, ascending."""
    return sorted(set(config.tuning.grid.get("epochs", [config.training.epochs])))


def settings_of(config, values):
    """Return the Config with the `values` of a point in place."""
    changed = {}
    for section in ("model", "training"):
        mine = {axis: value for axis, value in values.items() if GRID_AXES[axis] == section}
        changed[section] = dataclasses.replace(getattr(config, section), **mine)
    return dataclasses.replace(config, **changed)


def searched_settings(settings):
    """Return all that the curve of a point depends on, as a dictionary: the same for the same training, however written."""
    model, training = dataclasses.asdict(settings.model), dataclasses.asdict(settings.training)
    model["d_k"], model["d_v"], model["d_ff"] = settings.model.head_sizes()
    if model["index_embedding"] != "primes":
        del model["max_prime"]
    for key in ("epochs", "max_bad_steps", "checkpoint_interval", "log_interval", "validation_interval", "compile", "precision"):
        del training[key]
    return {"zeros": settings.tuning.zeros, "top_p": settings.evaluation.top_p, "model": model, "training": training}


def key_of(searched):
    return json.dumps(searched, sort_keys=True)


def point_text(values):
    return ", ".join(f"{axis} {value}" for axis, value in values.items())


# -------------------------------------------------------------------------------------------------- successive halving


def rungs_of(config):
    """The numbers of epochs after which the better part of the points goes on; the last is the grid's largest."""
    last = epochs_asked(config)[-1]
    return [rung for rung in config.tuning.rungs if rung < last] + [last]


def goal(point, rung):
    """Epochs that `point` has been trained for when it has finished `rung`."""
    return min(rung, point.epochs[-1])


def better_part(config, contenders, ledger, rung):
    """Return those of `contenders` that go on after `rung`: tuning.keep of the points of each batch size.

    Points of one batch size have made equally many updates; against another batch size, an early score says more about
    the number of updates than about the point. So each batch size has its best points trained to the end. What is not
    trainable does not go on. `contenders` may lack results still: what they leave out then is left out for sure.
    """
    going_on = []
    for peers in by_batch_size(contenders):
        scored = [(score(ledger.line(point, rung)), place) for place, point in enumerate(peers)
                  if (ledger.line(point, rung) or {}).get("trainable")]  # fmt: skip
        best = sorted(scored)[: places(config, len(peers))]
        going_on += [peers[place] for _, place in sorted(best, key=lambda entry: entry[1])]
    return going_on


def beaten(config, peers, ledger, rung):
    """Return those of `peers`, all points of one batch size in a rung, that are known not to go on, whatever the others will do."""
    going_on = {point.key for point in better_part(config, peers, ledger, rung)}
    return [point for point in peers if ledger.line(point, rung) and point.key not in going_on]


def by_batch_size(points):
    sizes = dict.fromkeys(point.settings.training.batch_size for point in points)
    return [[point for point in points if point.settings.training.batch_size == size] for size in sizes]


def same_batch_size(points, point):
    """Return those of `points` that have the batch size of `point`."""
    return [peer for peer in points if peer.settings.training.batch_size == point.settings.training.batch_size]


def places(config, count):
    """How many of `count` points of one batch size go on."""
    return math.ceil(config.tuning.keep * count - 1e-9)


def score(line):
    """What points are ranked by, the smaller the better: cross entropy of the best epoch so far, then the MSE."""
    nats = [value for value in line["nats_per_zero"] if value is not None]
    return min(nats, default=math.inf), math.inf if line["mse"] is None else line["mse"]


def labels(first_loss, last_losses, finite, nats):
    """Return {"stable", "trainable"} of a point: finished with finite numbers; and below its first loss at the end."""
    stable = finite and math.isfinite(nats)
    return {"stable": stable, "trainable": stable and sum(last_losses) / len(last_losses) < first_loss}


# --------------------------------------------------------------------------------------------------------- what is known


class Ledger:
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
        epochs = goal(point, rung)
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
        lines = [{"kind": "rung", "point": point.values, "epochs": epochs, **result, "parameters": parameters(point.settings.model),
                  "settings": searched_settings(point.settings)}
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
    point: Point


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
