"""What a run has come to, as one page to look at: logs/report/report.html.

    python rzz/src/report.py                 # at any moment, also while the training runs
    python rzz/src/report.py --watch         # renewed as the run goes on, until Ctrl-C; so is the page in the browser
    python rzz/src/report.py RUN RUN …       # several run folders beside each other: comparison.html of the first

Every number comes from the run's logs: tuning.jsonl, training.jsonl, evaluation.json and predictions.jsonl. What is not
there yet is named at the top. The figures need matplotlib, which the other scripts do not; without it there are tables.
"""

import datetime
import time
from pathlib import Path

from common.cli import command, run_script, stage_parser
from common.config import DEFAULT_CONFIG, UserError, load_config
from common.files import NUMBER, read_json, read_json_lines
from common.logs import start_logging
from common.signals import catch_stop_signals
from model.metrics import EVALUATION
from reporting.comparison import comparison_section, names_of
from reporting.pages import paragraph, write_page
from reporting.sections import RunLogs, evaluation_section, overview_section, terms_section, training_section, tuning_section
from training.run_log import LINES as TRAINING_LINES
from tuning.halving import LINES as TUNING_LINES

PREDICTIONS = {"index": int, "true": NUMBER, "predicted": list}
LOGS = ("tuning.jsonl", "training.jsonl", "evaluation.json", "predictions.jsonl")
RELOAD_SECONDS = 10  # of a page that is watched


def main(argv=None):
    parser = stage_parser(__doc__)
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="run folders, or their config.json, in place of --config")
    parser.add_argument("--watch", action="store_true", help="renew the page while the run goes on, until Ctrl-C")
    args = parser.parse_args(argv)
    if args.runs and args.config != DEFAULT_CONFIG:
        raise UserError("Both --config and run folders are given; name all runs as folders.")
    paths = [run / "config.json" if run.is_dir() else run for run in args.runs] or [args.config]
    configs = [load_config(path, args.overrides, args.device) for path in dict.fromkeys(path.absolute() for path in paths)]
    start_logging(configs[0].log_folder, args.quiet)
    page = configs[0].log_folder / "report" / ("comparison.html" if len(configs) > 1 else "report.html")
    write_report(page, configs, reload_after=RELOAD_SECONDS if args.watch else None)
    print(page, flush=True)
    if args.watch:
        watch(page, configs)


def watch(page, configs):
    """Write the page again whenever a log has changed, until Ctrl-C; then once more, as a page that does not reload."""
    with catch_stop_signals(interrupt=True):
        shown = state_of_logs(configs)
        while True:
            time.sleep(RELOAD_SECONDS)
            if (now := state_of_logs(configs)) != shown and all(map(has_logs, configs)):  # --fresh has just moved them aside
                write_report(page, configs, RELOAD_SECONDS)
                shown = now
    if all(map(has_logs, configs)):
        write_report(page, configs)


def state_of_logs(configs):
    """Return what changes when a log of the runs does."""
    found = [config.log_folder / name for config in configs for name in LOGS]
    return [(path, path.stat().st_mtime_ns, path.stat().st_size) for path in found if path.exists()]


def write_report(page, configs, reload_after=None):
    """Write what the logs of the runs say to `page`. Raises UserError if a run has none."""
    runs, names = [read_logs(config) for config in configs], names_of([config.folder for config in configs])
    written = paragraph(f"Written {datetime.datetime.now():%Y-%m-%d %H:%M:%S} from the logs in "
                        f"{', '.join(f'`{config.log_folder}`' for config in configs)}.")  # fmt: skip
    if len(runs) > 1:
        body = [*comparison_section(dict(zip(names, runs, strict=True))), *terms_section(runs), written]
        write_page(page, f"{len(runs)} runs compared", body, reload_after)
        return
    (run,) = runs
    body = [*overview_section(run), *terms_section(runs)]
    if run.evaluation:
        body += evaluation_section(run.evaluation, run.predictions)
    if run.training:
        body += training_section(run.training)
    if any(line["kind"] == "rung" for line in run.tuning):
        body += tuning_section(run.tuning, run.config.training.seed)
    write_page(page, f"{names[0]}: zeros of the Riemann zeta function, predicted", [*body, written], reload_after)


def has_logs(config):
    """Return whether a stage has left something to report on."""
    return any((config.log_folder / name).exists() for name in ("tuning.jsonl", "training.jsonl", "evaluation.json"))


def read_logs(config):
    """Return the RunLogs of a run. Raises UserError, with what to do, if there are none."""
    logs = config.log_folder
    if not has_logs(config):
        raise UserError(f"There are no logs in {logs} to report on; begin with: {command(config, 'tune_hyper_parameters.py')}")
    training = read_json_lines(logs / "training.jsonl", TRAINING_LINES)
    begun = {line["round"] for line in training if line["kind"] == "round"}
    training = [line for line in training if line["round"] in begun]  # a full disk may cost a line, also that with the baselines
    tuning = read_json_lines(logs / "tuning.jsonl", TUNING_LINES)
    predictions = read_json_lines(logs / "predictions.jsonl", PREDICTIONS)
    return RunLogs(config, tuning, training, read_json(logs / "evaluation.json", EVALUATION), predictions)


if __name__ == "__main__":
    run_script(main)
