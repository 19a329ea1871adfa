"""Ask the trained model for any zero: what it predicts, how sure it is, and how far off that is.

    python rzz/src/predict.py 11000000                    # one zero in full; 11,000,000 and 11_000_000 are the same
    python rzz/src/predict.py 11000000..11000009 7654321  # several, one line each
    python rzz/src/predict.py --interactive               # asks for indexes until an empty line
    python rzz/src/predict.py --json --file indexes.txt   # one index or range a line; --file - reads standard input
    python rzz/src/predict.py --export DIR                # the model alone, to give away: DIR/model.pt and its card, README.md

A prediction is the mean of evaluation.runs texts drawn by nucleus sampling, given with their standard deviation, or with
--greedy the text of the most probable characters. A zero's samples are the same whatever else is asked with it. With --json
each zero is one object on a line of its own:

    index, predicted, spread    predicted: null if nothing readable was written; spread: null with --greedy
    samples                     what was drawn; null stands for a text that is no number
    text, probabilities         the most probable characters, and for each of them after the ':' what was possible there:
                                {character: probability} from the most probable one to the last of at least 0.001
    smooth_count, mean_spacing  where a formula that knows no zero puts this one, and the distance of zeros at that height
    true, error                 the zero cut after four decimals and predicted - true; null if it is not known
    error_in_spacings           error / mean_spacing
    trained_on                  whether the checkpoint was trained on this zero
"""

import json
import re
import sys
from pathlib import Path

from common.cli import command, run_script, stage_parser
from common.config import UserError, load_config, row_fits
from common.devices import choose_device, choose_threads, describe_device
from common.logs import log, progress_bar, start_logging
from common.text import format_row
from data_utils import zeros_in_memory
from model.sampling import predict, prediction_record
from reporting.prediction_card import TABLE_HEADER, card, column_widths, table_row
from training.checkpoints import find_checkpoint, trained_model, trained_zeros
from training.model_card import export_model

BATCH_SIZE = 64  # zeros that are predicted together, and shown as soon as they are
MAX_RANGE = 1_000_000  # zeros
INDEX = r"[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+(?:_[0-9]+)*"


def main(argv=None):
    parser = stage_parser(__doc__)
    parser.add_argument("indexes", nargs="*", metavar="INDEX", help="a zero, 11000000, or a range of them, 11000000..11000009")
    parser.add_argument("--file", metavar="PATH", help="read indexes from this file, one a line; - is standard input")
    parser.add_argument("--interactive", action="store_true", help="ask for indexes until an empty line or quit")
    parser.add_argument("--greedy", action="store_true", help="the most probable characters instead of samples")
    parser.add_argument("--no-truth", action="store_true", help="leave out the true zeros")
    parser.add_argument("--json", action="store_true", help="one JSON object a zero, see above")
    parser.add_argument("--checkpoint", type=Path, help="ask this file (default: the latest one of the run)")
    parser.add_argument("--export", type=Path, metavar="DIR", help="write the model without its optimizer, and its card, there")
    args = parser.parse_args(argv)
    indexes = [index for text in args.indexes for index in parse_indexes(text)] + (read_indexes(args.file) if args.file else [])
    if not indexes and not args.interactive and not args.export:
        example = command(load_config(args.config), "predict.py 11000000")
        raise UserError(f"Name a zero by its index: {example}, or --file PATH, or --interactive.")
    config = load_config(args.config, args.overrides, args.device)
    start_logging(config.log_folder, args.quiet)
    device, reason = choose_device(config.runtime.device)
    log.info("device %s: %s", describe_device(device), reason)
    checkpoint, path = find_checkpoint(config, args.checkpoint)
    model = trained_model(checkpoint, path).to(device)
    log.info("model %s", path)
    choose_threads(device, None, checkpoint["progress"].get("threads") or 1)
    if args.export:
        log.info("Written: %s and its card", export_model(config, checkpoint, args.export))
    training_range = trained_zeros(checkpoint)
    show(args, config, model, training_range, indexes)
    while args.interactive:
        print("index (quit to end): ", end="", file=sys.stderr, flush=True)
        if not (words := sys.stdin.readline().split()) or words[0].lower() in ("quit", "exit", "q"):
            break
        try:
            show(args, config, model, training_range, [index for word in words for index in parse_indexes(word)])
        except UserError as error:
            print(error, file=sys.stderr)


def show(args, config, model, training_range, indexes):
    """Print what is known of each of `indexes`: one in full, several as a table, or as lines of JSON."""
    options, widths = config.evaluation, column_widths(indexes)
    runs = 0 if args.greedy else options.runs
    if len(indexes) > 1 and not args.json:
        print(format_row(TABLE_HEADER, widths))
    with progress_bar(len(indexes), "predicting", "zero") as bar:
        for start in range(0, len(indexes), BATCH_SIZE):
            for prediction in predict(model, indexes[start : start + BATCH_SIZE], runs, options.top_p, options.seed):
                true, truth_note = (None, "left out") if args.no_truth else true_value(config, prediction.index)
                record = prediction_record(prediction, true, training_range)
                if args.json:
                    text = json.dumps(record)
                else:
                    text = table_row(record, widths) if len(indexes) > 1 else card(record, training_range, truth_note)
                bar.write(text)  # above the bar, if there is one
                bar.update(1)


def true_value(config, index):
    """Return (the zero's value in ten-thousandths, ""), or (None, why zeros_db does not give it)."""
    try:
        return int(zeros_in_memory(config, index, 1).values[0]), ""
    except UserError as error:
        return None, f"not known: {error}"


def read_indexes(path):
    """Return the indexes in a file, one or one range a line; blank lines and what follows a # are skipped.

    Raises UserError if it cannot be read, holds no index, or for the first line that is not one.
    """
    name = "standard input" if path == "-" else path
    try:
        lines = sys.stdin.readlines() if path == "-" else Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", "it is not a text file")
        raise UserError(f"Cannot read {name} ({reason}); give --file a file with one index a line.") from error
    indexes = []
    for number, line in enumerate(lines, 1):
        text = line.split("#")[0].strip()
        try:
            indexes += parse_indexes(text) if text else []
        except UserError as error:
            raise UserError(f"{name}, line {number}: {error}") from error
    if not indexes:
        raise UserError(f"There is no index in {name}.")
    return indexes


def parse_indexes(text):
    """Return the indexes that '11000000', '11,000,000', '11_000_000' or '11000000..11000009' stand for; else raise UserError."""
    match = re.fullmatch(f"({INDEX})(?:\\.\\.({INDEX}))?", text)
    if not match or len(text) > 100:
        raise UserError(f"{text[:100]!r} is not an index; write 11000000, 11,000,000 or a range, 11000000..11000009.")
    first, last = (int(re.sub("[,_]", "", number)) for number in (match[1], match[2] or match[1]))
    if first < 1:
        raise UserError("There is no zero 0; the first one is zero 1.")
    if not row_fits(last):
        raise UserError(f"The row of zero {last:,} does not fit 32 tokens; the last one that does is zero 999,999,999,999.")
    if not first <= last < first + MAX_RANGE:
        raise UserError(f"{text} is not a range of 1 to {MAX_RANGE:,} zeros.")
    return range(first, last + 1)


if __name__ == "__main__":
    run_script(main)
