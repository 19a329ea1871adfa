"""Stage 1: search the hyper-parameters on the first zeros and write what is best for the full training into config.json.

    python rzz/src/tune_hyper_parameters.py                       # the grid of the settings; run again to go on
    python rzz/src/tune_hyper_parameters.py --dry-run             # count the grid and forecast the hours, train nothing
    python rzz/src/tune_hyper_parameters.py --measure-host        # first measure this machine, in about a minute

Every combination of the values of tuning.grid is a trial. Those that the host cannot carry (memory, or hours for the full
training) are excluded with the reason. All others are trained in index order on the first 9/10 of tuning.zeros for an
epoch and scored by the cross entropy on the last tenth; then the best go on to 2 epochs, the best of these to 4, and so on
(successive halving: Jamieson and Talwalkar, "Non-stochastic best arm identification and hyperparameter optimization",
2016). Those of the last rung are trained again with other seeds, which tells how much of a score is chance. The learning
rate is constant after its warm-up, which makes the curve up to an epoch the same whatever comes after it, so that all
numbers of epochs are read off one training. logs/tuning.jsonl has a line for each finished rung of each trial, and what is
there is not trained again. The states of trials that may go on lie in tuning.state_folder until the end; those that are lost,
with a machine's disk, are trained again when their trials go on. tuning/choice.py says which trial is written.
"""

import dataclasses
from contextlib import closing

from common.cli import command, run_script, stage_parser
from common.config import GRID_AXES, ModelConfig, UserError, load_config, require_writable, split_override, write_back
from common.devices import choose_device
from common.files import exclusive_lock, remove
from common.logs import log, start_logging
from common.signals import catch_stop_signals, interruptible
from common.text import fit_docstring
from data_utils import tuning_splits
from model.index_embedding import KINDS, describe_embedding
from tuning.choice import choose
from tuning.cost import measure_hardware
from tuning.display import SearchProgress, axis_table, description, ranking_table
from tuning.grid import grid_of
from tuning.halving import SearchLog, by_batch_size, eliminated, promoted, ranking, repetitions, rungs_of
from tuning.workers import as_completed, schedule_jobs, state_file, state_folder, tuning_device, worker_pool


def main(argv=None):
    parser = stage_parser(__doc__)
    kinds = "\n".join(f"    {kind:<8}  {describe_embedding(ModelConfig(), kind)}" for kind in KINDS)
    parser.epilog = fit_docstring(f"index embeddings, and what each tells the model about the index:\n\n{kinds}")
    parser.add_argument("--dry-run", action="store_true", help="count the grid and forecast the hours, train and write nothing")
    parser.add_argument("--measure-host", action="store_true", help="measure this machine and make it tuning.host of config.json")
    args = parser.parse_args(argv)
    config = load_config(args.config, args.overrides, args.device)
    chosen, _ = choose_device(config.runtime.device)
    if args.measure_host:
        host = measure_hardware(chosen)
        config = dataclasses.replace(config, tuning=dataclasses.replace(config.tuning, host=host))
    device, why = tuning_device(chosen)
    grid = grid_of(config)
    text = description(config, grid, device, why)
    if args.dry_run:
        print(text)
        return None

    start_logging(config.log_folder, args.quiet)
    require_writable(config.folder, config.checkpoint_folder, state_folder(config))
    log.info("%s", text)
    with exclusive_lock(config.checkpoint_folder / ".lock", "which tunes") as holder:
        if holder:
            raise UserError(f"{config.folder} is in use by {holder}; wait for it, or use another --config.")
        if args.measure_host:
            write_back(config.path, {"tuning": {"host": dataclasses.asdict(host)}})
            log.info("Written to %s: tuning.host; the file before is config.previous.json", config.path)
        return tune(config, grid, device, args.overrides)


def tune(config, grid, device, overrides):
    """Search the grid, show what was found, and write the winner into config.json; return the exit code."""
    search_log = SearchLog(config)
    search_log.write_excluded(grid)
    if not grid.trials:
        raise UserError("Every trial of tuning.grid was excluded, for the reasons above: change tuning.grid, or raise "
                        "tuning.max_memory_gb or tuning.max_training_hours.")
    with catch_stop_signals() as stop:
        search(config, grid, search_log, device, stop)
    if stop:
        log.warning("Stopped; finished rungs are kept in %s. Go on with the same command.", search_log.path)
        return 128 + stop[0]

    print(ranking_table(grid, ranking(grid, search_log)))
    print(axis_table(config, grid, search_log))
    choice = choose(config, grid, search_log)
    if choice is None:
        raise UserError("No trial of the grid learned anything; add smaller values to tuning.grid.learning_rate.")
    write_choice(config, choice, overrides)
    remove(state_folder(config))
    return 0


def search(config, grid, search_log, device, stop):
    """Train every trial of the grid for the first rung and the best for the next ones; leave early if `stop` is filled."""
    with interruptible():
        tuning_splits(config)  # which the workers then find in data/
    trials, progress = grid.trials, SearchProgress(config, search_log, device)

    def finish_rung(rung, trials):
        jobs = schedule_jobs(config, [trial for trial in trials if search_log.result(trial, rung) is None], rung, device)
        progress.begin_rung(rung, trials, jobs)
        for job, results in as_completed(submit, jobs, stop):
            search_log.write(job.trials, job.last_epoch, results)
            same_batch_size = by_batch_size(trials)[job.trials[0].settings.training.batch_size]
            obsolete = [state_file(config, trial, job.first_epoch) for trial in job.trials]
            obsolete += [state_file(config, trial, rung) for trial in eliminated(config, same_batch_size, search_log, rung)]
            remove(*obsolete)
            progress.job_done(job)

    with worker_pool(config, device) as submit, closing(progress):
        rungs = rungs_of(config)
        for rung in rungs:
            finish_rung(rung, trials)
            if stop:
                return
            going_on = promoted(config, trials, search_log, rung) if rung < rungs[-1] else repetitions(config, trials)
            progress.end_rung(going_on)
            trials = going_on
        finish_rung(rungs[-1], trials)


def write_choice(config, choice, overrides):
    """Write the settings of `choice` and those of `overrides` that it was found with into config.json; say so, and why."""
    values = {**choice.trial.values, "epochs": choice.passes, "learning_rate": choice.learning_rate, "dropout": choice.dropout}
    found = [(GRID_AXES[axis], axis, value) for axis, value in values.items()]
    changes = {}
    for section, key, value in [*map(split_override, overrides), *found]:
        if section in ("model", "training"):
            changes.setdefault(section, {})[key] = value
    write_back(config.path, changes)
    written = ", ".join(f"{section}.{key} {value}" for section, values in changes.items() for key, value in values.items())
    log.info("Written to %s: %s; the file before is %s.previous.json", config.path, written, config.path.stem)
    log.info("Why: %s. Next: %s", choice.reason, command(config, "train.py --resume"))


if __name__ == "__main__":
    run_script(main)
