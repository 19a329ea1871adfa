"""Stage 1: search the hyper-parameters on the first zeros and write the best into config.json.

    python rzz/src/tune_hyper_parameters.py                       # the grid of the settings; run again to go on
    python rzz/src/tune_hyper_parameters.py --dry-run             # count the grid and forecast the hours, train nothing
    python rzz/src/tune_hyper_parameters.py --measure-host        # first measure this machine, in about a minute

Every point of tuning.grid is listed first. What the host cannot carry (memory, or hours for the full training) is ruled
out with its reason. All others are trained in index order on the first 9/10 of tuning.zeros for an epoch and scored by
the cross entropy on the last tenth; then the better part goes on to 2 epochs, of these the better part to 4, and so on
(successive halving: Jamieson and Talwalkar, "Non-stochastic best arm identification and hyperparameter optimization",
2016). The learning rate is constant after its warm-up, which makes the curve up to an epoch the same whatever comes after
it, so that all numbers of epochs are read off one training. logs/tuning.jsonl holds a line for each finished rung of each
point, and what stands there is not trained again.
"""

import dataclasses
import os
import shutil

from common.cli import command, run_script, stage_parser
from common.config import GRID_AXES, UserError, load_config, require_writable, split_override, write_back
from common.devices import choose_device
from common.files import exclusive_lock
from common.logs import log, start_logging
from common.processes import catch_stop_signals
from common.text import format_duration
from data_utils import tuning_splits
from tuning.cost import measure_hardware, training_hours
from tuning.display import SearchProgress, axis_table, description, ranking_table
from tuning.grid import grid_of
from tuning.halving import SearchLog, eliminated, promoted, ranking, rungs_of, same_batch_size
from tuning.workers import as_completed, drop_states, schedule_jobs, state_folder, tuning_device, worker_pool


def main(argv=None):
    parser = stage_parser(__doc__)
    parser.add_argument("--dry-run", action="store_true", help="count the grid and forecast the hours, train and write nothing")
    parser.add_argument("--measure-host", action="store_true", help="measure this machine and make it tuning.host of config.json")
    args = parser.parse_args(argv)
    config = load_config(args.config, args.overrides, args.device)
    chosen, _ = choose_device(config.runtime.device)
    if args.measure_host:
        host = measure_hardware(chosen)
        config = dataclasses.replace(config, tuning=dataclasses.replace(config.tuning, host=host))
    device, reason = tuning_device(chosen)
    grid = grid_of(config)
    text = description(config, grid, device, reason)
    if args.dry_run:
        print(text)
        return None

    start_logging(config.log_folder, args.quiet)
    require_writable(config.folder, state_folder(config))
    log.info("%s", text)
    with exclusive_lock(config.checkpoint_folder / ".lock", f"process {os.getpid()}, which tunes") as holder:
        if holder:
            raise UserError(f"{config.folder} is in use by {holder}; wait for it, or use another --config.")
        if args.measure_host:
            write_back(config.path, {"tuning": {"host": dataclasses.asdict(host)}})
            log.info("Written to %s: tuning.host; the file before is config.previous.json", config.path)
        return tune(config, grid, device, args.overrides)


def tune(config, grid, device, overrides):
    """Search the grid, show what was found, and write the winner into config.json; return the exit code."""
    ledger = SearchLog(config)
    ledger.write_left_out(grid)
    if not grid.points:
        raise UserError("Every point of tuning.grid was ruled out, for the reasons above: change tuning.grid, or raise "
                        "tuning.max_memory_gb or tuning.max_training_hours.")
    with catch_stop_signals() as stop:
        search(config, grid, ledger, device, stop)
    if stop:
        log.info("Stopped; finished rungs are kept in %s. Go on with the same command.", ledger.path)
        return 128 + stop[0]
    shutil.rmtree(state_folder(config))

    ranked = ranking(grid, ledger)
    print(ranking_table(ranked))
    print(axis_table(config, grid, ledger))
    if not ranked:
        raise UserError("No point of the grid learned anything; add smaller values to tuning.grid.learning_rate.")
    write_winner(config, ranked[0], overrides)
    return 0


def write_winner(config, winner, overrides):
    """Write the settings of the Ranked `winner`, and those of `overrides` that it was found with, into config.json; say so."""
    changes = {}
    for section, key, value in map(split_override, overrides):
        if section in ("model", "training"):
            changes.setdefault(section, {})[key] = value
    for axis, value in {**winner.point.values, "epochs": winner.epochs}.items():
        changes.setdefault(GRID_AXES[axis], {})[axis] = value
    write_back(config.path, changes)
    written = ", ".join(f"{section}.{key} {value}" for section, values in changes.items() for key, value in values.items())
    log.info("Written to %s: %s; the file before is %s.previous.json", config.path, written, config.path.stem)
    log.info("Full training with it on %s: forecast %s. Next: %s", config.tuning.host.name,
             format_duration(3600 * training_hours(winner.point.settings, winner.epochs)), command(config, "train.py --resume"))


def search(config, grid, ledger, device, stop):
    """Train every point of the grid for the first rung and the better part for the next ones; leave early where `stop` says so."""
    training, validation = tuning_splits(config)
    contenders = grid.points
    with worker_pool(config, device, training, validation) as submit, SearchProgress(config, ledger, device) as progress:
        for rung in rungs_of(config):
            tasks = schedule_jobs(config, [point for point in contenders if ledger.line(point, rung) is None], rung, device)
            progress.begin_rung(rung, contenders, tasks)
            for task, results in as_completed(submit, tasks, stop):
                ledger.write(task.points, task.last_epoch, results)
                drop_states(config, task, eliminated(config, same_batch_size(contenders, task.points[0]), ledger, rung), rung)
                progress.task_done(task)
            if stop:
                return
            going_on = promoted(config, contenders, ledger, rung)
            progress.end_rung(rung, contenders, going_on)
            contenders = going_on


if __name__ == "__main__":
    run_script(main)
