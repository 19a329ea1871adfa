"""Which trial is written into config.json: of those that are as good as the best, the one whose full training is cheapest.

    choice = choose(config, grid, search_log)
    choice.trial, choice.passes, choice.reason

The search trains on a few thousand zeros, the full training on as many as ten million. What carries over from one to the other
was measured (rzz/results.md, "What the search is worth"): the size does. Epochs do not: a few thousand zeros bear many, ten million
need one: the passes that are written are those of the trial, but no more than ENOUGH_ZEROS of tuning.cost need. So dropout does not
either where the passes are fewer: what is written is the lowest of the grid. Batch sizes do not:
the smaller one wins where updates are few. So where the full training makes more updates with any of them than the longest trial,
they are compared after equally many updates. The learning rate does, but the best one is the lower, the more updates there are:
what is written is the trial's times (its updates / those of the full training)^RATE_EXPONENT.
"""

import math
from typing import NamedTuple

from common.text import format_duration
from model.metrics import pooled_deviation
from tuning.cost import passes, training_hours, training_zeros_of, zeros_of_search
from tuning.grid import Trial
from tuning.halving import repetitions, rungs_of, score

RATE_EXPONENT = 1 / 3  # the best rate of 0.001 … 0.016 was 0.016 for 1,100 updates, 0.008 for 7,800
CHANCE = 2  # standard deviations between seeds by which the difference of two scores may be off, times √2 for a difference


class Choice(NamedTuple):
    """What is written into config.json, and why."""

    trial: Trial
    passes: int  # over each interval: training.epochs of the full training
    learning_rate: float  # of the full training
    dropout: float  # of the full training
    reason: str  # in a line


def choose(config, grid, search_log):
    """Return the Choice among the trainable trials of a finished search, or None if there is none."""
    candidates = []  # (nats per zero, epochs after which that is, trial)
    for trial in grid.trials:
        result = search_log.last_result(trial)
        epochs = compared_epochs(config, grid, trial)
        curve = [(result["nats_per_zero"][count - 1], count) for count in epochs if count <= result["epochs"]]
        finite = [point for point in curve if point[0] is not None]
        if result["trainable"] and finite:
            candidates.append((*min(finite), trial))
    if not candidates:
        return None
    lowest = min(nats for nats, _, _ in candidates)
    noise = noise_of_seeds(config, grid, search_log)
    reach = CHANCE * math.sqrt(2) * (noise or 0)
    costs = [(training_hours(trial.settings, passes(config, epochs)), nats, epochs, trial)
             for nats, epochs, trial in candidates if nats <= lowest + reach]  # fmt: skip
    hours, nats, epochs, trial = min(costs, key=lambda cost: cost[:2])
    count, zeros = passes(config, epochs), training_zeros_of(config)
    when = "after the best number of epochs"
    if updates_are_plenty(config, grid):
        updates = {compared_epochs(config, grid, trial)[0] / trial.settings.training.batch_size for trial in grid.trials}
        when = "after equally many updates" if len(updates) == 1 else "after as nearly equally many updates as the epochs allow"
    others = (f"the cheapest full training of {len(costs):,} trials between which and the best, {lowest:.3f}, lies no more than "
              f"chance, {reach:.3f}" if len(costs) > 1 else "the best")  # fmt: skip
    reason = (f"{nats:.3f} nats/zero {when}, {others}; {format_duration(3600 * hours)} on {config.tuning.host.name} for {count} "
              f"pass{'es' * (count > 1)} over {zeros:,} zeros, after {epochs} in the search")  # fmt: skip
    dropout = min(config.tuning.grid["dropout"]) if "dropout" in trial.values and count < epochs else trial.settings.model.dropout
    if dropout != trial.settings.model.dropout:
        reason += f", with dropout {trial.settings.model.dropout:g}, which fewer passes do without"
    return Choice(trial, count, scaled_rate(config, trial, epochs, count), dropout, reason)


def scaled_rate(config, trial, epochs, count):
    """Return the trial's learning rate as it is for the updates of the full training, with two digits.

    If the grid has no rates, it is the user's, and stays. epochs: of the search, after which the trial was compared. count: passes
    of the full training.
    """
    if "learning_rate" not in config.tuning.grid:
        return trial.settings.training.learning_rate
    longer = training_zeros_of(config) * count / (zeros_of_search(config) * epochs)  # the batch size is the same
    return float(f"{trial.settings.training.learning_rate * min(1.0, longer**-RATE_EXPONENT):.2g}")


def updates_are_plenty(config, grid):
    """Whether the full training makes more updates with the largest batch than any trial with the smallest."""
    sizes = [trial.settings.training.batch_size for trial in grid.trials]
    return training_zeros_of(config) / max(sizes) >= rungs_of(config)[-1] * zeros_of_search(config) / min(sizes)


def compared_epochs(config, grid, trial):
    """Return the numbers of epochs of a trial at which it is compared with the others."""
    if not updates_are_plenty(config, grid):
        return trial.epochs
    largest = max(other.settings.training.batch_size for other in grid.trials)
    same_updates = round(trial.epochs[-1] * trial.settings.training.batch_size / largest)
    return [max((count for count in trial.epochs if count <= same_updates), default=trial.epochs[0])]


def noise_of_seeds(config, grid, search_log):
    """Return the standard deviation of scores between the seeds of the trials that were trained to the end; None if unknown."""
    last = rungs_of(config)[-1]
    groups = []
    for trial in grid.trials:
        results = [search_log.result(each, last) for each in (trial, *repetitions(config, [trial])) if each.key in search_log.lines]
        groups.append([score(result)[0] for result in results if result and result["trainable"]])
    return pooled_deviation([group for group in groups if len(group) > 1])
