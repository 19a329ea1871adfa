"""One training run as one object: settings, model, optimizer, progress, device, stopwatch; and its files on the disk.

    run = TrainingRun.load_or_create(config, device)        # from the latest checkpoint, or new
    for _ in run.rounds():
        for batch in run.batches():
            run.train_step(batch)
        run.save(f"round_{run.progress.round}.pt", LAST)
"""

import datetime
import math
import shutil
import signal
from contextlib import contextmanager
from pathlib import Path

import torch

from common.config import Config, UserError, require_writable
from common.devices import PRECISIONS, choose_precision, choose_threads, compiled, free_memory, is_out_of_memory
from common.files import exclusive_lock, free_name, read_json_lines, remedy, write_json_lines
from common.logs import log
from common.processes import barrier, rank, world_size, wrap_ddp
from common.signals import catch_stop_signals, interruptible
from data_utils import fetch_ahead, interval, require_zeros, some_zeros, training_zeros, validation_zeros
from model.batches import first_batch, index_noise, iterate_batches
from model.index_embedding import NUMBERS_MARGIN, Boundaries, numbers_in_main_sum, parts_of
from model.network import build_model, cross_entropy, logits_of
from training.checkpoints import LAST, PREVIOUS, checkpoint_files, latest_checkpoint, make_checkpoint, restore, save_checkpoint
from training.model_card import NAME as MODEL_CARD
from training.optimizer import learning_rate_at, make_optimizer, training_step
from training.progress import Progress, Stopwatch, floats, remaining, validation_interval

# What the row position and the weights of a run depend on; a resumed run must agree in all of it.
IMMUTABLE_SETTINGS = ("data.interval_size", "data.first_round", "training.batch_size", "training.seed")
MOST_TIMED = 512  # zeros of a step that is timed


class TrainingRun:
    """Everything that belongs to one training.

    path: the checkpoint that it goes on from, or None. training, validation: the datasets of the round, the latter in rank 0.
    losses: of the steps since the last line of the log, on the device.
    """

    def __init__(self, config: Config, device: torch.device, model, optimizer, progress: Progress, path: Path | None = None):
        self.config, self.device, self.path = config, device, path
        self.model, self.optimizer, self.progress = model, optimizer, progress
        self.compiled_model = compiled(wrap_ddp(model), device, config.training.compile)
        self.stopwatch = Stopwatch(progress, device)
        steps, zeros = remaining(progress, config)
        self.validation_interval = validation_interval(config)
        self.total_steps, self.total_zeros = progress.step + steps, progress.zeros + zeros
        self.rank = rank()
        self.losses = list(torch.tensor(progress.losses, device=device))
        self.dtype = torch.float32  # of matrix products, see choose_threads_and_precision
        self.micro_batches = 1  # of a batch; more if the device's memory does not hold it whole
        self.unsaved = {}  # {name: checkpoint}: what the disk did not take
        self.training = self.validation = None

    @classmethod
    def start(cls, config, device, args):
        """Return the run that the command line asks for; what it replaces is moved aside, the log is rewound to its position."""
        if rank() == 0:
            refuse_to_overwrite(config, args)
            require_zeros(config)
            warn_of_few_numbers(config)
        barrier()
        run = cls.load_or_create(config, device, args.fresh, move_aside=rank() == 0)
        if run.rank == 0 and run.path is None:
            archive_run(config)
        if run.rank == 0:
            run.rewind_log()
        return run

    def rewind_log(self):
        """Drop the lines of training.jsonl that will be written again: after the checkpoint, and of a round that begins."""
        path, progress = self.config.log_folder / "training.jsonl", self.progress
        if not path.exists():
            return
        begins = progress.epoch == progress.row == 0
        lines = read_json_lines(path, {"round": int, "step": int, "kind": str})
        write_json_lines(path, [line for line in lines if (line["round"], line["step"]) <= (progress.round, progress.step)
                                and not (begins and line["kind"] == "round" and line["round"] == progress.round)])  # fmt: skip

    @classmethod
    def load_or_create(cls, config, device, fresh=False, move_aside=False):
        """Return the run that goes on from its latest good checkpoint, which must fit, or begins if there is none or `fresh`.

        move_aside: what is done with damaged checkpoints, see latest_checkpoint.
        """
        model = build_model(config.model, config.training.seed).to(device)
        optimizer = make_optimizer(model, config.training)
        checkpoint, path = (None, None) if fresh else latest_checkpoint(config.checkpoint_folder, move_aside)
        if checkpoint is None:
            return cls(config, device, model, optimizer, Progress(round=config.data.first_round))
        check_compatible(checkpoint, config, path)
        progress = restore(checkpoint, model, optimizer, path)
        epochs, count = config.training.epochs, interval(config, min(progress.round, config.data.K))[1]
        if progress.round > config.data.K:  # nothing of it was trained on: the end of the round before
            progress.round, progress.epoch = config.data.K, checkpoint["config"]["training"]["epochs"]
        elif progress.row and (progress.epoch >= epochs or (progress.epoch == epochs - 1 and progress.row >= count)):
            # The round has ended, also where fewer epochs are asked for than were begun, and is validated as a whole.
            progress.epoch, progress.row, progress.validated_step = max(progress.epoch, epochs), 0, -1
        return cls(config, device, model, optimizer, progress, path)

    def choose_threads_and_precision(self):
        """Set how many threads compute and the dtype of matrix products, as before in a run that goes on, else from timed steps.

        Their gradients are thrown away. Returns why (so many threads, this dtype), the former "" on a GPU.
        """
        progress, setting = self.progress, self.config.training.precision
        asked = PRECISIONS.get(setting, torch.float32)
        size = min(self.config.training.batch_size, MOST_TIMED)
        first = first_batch(self.model, some_zeros(size), size)

        def work(dtype=asked):
            batch = first.prepared(self.model)
            cross_entropy(logits_of(self.model, batch, dtype), batch.targets).backward()
            self.model.zero_grad(set_to_none=True)

        progress.threads, why_threads = choose_threads(self.device, work, progress.threads)
        before = progress.precision or ("float32" if progress.step else None)  # older runs do not say theirs
        self.dtype, why_dtype = choose_precision(self.device, setting, work if world_size() == 1 else None, before)
        progress.precision = next(name for name, dtype in PRECISIONS.items() if dtype == self.dtype)
        return why_threads, why_dtype

    @property
    def is_at_end_of_round(self):
        epochs_left = self.config.training.epochs - self.progress.epoch
        return epochs_left <= 0 or (epochs_left == 1 and self.progress.row >= len(self.training))

    @property
    def zero(self):
        """The index that the current position has reached."""
        first, count = interval(self.config, self.progress.round)
        return first + (self.progress.row if self.progress.epoch < self.config.training.epochs else count)

    def place_text(self):
        """'round 3/10 · zero 3,412,608': the same in short."""
        return f"round {self.progress.round}/{self.config.data.K} · zero {self.zero:,}"

    def position_text(self):
        """'round 3/10 · epoch 1/2 · zero 3,412,608': the current position, for a reader."""
        progress, epochs = self.progress, self.config.training.epochs
        epoch = min(progress.epoch + 1, epochs)
        return f"round {progress.round}/{self.config.data.K} · epoch {epoch}/{epochs} · zero {self.zero:,}"

    def rounds(self):
        """Go through the rounds from the current position, with `training` and `validation` set for each; yield its number."""
        config, progress = self.config, self.progress
        while progress.epoch < config.training.epochs or progress.round < config.data.K or not progress.is_validated:
            if progress.epoch >= config.training.epochs and progress.is_validated:
                progress.round, progress.epoch, progress.row = progress.round + 1, 0, 0
            try:
                self.fetch_zeros()
            except UserError:
                if self.unsaved:  # the zeros of a round take more of a full disk than a checkpoint
                    self.save(LAST)
                raise
            if self.rank == 0 and progress.round < config.data.K:
                fetch_ahead(config, *interval(config, progress.round + 2))
            yield progress.round

    def fetch_zeros(self):
        """Set `training` and `validation` for the current round."""
        try:
            with interruptible():
                self.training = training_zeros(self.config, self.progress.round)
                if self.rank == 0:
                    self.validation = validation_zeros(self.config, self.progress.round)
        finally:
            self.stopwatch = Stopwatch(self.progress, self.device)  # waiting for zeros is no training

    def batches(self):
        """Yield the batches of the round from the current position, epoch by epoch, and start the stopwatch."""
        progress, settings = self.progress, self.config.training
        self.stopwatch = Stopwatch(progress, self.device)
        while progress.epoch < settings.epochs:
            noise = index_noise(self.config, progress.round, progress.epoch)
            yield from iterate_batches(self.model, self.training, settings.batch_size, progress.row, self.rank, world_size(), noise)
            progress.epoch, progress.row = progress.epoch + 1, 0

    def train_step(self, batch):
        """Make one update from `batch`, and note its loss and the new position; return the number of its zeros."""
        progress, settings = self.progress, self.config.training
        self.losses.append(self.train_step_with_oom_retry(batch))
        zeros = min(settings.batch_size, len(self.training) - progress.row)
        progress.row, progress.step, progress.zeros = progress.row + zeros, progress.step + 1, progress.zeros + zeros
        return zeros

    def train_step_with_oom_retry(self, batch):
        """Return the loss of one update, cutting the batch into more micro-batches until the memory holds one."""
        settings, step = self.config.training, self.progress.step
        rate = learning_rate_at(step, self.total_steps, settings)
        while True:
            try:
                # Gradients cannot be added up in the CUDA graphs of torch.compile (pytorch#169545).
                model = self.compiled_model if self.micro_batches == 1 else self.model
                return training_step(model, self.optimizer, batch, rate, settings.gradient_clip, (settings.seed, step, self.rank),
                                     self.micro_batches, self.dtype)  # fmt: skip
            except RuntimeError as error:
                if not is_out_of_memory(error) or 2 * self.micro_batches > settings.batch_size or world_size() > 1:
                    raise
            self.micro_batches *= 2  # outside of the except block, which keeps the failed step's tensors alive
            free_memory(self.device)
            log.warning("Out of memory with %d zeros at a time: from here on batches of %d are computed in %d parts, for the same "
                        "updates.", 2 * settings.batch_size // self.micro_batches, settings.batch_size, self.micro_batches)

    def save(self, *names):
        """Save a checkpoint under each of `names`, and what could not be saved before. A full disk is an error in the log."""
        self.stopwatch.lap()
        self.progress.losses = floats(self.losses)
        if self.rank > 0:
            return
        checkpoint = make_checkpoint(self.model, self.optimizer, self.progress, self.config, self.device)
        late = {name: each for name, each in self.unsaved.items() if name not in names}
        for name, each in {**dict.fromkeys(names, checkpoint), **late}.items():
            try:
                save_checkpoint(each, self.config.checkpoint_folder / name)
                self.unsaved.pop(name, None)
            except OSError as error:
                self.unsaved[name] = each
                log.error("Could not save %s (%s); the older checkpoint stays and training goes on. %s.",
                          name, error.strerror, remedy(error).capitalize())  # fmt: skip

    def require_saved(self):
        """Raise UserError if the training ends with its last checkpoint not saved; warn if one of an earlier round is lost."""
        if LAST in self.unsaved:
            raise UserError(f"Stopped at {self.position_text()}, which could not be saved in {self.config.checkpoint_folder}: free "
                            "some space and go on with --resume from the checkpoint before.")
        for name in self.unsaved:
            log.warning("%s could not be saved; %s is whole.", name, LAST)


@contextmanager
def run_lock(config):
    """Hold the run folder for rank 0 within the block. Raises UserError, naming the other process, if one trains in it already."""
    require_writable(config.checkpoint_folder)
    if rank() > 0:
        yield
        return
    owner = f"which trains since {datetime.datetime.now():%Y-%m-%d %H:%M:%S}"
    with exclusive_lock(config.checkpoint_folder / ".lock", owner) as holder:
        if holder:
            raise UserError(f"{config.folder} is being trained by {holder}; wait for it, or use another --config.")
        yield


def refuse_to_overwrite(config, args):
    """Raise UserError if there is a run and the command line says neither --resume nor --fresh."""
    if not args.resume and not args.fresh and checkpoint_files(config.checkpoint_folder):
        raise UserError(f"{config.checkpoint_folder} holds a run: go on with --resume, or move it aside with --fresh.")


def warn_of_few_numbers(config):
    """Warn if the sums of "waves" end before √(t/2π) at the last zeros, where the largest whole numbers begin to count."""
    last = interval(config, config.data.K + 1)[0] + config.data.N
    needed = numbers_in_main_sum(last)
    if Boundaries in parts_of(config.model.index_embedding) and config.model.max_number < needed:
        log.warning("model.max_number = %d is less than √(t/2π) = %.0f at zero %d: the last zeros will be less exact than with %d.",
                    config.model.max_number, needed, last, math.ceil(NUMBERS_MARGIN * needed))  # fmt: skip


def archive_run(config):
    """Move the checkpoints and training logs of a run, if there are any, to previous_runs/<time>/."""
    logs = [config.log_folder / name for name in ("training.log", "training.jsonl", "evaluation.json", "predictions.jsonl")]
    files = [*config.checkpoint_folder.glob("*.pt"), *(path for path in logs if path.exists() and path.stat().st_size)]
    if not files:
        return
    archive = config.folder / "previous_runs" / datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    archive = free_name(archive) if archive.exists() else archive
    require_writable(archive)
    # What --resume would go on from comes last of the checkpoints: after a kill meanwhile the old run can go on.
    files.sort(key=lambda path: (path.suffix != ".pt", path.name == LAST, path.name == PREVIOUS))
    with catch_stop_signals() as stop:
        for path in [*files, *config.checkpoint_folder.glob(MODEL_CARD)]:
            shutil.move(path, archive / path.name)  # to another disk, if a link leads there
    log.info("The previous run was moved to %s", archive)
    if stop:
        signal.raise_signal(stop[0])  # now it may end


def check_compatible(checkpoint, config, path):
    """Raise UserError, naming the key, if the checkpoint has another shape, other data or a later round than the settings."""
    for name in [*IMMUTABLE_SETTINGS, *(f"model.{key}" for key in config.settings["model"])]:
        section, key = name.split(".")
        wanted = config.settings[section][key]
        saved = checkpoint["config"][section].get(key, wanted)  # a setting that was not there yet
        if saved != wanted:
            raise UserError(f"{path} was trained with {name} = {saved}, but the settings say {wanted}: "
                            f"set it back to go on, or begin again with --fresh.")
    progress = checkpoint["progress"]
    reached = progress["round"] - (progress["step"] > 0 and progress["epoch"] == progress["row"] == 0)  # stopped between two
    if reached > config.data.K:
        raise UserError(f"{path} is in round {reached}, but data.K is {config.data.K}: set data.K to {reached} or more, or begin "
                        "again with --fresh.")
