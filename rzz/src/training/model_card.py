"""checkpoints/model_card.md: what a finished training is, for those who find its checkpoint; and the model alone, with its card.

    write_model_card(config, checkpoint)
    export_model(config, checkpoint, Path("zeros-model"))            # zeros-model/model.pt and zeros-model/README.md

Every number in it comes from the checkpoint and, once evaluate.py has measured this very checkpoint, from logs/evaluation.json.
The header is the metadata that model hubs read: https://github.com/huggingface/hub-docs/blob/main/modelcard.md.
"""

from common.config import ModelConfig, UserError, require_writable, settings_json
from common.files import atomic_write, read_json
from common.text import format_duration, format_number
from model.index_embedding import (
    NUMBERS_MARGIN,
    Boundaries,
    SmoothCount,
    describe_embedding,
    last_zero_of_numbers,
    parts_of,
)
from model.metrics import EVALUATION, result_table, table_notes
from training.checkpoints import exported, latest_checkpoint, source_text, trained_zeros, write_torch_file

NAME = "model_card.md"
EXPORTED, EXPORTED_CARD = "model.pt", "README.md"
METADATA = """\
---
license: mit
library_name: pytorch
tags:
- riemann-zeta-function
- number-theory
- decoder-only
- transformer
metrics:
- mse
{results}---
"""
RESULTS = """\
model-index:
- name: {name}
  results:
  - task:
      type: text-generation
      name: zeros of the Riemann zeta function, written character by character from their index
    dataset:
      type: riemann-zeta-zeros
      name: imaginary parts of the zeros {first:,} … {last:,}, cut after four decimals
      split: test
    metrics:
{metrics}"""
METRIC = """\
    - type: {type}
      name: {name}
      value: {value}
"""
CARD = """\
# Model card: zeros of the Riemann zeta function

A decoder-only transformer of {parameters:,} parameters, trained by rzz. Given the index i of a zero as `b<i>:`, it writes the
imaginary part of the i-th non-trivial zero, cut after four decimals, character by character: `b10:49.7738e`.

- Checkpoint: {files}. Any device can read it.
- Model: d_model {model.d_model}, {model.num_layers} layer(s), {model.num_heads} heads with d_k {d_k} and d_v {d_v}, d_ff {d_ff},
  dropout {model.dropout:g}; 16 characters, context of 32.
- What it is told about the index (`{model.index_embedding}`): {told}.
- Training: {step:,} steps of {batch_size} zeros in {time} on {device}; saved {saved}.
- Trained with rzz {source}, {versions}.

## Use

It is meant for the question how far a small transformer learns where the zeros lie: to ask it for zeros beyond its training, to
look at what it has learned, to compare other models with it. It is not meant for

- zeros that have to be right: `rzz/src/zeros_db.py` computes any up to 10,000,000,000, four decimals certain, its index proven;
- the statistics of zeros, such as their spacings: each value has an error of its own;
- evidence on the Riemann hypothesis: it was shown zeros on the critical line alone and writes nothing else.

With `rzz/src` on Python's path (`PYTHONPATH`), in the folder of this card:

```python
from model.sampling import predict
from training.checkpoints import load_checkpoint, trained_model
model = trained_model(load_checkpoint("{file}"), "{file}")
(zero,) = predict(model, [{unseen}], runs=10, top_p=0.9, seed=1)
print(zero.text, zero.samples)  # the most probable characters, and ten values drawn by nucleus sampling
```

The weights alone are `torch.load("{file}", map_location="cpu", weights_only=True)["model"]`.

## Data

Zeros {first:,} … {last:,} in index order: {rounds} round(s) of {interval_size:,}, {epochs} pass(es) over each. They come from
{zeros_from}. The validation sample of a round is {percent:g} % of the interval after it.{unfinished}

## Metrics

{validated}
{test}

## Limits

- It was trained on the indexes {first:,} … {last:,}, {digits} digits long, and tested on the zeros named above, if any. Farther
  away, and for shorter or longer indexes, nothing has been measured.{reach}
- What it writes is a guess and proves nothing. Samples differ, some may be no number at all, and one wrong leading digit is a large
  error.
- It is one training with one seed; what another seed changes is not in these numbers.
- {prior}

## Reproduction

Save the settings below as `config.json` in an empty folder and run, in the folder of rzz,

```
python rzz/src/train.py --config FOLDER/config.json --resume
python rzz/src/evaluate.py --config FOLDER/config.json
```

```json
{settings}```
"""
VALIDATED = """\
Last validation sample: {loss:.4f} nats per token, {nats_per_zero:.3f} nats per zero. Written once by nucleus sampling, at most
{mse_zeros} zeros of it: readable {readable}, MSE {mse}.
"""
UNFINISHED = "\nThe training had not ended: it was in round {round} of {last_round}."
REACH = (" The whole numbers whose phases it is told end at {max_number:,},\n  which is enough up to zero {index:,} "
         "({margin:g} times √(t/2π) at its height t); beyond, it is told too little.")
PRIOR = ("It did not find the trend of the zeros by itself: the smooth count (the Riemann–von Mangoldt formula solved for the "
         "zero) is computed and told to it. What it adds has to be judged against that line of the table.")
NO_PRIOR = "It was told no formula, so all that it knows of the zeros comes from the training."


def write_model_card(config, checkpoint=None):
    """Write the card of a checkpoint of the run, None for the latest, with the test set if that has been measured.

    Nothing is written if the checkpoint is not the end of the training that its settings describe.
    """
    checkpoint = checkpoint or latest_checkpoint(config.checkpoint_folder)[0]
    if not is_finished(checkpoint):
        return
    with atomic_write(config.checkpoint_folder / NAME, "w") as file:
        file.write(card_text(checkpoint, evaluation_of(config, checkpoint)))


def is_finished(checkpoint):
    """Whether a checkpoint is the end of the training that its settings describe."""
    progress, settings = checkpoint["progress"], checkpoint["config"]
    return progress["round"] >= settings["data"]["K"] and progress["epoch"] >= settings["training"]["epochs"]


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
        file.write(card_text(checkpoint, evaluation_of(config, checkpoint), EXPORTED))
    return path


def evaluation_of(config, checkpoint):
    """Return what logs/evaluation.json of the run says of this checkpoint, or None."""
    evaluation = read_json(config.log_folder / "evaluation.json", EVALUATION)
    return evaluation if evaluation and evaluation["checksum"] == checkpoint["checksum"] else None


def card_text(checkpoint, evaluation, exported_to=None):
    """Return the card. evaluation: what logs/evaluation.json holds of this checkpoint, or None. exported_to: name of its file."""
    settings, progress, meta = checkpoint["config"], checkpoint["progress"], checkpoint["meta"]
    data, training, validation = settings["data"], settings["training"], progress["validation"]
    model = ModelConfig(**settings["model"])
    d_k, d_v, d_ff = model.head_sizes()
    parts = parts_of(model.index_embedding)
    first, last = trained_zeros(checkpoint)
    shortest, longest = len(str(first)), len(str(last))
    file = exported_to or f"round_{progress['round']}.pt"
    return metadata(model.index_embedding, evaluation) + CARD.format(
        file=file, files=f"`{file}`, " + ("without the state of the optimizer" if exported_to else
                                          "and `last.pt` as long as training has not gone on"),
        parameters=meta["parameters"], model=model, d_k=d_k, d_v=d_v, d_ff=d_ff,
        told=describe_embedding(model), step=progress["step"], batch_size=training["batch_size"],
        time=format_duration(progress["seconds"]), device=meta["device"], saved=meta["saved"],
        first=first, last=last, unseen=last + 1, rounds=data["K"] - data["first_round"] + 1, interval_size=data["interval_size"],
        epochs=training["epochs"], percent=100 * data["validation_fraction"],
        zeros_from=f"Platt's tables in `{data['platt_tables']}`" if data["platt_tables"] else "`rzz/src/zeros_db.py`",
        unfinished="" if is_finished(checkpoint) else UNFINISHED.format(last_round=data["K"], **progress),
        validated="There is no validation yet.\n" if validation is None else VALIDATED.format(
            loss=validation["loss"], nats_per_zero=validation["nats_per_zero"],
            mse_zeros=validation.get("mse_zeros", training["mse_zeros"]),
            readable=format_number(validation["readable_validation"]), mse=format_number(validation["mse_validation"])),
        test=test_text(evaluation), digits=shortest if shortest == longest else f"{shortest} to {longest}",
        reach="" if Boundaries not in parts else REACH.format(
            max_number=model.max_number, index=last_zero_of_numbers(model.max_number), margin=NUMBERS_MARGIN),
        prior=PRIOR if any(issubclass(part, SmoothCount) for part in parts) else NO_PRIOR,
        versions=", ".join(f"{name} {meta[name]}" for name in ("python", "torch", "numpy", "mpmath") if name in meta),
        source=source_text(meta),
        settings=settings_json({section: values for section, values in settings.items() if section != "tuning"}),
    )  # fmt: skip


def metadata(kind, evaluation):
    """Return the header in YAML, with the measures of the test set if there are any. kind: the index embedding."""
    if evaluation is None:
        return METADATA.format(results="")
    sampling = f"{evaluation['runs']} runs of nucleus sampling with p = {evaluation['top_p']:g}"
    measures = [  # by the hubs' own names, if they have one
        ("mse", f"MSE, mean over {sampling}", evaluation["mse"]),
        ("mse_standard_deviation", "MSE, standard deviation over the runs", evaluation["mse_spread"]),
        ("mse", "MSE of the mean of the runs", evaluation["mse_of_mean_prediction"]),
        ("median_absolute_error", "median absolute error of a sample", evaluation["median_absolute_error"]),
        ("readable", "share of the samples that are a number", evaluation["readable"]),
        ("cross_entropy", "cross entropy, nats a zero", evaluation["nats_per_zero"]),
    ]
    metrics = "".join(METRIC.format(type=measure, name=name, value=yaml_number(value))
                      for measure, name, value in measures if value is not None)  # fmt: skip
    results = RESULTS.format(name=f"rzz-{kind}", first=evaluation["first_index"], last=evaluation["last_index"], metrics=metrics)
    return METADATA.format(results=results)


def yaml_number(value):
    """Four digits of a measure. YAML 1.1, which the hubs' parsers read, takes 8e-06 for a text, but 8.000e-06 for a number."""
    text = f"{value:.4g}"
    return f"{value:.3e}" if "e" in text else text


def test_text(evaluation):
    """The test set's measures, baselines and controls as a table in Markdown, and what its rows are."""
    if evaluation is None:
        return "The test set has not been measured: `evaluate.py` adds it here, with the baselines."
    header, *rows = result_table(evaluation)
    title = (f"Test set: zeros {evaluation['first_index']:,} … {evaluation['last_index']:,}, nucleus sampling with p = "
             f"{evaluation['top_p']:g}. Errors are over what was readable.\nMSE {format_number(evaluation['mse'])} ± "
             f"{format_number(evaluation['mse_spread'])}, the standard deviation over {evaluation['runs']} runs.\n\n")  # fmt: skip
    lines = ["| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows)]
    return title + "\n".join([*lines, "", *(f"- {note}" for note in table_notes(evaluation))])
