"""Stage 2: train the transformer on the zeros, in index order, round by round.

    python rzz/src/train.py --resume                     # begin, or go on where it stopped: the command to type
    python rzz/src/train.py --fresh                      # move an existing run aside and begin again
    python rzz/src/train.py --resume --check             # preview the run and its duration; writes nothing
    python rzz/src/train.py --resume --set data.K=3      # with a setting changed for this command
    python rzz/src/train.py --resume --minutes 90        # save and stop by itself before 90 minutes are over

Round t trains on interval t, training.epochs passes of it, and validates on a sample of interval t + 1. Ctrl-C, SIGTERM
or a closed terminal saves checkpoints/last.pt and stops within 2 seconds or when the update that is being computed ends;
SIGUSR1 saves it and goes on. Settings are in rzz/config.json.
"""

import argparse
import signal

from common.cli import run_script, stage_parser
from common.config import load_config
from common.devices import choose_device
from common.logs import log, progress_bar, start_logging
from common.processes import any_rank, distributed_session, exit_process, world_size
from common.signals import StopRequested, catch_stop_signals, save_requested, stop_after
from training.checkpoints import LAST
from training.model_card import write_model_card
from training.preflight import print_preflight
from training.run import TrainingRun, run_lock
from training.run_log import log_description, log_end, log_start_of_round, log_training, log_validation

MINUTES_MARGIN_S = 10  # of --minutes, at most a tenth of them, for finishing a step and saving
MOST_MINUTES = 525_600  # a year


def main(argv=None):
    parser = stage_parser(__doc__)
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("--resume", action="store_true", help="go on from the latest checkpoint, or begin if there is none")
    modes.add_argument("--fresh", action="store_true", help="move an existing run to previous_runs/ and begin again")
    parser.add_argument("--check", action="store_true", help="forecast from a few steps in memory, and write nothing")
    parser.add_argument("--minutes", type=minutes, metavar="M",
                        help="save and stop before the command has run for M minutes, all that it does included; exit code 0")
    args = parser.parse_args(argv)
    config = load_config(args.config, args.overrides, args.device)
    device, reason = choose_device(config.runtime.device)
    if args.check:
        return print_preflight(config, args, device, reason)

    with distributed_session(device):
        start_logging(config.log_folder, args.quiet)
        with run_lock(config):
            run = TrainingRun.start(config, device, args)
            log_description(run, reason, *run.choose_threads_and_precision())
            bar = progress_bar(run.total_zeros, "training", "zero", initial=run.progress.zeros)
            with catch_stop_signals() as stop, bar:
                if args.minutes:
                    stop_after(60 * args.minutes - min(MINUTES_MARGIN_S, 6 * args.minutes))
                finished = train(run, stop, bar)
            if finished and run.rank == 0:
                write_model_card(config)
            if signal.SIGALRM in stop:
                log.info("The %g minutes of --minutes are nearly over.", args.minutes)
            log_end(run, finished)
            # Which another rank got, if not this one.
            request = stop[0] if stop else signal.SIGALRM if args.minutes else signal.SIGTERM
            code = 0 if finished or request == signal.SIGALRM else 128 + request
            if not finished and world_size() > 1:
                exit_process(code)  # other ranks may wait for this one to go on
    return code


def minutes(text):
    """Return the minutes of --minutes. Raises ArgumentTypeError unless it is a number above 0, of a year or less."""
    try:
        if 0 < float(text) <= MOST_MINUTES:
            return float(text)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"must be a number above 0 and at most {MOST_MINUTES:,}, not {text!r}")


def train(run, stop, bar):
    """Train from the current position to the end of the last round; return False if `stop` asked to end early."""
    progress, settings = run.progress, run.config.training
    try:
        for _ in run.rounds():
            log_start_of_round(run)
            log_step(run)  # if a request to stop interrupted the validation
            for batch in run.batches():
                bar.update(run.train_step(batch))
                log_step(run)
                if any_rank(stop, progress.step):
                    raise StopRequested
                requested = save_requested()
                if requested or progress.step % settings.checkpoint_interval == 0:
                    run.save(LAST)
                if requested:
                    log.info("Saved at %s, as SIGUSR1 asks; training goes on.", run.position_text())
            if run.losses:
                log_training(run)
            if not progress.is_validated:
                log_validation(run)
            run.save(f"round_{progress.round}.pt", LAST)
    except StopRequested:
        if progress.step:
            run.save(LAST)
        run.require_saved()
        return False
    run.require_saved()
    return True


def log_step(run):
    """Validate and log where the intervals of the settings say so after this step, unless that has been done."""
    step, settings = run.progress.step, run.config.training
    due = step % run.validation_interval == 0 and not run.is_at_end_of_round  # where train validates
    if due and not run.progress.is_validated:
        log_validation(run)
    if step % settings.log_interval == 0 and run.losses:
        log_training(run)


if __name__ == "__main__":
    run_script(main)
