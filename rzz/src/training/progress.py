"""Where a training stands: what is done, what is left, and how long it took.

    progress = Progress(round=1)
    steps, zeros = remaining(progress, config)
    steps = validation_interval(config)
"""

import dataclasses
import math
import time

import torch

from common.config import validation_size
from common.devices import synchronize
from data_utils import interval

# What the loss of a zero and writing one out take, as a share of training on it: the default model on one core of an Intel Xeon
LOSS_COST, WRITING_COST = 0.33, 0.75


@dataclasses.dataclass
class Progress:
    """Where a training stands, to the data point; all that is needed to go on besides weights and optimizer.

    A finished round stands at the end of its last epoch, so more epochs or more rounds can be asked for later.
    """

    round: int
    epoch: int = 0  # finished epochs of this round
    row: int = 0  # zeros of the current epoch that have been trained on
    step: int = 0  # optimizer updates in the whole run
    zeros: int = 0  # trained on in the whole run, counting each epoch
    seconds: float = 0.0  # spent in training, over all starts of it
    log_lines: int = 0  # lines in logs/training.jsonl
    losses: list[float] = dataclasses.field(default_factory=list)  # of the steps since the last line of the log
    bad_steps: int = 0  # updates in a row that were skipped, up to the last line of the log
    validation: dict | None = None  # what was measured last: loss, best_loss of the round, mse_training, mse_validation, …
    threads: int | None = None  # that torch computes with on a CPU
    precision: str | None = None  # of the matrix products
    validated_step: int = 0  # at which that was; a stop request may have interrupted the one that is due

    @property
    def is_validated(self):
        """Whether the validation has measured the model as it is now."""
        return self.validated_step == self.step


def remaining(progress, config):
    """Return (updates, zeros) from where the training stands to its end, counting each epoch."""
    size, steps, zeros = config.training.batch_size, 0, 0
    for t in range(progress.round, config.data.K + 1):
        for epoch in range(progress.epoch if t == progress.round else 0, config.training.epochs):
            count = interval(config, t)[1]
            row = progress.row if (t, epoch) == (progress.round, progress.epoch) else 0
            steps, zeros = steps + math.ceil(count / size) - math.ceil(row / size), zeros + count - row
    return steps, zeros


def validation_interval(config):
    """Return the steps from one validation to the next within a round, so that all take at most training.validation_share of it.

    Where the one at the end takes too much by itself, the steps of a round: there is none before.
    """
    steps, zeros, within, at_end = validation_costs(config)
    left = config.training.validation_share * zeros - at_end
    return max(config.training.validation_interval, math.ceil(steps * within / left)) if left > within else steps


def validation_share(config):
    """Return what validations take of a round, as a share of its training."""
    steps, zeros, within, at_end = validation_costs(config)
    return (at_end + (steps - 1) // validation_interval(config) * within) / zeros


def validation_costs(config):
    """Return (steps, zeros) of a round, and what a validation within it and the one at its end cost, as training on so many zeros.

    At the end of a round the loss of the whole sample is measured, and as many zeros of either set are written out as it has;
    before, training.mse_zeros of each.
    """
    settings, sample = config.training, validation_size(config.data)
    zeros, loss = config.data.interval_size * settings.epochs, LOSS_COST * sample
    within, at_end = (loss + 2 * WRITING_COST * written for written in (min(settings.mse_zeros, sample), sample))
    return math.ceil(zeros / settings.batch_size), zeros, within, at_end


def floats(losses):
    """Return tensors on a device as a list of floats, in one transfer, which is a device sync."""
    return torch.stack(losses).tolist() if losses else []


class Stopwatch:
    """Adds the time of each lap to progress.seconds, and knows the speed since the last line of the log."""

    def __init__(self, progress, device):
        synchronize(device)
        self.progress = progress
        self.last = time.monotonic()
        self.line = (progress.step, progress.seconds)

    def lap(self):
        now = time.monotonic()
        self.progress.seconds, self.last = self.progress.seconds + now - self.last, now

    def zeros_per_second(self, batch_size):
        """Since the last call; over the whole run if no step has been made since."""
        step, seconds = self.line if self.line[0] < self.progress.step else (0, 0.0)
        self.line = (self.progress.step, self.progress.seconds)
        return (self.progress.step - step) * batch_size / max(1e-9, self.progress.seconds - seconds)
