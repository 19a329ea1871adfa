"""Stage 2: train the transformer on the zeros, in index order, round by round.

    python rzz/src/train.py --resume                     # begin, or go on where it stopped: the command to type
    python rzz/src/train.py --fresh                      # move an existing run aside and begin anew
    python rzz/src/train.py --resume --set data.K=3      # with a setting changed for this command

Round t trains on interval t, training.epochs passes of it, and looks at 1% of interval t + 1 as it goes. Ctrl-C or
SIGTERM finishes the step, saves checkpoints/last.pt and stops. Settings are in rzz/config.json.
"""

import datetime
import math
import os
import signal
import time

import torch

from checkpoint_utils import (
    LAST,
    Progress,
    checkpoint_files,
    latest_checkpoint,
    make_checkpoint,
    restore,
    save_checkpoint,
)
from config_utils import UserError, load_config, require_writable, stage_parser
from data_utils import interval, training_zeros, validation_zeros
from device_utils import choose_device, describe_device, mixed_seed, synchronize
from logging_utils import (
    INTERRUPTED,
    duration,
    log,
    progress_bar,
    read_json_lines,
    run_script,
    start_logging,
    stop_requests,
    training_log,
    write_json_line,
    write_json_lines,
)
from metrics_utils import sampled_predictions, scores
from training_utils import (
    build_model,
    cross_entropy_of,
    learning_rate_at,
    make_optimizer,
    parameter_count,
    training_step,
)

# What the row position and the weights of a run depend on; a resumed run must agree in all of it.
FIXED_IN_A_RUN = ("data.interval_size", "data.first_round", "training.batch_size", "training.seed")


def main(argv=None):
    parser = stage_parser(__doc__)
    parser.add_argument("--resume", action="store_true", help="go on from the latest checkpoint, or begin where there is none")
    parser.add_argument("--fresh", action="store_true", help="move an existing run to previous_runs/ and begin anew")
    args = parser.parse_args(argv)
    config = load_config(args.config, args.overrides, args.device)
    start_logging(config.log_folder)
    require_writable(config.checkpoint_folder)
    device, reason = choose_device(config.runtime.device)

    if args.fresh:
        move_run_aside(config)
    elif not args.resume and checkpoint_files(config.checkpoint_folder):
        raise UserError(f"{config.checkpoint_folder} holds a run: go on with --resume, or move it aside with --fresh.")

    model = build_model(config.model, config.training.seed).to(device)
    optimizer = make_optimizer(model, config.training)
    progress = Progress(round=config.data.first_round)
    checkpoint, path = latest_checkpoint(config.checkpoint_folder)
    if checkpoint is not None:
        check_fits(checkpoint, config, path)
        restore(checkpoint, model, optimizer)
        progress = Progress(**checkpoint["progress"])
        log.info("Resumed %s at %s", path, place(progress, config))
    keep_log_up_to(config, progress.step)

    describe_run(config, model, device, reason)
    with stop_requests() as stop:
        finished = train(config, model, optimizer, progress, device, stop)
    if not finished:
        log.info("Stopped at %s and saved. Go on with the same command and --resume.", place(progress, config))
        return INTERRUPTED if stop[0] == signal.SIGINT else 128 + stop[0]
    log.info("Training is complete: %s, %s steps in %s. Next: python rzz/src/evaluate.py",
             f"rounds {config.data.first_round} … {config.data.K}", f"{progress.step:,}", duration(progress.seconds))


def train(config, model, optimizer, progress, device, stop):
    """Run the rounds from `progress` on, which is kept up to date. Returns False where `stop` asked to end early."""
    settings = config.training
    total_steps = steps_in_run(config)
    running = torch.tensor(progress.loss_sum, device=device)
    with progress_bar(zeros_in_run(config), "training", "zero", initial=zeros_trained(progress, config)) as bar:
        while progress.round <= config.data.K:
            training, validation = training_zeros(config, progress.round), validation_zeros(config, progress.round)
            if progress.step == 0:
                log_before_first_step(model, validation)
            synchronize(device)
            clock = Clock(progress)
            while progress.epoch < settings.epochs:
                while progress.row < len(training):
                    rate = learning_rate_at(progress.step, total_steps, settings)
                    batch = training.batch(progress.row, settings.batch_size)
                    seeds = (settings.seed, progress.step)
                    running += training_step(model, optimizer, batch, rate, settings.gradient_clip, seeds)
                    seen = min(settings.batch_size, len(training) - progress.row)
                    progress.row, progress.step = progress.row + seen, progress.step + 1
                    progress.loss_steps += 1
                    bar.update(seen)

                    if progress.step % settings.log_interval == 0:
                        loss = running.item() / progress.loss_steps  # waits for the device
                        clock.stop()
                        log_training(config, progress, loss, rate, clock, total_steps)
                        running.zero_()
                        progress.loss_steps = 0
                    if progress.step % settings.validation_interval == 0:
                        log_validation(config, model, progress, training, validation)
                    if progress.step % settings.checkpoint_interval == 0 or stop:
                        progress.loss_sum = running.item()
                        clock.stop()
                        save(config, model, optimizer, progress, device, [LAST])
                    if stop:
                        return False
                progress.epoch, progress.row = progress.epoch + 1, 0
            if progress.step % settings.validation_interval:  # else it was measured just now
                log_validation(config, model, progress, training, validation)
            clock.stop()
            finished_round = progress.round
            progress.round, progress.epoch, progress.best_validation = progress.round + 1, 0, None
            progress.loss_sum = running.item()
            save(config, model, optimizer, progress, device, [f"round_{finished_round}.pt", LAST])
    return True


class Clock:
    """Adds the seconds since the last stop to progress.seconds and knows the speed since the last line of the log."""

    def __init__(self, progress):
        self.progress = progress
        self.last = time.monotonic()
        self.line = (progress.step, progress.seconds)

    def stop(self):
        now = time.monotonic()
        self.progress.seconds += now - self.last
        self.last = now

    def zeros_per_second(self, batch_size):
        """Since the last call."""
        step, seconds = self.line
        self.line = (self.progress.step, self.progress.seconds)
        return (self.progress.step - step) * batch_size / max(1e-9, self.progress.seconds - seconds)


def log_training(config, progress, loss, rate, clock, total_steps):
    speed = clock.zeros_per_second(config.training.batch_size)
    left = (zeros_in_run(config) - zeros_trained(progress, config)) / speed
    training_log.info("%s · step %s/%s · loss %.4f · lr %.2e · %s zeros/s · elapsed %s · left %s", place(progress, config),
                      f"{progress.step:,}", f"{total_steps:,}", loss, rate, f"{speed:,.0f}", duration(progress.seconds),
                      duration(left))  # fmt: skip
    write_line(config, progress, kind="training", loss=loss, learning_rate=rate, zeros_per_second=speed)


def log_validation(config, model, progress, training, validation):
    """Measure and log the validation loss and, for the last zeros trained on and for some of the sample, the MSE."""
    settings = config.training
    found = cross_entropy_of(model, validation)
    best = min(found.nats_per_token, progress.best_validation or math.inf)
    progress.best_validation = best
    row = progress.row or len(training)
    recent = training.part(slice(max(0, row - settings.mse_zeros), row))
    spread = validation.part(slice(None, None, max(1, len(validation) // settings.mse_zeros)))
    measured = {}
    for name, zeros in (("training", recent), ("validation", spread)):
        seed = mixed_seed(settings.seed, progress.step)
        measured[name] = scores(sampled_predictions(model, zeros, 1, config.evaluation.top_p, seed), zeros)
    training_log.info("%s · validation loss %.4f (best %.4f) · mse training %s, validation %s · readable %.3f",
                      place(progress, config), found.nats_per_token, best, mse_text(measured["training"]),
                      mse_text(measured["validation"]), measured["validation"]["readable"])  # fmt: skip
    write_line(config, progress, kind="validation", loss=found.nats_per_token, best_loss=best,
               nats_per_zero=found.nats_per_zero, mse_training=measured["training"]["mse"],
               mse_validation=measured["validation"]["mse"], readable_training=measured["training"]["readable"],
               readable_validation=measured["validation"]["readable"])  # fmt: skip


def mse_text(measured):
    return "unreadable" if measured["mse"] is None else f"{measured['mse']:.4g}"


def write_line(config, progress, **values):
    place = {name: getattr(progress, name) for name in ("round", "epoch", "row", "step", "seconds")}
    write_json_line(config.log_folder / "training.jsonl", {**place, **values})


def log_before_first_step(model, validation):
    """Show at once that model, data and generation fit together: a first loss beside that of guessing blindly."""
    few = validation.part(slice(0, 256))
    loss = cross_entropy_of(model, few).nats_per_token
    sampled_predictions(model, few.part(slice(0, 2)), runs=1, top_p=0.9, seed=0)
    training_log.info("loss before training %.4f nats per token; ln 16 = %.4f is guessing blindly", loss, math.log(16))


def save(config, model, optimizer, progress, device, names):
    """Save a checkpoint under each of `names`. A full disk is said and survived: the older checkpoint stays."""
    checkpoint = make_checkpoint(model, optimizer, progress, config, device)
    for name in names:
        try:
            save_checkpoint(checkpoint, config.checkpoint_folder / name)
        except OSError as error:
            log.error("Could not save %s (%s); the older checkpoint stays and training goes on. Free some space.",
                      name, error.strerror)


def place(progress, config):
    """'round 3/10 · epoch 1/2 · zero 3,412,608': where the training stands, for a reader."""
    if progress.round > config.data.K:
        return f"the end of round {progress.round - 1}"
    epoch = min(progress.epoch + 1, config.training.epochs)
    row = progress.row if progress.epoch < config.training.epochs else interval(config, progress.round)[1]
    zero = interval(config, progress.round)[0] + row
    return f"round {progress.round}/{config.data.K} · epoch {epoch}/{config.training.epochs} · zero {zero:,}"


def describe_run(config, model, device, reason):
    data, training = config.data, config.training
    first, count = interval(config, max(1, data.first_round))
    steps = math.ceil(count / training.batch_size)
    rounds = data.K - data.first_round + 1
    log.info("device %s: %s", describe_device(device), reason)
    log.info("model %s parameters: d_model %d, %d layers, %d heads, index embedding %r", f"{parameter_count(model):,}",
             config.model.d_model, config.model.num_layers, config.model.num_heads, config.model.index_embedding)
    log.info("a round: %s zeros / %d a batch = %s steps, × %d epochs × %d rounds = %s steps in the run", f"{count:,}",
             training.batch_size, f"{steps:,}", training.epochs, rounds, f"{steps_in_run(config):,}")


def steps_in_run(config):
    return sum(
        math.ceil(interval(config, t)[1] / config.training.batch_size) * config.training.epochs
        for t in range(config.data.first_round, config.data.K + 1)
    )


def zeros_in_run(config):
    return sum(interval(config, t)[1] for t in range(config.data.first_round, config.data.K + 1)) * config.training.epochs


def zeros_trained(progress, config):
    """Zeros trained on so far, counting each epoch."""
    before = sum(interval(config, t)[1] for t in range(config.data.first_round, progress.round)) * config.training.epochs
    return before + progress.epoch * interval(config, progress.round)[1] + progress.row


def check_fits(checkpoint, config, path):
    """Raise UserError, naming the key, where the checkpoint is of another shape or of other data than the settings."""
    names = [*FIXED_IN_A_RUN, *(f"model.{key}" for key in config.settings["model"])]
    for name in names:
        section, key = name.split(".")
        saved, wanted = checkpoint["config"][section].get(key), config.settings[section][key]
        if saved != wanted:
            raise UserError(f"{path} was trained with {name} = {saved}, but the settings say {wanted}: "
                            f"set it back to go on, or begin anew with --fresh.")


def keep_log_up_to(config, step):
    """Drop the lines of training.jsonl that come after `step`: they are of steps that will be made again."""
    path = config.log_folder / "training.jsonl"
    if path.exists():
        write_json_lines(path, [line for line in read_json_lines(path) if line["step"] <= step and step > 0])


def move_run_aside(config):
    """Move the checkpoints and training logs of an existing run to previous_runs/<time>/."""
    logs = [config.log_folder / name for name in ("training.log", "training.jsonl", "evaluation.json")]
    files = [*config.checkpoint_folder.glob("*.pt"), *(path for path in logs if path.exists())]
    if not checkpoint_files(config.checkpoint_folder):
        return
    aside = config.folder / "previous_runs" / datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    require_writable(aside)
    for path in files:
        os.replace(path, aside / path.name)
    log.info("The run before was moved to %s", aside)
    start_logging(config.log_folder)  # training.log begins anew


if __name__ == "__main__":
    run_script(main)
