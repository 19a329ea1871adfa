"""The grid of the search: every combination, trained or excluded with its reason.

    grid = grid_of(config)                                # grid.trials, grid.excluded, grid.shortened
"""

import dataclasses
import hashlib
import itertools
import json
from typing import NamedTuple

from common.config import GRID_AXES, Config, has_valid_head_dims
from tuning.cost import memory_gb, training_hours


class Trial(NamedTuple):
    """A combination of the grid's axes without epochs, which are read off its curve."""

    values: dict  # axis: value
    settings: Config  # with these values in place
    epochs: list[int]  # numbers of epochs of the grid for which the host can carry the full training, ascending
    key: str  # searched_settings as text

    @property
    def digest(self):
        return hashlib.sha256(self.key.encode()).hexdigest()[:16]


class Excluded(NamedTuple):
    """What will not be trained: a point, or the larger numbers of epochs of a point."""

    values: dict
    reason: str  # the same for all points that it concerns
    detail: str  # in figures


class Grid(NamedTuple):
    points: list[Trial]  # to train
    ruled_out: list[Excluded]
    shortened: list[Excluded]  # points to train, for fewer epochs than the grid asks for


def grid_of(config):
    """Return the whole Grid: every combination of tuning.grid stands in `points` or in `ruled_out`."""
    axes = {axis: values for axis, values in config.tuning.grid.items() if axis != "epochs"}
    grid, known = Grid([], [], []), {}
    for combination in itertools.product(*axes.values()):
        values = dict(zip(axes, combination, strict=True))
        settings = settings_of(config, values)
        longest = config.tuning.max_training_hours / training_hours(settings, 1)
        epochs = [count for count in requested_epochs(config) if count <= longest]
        key = key_of(trial_key_settings(settings))
        against = exclusion_reason(settings, epochs, known.get(key))
        if against is not None:
            grid.ruled_out.append(Excluded(values, *against))
            continue
        known[key] = values
        grid.points.append(Trial(values, settings, epochs, key))
        if epochs != requested_epochs(config):
            grid.shortened.append(Excluded(values, *too_long(settings, requested_epochs(config)[-1])))
    return grid


def exclusion_reason(settings, epochs, twin):
    """Return (reason, detail) why a point is not trained, or None. twin: values of the same point met before, or None."""
    if not has_valid_head_dims(settings.model):
        return "d_model is not divisible by num_heads", f"{settings.model.d_model} by {settings.model.num_heads}"
    if twin is not None:
        return "the same as another point", f"as {trial_text(twin)}"
    if memory_gb(settings) > settings.tuning.max_memory_gb:
        return f"needs more than tuning.max_memory_gb = {settings.tuning.max_memory_gb:g}", f"{memory_gb(settings):.3g} GB"
    if not epochs:
        return too_long(settings, requested_epochs(settings)[0])
    return None


def too_long(settings, epochs):
    return (f"full training would take more than tuning.max_training_hours = {settings.tuning.max_training_hours:g}",
            f"{training_hours(settings, epochs):.3g} h with epochs {epochs}")


def requested_epochs(config):
    """The numbers of epochs that the grid asks for, ascending."""
    return sorted(set(config.tuning.grid.get("epochs", [config.training.epochs])))


def settings_of(config, values):
    """Return the Config with the `values` of a point in place."""
    changed = {}
    for section in ("model", "training"):
        mine = {axis: value for axis, value in values.items() if GRID_AXES[axis] == section}
        changed[section] = dataclasses.replace(getattr(config, section), **mine)
    return dataclasses.replace(config, **changed)


def trial_key_settings(settings):
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


def trial_text(values):
    return ", ".join(f"{axis} {value}" for axis, value in values.items())
