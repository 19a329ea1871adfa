"""What a run has come to, as one page to look at: logs/report/report.html.

    python rzz/src/report.py                 # at any moment, also while the training runs
    python rzz/src/report.py --config PATH

Every number comes from the run's logs: tuning.jsonl, training.jsonl, evaluation.json and predictions.jsonl. What is not
there yet is named at the top. Needs matplotlib, which the other scripts do not.
"""

from common.cli import command, run_script, stage_parser
from common.config import UserError, load_config
from common.files import NUMBER, read_json, read_json_lines
from common.logs import start_logging
from model.metrics import EVALUATION
from reporting.pages import write_page
from reporting.sections import evaluation_section, overview_section, training_section, tuning_section
from training.run_log import LINES as TRAINING_LINES
from tuning.halving import LINES as TUNING_LINES

PREDICTIONS = {"index": int, "true": NUMBER, "predicted": list}


def main(argv=None):
    args = stage_parser(__doc__).parse_args(argv)
    config = load_config(args.config, args.overrides, args.device)
    logs = config.log_folder
    if not any((logs / name).exists() for name in ("tuning.jsonl", "training.jsonl", "evaluation.json")):
        raise UserError(f"There are no logs in {logs} to report on; begin with: {command(config, 'tune_hyper_parameters.py')}")
    start_logging(logs, args.quiet)
    tuning = read_json_lines(logs / "tuning.jsonl", TUNING_LINES)
    training = read_json_lines(logs / "training.jsonl", TRAINING_LINES)
    begun = {line["round"] for line in training if line["kind"] == "round"}
    training = [line for line in training if line["round"] in begun]  # a full disk may cost a line, also that with the baselines
    evaluation = read_json(logs / "evaluation.json", EVALUATION)
    body = [*overview_section(config, tuning, training, evaluation)]
    if evaluation:
        body += evaluation_section(evaluation, read_json_lines(logs / "predictions.jsonl", PREDICTIONS))
    if training:
        body += training_section(training)
    if any(line["kind"] == "rung" for line in tuning):
        body += tuning_section(tuning)
    path = logs / "report" / "report.html"
    write_page(path, "Zeros of the Riemann zeta function, predicted", body)
    print(path)


if __name__ == "__main__":
    run_script(main)
