"""What a run has come to, as one page to look at: logs/report/report.html, and the same as report.md with PNG files.

    python rzz/src/report.py                 # at any moment, also while the training runs
    python rzz/src/report.py --config PATH

Every number comes from the run's logs: tuning.jsonl, training.jsonl, evaluation.json and predictions.jsonl. What is not
there yet is named at the top. Needs matplotlib, which the other scripts do not.
"""

import datetime
import json
import math

from common.cli import run_script, stage_parser
from common.config import UserError, load_config
from common.files import read_json_lines
from common.logs import start_logging
from common.text import format_duration, format_number
from reporting.pages import Numbers, Paragraph, Sentences, write_pages
from reporting.sections import evaluation_section, of_kind, training_section, tuning_section

LOGS = ("tuning.jsonl", "training.jsonl", "evaluation.json")


def main(argv=None):
    args = stage_parser(__doc__).parse_args(argv)
    config = load_config(args.config, args.overrides, args.device)
    folder = config.log_folder
    if not any((folder / name).exists() for name in LOGS):
        raise UserError(f"There are no logs in {folder} to report on; begin with: python rzz/src/tune_hyper_parameters.py")
    start_logging(folder, args.quiet)
    tuning = [line for line in read_json_lines(folder / "tuning.jsonl") if "kind" in line]  # lines of older versions have none
    training = whole_rounds(read_json_lines(folder / "training.jsonl"))
    evaluation = read_evaluation(folder / "evaluation.json")
    predictions = read_json_lines(folder / "predictions.jsonl") if evaluation else []

    blocks = [*overview(config, tuning, training, evaluation)]
    if evaluation:
        blocks += evaluation_section(evaluation, predictions)
    if training:
        blocks += training_section(training)
    if any(line["kind"] == "rung" for line in tuning):
        blocks += tuning_section(tuning)
    print(write_pages(folder / "report", "Zeros of the Riemann zeta function, predicted", blocks))


def whole_rounds(training):
    """Leave out the lines of rounds that have no line of their own: before it was written, other things were missing too."""
    begun = {line["round"] for line in of_kind(training, "round")}
    return [line for line in training if line["round"] in begun]


def read_evaluation(path):
    """Return what evaluation.json holds; nothing where it is missing."""
    try:
        return json.loads(path.read_text()) if path.exists() else {}
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); write it again: python rzz/src/evaluate.py") from error


def overview(config, tuning, training, evaluation):
    """Yield what the run is, the answer as a sentence and in large numbers, and what is still missing."""
    yield Paragraph(run_text(config, training, evaluation))
    yield Paragraph(headline(training, evaluation))
    numbers = [*accuracy_numbers(training, evaluation), *speed_numbers(training)]
    if numbers:
        yield Numbers(numbers)
    missing = list(what_is_missing(tuning, training, evaluation))
    if missing:
        yield Sentences(missing)
    yield Paragraph(f"Written {datetime.datetime.now():%Y-%m-%d %H:%M:%S} from the logs in `{config.log_folder}`.")


def headline(training, evaluation):
    if evaluation:
        where = f"On zeros {evaluation['first_index']:,} … {evaluation['last_index']:,}, which it has never seen,"
        mse, smooth = evaluation["mse"], evaluation["baselines"]["smooth count"]["mse"]
    elif of_kind(training, "validation"):
        last = of_kind(training, "validation")[-1]
        where = f"In round {last['round']}, on zeros of the interval after the one it is trained on,"
        mse, smooth = last["mse_validation"], smooth_mse(training, last["round"])
    else:
        return "No model has been measured yet."
    if mse is None:
        return f"{where} the model wrote nothing that is a number."
    times, compared = against_smooth(mse, smooth)
    return (f"{where} the model's mean squared error is {format_number(mse)}: {times} times {compared} than that of the smooth "
            f"count, {format_number(smooth)}, a formula that knows nothing of the primes.")  # fmt: skip


def against_smooth(mse, smooth):
    """('12.5', 'smaller') or ('1.7', 'larger'): what an MSE is to that of the smooth count."""
    if mse > smooth:
        return f"{mse / smooth:.3g}", "larger"
    return f"{smooth / mse if mse else math.inf:.3g}", "smaller"


def accuracy_numbers(training, evaluation):
    """The measures of the evaluation, or those of the last validation where there is none."""
    if evaluation:
        zeros = evaluation["last_index"] - evaluation["first_index"] + 1
        mse, smooth = evaluation["mse"], evaluation["baselines"]["smooth count"]["mse"]
        spread = format_number(evaluation["mse_spread"])
        yield f"{format_number(mse)}", f"mean squared error on {zeros:,} unseen zeros, ± {spread} over the runs"
        readable = evaluation["readable"]
    elif of_kind(training, "validation"):
        last = of_kind(training, "validation")[-1]
        mse, smooth = last["mse_validation"], smooth_mse(training, last["round"])
        yield f"{format_number(mse)}", f"mean squared error on validation zeros at step {last['step']:,}"
        readable = last["readable_validation"]
    else:
        return
    if mse is not None:
        times, compared = against_smooth(mse, smooth)
        yield f"{times}×", f"{compared} than the smooth count's"
    yield f"{100 * readable:.4g}%", "of what the model writes is a number"


def speed_numbers(training):
    """Throughput and the time left, from the last line about the training."""
    lines = of_kind(training, "training")
    if lines:
        last = lines[-1]
        yield f"{last['zeros_per_second']:,.0f}", "zeros per second in training"
        if log_is_complete(training):
            yield "done", f"in {last['steps_in_run']:,} steps and {format_duration(training[-1]['seconds'])}"
        else:
            yield format_duration(last["seconds_left"]), f"of training left after step {last['step']:,} of {last['steps_in_run']:,}"


def run_text(config, training, evaluation):
    data, model, settings = config.data, config.model, config.training
    counts = [evaluation["parameters"]] if evaluation else [line["parameters"] for line in of_kind(training, "round")[-1:]]
    parameters = "".join(f"{count:,} parameters, " for count in counts)
    return (f"K = {data.K}: rounds {data.first_round} … {data.K} of {data.interval_size:,} zeros each. Index embedding "
            f"{model.index_embedding}, {parameters}d_model {model.d_model}, layers {model.num_layers}, heads {model.num_heads}, "
            f"dropout {model.dropout:g}. Learning rate {settings.learning_rate:g}, batch size {settings.batch_size}, epochs "
            f"{settings.epochs}.")  # fmt: skip


def what_is_missing(tuning, training, evaluation):
    if not tuning:
        yield "No tuning is in the logs: `python rzz/src/tune_hyper_parameters.py`"
    if not training:
        yield "No training is in the logs: `python rzz/src/train.py --resume`"
    elif not log_is_complete(training):
        yield f"The training has got to step {training[-1]['step']:,}; where it was stopped: `python rzz/src/train.py --resume`"
    if not evaluation:
        yield "No evaluation is in the logs, so errors are those on the validation sample: `python rzz/src/evaluate.py`"
    elif training and training[-1]["seconds"] > evaluation["seconds_trained"]:
        yield "The training has gone on since it was evaluated: `python rzz/src/evaluate.py`"


def log_is_complete(training):
    """Whether the last step of the run is in the log."""
    lines = of_kind(training, "training")
    return bool(lines) and training[-1]["step"] >= lines[-1]["steps_in_run"]


def smooth_mse(training, t):
    """The MSE of the smooth count on the zeros whose MSE is logged in round t."""
    return next(line["mse_baselines"]["smooth count"] for line in of_kind(training, "round") if line["round"] == t)


if __name__ == "__main__":
    run_script(main)
