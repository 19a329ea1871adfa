"""Stage 2: train the transformer on the zeros, in index order, round by round.

    python rzz/src/train.py --resume                     # begin, or go on where it stopped: the command to type
    python rzz/src/train.py --fresh                      # move an existing run aside and begin again
    python rzz/src/train.py --resume --check             # preview the run and its duration; writes nothing
    python rzz/src/train.py --resume --set data.K=3      # with a setting changed for this command

Round t trains on interval t, training.epochs passes of it, and validates on a sample of interval t + 1. Ctrl-C,
SIGTERM or a closed terminal finishes the step, saves checkpoints/last.pt and stops. Settings are in rzz/config.json.
"""

import signal

from common.cli import run_script, stage_parser
from common.config import load_config
from common.devices import choose_device
from common.logs import progress_bar, start_logging
from common.processes import any_rank, catch_stop_signals, distributed_session
from training.checkpoints import LAST
from training.model_card import write_model_card
from training.preflight import print_preflight
from training.run import TrainingRun, run_lock
from training.run_log import log_description, log_end, log_end_of_round, log_start_of_round, log_training, log_validation


def main(argv=None):
    parser = stage_parser(__doc__)
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("--resume", action="store_true", help="go on from the latest checkpoint, or begin if there is none")
    modes.add_argument("--fresh", action="store_true", help="move an existing run to previous_runs/ and begin again")
    parser.add_argument("--check", action="store_true", help="forecast from a few steps in memory, and write nothing")
    args = parser.parse_args(argv)
    config = load_config(args.config, args.overrides, args.device)
    device, reason = choose_device(config.runtime.device)
    if args.check:
        return print_preflight(config, args, device, reason)

    with distributed_session(device):
        start_logging(config.log_folder, args.quiet)
        with run_lock(config):
            run = TrainingRun.start(config, device, args)
            log_description(run, reason)
            bar = progress_bar(run.total_zeros, "training", "zero", initial=run.progress.zeros)
            with catch_stop_signals() as stop, bar:
                finished = train(run, stop, bar)
            if finished and run.rank == 0:
                write_model_card(config)
            log_end(run, finished)
    return 0 if finished else 128 + (stop[0] if stop else signal.SIGTERM)  # which another rank got, if not this one


def train(run, stop, bar):
    """Train from the current position to the end of the last round; return False if `stop` asked to end early."""
    progress, settings = run.progress, run.config.training
    for _ in run.rounds():
        log_start_of_round(run)
        for batch in run.batches():
            bar.update(run.train_step(batch))

            if progress.step % settings.validation_interval == 0:
                log_validation(run)
            if progress.step % settings.log_interval == 0:
                log_training(run)
            stopping = any_rank(stop, progress.step)
            if stopping or progress.step % settings.checkpoint_interval == 0:
                run.save(LAST)
            if stopping:
                run.require_saved()
                return False
        if progress.step % settings.validation_interval:  # otherwise it has just been measured
            log_validation(run)
        log_end_of_round(run)
        run.save(f"round_{progress.round}.pt", LAST)
    run.require_saved()
    return True


if __name__ == "__main__":
    run_script(main)
