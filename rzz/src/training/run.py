"""What a run of train.py has on the disk: when it may be begun, gone on with, moved aside, and how it is saved.

    refuse_to_overwrite(config, args)           # UserError where there is a run and neither --resume nor --fresh was said
    save(config, model, optimizer, progress, device, clock, [LAST])     # whether that worked; a full disk is survived
"""

import datetime
import os

from common.config import UserError, require_writable
from common.logs import log
from common.processes import rank
from model.network import build_model
from training.checkpoints import checkpoint_files, latest_checkpoint, make_checkpoint, restore, save_checkpoint
from training.model_card import NAME as MODEL_CARD
from training.optimizer import make_optimizer
from training.progress import Progress, position_text

# What the row position and the weights of a run depend on; a resumed run must agree in all of it.
IMMUTABLE_SETTINGS = ("data.interval_size", "data.first_round", "training.batch_size", "training.seed")


def refuse_to_overwrite(config, args):
    """Raise UserError where there is a run and the command line does not say what to do with it."""
    if not args.resume and not args.fresh and checkpoint_files(config.checkpoint_folder):
        raise UserError(f"{config.checkpoint_folder} holds a run: go on with --resume, or move it aside with --fresh.")


def archive_run(config):
    """Move the checkpoints and training logs of a run to previous_runs/<time>/; return whether there was any of them."""
    logs = [config.log_folder / name for name in ("training.log", "training.jsonl", "evaluation.json", "predictions.jsonl")]
    files = [*config.checkpoint_folder.glob("*.pt"), *(path for path in logs if path.exists() and path.stat().st_size)]
    if not files:
        return False
    aside = config.folder / "previous_runs" / datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    require_writable(aside)
    for path in [*files, *config.checkpoint_folder.glob(MODEL_CARD)]:
        os.replace(path, aside / path.name)
    log.info("The run before was moved to %s", aside)
    return True


def check_compatible(checkpoint, config, path):
    """Raise UserError, naming the key, where the checkpoint is of another shape, other data or a later round than the settings."""
    names = [*IMMUTABLE_SETTINGS, *(f"model.{key}" for key in config.settings["model"])]
    for name in names:
        section, key = name.split(".")
        saved, wanted = checkpoint["config"][section].get(key), config.settings[section][key]
        if saved != wanted:
            raise UserError(f"{path} was trained with {name} = {saved}, but the settings say {wanted}: "
                            f"set it back to go on, or begin anew with --fresh.")
    reached = checkpoint["progress"]["round"]
    if reached > config.data.K:
        raise UserError(f"{path} is in round {reached}, but data.K is {config.data.K}: set data.K to {reached} or more, or begin "
                        "anew with --fresh.")


def save(config, model, optimizer, progress, device, clock, names):
    """Save a checkpoint under each of `names`; return whether that worked. A full disk is said and survived."""
    clock.look()
    if rank() > 0:
        return True
    saved = True
    checkpoint = make_checkpoint(model, optimizer, progress, config, device)
    for name in names:
        try:
            save_checkpoint(checkpoint, config.checkpoint_folder / name)
        except OSError as error:
            saved = False
            log.error("Could not save %s (%s); the older checkpoint stays and training goes on. Free some space.",
                      name, error.strerror)
    return saved


def require_saved(saved, config, progress):
    """Raise UserError where training ends with a checkpoint that could not be saved."""
    if not saved:
        raise UserError(f"Stopped at {position_text(progress, config)}, which could not be saved in {config.checkpoint_folder}: "
                        "free some space and go on with --resume from the checkpoint before.")


def begin(config, args, device):
    """Return (model, optimizer, progress, path of the checkpoint that they were read from, None at the beginning)."""
    model = build_model(config.model, config.training.seed).to(device)
    optimizer = make_optimizer(model, config.training)
    checkpoint, path = (None, None) if args.fresh else latest_checkpoint(config.checkpoint_folder)
    if checkpoint is None:
        return model, optimizer, Progress(round=config.data.first_round), None
    check_compatible(checkpoint, config, path)
    return model, optimizer, restore(checkpoint, model, optimizer, path), path
