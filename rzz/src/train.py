"""Stage 2: train the transformer on the zeros, in index order, round by round.

    python rzz/src/train.py --resume                     # begin, or go on where it stopped: the command to type
    python rzz/src/train.py --fresh                      # move an existing run aside and begin anew
    python rzz/src/train.py --resume --check             # what it would meet and how long it would take; writes nothing
    python rzz/src/train.py --resume --set data.K=3      # with a setting changed for this command

Round t trains on interval t, training.epochs passes of it, and looks at 1% of interval t + 1 as it goes. Ctrl-C,
SIGTERM or a closed terminal finishes the step, saves checkpoints/last.pt and stops. Settings are in rzz/config.json.
"""

import datetime
import os
import platform
import signal

import torch

from common.cli import command, run_script, stage_parser
from common.config import UserError, load_config, require_writable
from common.devices import choose_device, compiled
from common.files import exclusive_lock
from common.logs import log, progress_bar, start_logging, training_log
from common.processes import (
    any_rank,
    barrier,
    catch_stop_signals,
    distributed_session,
    is_alone,
    rank,
    require_distributable,
    world_size,
    wrap_ddp,
)
from common.text import format_duration
from data_utils import fetch_ahead, interval, require_zeros, training_zeros, validation_zeros
from model.batches import iterate_batches
from model.network import parameter_count
from training.checkpoints import LAST, PREVIOUS, checkpoint_files, latest_checkpoint
from training.model_card import write_model_card
from training.optimizer import floats, learning_rate_at, train_step_with_oom_retry
from training.preflight import STATE_BYTES, check_disk_space, median_seconds, print_preflight, sample_zeros, zeros_text
from training.progress import Stopwatch, position_text, steps_in_run, steps_left, zeros_left
from training.run import archive_run, begin, refuse_to_overwrite, require_saved, save
from training.run_log import (
    cost,
    describe_run,
    log_before_first_step,
    log_round,
    log_training,
    log_validation,
    rewind_log,
    validation_text,
)


def main(argv=None):
    parser = stage_parser(__doc__)
    ways = parser.add_mutually_exclusive_group()
    ways.add_argument("--resume", action="store_true", help="go on from the latest checkpoint, or begin where there is none")
    ways.add_argument("--fresh", action="store_true", help="move an existing run to previous_runs/ and begin anew")
    parser.add_argument("--check", action="store_true", help="forecast from a few steps in memory, and write nothing")
    args = parser.parse_args(argv)
    config = load_config(args.config, args.overrides, args.device)
    if args.check:
        if not is_alone():
            raise UserError("--check looks at one process: run it without torchrun.")
        return check(config, args)
    device, reason = choose_device(config.runtime.device)
    require_distributable(device)
    with distributed_session():
        start_logging(config.log_folder, args.quiet)
        require_writable(config.checkpoint_folder)
        if rank() > 0:
            return run(config, args, device, reason)
        owner = f"process {os.getpid()} on {platform.node()}, begun {datetime.datetime.now():%Y-%m-%d %H:%M:%S}"
        with exclusive_lock(config.checkpoint_folder / ".lock", owner) as holder:
            if holder:
                raise UserError(f"{config.folder} is being trained by {holder}; wait for it, or use another --config.")
            return run(config, args, device, reason)


def run(config, args, device, reason):
    """Begin or resume the training that the command line asks for, and report how it ended."""
    if rank() == 0:
        refuse_to_overwrite(config, args)
        require_zeros(config)
        if (args.fresh or not checkpoint_files(config.checkpoint_folder)) and archive_run(config):
            start_logging(config.log_folder, args.quiet)  # training.log begins anew
    barrier()
    model, optimizer, progress, path = begin(config, args, device)
    if path:
        log.info("Resumed %s at %s", path, position_text(progress, config))
    if rank() == 0:
        rewind_log(config, progress.log_lines)

    describe_run(config, model, progress, device, reason)
    with catch_stop_signals() as stop:
        finished = train(config, model, optimizer, progress, device, stop)
    if not finished:
        log.info("Stopped at %s and saved. Go on with the same command and --resume.", position_text(progress, config))
        return 128 + (stop[0] if stop else signal.SIGTERM)
    if rank() == 0:
        write_model_card(config, latest_checkpoint(config.checkpoint_folder)[0])
    speed = progress.zeros / max(progress.seconds, 1e-9)
    log.info("Training is complete: %s zeros in %s steps and %s, %s zeros/s%s. Next: %s", f"{progress.zeros:,}",
             f"{progress.step:,}", format_duration(progress.seconds), f"{speed:,.0f}", cost(progress, config),
             command(config, "evaluate.py"))  # fmt: skip


def check(config, args):
    """Print what the training would meet and how long it would take, from a few steps on real zeros in memory."""
    device, reason = choose_device(config.runtime.device)
    refuse_to_overwrite(config, args)
    require_zeros(config)
    model, optimizer, progress, path = begin(config, args, device)
    intervals = [interval(config, t) for t in range(progress.round, config.data.K + 2)]
    files = {LAST, PREVIOUS, *(f"round_{t}.pt" for t in range(progress.round, config.data.K + 1))}
    new = 1 + sum(args.fresh or not (config.checkpoint_folder / name).exists() for name in files)  # and one while it is written
    disk = check_disk_space(config, intervals, STATE_BYTES * parameter_count(model) * new)

    zeros, seconds_each = sample_zeros(config, *intervals[0])
    batch = next(iterate_batches(model, zeros, config.training.batch_size))
    trained = compiled(model, device, config.training.compile)
    rate = learning_rate_at(progress.step, steps_in_run(progress, config), config.training)
    losses = []

    def step():
        losses.append(train_step_with_oom_retry(config, trained, model, optimizer, batch, rate, progress, parts=1)[0])

    seconds = median_seconds(step, device)
    steps = steps_left(progress, config)
    print_preflight(device, reason, {
        "disk": disk,
        "zeros": zeros_text(config, intervals, seconds_each),
        "checkpoint": (f"goes on from {path} at " if path else "begins at ") + position_text(progress, config),
        "one step": f"{config.training.batch_size} zeros in {1000 * seconds:.0f} ms, loss {losses[0].item():.4f}",
        "forecast": f"{format_duration(steps * seconds)} for {steps:,} steps, without validation and the zeros",
    })  # fmt: skip


def train(config, model, optimizer, progress, device, stop):
    """Run the rounds from `progress` on, which is kept up to date. Returns False where `stop` asked to end early."""
    settings = config.training
    total_steps = steps_in_run(progress, config)
    losses = list(torch.tensor(progress.losses, device=device))  # of the steps since the last line of the log
    parts = 1  # of a batch, more where the device's memory does not hold it whole
    trained = compiled(wrap_ddp(model), device, settings.compile)
    with progress_bar(progress.zeros + zeros_left(progress, config), "training", "zero", initial=progress.zeros) as bar:
        while True:
            if progress.epoch >= settings.epochs:
                if progress.round >= config.data.K:
                    return True
                progress.round, progress.epoch, progress.row = progress.round + 1, 0, 0
            training = training_zeros(config, progress.round)
            validation = validation_zeros(config, progress.round) if rank() == 0 else None  # the first process alone looks at it
            if rank() == 0 and progress.round < config.data.K:
                fetch_ahead(config, *interval(config, progress.round + 2))
            if rank() == 0 and progress.step == 0:
                log_before_first_step(model, validation)
            if rank() == 0 and progress.epoch == progress.row == 0:
                log_round(config, model, progress, training, validation)
            clock = Stopwatch(progress, device)
            while progress.epoch < settings.epochs:
                for batch in iterate_batches(model, training, settings.batch_size, progress.row, rank(), world_size()):
                    rate = learning_rate_at(progress.step, total_steps, settings)
                    loss, parts = train_step_with_oom_retry(config, trained, model, optimizer, batch, rate, progress, parts)
                    losses.append(loss)
                    seen = min(settings.batch_size, len(training) - progress.row)
                    progress.row, progress.step, progress.zeros = progress.row + seen, progress.step + 1, progress.zeros + seen
                    bar.update(seen)

                    if progress.step % settings.validation_interval == 0:
                        log_validation(config, model, progress, training, validation)
                    if progress.step % settings.log_interval == 0:
                        log_training(config, progress, floats(losses), rate, clock, total_steps)
                        losses.clear()
                    stopping = any_rank(stop, progress.step)
                    if progress.step % settings.checkpoint_interval == 0 or stopping:
                        progress.losses = floats(losses)
                        saved = save(config, model, optimizer, progress, device, clock, [LAST])
                    if stopping:
                        require_saved(saved, config, progress)
                        return False
                progress.epoch, progress.row = progress.epoch + 1, 0
            if progress.step % settings.validation_interval:  # else it was measured just now
                log_validation(config, model, progress, training, validation)
            training_log.info("%s · end of the round%s", position_text(progress, config), validation_text(progress))
            progress.losses = floats(losses)
            saved = save(config, model, optimizer, progress, device, clock, [f"round_{progress.round}.pt", LAST])
            if progress.round >= config.data.K:
                require_saved(saved, config, progress)


if __name__ == "__main__":
    run_script(main)
