"""Stage 1: search the hyper-parameters on the first zeros and write the best into config.json.

    python rzz/src/tune_hyper_parameters.py               # the grid of the settings; run again to go on
    python rzz/src/tune_hyper_parameters.py --dry-run     # count the grid and forecast the hours, train nothing

Every point of tuning.grid is listed first. What the host cannot carry (memory, or hours for the full training) is ruled
out with its reason; the others are trained on the first 9/10 of tuning.zeros in index order and scored, after each
epoch, by the cross entropy on the last tenth. So all numbers of epochs are read off one training: the learning rate is
constant after its warm-up here, which makes the curve up to an epoch the same whatever comes after it. What is scored
is a running average of the weights, which stands for the decay of the learning rate at the end of the real training
(Hägele et al., "Scaling laws and compute-optimal training beyond fixed training durations", 2024). One line a finished
point goes to logs/tuning.jsonl, and points that stand there are not trained again.
"""

import dataclasses
import itertools
import math
import time

from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from config_utils import (
    GRID_AXES,
    UserError,
    heads_fit,
    load_config,
    require_writable,
    split_override,
    stage_parser,
    write_back,
)
from data_utils import first_zeros
from device_utils import choose_device, describe_device
from logging_utils import duration, log, progress_bar, read_json_lines, run_script, start_logging, write_json_line
from resource_utils import hours, memory_gb, run_zeros
from training_utils import batches, build_model, cross_entropy_of, make_optimizer, parameter_count, training_step

AVERAGED_EPOCHS = 0.25  # over which the weights are averaged


def main(argv=None):
    parser = stage_parser(__doc__)
    parser.add_argument("--dry-run", action="store_true", help="count the grid and forecast the hours, train nothing")
    args = parser.parse_args(argv)
    config = load_config(args.config, args.overrides, args.device)
    start_logging(config.log_folder)
    require_writable(config.folder)
    device, reason = choose_device(config.runtime.device)
    log.info("device %s: %s", describe_device(device), reason)

    points, ruled_out = grid_points(config)
    for point, why in ruled_out:
        log.info("ruled out: %s (%s)", point_text(point), why)
    log.info("%d points of the grid besides epochs: %d ruled out, %d to train for up to %d epochs of %s zeros",
             len(points) + len(ruled_out), len(ruled_out), len(points), grid_epochs(config)[-1], f"{config.tuning.zeros:,}")
    if args.dry_run:
        forecast = sum(hours(settings_of(config, point), 0.9 * config.tuning.zeros * feasible_epochs(config, point)[-1])
                       for point in points)  # fmt: skip
        log.info("forecast for the search on the host: %s", duration(3600 * forecast))
        return
    if not points:
        raise UserError("Every point of tuning.grid was ruled out, see above; raise tuning.max_memory_gb or max_training_hours.")
    curves = sorted(search(config, points, device), key=best_epochs)
    print(table(curves))
    nats, epochs = best_epochs(curves[0])
    if nats == math.inf:
        raise UserError("No point of the grid was trained to a finite loss; add smaller values to tuning.grid.learning_rate.")
    winner = {**curves[0]["point"], "epochs": epochs}
    changes = {}
    for override in args.overrides:  # what was searched with is part of what was found
        section, key, value = split_override(override)
        if section in ("model", "training"):
            changes.setdefault(section, {})[key] = value
    for axis, value in winner.items():
        changes.setdefault(GRID_AXES[axis], {})[axis] = value
    write_back(config.path, changes)
    log.info("Written to %s: %s. Next: python rzz/src/train.py --resume", config.path, point_text(winner))


def grid_points(config):
    """Return (points to train, [(point, why it is ruled out)]): every combination of the grid's axes but epochs."""
    axes = {axis: values for axis, values in config.tuning.grid.items() if axis != "epochs"}
    points, ruled_out = [], []
    for values in itertools.product(*axes.values()):
        point = dict(zip(axes, values, strict=True))
        why = reason_against(config, point)
        if why is None:
            points.append(point)
        else:
            ruled_out.append((point, why))
    return points, ruled_out


def reason_against(config, point):
    """Return why the host cannot carry `point`, or None."""
    settings = settings_of(config, point)
    if not heads_fit(settings.model):
        return f"d_model {settings.model.d_model} is not divisible by {settings.model.num_heads} heads"
    memory = memory_gb(settings)
    if memory > config.tuning.max_memory_gb:
        return f"needs {memory:.1f} GB, tuning.max_memory_gb is {config.tuning.max_memory_gb:g}"
    if not feasible_epochs(config, point):
        forecast = hours(settings, run_zeros(config, grid_epochs(config)[0]))
        return f"full training would take {forecast:.1f} h, tuning.max_training_hours is {config.tuning.max_training_hours:g}"
    return None


def grid_epochs(config):
    """The numbers of epochs that the grid asks for, ascending."""
    return sorted(config.tuning.grid.get("epochs", [config.training.epochs]))


def feasible_epochs(config, point):
    """The numbers of epochs of the grid for which the host can carry the full training of `point`, ascending."""
    settings = settings_of(config, point)
    return [count for count in grid_epochs(config) if hours(settings, run_zeros(config, count)) <= config.tuning.max_training_hours]


def settings_of(config, point):
    """Return the Config with the values of `point` in place."""
    changed = {}
    for section in ("model", "training"):
        values = {axis: value for axis, value in point.items() if GRID_AXES[axis] == section}
        changed[section] = dataclasses.replace(getattr(config, section), **values)
    return dataclasses.replace(config, **changed)


def search(config, points, device):
    """Return the curve of every point, from logs/tuning.jsonl where it stands there, else by training it."""
    path = config.log_folder / "tuning.jsonl"
    done = {key_of(line["point"]): line for line in read_json_lines(path) if line.get("conditions") == conditions(config)}
    training, validation = first_zeros(config)
    curves = []
    with progress_bar(len(points), "tuning", "point") as bar:
        for point in points:
            epochs = feasible_epochs(config, point)
            curve = done.get(key_of(point))
            if curve is None or len(curve["nats_per_zero"]) < epochs[-1]:
                found = train_point(config, point, epochs[-1], training, validation, device)
                curve = {"point": point, "epochs": epochs, "conditions": conditions(config), **found}
                write_json_line(path, curve)
                log.info("point %d/%d · %s · best %.3f nats/zero · %s", len(curves) + 1, len(points), point_text(point),
                         best_epochs(curve)[0], duration(curve["seconds"]))  # fmt: skip
            curves.append({**curve, "epochs": epochs})
            bar.update(1)
            bar.set_postfix_str(f"best {min(best_epochs(curve) for curve in curves)[0]:.3f} nats/zero")
    return curves


def conditions(config):
    """What a point's curve depends on besides the point: the zeros, and the settings that the grid does not search."""
    settings = config.settings
    base = {section: {key: value for key, value in settings[section].items()
                      if key not in config.tuning.grid and not key.endswith("_interval") and key != "epochs"}
            for section in ("model", "training")}  # fmt: skip
    return {"zeros": config.tuning.zeros, **base}


def train_point(config, point, epochs, training, validation, device):
    """Train one point from scratch and return its curve: validation nats per zero after each epoch, and its cost."""
    settings = settings_of(config, point)
    model = build_model(settings.model, settings.training.seed).to(device)
    optimizer = make_optimizer(model, settings.training)
    steps_per_epoch = math.ceil(len(training) / settings.training.batch_size)
    decay = 1 - 1 / max(1, steps_per_epoch * AVERAGED_EPOCHS)
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
    began, step, curve = time.monotonic(), 0, []
    warmup = settings.training.warmup_steps + 1
    with progress_bar(epochs, "epochs", "epoch") as bar:
        for _ in range(epochs):
            for batch in batches(model, training, settings.training.batch_size):
                rate = settings.training.learning_rate * min(1.0, (step + 1) / warmup)
                training_step(model, optimizer, batch, rate, settings.training.gradient_clip, (settings.training.seed, step))
                averaged.update_parameters(model)
                step += 1
            nats = cross_entropy_of(averaged.module, validation).nats_per_zero
            curve.append(nats if math.isfinite(nats) else None)  # JSON has no NaN
            bar.update(1)
    return {"nats_per_zero": curve, "seconds": time.monotonic() - began, "parameters": parameter_count(model)}


def table(curves):
    """Return the first ten of the curves, each with the number of epochs that served it best."""
    lines = ["the ten best points", "   nats/zero  epochs  parameters"]
    for curve in curves[:10]:
        nats, count = best_epochs(curve)
        lines.append(f"{nats:12.3f}  {count:6d}  {curve['parameters']:10,}  {point_text(curve['point'])}")
    return "\n".join(lines)


def best_epochs(curve):
    """Return (lowest validation nats per zero, number of epochs that reached it) of a point; infinity where it diverged."""
    scores = [(curve["nats_per_zero"][count - 1], count) for count in curve["epochs"]]
    return min(((nats, count) for nats, count in scores if nats is not None), default=(math.inf, curve["epochs"][0]))


def key_of(point):
    return tuple(sorted(point.items()))


def point_text(point):
    return ", ".join(f"{axis} {value}" for axis, value in point.items())


if __name__ == "__main__":
    run_script(main)
