"""What a person sees of the search: the grid and its forecasts first, then the progress, the tables at the end.

    print(description(config, grid, device, why))
    progress = SearchProgress(config, search_log, device)
    print(ranking_table(grid, ranking(grid, search_log)))

All forecasts are for tuning.host; while the search goes on, the time left is corrected by the time that was needed so far.
"""

import math
import time
from collections import Counter

from common.devices import describe_device
from common.logs import log, progress_bar
from common.text import format_duration, format_table, short_number
from tuning.cost import STATE_BYTES, parameters_of, passes, training_hours
from tuning.grid import requested_epochs, trial_text
from tuning.halving import by_batch_size, num_promoted, rungs_of, score
from tuning.workers import job_seconds, shape_of, stack_seconds, stack_size, worker_count

NUM_BEST = 6  # trials in the table, so that it fits 80 columns


def description(config, grid, device, why):
    """Return the text that the search begins with: the whole grid, what is excluded and why, and the forecasts."""
    tuning, epochs, rungs = config.tuning, requested_epochs(config), rungs_of(config)
    total = len(grid.trials) + len(grid.excluded)
    sizes = " × ".join(f"{len(values)} {axis}" for axis, values in grid.axes.items()) or "1"
    lines = [f"grid: {sizes} = {total:,} trials; with {len(epochs)} numbers of epochs {total * len(epochs):,} settings"]
    for title, excluded in (("excluded", grid.excluded), ("trained for fewer epochs", grid.shortened)):
        lines.append(f"{title}: {len(excluded):,}")
        for reason in dict.fromkeys(entry.reason for entry in excluded):
            those = [entry for entry in excluded if entry.reason == reason]
            lines.append(f"    {len(those):,}: {reason}, e.g. {trial_text(those[0].values)} ({those[0].detail})")
    if grid.trials:
        hours = [training_hours(trial.settings, passes(trial.settings, count))
                 for trial in grid.trials for count in (trial.epochs[0], trial.epochs[-1])]
        shortest, longest = (format_duration(3600 * extreme(hours)) for extreme in (min, max))
        groups = by_batch_size(grid.trials).values()
        states = [sorted((STATE_BYTES * parameters_of(trial.settings.model) for trial in group), reverse=True) for group in groups]
        disk = sum(sum(sizes[: num_promoted(config, len(sizes))]) for sizes in states) / 1e9  # GB, if the largest go on
        counts, steps = [len(group) for group in groups], []
        for rung in rungs:
            steps.append(f"{sum(counts):,} to {rung}")
            counts = [num_promoted(config, count) for count in counts]
        workers = worker_count(config, device)
        lanes = tuning.host.cores if device.type == "cpu" else workers
        first, likely, most = (seconds / lanes for seconds in search_seconds(config, grid.trials, rungs, device))
        lines += [f"full training on {tuning.host.name}: {shortest} to {longest}, by trial and epochs",
                  f"to train: {', '.join(steps)} epochs of {tuning.zeros:,} zeros; the last of them with {tuning.seeds} seeds",
                  f"device {describe_device(device)}: {why}; {workers} at a time on this machine",
                  f"forecast for the search on {tuning.host.name}, {lanes} at a time: {format_duration(first + likely)}; "
                  f"{format_duration(first + most)} if the largest models win; up to {disk:.2f} GB on disk meanwhile"]  # fmt: skip
    return "\n".join(lines)


def search_seconds(config, trials, rungs, device):
    """Return (first, likely, most): seconds of work on one worker of tuning.host for the first of `rungs` and for all later ones.

    Likely: those that go on are like the others. Most: they are the costliest ones.
    """
    first = likely = most = 0.0
    of_shape = Counter(shape_of(trial.settings) for trial in trials)
    for group in by_batch_size(trials).values():
        for trial in group:
            size = min(of_shape[shape_of(trial.settings)], stack_size(trial.settings, device))
            first += stack_seconds(config, trial.settings, size, rungs[0], device) / size
        count = len(group)
        again = [(rungs[-1], 0)] * (config.tuning.seeds - 1)  # epochs from the beginning, with the other seeds
        for rung, before in [*zip(rungs[1:], rungs, strict=False), *again]:
            count = num_promoted(config, count) if before else count
            alone = sorted((stack_seconds(config, trial.settings, 1, rung - before, device) for trial in group), reverse=True)
            likely += count * sum(alone) / len(alone)
            most += sum(alone[:count])
    return first, likely, most


class SearchProgress:
    """A progress bar with the time left and the best so far; once a minute and at the end of each rung a line of the log.

    The bar counts seconds of work as forecast, so that a large model weighs as much as it costs.
    """

    def __init__(self, config, search_log, device):
        self.config, self.search_log, self.device, self.rungs = config, search_log, device, rungs_of(config)
        self.began, self.last_line, self.worked = time.monotonic(), time.monotonic(), 0.0
        self.bar = progress_bar(1, "tuning", "s of work", form="{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}")

    def close(self):
        self.bar.close()

    def begin_rung(self, rung, trials, jobs):
        """Set what the rung will cost, now that it is known which trials take part in it."""
        self.rung, self.trials = rung, trials
        if any(trial.settings.training.seed != self.config.training.seed for trial in trials):
            later = 0.0  # these are the repetitions, with which the search ends
        else:
            _, later, _ = search_seconds(self.config, trials, self.rungs[self.rungs.index(rung) :], self.device)
        self.bar.total = self.worked + sum(job_seconds(self.config, job, self.device) for job in jobs) + later
        self.bar.set_postfix_str(self.text())

    def job_done(self, job):
        seconds = job_seconds(self.config, job, self.device)
        self.worked += seconds
        self.bar.update(seconds)
        self.bar.set_postfix_str(self.text())
        if time.monotonic() - self.last_line > 60:
            self.last_line = time.monotonic()
            left = (self.bar.total - self.worked) * (self.last_line - self.began) / self.worked
            log.info("%s · left %s", self.text(), format_duration(left))

    def end_rung(self, going_on):
        stable, trainable = (sum(result[name] for result in self.results()) for name in ("stable", "trainable"))
        log.info("%s · %d diverged, %d stable but learned nothing · %s", self.text(), len(self.trials) - stable, stable - trainable,
                 "the end" if self.rung == self.rungs[-1] else f"{len(going_on):,} go on")  # fmt: skip

    def results(self):
        return [result for trial in self.trials if (result := self.search_log.result(trial, self.rung))]

    def text(self):
        """'rung 2/5 · 120 of 1,352 trials after 2 epochs · best 8.613 nats/zero'."""
        results = self.results()
        best = min((score(result)[0] for result in results if result["trainable"]), default=math.inf)
        found = f" · best {best:.3f} nats/zero" if best < math.inf else ""
        return (f"rung {self.rungs.index(self.rung) + 1}/{len(self.rungs)} · {len(results):,} of {len(self.trials):,} trials after "
                f"{self.rung} epoch{'s' * (self.rung > 1)}{found}")


def ranking_table(grid, ranked):
    """Return the best trials as a table with a column for each, 80 columns wide. ranked: what `ranking` returns."""
    columns = [("nats/zero", "epochs", "trained for", "MSE", "parameters", *grid.axes)]
    for nats, epochs, result, trial in ranked[:NUM_BEST]:
        columns.append((f"{nats:.3f}", f"{epochs}", f"{result['epochs']}", short_number(result["mse"]), f"{result['parameters']:,}",
                        *map(str, trial.values.values())))  # fmt: skip
    title = (f"the {len(columns) - 1} best trials: nats/zero after the best number of epochs;\n"
             "MSE of sampled values after all that were trained")  # fmt: skip
    return "\n".join([title, "", *format_table(list(zip(*columns, strict=True))), ""])


def axis_table(config, grid, search_log):
    """Return what each value of each axis is worth as a table: the mean score after the first rung, in which all took part."""
    rung, epochs = rungs_of(config)[0], requested_epochs(config)
    found = [(trial.values, search_log.result(trial, rung), search_log.last_result(trial)) for trial in grid.trials]
    worth = []  # (axis, value, how many trials, scores of the trainable ones, their scores in the end)
    for axis, choices in grid.axes.items():
        for value in dict.fromkeys(choices) if len(choices) > 1 else ():
            those = [results for values, *results in found if values[axis] == value]
            good = [(score(first)[0], score(last)[0]) for first, last in those if first["trainable"]]
            worth.append((axis, value, len(those), [first for first, _ in good], [last for _, last in good]))
    curves = [last["nats_per_zero"] for _, _, last in found if last["trainable"] and last["epochs"] == epochs[-1]]
    for count in epochs:
        scores = [curve[count - 1] for curve in curves]
        worth.append(("epochs", count, len(curves), scores, scores))
    rows = [("axis", "value", "trials", "trainable", "mean nats/zero", "best in the end")]
    for axis, value, count, scores, last_scores in worth:
        mean, best = (f"{sum(scores) / len(scores):.3f}", f"{min(last_scores):.3f}") if scores else ("–", "–")
        rows.append((axis, str(value), f"{count:,}", f"{len(scores):,}", mean, best))
    title = (f"what each value is worth: the mean over its trainable trials after {rung} epoch{'s' * (rung > 1)};\n"
             "epochs: over those that were trained to the end")  # fmt: skip
    return "\n".join([title, "", *format_table(rows)])
