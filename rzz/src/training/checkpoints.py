"""Checkpoints: one file of plain types and CPU tensors that every device can read, checked when it is read.

    checkpoint = make_checkpoint(model, optimizer, progress, config, device)
    save_checkpoint(checkpoint, config.checkpoint_folder / "last.pt")
    checkpoint, path = latest_checkpoint(config.checkpoint_folder)

A file is what torch.load(path, map_location="cpu", weights_only=True) gives back, a dictionary of

    model       state_dict of the Transformer
    optimizer   state of AdamW, per parameter number
    progress    round, epoch, row, step, seconds trained, running averages of the log
    config      all settings, as in config.json
    meta        format, version and commit of rzz, vocabulary, versions of python and packages, device, parameter count, when
                it was saved

One that was exported (predict.py --export) has an empty optimizer. The file is a zip archive, whose CRC-32 are checked:
torch.load does not notice a flipped bit.
"""

import dataclasses
import datetime
import functools
import hashlib
import io
import logging
import os
import platform
import subprocess
import zipfile
from contextlib import contextmanager
from types import NoneType

import mpmath
import numpy as np
import torch

from common import ROOT, VERSION
from common.cli import command
from common.config import ModelConfig, UserError
from common.devices import to_cpu
from common.files import NUMBER, NUMBER_OR_NONE, atomic_write, has_shape, quarantine, read_bytes, sync_folder
from model.network import build_model, parameter_count
from model.tokenizer import vocabulary
from training.progress import Progress

log = logging.getLogger("rzz")
FORMAT = 1
SHAPE = {  # what those who load a checkpoint count on
    "model": {...: torch.Tensor},
    "optimizer": {...: {"step": (torch.Tensor, *NUMBER), "exp_avg": torch.Tensor, "exp_avg_sq": torch.Tensor}},
    "progress": {"round": int, "epoch": int, "row": int, "step": int, "zeros": int, "seconds": NUMBER, "losses": list,
                 "validation": (NoneType, {"round": int, "loss": NUMBER, "best_loss": NUMBER, "nats_per_zero": NUMBER,
                                           "mse_training": NUMBER_OR_NONE, "mse_validation": NUMBER_OR_NONE,
                                           "readable_validation": NUMBER})},
    "config": {"data": {"K": int, "N": int, "interval_size": int, "first_round": int, "validation_fraction": NUMBER,
                        "platt_tables": str},
               "model": dict, "training": {"epochs": int, "batch_size": int, "mse_zeros": int}},
    "meta": {"format": int, "device": str, "parameters": int, "saved": str},
}  # fmt: skip
LAST, PREVIOUS = "last.pt", "last.prev.pt"


def make_checkpoint(model, optimizer, progress, config, device):
    """Return the dictionary of plain types and CPU tensors described above."""
    return {
        "model": to_cpu(model.state_dict()),
        "optimizer": to_cpu(optimizer.state_dict()["state"]),
        "progress": dataclasses.asdict(progress),
        "config": config.settings,
        "meta": {
            "format": FORMAT, "version": VERSION, "commit": source_commit(), "vocabulary": "".join(vocabulary),
            "python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__,
            "mpmath": mpmath.__version__, "device": device.type, "parameters": parameter_count(model),
            "saved": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        },
    }


@functools.cache
def source_commit():
    """The git commit of the program, with '-dirty' if its files were changed; None if there is none to be found."""
    words = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    variables = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "GIT_CEILING_DIRECTORIES": str(ROOT.parent)}  # it writes nothing
    try:
        answer = subprocess.run(words, capture_output=True, text=True, timeout=10, env=variables)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None


def source_text(meta):
    """'version 1.0.0, commit 5da882707b79': what wrote a checkpoint, as far as its `meta` says it."""
    return ", ".join(f"{name} {meta[name]}" for name in ("version", "commit") if meta.get(name)) or "of an unknown version"


def save_checkpoint(checkpoint, path):
    """Write `checkpoint` to `path`; a last.pt that stood there is kept as last.prev.pt.

    At any moment there is a whole checkpoint under one of the two names. Raises OSError, the older files left as they were.
    """
    written = path.with_name(f"{path.name}.new")
    write_torch_file(written, checkpoint)
    if path.name == LAST and path.exists():
        os.replace(path, path.with_name(PREVIOUS))
    os.replace(written, path)
    sync_folder(path.parent)


def write_torch_file(path, value):
    """Write `value` to `path` as torch.save does, atomically."""
    content = io.BytesIO()  # torch.save itself raises a RuntimeError that does not say so if the disk is full
    torch.save(value, content)
    with atomic_write(path) as file:
        file.write(content.getbuffer())


def exported(checkpoint):
    """Return a checkpoint without what only a training needs, a third of its size: to ask, to evaluate and to give away."""
    return {name: value for name, value in checkpoint.items() if name != "checksum"} | {"optimizer": {}}


def restore(checkpoint, model, optimizer, path):
    """Load a checkpoint into `model` and `optimizer`; return its Progress. Raises UserError, naming `path`, if it does not fit."""
    if not checkpoint["optimizer"] and checkpoint["progress"]["step"]:
        raise UserError(f"{path} was exported for predictions: training cannot go on from it. Use a checkpoint of the training.")
    with load_errors(path):
        model.load_state_dict(checkpoint["model"])
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": checkpoint["optimizer"], "param_groups": groups})
        return Progress(**{"validated_step": checkpoint["progress"]["step"], **checkpoint["progress"]})  # not in older files


def trained_model(checkpoint, path):
    """Return the Transformer that a checkpoint holds, on the CPU; its shape comes from the checkpoint too.

    Raises UserError, naming `path`, if the file is of another version of the program.
    """
    with load_errors(path):
        model = build_model(ModelConfig(**checkpoint["config"]["model"]), seed=0)
        model.load_state_dict(checkpoint["model"])
        return model


@contextmanager
def load_errors(path):
    """Turn what torch and dataclasses raise about other names and shapes into a UserError that names `path`."""
    try:
        yield
    except (RuntimeError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} does not fit this version of rzz ({reason}); use another checkpoint.") from error


class DamagedError(UserError):
    """A file that is not what the program wrote."""


def read_torch_file(path, shape):
    """Return (what write_torch_file wrote to `path`, a checksum), all tensors on the CPU.

    Raises DamagedError, naming the file, if it is damaged or has not the `shape`, see has_shape. Raises OSError if it cannot be
    read, which says nothing of the file.
    """
    content = io.BytesIO(read_bytes(path))
    try:
        with zipfile.ZipFile(content) as archive:
            if archive.testzip():
                raise ValueError("a CRC-32 of the archive does not match")
            checksum = hashlib.sha256(repr([(part.filename, part.CRC) for part in archive.infolist()]).encode()).hexdigest()
        content.seek(0)
        value = torch.load(content, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # zipfile and torch.load raise many kinds for a damaged file
        raise DamagedError(f"{path} is damaged or not a checkpoint ({type(error).__name__}); use another one.") from error
    if not has_shape(value, shape):
        raise DamagedError(f"{path} lacks something that a checkpoint of rzz has; use another one.")
    return value, checksum


def load_checkpoint(path):
    """Return the checkpoint in `path`, also a string, with all tensors on the CPU, and the file's checksum as its "checksum".

    Raises DamagedError, and UserError, naming the file, if it cannot be read, has a newer format or another vocabulary.
    """
    try:
        checkpoint, checksum = read_torch_file(path, SHAPE)
    except OSError as error:
        raise UserError(f"Cannot read the checkpoint {path}: {error.strerror}.") from error
    meta = checkpoint["meta"]
    if meta["format"] > FORMAT:
        raise UserError(f"{path} has format {meta['format']}, newer than {FORMAT}: update rzz.")
    ours = "".join(vocabulary)
    if meta.get("vocabulary", ours) != ours:  # older files do not say it
        raise UserError(f"{path} was trained with the vocabulary {meta['vocabulary']!r}, but this rzz has {ours!r}: use the one "
                        f"that wrote it, {source_text(meta)}.")
    return {"checksum": checksum, **checkpoint}  # a file of older versions brings its own


def latest_checkpoint(folder, move_aside=False):
    """Return (checkpoint, path) of the good file in `folder` that has got farthest, or (None, None) if there is no checkpoint.

    A damaged one is named in a warning and passed over, with `move_aside` also moved aside. Raises UserError if none is good, or
    for one that cannot be read or is of another version: it may be the one that is wanted.
    """
    best, found, damaged = None, (), {}  # one of them in memory at a time, and the best so far
    for path in checkpoint_files(folder):
        try:
            checkpoint = load_checkpoint(path)
        except DamagedError as error:
            damaged[path] = error
            continue
        except UserError as error:
            if isinstance(error.__cause__, FileNotFoundError):  # a training has just renamed it
                continue
            raise
        reached = tuple(checkpoint["progress"][name] for name in ("step", "round", "epoch"))
        if best is None or reached > best:
            best, found = reached, (checkpoint, path)
    if damaged and not found:
        error = next(iter(damaged.values()))
        raise UserError(f"None of the {len(damaged)} checkpoints in {folder} can be read: {error} Or begin again with "
                        "train.py --fresh.") from error  # fmt: skip
    for path, error in damaged.items():
        log.warning("%s Another checkpoint is tried.%s", error, f" It was moved to {quarantine(path).name}." if move_aside else "")
    return found or (None, None)


def find_checkpoint(config, path):
    """Return (checkpoint, its path): the file asked for, or the latest good one of the run."""
    if path and not path.exists():
        there = ", ".join(file.name for file in checkpoint_files(config.checkpoint_folder)) or "none"
        raise UserError(f"There is no file {path}; checkpoints in {config.checkpoint_folder}: {there}.")
    checkpoint, path = (load_checkpoint(path), path) if path else latest_checkpoint(config.checkpoint_folder)
    if checkpoint is None:
        first = command(config, "train.py --resume")
        raise UserError(f"There is no checkpoint in {config.checkpoint_folder}; train first: {first}")
    return checkpoint, path


def checkpoint_files(folder):
    """Return the checkpoint files in `folder`, the one to prefer first."""
    rounds = [path for path in folder.glob("round_*.pt") if path.stem.removeprefix("round_").isdigit()]
    rounds.sort(key=lambda path: int(path.stem.removeprefix("round_")), reverse=True)
    return [path for path in (folder / LAST, folder / PREVIOUS) if path.exists()] + rounds


def last_trained_index(checkpoint):
    """Return the index of the last zero that the checkpoint has been trained on; 0 for none."""
    data, progress = checkpoint["config"]["data"], checkpoint["progress"]
    size = data["interval_size"]
    if progress["epoch"]:
        return (progress["round"] + 1) * size - 1
    if progress["row"]:
        return max(1, progress["round"] * size) + progress["row"] - 1
    if progress["round"] > data["first_round"]:  # stopped between two rounds
        return progress["round"] * size - 1
    return 0


def trained_zeros(checkpoint):
    """Return (first, last): the indexes of the zeros that the checkpoint has been trained on; (0, 0) for none."""
    data, last = checkpoint["config"]["data"], last_trained_index(checkpoint)
    return (max(1, data["first_round"] * data["interval_size"]), last) if last else (0, 0)
