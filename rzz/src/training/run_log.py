"""What a training says as it goes: the lines of logs/training.log for a reader, those of training.jsonl for programs.

    log_training(run)           # every training.log_interval steps
    log_validation(run)         # every run.validation_interval steps, and at the end of a round with all of its sample

Only rank 0 writes.
"""

import math

from common.cli import command
from common.config import UserError
from common.devices import derive_seed, describe_device
from common.files import NUMBER, NUMBER_OR_NONE, append_json_lines, remedy
from common.logs import log, training_log
from common.processes import world_size
from common.signals import StopRequested, interruptible
from common.text import format_duration, short_number
from data_utils import interval
from model.metrics import baselines, scores
from model.network import cross_entropy_of, parameter_count
from model.sampling import sampled_predictions, sampled_texts
from model.tokenizer import SCALE
from training.optimizer import learning_rate_at
from training.progress import floats

BASELINE_ZEROS = 1000  # of the validation sample that the methods without a model are measured on, in about a second
POSITION = {"round": int, "epoch": int, "row": int, "step": int, "seconds": NUMBER}
LINES = (  # what a line of training.jsonl has to have for those who read it
    {**POSITION, "kind": "round", "parameters": int, "mse_baselines": {...: NUMBER, "smooth count": NUMBER}},
    {**POSITION, "kind": "training", "loss": NUMBER_OR_NONE, "zeros_per_second": NUMBER, "seconds_left": NUMBER,
     "steps_in_run": int},
    {**POSITION, "kind": "validation", "loss": NUMBER, "nats_per_zero": NUMBER, "mse_training": NUMBER_OR_NONE,
     "mse_validation": NUMBER_OR_NONE, "readable_validation": NUMBER, "accuracy_by_position": list},
)  # fmt: skip


def log_description(run, reason, why_threads, why_dtype):
    """Log what is trained, on what, in how many steps. reason: why the device was chosen; the others: why so many threads compute,
    "" on a GPU, and why matrix products are of this dtype."""
    config, training = run.config, run.config.training
    count = interval(config, config.data.K)[1]
    if run.path:
        log.info("Resumed %s at %s", run.path, run.position_text())
    log.info("device %s: %s; %s: %s", describe_device(run.device), reason, run.progress.precision, why_dtype)
    if why_threads:
        log.info("threads %d: %s", run.progress.threads, why_threads)
    log.info("model %s parameters: d_model %d, %d layers, %d heads, index embedding %r", f"{parameter_count(run.model):,}",
             config.model.d_model, config.model.num_layers, config.model.num_heads, config.model.index_embedding)
    log.info("a round: %s zeros / %d a batch = %s steps, × %d epochs; %d rounds, %s steps in the run", f"{count:,}",
             training.batch_size, f"{math.ceil(count / training.batch_size):,}", training.epochs,
             config.data.K - config.data.first_round + 1, f"{run.total_steps:,}")  # fmt: skip


def log_start_of_round(run):
    """Log what the measures of this round are to be compared with: guessing blindly, and methods without a model."""
    progress, validation = run.progress, run.validation
    if run.rank == 0 and progress.step == 0:  # shows at once that model, data and generation fit together
        few = validation.subset(slice(0, 256))
        with interruptible(world_size() == 1):
            loss = cross_entropy_of(run.model, few).nats_per_token
            sampled_predictions(run.model, few.subset(slice(0, 2)), runs=1, top_p=0.9, seed=0)
        training_log.info("loss before training %.4f nats per token; ln 16 = %.4f is guessing blindly", loss, math.log(16))
    if run.rank == 0 and progress.epoch == progress.row == 0:
        sample = spread_evenly(run.validation, BASELINE_ZEROS)
        with interruptible(world_size() == 1):
            predictions = baselines(sample, run.training, run.config.model.max_prime)
            measured = {name: scores(values, sample)["mse"] for name, values in predictions.items()}
        settings = {section: run.config.settings[section] for section in ("data", "model", "training")}
        write_line(run, kind="round", parameters=parameter_count(run.model), mse_baselines=measured, settings=settings)


def log_training(run):
    """Log the steps since the last line, and raise UserError if too many updates in a row were skipped."""
    progress, settings = run.progress, run.config.training
    losses = floats(run.losses)
    run.losses.clear()
    run.stopwatch.lap()
    speed = run.stopwatch.zeros_per_second(settings.batch_size)
    left = (run.total_zeros - progress.zeros) / speed
    rate = learning_rate_at(progress.step - 1, run.total_steps, settings)
    finite = [loss for loss in losses if math.isfinite(loss)]
    loss = sum(finite) / len(finite) if finite else None
    loss_text = "loss none" if loss is None else f"loss {loss:.4f}"
    ends = f"{speed:,.0f} zeros/s", f"left {format_duration(left)}"
    log_lines(
        f"{run.position_text()} · step {progress.step:,}/{run.total_steps:,} · {loss_text} · lr {rate:.2e} · {ends[0]}"
        f" · elapsed {format_duration(progress.seconds)} · {ends[1]}",
        f"{run.place_text()} · {loss_text} · {ends[0]} · {ends[1]}")  # fmt: skip
    write_line(run, kind="training", loss=loss, learning_rate=rate, zeros_per_second=speed, seconds_left=left,
               steps_in_run=run.total_steps)
    for step, each in enumerate(losses, progress.step - len(losses)):
        progress.bad_steps = 0 if math.isfinite(each) else progress.bad_steps + 1
        if not math.isfinite(each):
            row = max(0, progress.row - (progress.step - step) * settings.batch_size)
            log.warning("Skipped the update of step %s (round %d, epoch %d, row %s, lr %.2e): loss or gradient not finite",
                        f"{step + 1:,}", progress.round, progress.epoch + 1, f"{row:,}",
                        learning_rate_at(step, run.total_steps, settings))  # fmt: skip
        if progress.bad_steps >= settings.max_bad_steps:
            raise UserError(f"{progress.bad_steps} updates in a row were not finite; stopped, the last checkpoint is kept. Lower "
                            "training.learning_rate and go on with --resume.")


def log_validation(run):
    """Measure the loss of the validation sample, and the MSE of values written by sampling; write out three zeros of the sample.

    The MSE is that of training.mse_zeros of the sample and of as many zeros that were trained on last; at the end of the round, of
    all of the sample and of as many.
    """
    progress, settings = run.progress, run.config.training
    if run.rank > 0:
        progress.validated_step = progress.step
        return
    row = progress.row or len(run.training)
    sample = run.validation if run.is_at_end_of_round else spread_evenly(run.validation, settings.mse_zeros)
    recent = run.training.subset(slice(max(0, row - len(sample)), row))
    measured = {"mse_zeros": len(sample)}
    try:
        with interruptible():
            found = cross_entropy_of(run.model, run.validation)
            examples = spread_evenly(run.validation, 3)
            texts = sampled_texts(run.model, examples.indexes, runs=1, top_p=0.0, seed=0)
            for name, zeros in (("training", recent), ("validation", sample)):
                seed = derive_seed(settings.seed, progress.step)
                sampled = scores(sampled_predictions(run.model, zeros, 1, run.config.evaluation.top_p, seed), zeros)
                measured |= {f"mse_{name}": sampled["mse"], f"readable_{name}": sampled["readable"]}
    except StopRequested:
        if world_size() > 1:  # other ranks wait for this one: all end after the next step, and --resume validates
            return
        raise
    progress.validated_step = progress.step
    before = progress.validation if progress.validation and progress.validation["round"] == progress.round else None
    best = min(found.nats_per_token, before["best_loss"]) if before else found.nats_per_token
    progress.validation = {"round": progress.round, "loss": found.nats_per_token, "best_loss": best,
                           "nats_per_zero": found.nats_per_zero, **measured}  # fmt: skip
    write_line(run, kind="validation", **progress.validation, accuracy_by_position=found.accuracy_by_position)
    mse, mse_training = (short_number(measured[name]) for name in ("mse_validation", "mse_training"))
    found_text = (f"validation loss {found.nats_per_token:.4f} (best {best:.4f}) · MSE {mse}, training {mse_training}, of "
                  f"{len(sample):,} zeros")  # fmt: skip
    log_lines(f"{run.position_text()}{' · end of the round' if run.is_at_end_of_round else ''} · {found_text}", found_text)
    for index, value, (text,) in zip(examples.indexes, examples.values, texts, strict=True):
        written = text.partition(":")[2].removesuffix("e")
        training_log.info("    b%d: %.4f · the model %s", index, value / SCALE, written)


def log_end(run, finished):
    """Log how the training ended and what to type next."""
    progress, config = run.progress, run.config
    if not finished:
        where = f"at {run.position_text()} and saved" if progress.step else "before the first step; fetched zeros are kept"
        log.warning("Stopped %s. Go on with the same command and --resume.", where)
        return
    dollars = config.runtime.dollars_per_hour * progress.seconds / 3600
    log.info("Training is complete: %s zeros in %s steps and %s, %s zeros/s%s. Next: %s", f"{progress.zeros:,}",
             f"{progress.step:,}", format_duration(progress.seconds), f"{progress.zeros / max(progress.seconds, 1e-9):,.0f}",
             f", {dollars:.2f} dollars" if dollars else "", command(config, "evaluate.py"))  # fmt: skip


def log_lines(text, short):
    """Log `text`; the terminal shows `short`, which fits 80 columns."""
    training_log.info("%s", text, extra={"short": short})


def spread_evenly(zeros, count):
    """Return about `count` of some zeros, evenly spread, or all if they are fewer."""
    return zeros.subset(slice(None, None, math.ceil(len(zeros) / count)))


def write_line(run, **values):
    """Append a line to training.jsonl. A full disk costs the line, not the training."""
    if run.rank > 0:
        return
    position = {name: getattr(run.progress, name) for name in POSITION}
    try:
        append_json_lines(run.config.log_folder / "training.jsonl", [{**position, **values}])
        run.progress.log_lines += 1
    except OSError as error:
        log.error("Could not write a line of training.jsonl (%s); training goes on without it. %s.", error.strerror,
                  remedy(error).capitalize())  # fmt: skip
