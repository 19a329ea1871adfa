"""What a person sees of the search: the grid and its forecasts before, the progress meanwhile, the tables at the end.

    print(description(config, grid, device, reason))
    with SearchProgress(config, ledger, device) as progress: ...
    print(ranking_table(ranking(grid, ledger)))

All forecasts are for tuning.host; while the search goes on, the time left is corrected by the time that was needed so far.
"""

import math
import time

from common.devices import describe_device
from common.logs import log, progress_bar
from common.text import format_duration
from tuning.cost import state_bytes, training_hours
from tuning.grid import requested_epochs, trial_text
from tuning.halving import best_so_far, by_batch_size, num_promoted, rungs_of, score
from tuning.workers import epoch_seconds, job_seconds, stack_size, worker_count

LINE_SECONDS = 60  # between lines of the log within a rung


def description(config, grid, device, reason):
    """Return the text that stands at the beginning: the whole grid, what is left out of it and why, and the forecasts."""
    tuning, epochs = config.tuning, requested_epochs(config)
    axes = {axis: values for axis, values in tuning.grid.items() if axis != "epochs"}
    total = len(grid.points) + len(grid.ruled_out)
    sizes = " × ".join(f"{len(values)} {axis}" for axis, values in axes.items()) or "1"
    lines = [f"grid: {sizes} = {total:,} points; with {len(epochs)} numbers of epochs {total * len(epochs):,} settings"]
    lines += excluded_lines("ruled out", grid.ruled_out) + excluded_lines("trained for fewer epochs", grid.shortened)
    if grid.points:
        hours = [training_hours(point.settings, count) for point in grid.points for count in (point.epochs[0], point.epochs[-1])]
        lines.append(f"full training on {tuning.host.name}: {format_duration(3600 * min(hours))} to "
                     f"{format_duration(3600 * max(hours))}, by point and epochs")  # fmt: skip
        steps = [f"{count:,} to {rung}" for rung, count in zip(rungs_of(config), rung_sizes(config, grid), strict=True)]
        lines.append(f"to train: {', '.join(steps)} epochs of {tuning.zeros:,} zeros")
        lanes = tuning.host.cores if device.type == "cpu" else worker_count(config, device)
        likely, most = (seconds / lanes for seconds in search_seconds(config, grid.points, rungs_of(config), device))
        lines.append(f"device {describe_device(device)}: {reason}; {worker_count(config, device)} at a time on this machine")
        megabytes = 1e3 * state_gb(config, grid.points)
        lines.append(f"forecast for the search on {tuning.host.name}, {lanes} at a time: {format_duration(likely)}; "
                     f"{format_duration(most)} if the largest models win; up to {megabytes:,.0f} MB on disk meanwhile")
    return "\n".join(lines)


def excluded_lines(title, left_out):
    """'ruled out: 12' and below it a line for each reason with its number of points and an example."""
    lines = [f"{title}: {len(left_out):,}"]
    for reason in dict.fromkeys(entry.reason for entry in left_out):
        those = [entry for entry in left_out if entry.reason == reason]
        lines.append(f"    {len(those):,}: {reason}, e.g. {trial_text(those[0].values)} ({those[0].detail})")
    return lines


def rung_sizes(config, grid):
    """How many points are trained in each rung."""
    sizes, groups = [], [len(peers) for peers in by_batch_size(grid.points)]
    for _ in rungs_of(config):
        sizes.append(sum(groups))
        groups = [num_promoted(config, count) for count in groups]
    return sizes


def search_seconds(config, points, rungs, device):
    """Return (likely, most) seconds of work of the search on one worker of tuning.host, all `rungs` of it.

    Likely: those that go on are like the others. Most: they are the costliest ones.
    """
    likely = most = 0.0
    for peers in by_batch_size(points):
        stacked = sum(stacked_seconds(config, point, device) for point in peers)
        likely, most = likely + stacked * rungs[0], most + stacked * rungs[0]
        alone = sorted((epoch_seconds(config, point.settings, 1, device) for point in peers), reverse=True)
        count = len(peers)
        for before, rung in zip(rungs, rungs[1:], strict=False):
            count = num_promoted(config, count)
            likely += (rung - before) * count * sum(alone) / len(alone)
            most += (rung - before) * sum(alone[:count])
    return likely, most


def stacked_seconds(config, point, device):
    """Forecast of one epoch of a point that shares a full stack."""
    size = stack_size(point.settings, device)
    return epoch_seconds(config, point.settings, size, device) / size


def state_gb(config, points):
    """Most gigabytes that states of points may take on the disk at once: those that go on after the first rung, if largest."""
    sizes = (sorted((state_bytes(point.settings.model) for point in peers), reverse=True) for peers in by_batch_size(points))
    return sum(sum(group[: num_promoted(config, len(group))]) for group in sizes) / 1e9


class SearchProgress:
    """A progress bar with the time left and the best so far; once a minute and at the end of each rung a line of the log.

    The bar counts seconds of work as forecast, so that a large model weighs as much as it costs.
    """

    def __init__(self, config, ledger, device):
        self.config, self.ledger, self.device = config, ledger, device
        self.began, self.last_line, self.worked = time.monotonic(), time.monotonic(), 0.0

    def __enter__(self):
        self.bar = progress_bar(1, "tuning", "s of work", form="{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}")
        return self

    def __exit__(self, *error):
        self.bar.close()

    def begin_rung(self, rung, contenders, tasks):
        """Take in what the rung will cost, now that it is known who takes part in it."""
        self.rung, self.contenders = rung, contenders
        self.done = sum(self.ledger.line(point, rung) is not None for point in contenders)
        rungs = rungs_of(self.config)
        ahead, _ = search_seconds(self.config, contenders, rungs[rungs.index(rung) :], self.device)
        this, _ = search_seconds(self.config, contenders, [rung], self.device)
        self.bar.total = self.worked + sum(job_seconds(self.config, task, self.device) for task in tasks) + ahead - this
        self.show()

    def task_done(self, task):
        seconds = job_seconds(self.config, task, self.device)
        self.worked, self.done = self.worked + seconds, self.done + len(task.points)
        self.bar.update(seconds)
        self.show()
        if time.monotonic() - self.last_line > LINE_SECONDS:
            self.last_line = time.monotonic()
            left = (self.bar.total - self.worked) * (self.last_line - self.began) / self.worked
            log.info("%s · left %s", self.text(), format_duration(left))

    def end_rung(self, rung, contenders, going_on):
        lines = [self.ledger.line(point, rung) for point in contenders]
        stable, trainable = (sum(line[label] for line in lines) for label in ("stable", "trainable"))
        log.info("%s · %d diverged, %d stable but learned nothing · %s", self.text(), len(lines) - stable, stable - trainable,
                 "the end" if rung == rungs_of(self.config)[-1] else f"{len(going_on):,} go on")  # fmt: skip

    def show(self):
        self.bar.set_postfix_str(self.text())

    def text(self):
        """'rung 2/5 · 120 of 1,352 points after 2 epochs · best 8.613 nats/zero'."""
        rungs = rungs_of(self.config)
        best = best_so_far(self.ledger, self.contenders, self.rung)
        found = f" · best {best:.3f} nats/zero" if best < math.inf else ""
        return (f"rung {rungs.index(self.rung) + 1}/{len(rungs)} · {self.done:,} of {len(self.contenders):,} points after "
                f"{self.rung} epoch{'s' * (self.rung > 1)}{found}")


def ranking_table(ranked):
    """Return the ten best points as a table."""
    rows = [("nats/zero", "epochs", "trained", "MSE", "parameters", *(ranked[0].point.values if ranked else ()))]
    for nats, epochs, line, point in ranked[:10]:
        rows.append((f"{nats:.3f}", f"{epochs}", f"{line['epochs']}", mse_text(line), f"{line['parameters']:,}",
                     *map(str, point.values.values())))  # fmt: skip
    title = "the ten best points: nats/zero after the best number of epochs; MSE of sampled values after all that were trained"
    return "\n".join([title, "", *aligned(rows), ""])


def mse_text(line):
    return "unreadable" if line["mse"] is None else f"{line['mse']:.3g}"


def axis_table(config, grid, ledger):
    """Return what each value of each axis is worth as a table: the mean score after the first rung, where all took part."""
    first = rungs_of(config)[0]
    lines = [(point, ledger.line(point, first)) for point in grid.points]
    rows = [("axis", "value", "points", "trainable", "mean nats/zero", "best in the end")]
    for axis, values in config.tuning.grid.items():
        for value in values if axis != "epochs" and len(values) > 1 else ():
            those = [(point, line) for point, line in lines if point.values[axis] == value]
            good = [score(line)[0] for _, line in those if line["trainable"]]
            best = min((score(ledger.last_line(point))[0] for point, line in those if line["trainable"]), default=math.inf)
            rows.append((axis, str(value), f"{len(those):,}", f"{len(good):,}", nats_text(mean(good)), nats_text(best)))
    longest = [ledger.last_line(point) for point in grid.points]
    curves = [line["nats_per_zero"] for line in longest if line["trainable"] and line["epochs"] == requested_epochs(config)[-1]]
    for count in requested_epochs(config):
        scores = [curve[count - 1] for curve in curves]
        rows.append(("epochs", str(count), f"{len(curves):,}", f"{len(curves):,}", nats_text(mean(scores)),
                     nats_text(min(scores, default=math.inf))))
    title = (f"what each value is worth: the mean over its trainable points after {first} epoch{'s' * (first > 1)}; epochs: over "
             "those that were trained to the end")  # fmt: skip
    return "\n".join([title, "", *aligned(rows)])


def mean(values):
    return sum(values) / len(values) if values else math.inf


def nats_text(nats):
    return f"{nats:.3f}" if math.isfinite(nats) else "–"


def aligned(rows):
    """Return the rows of a table as lines, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
