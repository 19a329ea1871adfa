"""Stage 3: let the trained model write zeros it has never seen, and measure how far off it is.

    python rzz/src/evaluate.py                            # the latest checkpoint on the test set
    python rzz/src/evaluate.py --checkpoint PATH --set data.N=100

Prints a table to standard output, writes logs/evaluation.json, and what was written for each zero to
logs/predictions.jsonl; a finished training's model card gets the same numbers. The test set is the first data.N zeros
of interval K + 1; each is written evaluation.runs times by nucleus sampling with p = evaluation.top_p.
"""

import dataclasses
import json
import math
from pathlib import Path

from common.cli import run_script, stage_parser
from common.config import ModelConfig, UserError, load_config
from common.devices import choose_device, choose_threads, describe_device
from common.files import atomic_write, write_json_lines
from common.logs import log, progress_bar, start_logging
from common.text import format_number, format_table
from data_utils import interval, test_zeros, training_zeros
from model.metrics import baselines, controls, result_table, scores, table_notes
from model.network import build_model, cross_entropy_of, parameter_count
from model.sampling import sampled_predictions
from model.tokenizer import SCALE
from training.checkpoints import find_checkpoint, last_trained_index, trained_model
from training.model_card import write_model_card


def main(argv=None):
    parser = stage_parser(__doc__)
    parser.add_argument("--checkpoint", type=Path, help="evaluate this file (default: the latest one of the run)")
    args = parser.parse_args(argv)
    config = load_config(args.config, args.overrides, args.device)
    start_logging(config.log_folder, args.quiet)
    device, reason = choose_device(config.runtime.device)
    log.info("device %s: %s", describe_device(device), reason)

    checkpoint, path = find_checkpoint(config, args.checkpoint)
    check_unseen(checkpoint, config, path)
    model = trained_model(checkpoint, path).to(device)
    model_config = ModelConfig(**checkpoint["config"]["model"])
    dataset = test_zeros(config)
    choose_threads(device, lambda: cross_entropy_of(model, dataset.subset(slice(0, 128))), checkpoint["progress"].get("threads"))

    untrained = build_model(model_config, checkpoint["config"]["training"].get("seed", config.training.seed)).to(device)
    options = config.evaluation
    log.info("Writing %s zeros × %d runs, nucleus p = %g", f"{len(dataset):,}", options.runs, options.top_p)
    with progress_bar(len(dataset), "evaluating", "zero") as bar:
        predictions = sampled_predictions(model, dataset, options.runs, options.top_p, options.seed, bar.update)
    baseline_predictions = baselines(dataset, training_zeros(config, config.data.K), model_config.max_prime)
    control_predictions = controls(predictions, dataset.indexes, options.seed)

    result = {
        "checkpoint": str(path), "checksum": checkpoint["checksum"], "device": device.type,
        "parameters": parameter_count(model), "index_embedding": model_config.index_embedding,
        "max_prime": model_config.max_prime,
        "trained_up_to": last_trained_index(checkpoint), "seconds_trained": checkpoint["progress"]["seconds"],
        "first_index": int(dataset.indexes[0]), "last_index": int(dataset.indexes[-1]),
        "runs": options.runs, "top_p": options.top_p,
        **scores(predictions, dataset),
        **dataclasses.asdict(cross_entropy_of(model, dataset)),
        "untrained": dataclasses.asdict(cross_entropy_of(untrained, dataset)),
        "baselines": {name: scores(values, dataset) for name, values in baseline_predictions.items()},
        "controls": {name: scores(values, dataset) for name, values in control_predictions.items()},
    }
    lines = [{"index": index, "true": value / SCALE, "predicted": [None if math.isnan(each) else each for each in runs]}
             for index, value, runs in zip(dataset.indexes.tolist(), dataset.values.tolist(), predictions.tolist(), strict=True)]
    write_json_lines(config.log_folder / "predictions.jsonl", lines)
    with atomic_write(config.log_folder / "evaluation.json", "w") as file:
        file.write(json.dumps(result, indent=2) + "\n")
    print(table(result))
    if path.resolve().parent == config.checkpoint_folder.resolve():
        write_model_card(config, checkpoint)


def check_unseen(checkpoint, config, path):
    """Raise UserError if the checkpoint has been trained on zeros of the test set; warn if it stopped long before."""
    last, first_test = last_trained_index(checkpoint), interval(config, config.data.K + 1)[0]
    if last >= first_test:
        raise UserError(f"{path} was trained on zeros up to {last}, but the test set begins at {first_test}: raise data.K.")
    saved = checkpoint["config"]["data"]
    left_out = saved["N"] if saved["K"] == config.data.K else 0  # of the sample of the round before the test set
    if checkpoint["progress"]["round"] >= config.data.K and left_out < config.data.N:
        log.warning("%s was trained with data.K = %d and data.N = %d: its validation sample may hold zeros of this test set",
                    path.name, saved["K"], saved["N"])  # fmt: skip
    if last < first_test - 1:
        log.warning("%s has been trained up to zero %s only; the test set begins at %s", path.name, f"{last:,}", f"{first_test:,}")


def table(result):
    """Return the result as a table for a reader, 80 columns wide, the model compared with the baselines and the controls."""
    title = (f"zeros {result['first_index']:,} … {result['last_index']:,}, {result['runs']} runs, nucleus p = {result['top_p']:g}\n"
             f"index embedding {result['index_embedding']!r}, {result['parameters']:,} parameters")
    spread = f"MSE {format_number(result['mse'])} ± {format_number(result['mse_spread'])} (standard deviation over the runs)"
    accuracy = " ".join(f"{100 * share:.0f}" for share in result["accuracy_by_position"])
    return "\n".join([title, "", *format_table(result_table(result), rule=True), "", *table_notes(result), "", spread,
                      f"characters right, in %, by position of the value:\n{accuracy}"])  # fmt: skip


if __name__ == "__main__":
    run_script(main)
