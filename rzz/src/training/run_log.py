"""What a training says as it goes: the lines of logs/training.log for a reader, those of training.jsonl for programs.

    log_training(config, progress, losses, rate, clock, total_steps)      # every training.log_interval steps
    log_validation(config, model, progress, training, validation)         # every training.validation_interval steps

Of several processes the first alone writes.
"""

import math

from common.config import UserError
from common.devices import derive_seed, describe_device, precision
from common.files import append_json_line, read_json_lines, write_json_lines
from common.logs import log, training_log
from common.processes import rank
from common.text import format_duration
from data_utils import interval
from model.metrics import baselines, scores
from model.network import cross_entropy_of, parameter_count
from model.sampling import sampled_predictions
from training.optimizer import learning_rate_at
from training.progress import position_text, steps_in_run, zeros_left


def describe_run(config, model, progress, device, reason):
    data, training = config.data, config.training
    count = interval(config, data.K)[1]
    rounds = data.K - data.first_round + 1
    dtype, why = precision(device, training.precision)
    log.info("device %s: %s; %s: %s", describe_device(device), reason, str(dtype).removeprefix("torch."), why)
    log.info("model %s parameters: d_model %d, %d layers, %d heads, index embedding %r", f"{parameter_count(model):,}",
             config.model.d_model, config.model.num_layers, config.model.num_heads, config.model.index_embedding)
    log.info("a round: %s zeros / %d a batch = %s steps, × %d epochs; %d rounds, %s steps in the run", f"{count:,}",
             training.batch_size, f"{math.ceil(count / training.batch_size):,}", training.epochs, rounds,
             f"{steps_in_run(progress, config):,}")  # fmt: skip


def log_before_first_step(model, validation):
    """Show at once that model, data and generation fit together: a first loss beside that of guessing blindly."""
    few = validation.subset(slice(0, 256))
    loss = cross_entropy_of(model, few).nats_per_token
    sampled_predictions(model, few.subset(slice(0, 2)), runs=1, top_p=0.9, seed=0)
    training_log.info("loss before training %.4f nats per token; ln 16 = %.4f is guessing blindly", loss, math.log(16))


def log_round(config, model, progress, training, validation):
    """Write a line on what the MSE of this round is to be compared with: methods without a model, on the same zeros."""
    sample = mse_sample(config, validation)
    measured = {name: scores(values, sample)["mse"] for name, values in baselines(sample, training).items()}
    write_line(config, progress, kind="round", parameters=parameter_count(model), mse_baselines=measured)


def log_training(config, progress, losses, rate, clock, total_steps):
    """Write one line about the steps since the last one, and stop where too many updates in a row were skipped."""
    clock.look()
    speed = clock.zeros_per_second(config.training.batch_size)
    left = zeros_left(progress, config) / speed
    good = [loss for loss in losses if math.isfinite(loss)]
    loss = sum(good) / len(good) if good else None
    training_log.info("%s · step %s/%s · loss %s%s · lr %.2e · %s zeros/s · elapsed %s · left %s", position_text(progress, config),
                      f"{progress.step:,}", f"{total_steps:,}", "none" if loss is None else f"{loss:.4f}",
                      validation_text(progress), rate, f"{speed:,.0f}", format_duration(progress.seconds),
                      format_duration(left))  # fmt: skip
    write_line(config, progress, kind="training", loss=loss, learning_rate=rate, zeros_per_second=speed, seconds_left=left,
               steps_in_run=total_steps)
    for step, each in enumerate(losses, progress.step - len(losses)):
        progress.bad_steps = 0 if math.isfinite(each) else progress.bad_steps + 1
        if not math.isfinite(each):
            row = max(0, progress.row - (progress.step - step) * config.training.batch_size)
            rate = learning_rate_at(step, total_steps, config.training)
            log.warning("Skipped the update of step %s (round %d, epoch %d, row %s, lr %.2e): loss or gradient not finite",
                        f"{step + 1:,}", progress.round, progress.epoch + 1, f"{row:,}", rate)
        if progress.bad_steps >= config.training.max_bad_steps:
            raise UserError(f"{progress.bad_steps} updates in a row were not finite; stopped, the last checkpoint is kept. Lower "
                            "training.learning_rate and go on with --resume.")


def log_validation(config, model, progress, training, validation):
    """Measure the validation loss and, for the last zeros trained on and for some of the sample, the sampled MSE."""
    if rank() > 0:
        return
    settings = config.training
    found = cross_entropy_of(model, validation)
    before = progress.validation if progress.validation and progress.validation["round"] == progress.round else None
    best = min(found.nats_per_token, before["best_loss"]) if before else found.nats_per_token
    row = progress.row or len(training)
    recent = training.subset(slice(max(0, row - settings.mse_zeros), row))
    measured = {}
    for name, zeros in (("training", recent), ("validation", mse_sample(config, validation))):
        seed = derive_seed(settings.seed, progress.step)
        found_here = scores(sampled_predictions(model, zeros, 1, config.evaluation.top_p, seed), zeros)
        measured |= {f"mse_{name}": found_here["mse"], f"readable_{name}": found_here["readable"]}
    progress.validation = {"round": progress.round, "loss": found.nats_per_token, "best_loss": best,
                           "nats_per_zero": found.nats_per_zero, **measured}  # fmt: skip
    write_line(config, progress, kind="validation", **progress.validation, accuracy_by_position=found.accuracy_by_position)


def mse_sample(config, validation):
    """The zeros of the validation sample that are written out for the logged MSE: about training.mse_zeros, evenly spread."""
    return validation.subset(slice(None, None, math.ceil(len(validation) / config.training.mse_zeros)))


def validation_text(progress):
    """' · val 0.8210 (best 0.8199) · mse 0.012 (training 0.011)': what was measured last, if anything."""
    last = progress.validation
    if last is None:
        return ""
    mse, mse_training = ("unreadable" if last[name] is None else f"{last[name]:.3g}" for name in ("mse_validation", "mse_training"))
    return f" · val {last['loss']:.4f} (best {last['best_loss']:.4f}) · mse {mse} (training {mse_training})"


def write_line(config, progress, **values):
    """Append a line to training.jsonl. A full disk costs the line, not the training."""
    if rank() > 0:
        return
    place = {name: getattr(progress, name) for name in ("round", "epoch", "row", "step", "seconds")}
    try:
        append_json_line(config.log_folder / "training.jsonl", {**place, **values})
        progress.log_lines += 1
    except OSError as error:
        log.error("Could not write a line of training.jsonl (%s); training goes on without it. Free some space.", error.strerror)


def rewind_log(config, count):
    """Keep the first `count` lines of training.jsonl: those after the checkpoint are of steps that will be made again."""
    path = config.log_folder / "training.jsonl"
    if path.exists():
        write_json_lines(path, read_json_lines(path)[:count])


def cost(progress, config):
    """', 1.23 dollars' where runtime.dollars_per_hour is set."""
    dollars = config.runtime.dollars_per_hour
    return f", {dollars * progress.seconds / 3600:.2f} dollars" if dollars else ""
