"""checkpoints/model_card.md: what a finished training is, for those who find its checkpoint; and the model alone, with its card.

    write_model_card(config, checkpoint)
    export_model(config, checkpoint, Path("zeros-model"))            # zeros-model/model.pt and zeros-model/README.md

Every number in it comes from the checkpoint and, once evaluate.py has measured this very checkpoint, from logs/evaluation.json.
"""

from common.config import ModelConfig, UserError, require_writable, settings_json
from common.files import atomic_write, read_json
from common.text import format_duration, format_number
from model.index_embedding import SmoothCount, describe_embedding, parts_of
from model.metrics import EVALUATION, result_table, table_notes
from training.checkpoints import exported, latest_checkpoint, source_text, trained_zeros, write_torch_file

NAME = "model_card.md"
EXPORTED, EXPORTED_CARD = "model.pt", "README.md"
CARD = """\
# Model card: zeros of the Riemann zeta function

A decoder-only transformer of {parameters:,} parameters, trained by rzz. Given the index i of a zero as `b<i>:`, it writes the
imaginary part of the i-th non-trivial zero, cut after four decimals, character by character: `b10:49.7738e`.

- Checkpoint: {files}. Any device can read it.
- Model: d_model {model.d_model}, {model.num_layers} layers, {model.num_heads} heads with d_k {d_k} and d_v {d_v}, d_ff {d_ff},
  dropout {model.dropout:g}; 16 characters, context of 32.
- What it is told about the index (`{model.index_embedding}`): {told}.
- Training: {step:,} steps of {batch_size} zeros in {time} on {device}; saved {saved}.

## Data

Zeros {first:,} … {last:,} in index order: {rounds} round(s) of {interval_size:,}, {epochs} pass(es) over each. They come from
{zeros_from}. The validation sample of a round is {percent:g} % of the interval after it.

## Metrics

Last validation sample: {loss:.4f} nats per token, {nats_per_zero:.3f} nats per zero. Written once by nucleus sampling, at most
{mse_zeros} zeros of it: readable {readable}, MSE {mse}.

{test}

## Limits

- It was trained on indexes of {digits} digits and tested on the zeros named above, if any. Farther away, and for shorter or longer
  indexes, nothing has been measured.
- What it writes is a guess and proves nothing. Samples differ, some may be no number at all, and one wrong leading digit is a large
  error. `rzz/src/zeros_db.py` computes zeros with proof.
- {prior}

## Reproduction

Trained with rzz {source}, {versions}. Save the settings below as `config.json` in an empty folder and run, in the folder of rzz,

```
python rzz/src/train.py --config FOLDER/config.json --resume
python rzz/src/evaluate.py --config FOLDER/config.json
```

```json
{settings}```
"""
PRIOR = ("It did not find the trend of the zeros by itself: the smooth count (the Riemann–von Mangoldt formula solved for the "
         "zero) is computed and told to it. What it adds has to be judged against that line of the table.")
NO_PRIOR = "It was told no formula, so all that it knows of the zeros comes from the training."


def write_model_card(config, checkpoint=None):
    """Write the card of a checkpoint of the run, None for the latest, with the test set if that has been measured.

    Nothing is written if the checkpoint is not the end of the training that its settings describe.
    """
    checkpoint = checkpoint or latest_checkpoint(config.checkpoint_folder)[0]
    progress, settings = checkpoint["progress"], checkpoint["config"]
    if progress["round"] < settings["data"]["K"] or progress["epoch"] < settings["training"]["epochs"]:
        return
    with atomic_write(config.checkpoint_folder / NAME, "w") as file:
        file.write(card_text(checkpoint, evaluation_of(config, checkpoint)))


def export_model(config, checkpoint, folder):
    """Write model.pt, the weights and settings of a checkpoint alone, and its card as README.md into `folder`; return model.pt.

    Raises UserError if one of the two is there.
    """
    path, readme = folder / EXPORTED, folder / EXPORTED_CARD
    for existing in (path, readme):
        if existing.exists():
            raise UserError(f"{existing} exists; name another folder with --export.")
    require_writable(folder)
    write_torch_file(path, exported(checkpoint))
    with atomic_write(readme, "w") as file:
        file.write(card_text(checkpoint, evaluation_of(config, checkpoint), f"`{EXPORTED}`, without the state of the optimizer"))
    return path


def evaluation_of(config, checkpoint):
    """Return what logs/evaluation.json of the run says of this checkpoint, or None."""
    evaluation = read_json(config.log_folder / "evaluation.json", EVALUATION)
    return evaluation if evaluation and evaluation["checksum"] == checkpoint["checksum"] else None


def card_text(checkpoint, evaluation, files=None):
    """Return the card. evaluation: what logs/evaluation.json holds of this checkpoint, or None. files: where it lies, in words."""
    settings, progress, meta = checkpoint["config"], checkpoint["progress"], checkpoint["meta"]
    data, training, validation = settings["data"], settings["training"], progress["validation"]
    model = ModelConfig(**settings["model"])
    d_k, d_v, d_ff = model.head_sizes()
    first, last = trained_zeros(checkpoint)
    shortest, longest = len(str(first)), len(str(last))
    return CARD.format(
        files=files or f"`round_{progress['round']}.pt`, and `last.pt` as long as training has not gone on",
        parameters=meta["parameters"], model=model, d_k=d_k, d_v=d_v, d_ff=d_ff,
        told=describe_embedding(model), step=progress["step"], batch_size=training["batch_size"],
        time=format_duration(progress["seconds"]), device=meta["device"], saved=meta["saved"],
        first=first, last=last, rounds=data["K"] - data["first_round"] + 1, interval_size=data["interval_size"],
        epochs=training["epochs"], percent=100 * data["validation_fraction"],
        zeros_from=f"Platt's tables in `{data['platt_tables']}`" if data["platt_tables"] else "`rzz/src/zeros_db.py`",
        loss=validation["loss"], nats_per_zero=validation["nats_per_zero"],
        mse_zeros=validation.get("mse_zeros", training["mse_zeros"]),
        readable=format_number(validation["readable_validation"]), mse=format_number(validation["mse_validation"]),
        test=test_text(evaluation), digits=shortest if shortest == longest else f"{shortest} to {longest}",
        prior=PRIOR if any(issubclass(part, SmoothCount) for part in parts_of(model.index_embedding)) else NO_PRIOR,
        versions=", ".join(f"{name} {meta[name]}" for name in ("python", "torch", "numpy", "mpmath") if name in meta),
        source=source_text(meta),
        settings=settings_json({section: values for section, values in settings.items() if section != "tuning"}),
    )  # fmt: skip


def test_text(evaluation):
    """The test set's measures, baselines and controls as a table in Markdown, and what its rows are."""
    if evaluation is None:
        return "The test set has not been measured: `evaluate.py` adds it here, with the baselines."
    header, *rows = result_table(evaluation)
    title = (f"Test set: zeros {evaluation['first_index']:,} … {evaluation['last_index']:,}, nucleus sampling with p = "
             f"{evaluation['top_p']:g}. Errors are over what was readable.\n\n")  # fmt: skip
    lines = ["| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows)]
    return title + "\n".join([*lines, "", *(f"- {note}" for note in table_notes(evaluation))])
