"""The grid of the search: every combination of its values is a trial, or excluded with a reason.

    grid = grid_of(config)                                # grid.trials, grid.excluded, grid.shortened
"""

import dataclasses
import itertools
import json
from typing import NamedTuple

from common.config import GRID_AXES, Config, has_valid_head_dims
from model.index_embedding import Boundaries, PrimePhases, parts_of
from tuning.cost import memory_gb, passes, training_hours


class Trial(NamedTuple):
    """A combination of the grid's values without the number of epochs, which is read off its curve."""

    values: dict  # axis: value
    settings: Config  # with these values
    epochs: list[int]  # those of the grid for which the host can carry a full training of as many zeros, ascending
    key: str  # trial_key_settings as text


    def with_seed(self, seed):
        """Return the same trial with other random numbers."""
        settings = dataclasses.replace(self.settings, training=dataclasses.replace(self.settings.training, seed=seed))
        return self._replace(settings=settings, key=key_of(trial_key_settings(settings)))


class Excluded(NamedTuple):
    """What will not be trained: a trial, or the larger numbers of epochs of a trial."""

    values: dict
    reason: str  # the same for all trials that it concerns
    detail: str  # in figures


class Grid(NamedTuple):
    axes: dict[str, list]  # those of tuning.grid without epochs
    trials: list[Trial]
    excluded: list[Excluded]
    shortened: list[Excluded]  # trials for fewer epochs than the grid asks for


def grid_of(config):
    """Return the whole Grid: every combination of tuning.grid is in `trials` or in `excluded`."""
    requested = requested_epochs(config)
    axes = {axis: values for axis, values in config.tuning.grid.items() if axis != "epochs"}
    grid, seen = Grid(axes, [], [], []), {}  # seen: {key: values of the trial that has it}
    for combination in itertools.product(*axes.values()):
        values = dict(zip(axes, combination, strict=True))
        settings = settings_of(config, values)
        most = config.tuning.max_training_hours / training_hours(settings, 1)
        epochs = [count for count in requested if passes(config, count) <= most]
        key = key_of(trial_key_settings(settings))
        exclusion = exclusion_reason(settings, epochs, seen.get(key))
        if exclusion is not None:
            grid.excluded.append(Excluded(values, *exclusion))
            continue
        seen[key] = values
        grid.trials.append(Trial(values, settings, epochs, key))
        if epochs != requested:
            grid.shortened.append(Excluded(values, *too_long(settings, requested[-1])))
    return grid


def exclusion_reason(settings, epochs, duplicate_of):
    """Return (reason, detail) why a trial is excluded, or None. duplicate_of: values of the same trial met before, or None."""
    if not has_valid_head_dims(settings.model):
        return "d_model is not divisible by num_heads", f"{settings.model.d_model} by {settings.model.num_heads}"
    if duplicate_of is not None:
        return "the same as another trial", f"as {trial_text(duplicate_of)}"
    if memory_gb(settings) > settings.tuning.max_memory_gb:
        return f"needs more than tuning.max_memory_gb = {settings.tuning.max_memory_gb:g}", f"{memory_gb(settings):.3g} GB"
    return None if epochs else too_long(settings, requested_epochs(settings)[0])


def too_long(settings, epochs):
    epochs = passes(settings, epochs)
    return (f"full training would take more than tuning.max_training_hours = {settings.tuning.max_training_hours:g}",
            f"{training_hours(settings, epochs):.3g} h with epochs {epochs}")


def requested_epochs(config):
    """The numbers of epochs that the grid asks for, ascending."""
    return sorted(set(config.tuning.grid.get("epochs", [config.training.epochs])))


def settings_of(config, values):
    """Return the Config with the `values` of a trial."""
    of_model, of_training = ({axis: value for axis, value in values.items() if GRID_AXES[axis] == section}
                             for section in ("model", "training"))  # fmt: skip
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **of_model),
                               training=dataclasses.replace(config.training, **of_training))  # fmt: skip


def trial_key_settings(settings):
    """Return all that the curve of a trial depends on, as a dictionary: the same for the same training, however written."""
    model, training = dataclasses.asdict(settings.model), dataclasses.asdict(settings.training)
    model["d_k"], model["d_v"], model["d_ff"] = settings.model.head_sizes()
    parts = parts_of(settings.model.index_embedding)
    if Boundaries not in parts:
        del model["max_number"], training["index_noise"]
    if not {PrimePhases, Boundaries} & set(parts):
        del model["max_prime"]
    for key in ("epochs", "max_bad_steps", "checkpoint_interval", "log_interval", "validation_interval", "validation_share",
                "compile", "precision"):
        del training[key]
    return {"zeros": settings.tuning.zeros, "top_p": settings.evaluation.top_p, "model": model, "training": training}


def key_of(key_settings):
    return json.dumps(key_settings, sort_keys=True)


def trial_text(values):
    return ", ".join(f"{axis} {value}" for axis, value in values.items())
