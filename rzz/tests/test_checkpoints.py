"""Checkpoints are whole, portable and verified; what is damaged is named and passed over."""

import errno
import os
import subprocess
from pathlib import Path

import pytest
import torch
from conftest import batch_of

from common import VERSION
from common.config import Config, ModelConfig, TrainingConfig, UserError
from data_utils import RiemannZerosDataset
from model.network import build_model
from training import checkpoints
from training.checkpoints import (
    latest_checkpoint,
    load_checkpoint,
    make_checkpoint,
    restore,
    save_checkpoint,
    trained_model,
)
from training.optimizer import make_optimizer, training_step
from training.progress import Progress

ZEROS = RiemannZerosDataset([10, 11, 12], [497738, 529703, 564462])


def trained_a_little(seed=1):
    model = build_model(ModelConfig(d_model=16, num_layers=1, num_heads=2, max_prime=10), seed)
    optimizer = make_optimizer(model, TrainingConfig())
    training_step(model, optimizer, batch_of(model, ZEROS, 3), 1e-3, 1.0, (seed, 0))
    return model, optimizer


def checkpoint_of(step, seed=1):
    model, optimizer = trained_a_little(seed)
    return make_checkpoint(model, optimizer, Progress(round=1, step=step), Config(), torch.device("cpu"))


def test_file_holds_plain_types_and_cpu_tensors_that_torch_loads_safely(tmp_path):
    save_checkpoint(checkpoint_of(5), tmp_path / "last.pt")
    loaded = torch.load(tmp_path / "last.pt", map_location="cpu", weights_only=True)
    assert {"model", "optimizer", "progress", "config", "meta"} == loaded.keys()
    assert loaded["progress"]["step"] == 5 and loaded["config"]["data"]["K"] == 10
    assert {"torch", "device", "parameters", "saved"} <= loaded["meta"].keys()

    def leaves(value):
        if isinstance(value, dict):
            value = list(value.values())
        return [leaf for item in value for leaf in leaves(item)] if isinstance(value, (list, tuple)) else [value]

    for leaf in leaves(loaded):
        assert leaf is None or type(leaf) in (int, float, str, bool) or leaf.device.type == "cpu"


def test_a_step_after_loading_is_the_step_without_saving(tmp_path):
    model, optimizer = trained_a_little()
    save_checkpoint(make_checkpoint(model, optimizer, Progress(round=1), Config(), torch.device("cpu")), tmp_path / "last.pt")
    other, other_optimizer = trained_a_little(seed=9)
    progress = restore(load_checkpoint(tmp_path / "last.pt"), other, other_optimizer, tmp_path / "last.pt")
    assert progress == Progress(round=1)
    for step in (1, 2):
        training_step(model, optimizer, batch_of(model, ZEROS, 3), 1e-3, 1.0, (1, step))
        training_step(other, other_optimizer, batch_of(other, ZEROS, 3), 1e-3, 1.0, (1, step))
    for name, parameter in model.state_dict().items():
        assert torch.equal(parameter, other.state_dict()[name])


def test_weights_of_other_names_are_one_line_that_names_the_file(tmp_path):
    checkpoint = checkpoint_of(1)
    checkpoint["model"]["else.weight"] = checkpoint["model"].pop("head.weight")
    with pytest.raises(UserError, match="here.pt does not fit"):
        restore(checkpoint, *trained_a_little(), "here.pt")
    with pytest.raises(UserError, match="here.pt does not fit"):
        trained_model(checkpoint, "here.pt")


def test_the_checkpoint_before_stands_behind_the_last(tmp_path):
    for step in (1, 2, 3):
        save_checkpoint(checkpoint_of(step), tmp_path / "last.pt")
    assert load_checkpoint(tmp_path / "last.pt")["progress"]["step"] == 3
    assert load_checkpoint(tmp_path / "last.prev.pt")["progress"]["step"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.prev.pt", "last.pt"]


def flip_a_bit_of_a_weight(path):
    content = bytearray(path.read_bytes())
    weight = checkpoint_of(0)["model"]["head.weight"].numpy().tobytes()
    position = bytes(content).index(weight)
    content[position + 9] ^= 4
    path.write_bytes(content)


def damage_middle(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def with_change(part, key, *value):
    """Return what takes a key from a part of a checkpoint's file, or sets it to the value."""

    def change(path):
        checkpoint = torch.load(path, weights_only=True)
        found = checkpoint[part] if part else checkpoint
        del found[key]
        if value:
            (found[key],) = value
        torch.save(checkpoint, path)

    return change


@pytest.mark.parametrize("damage", [
    *(with_change(None, part) for part in ("model", "optimizer", "progress", "config", "meta")),
    *(with_change(None, part, 1) for part in ("model", "optimizer", "progress", "config", "meta")),
    with_change("meta", "format"),
    with_change("meta", "format", "1"),
    with_change("meta", "parameters"),
    with_change("progress", "step"),
    with_change("progress", "step", None),
    with_change("progress", "validation", {}),
    with_change("config", "data"),
    with_change("config", "training", {}),
    with_change("model", "head.weight", 0.5),
    with_change("optimizer", 0, {"step": torch.ones(())}),
    flip_a_bit_of_a_weight,
    damage_middle,
    lambda path: path.write_bytes(b""),
    lambda path: path.write_bytes(b"not a checkpoint"),
    lambda path: torch.save({"model": {}}, path),
    lambda path: torch.save([1, 2], path),
])  # fmt: skip
def test_a_damaged_or_foreign_file_is_named_and_the_older_one_used(tmp_path, damage, caplog):
    save_checkpoint(checkpoint_of(4), tmp_path / "round_1.pt")
    save_checkpoint(checkpoint_of(6), tmp_path / "last.pt")
    damage(tmp_path / "last.pt")
    with pytest.raises(UserError, match="last.pt"):
        load_checkpoint(tmp_path / "last.pt")
    checkpoint, path = latest_checkpoint(tmp_path)
    assert path.name == "round_1.pt" and checkpoint["progress"]["step"] == 4
    assert "last.pt" in caplog.text


def test_with_no_good_file_left_the_error_says_so(tmp_path):
    (tmp_path / "last.pt").write_bytes(b"")
    (tmp_path / "round_3.pt").write_bytes(b"")
    with pytest.raises(UserError, match="None of the 2 checkpoints"):
        latest_checkpoint(tmp_path)


def test_rounds_are_tried_from_the_latest_down(tmp_path):
    for t in (2, 10, 9):
        save_checkpoint(checkpoint_of(t), tmp_path / f"round_{t}.pt")
    assert latest_checkpoint(tmp_path)[1].name == "round_10.pt"
    assert latest_checkpoint(tmp_path / "empty") == (None, None)


def test_a_newer_format_says_that_the_program_is_too_old(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "FORMAT", 99)
    save_checkpoint(checkpoint_of(1), tmp_path / "last.pt")
    monkeypatch.undo()
    with pytest.raises(UserError, match="format 99"):
        load_checkpoint(tmp_path / "last.pt")


class PowerCut(Exception):
    pass


def cut_power_at(monkeypatch, call_number):
    """Let the `call_number`-th of the system calls that make a save durable fail, and all that come after it."""
    calls = []

    def failing(function):
        def call(*arguments):
            calls.append(function)
            if len(calls) >= call_number:
                raise PowerCut
            return function(*arguments)

        return call

    for name in ("fsync", "replace", "open", "unlink"):
        monkeypatch.setattr(os, name, failing(getattr(os, name)))
    return calls


def test_power_cut_between_any_two_system_calls_of_a_save_leaves_a_whole_checkpoint(tmp_path, monkeypatch):
    checkpoints = {step: checkpoint_of(step) for step in (1, 2, 3)}
    found = []
    for call_number in range(1, 100):
        folder = tmp_path / str(call_number)
        folder.mkdir()
        for step in (1, 2):
            save_checkpoint(checkpoints[step], folder / "last.pt")
        with monkeypatch.context() as patch:
            calls = cut_power_at(patch, call_number)
            try:
                save_checkpoint(checkpoints[3], folder / "last.pt")
            except PowerCut:
                pass
            finished = len(calls) < call_number
        found.append(latest_checkpoint(folder)[0]["progress"]["step"])
        if finished:
            break
    assert found[0] == 2 and found[-1] == 3 and found == sorted(found) and len(found) > 6


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_save_that_fails_leaves_the_checkpoints_before_it_and_nothing_else(tmp_path, monkeypatch, call):
    for step in (1, 2):
        save_checkpoint(checkpoint_of(step), tmp_path / "last.pt")
    checkpoint = checkpoint_of(3)

    def fail(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(OSError):
            save_checkpoint(checkpoint, tmp_path / "last.pt")
    assert latest_checkpoint(tmp_path)[0]["progress"]["step"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.prev.pt", "last.pt"]


def test_the_checksum_is_of_the_content(tmp_path):
    checkpoint = checkpoint_of(1)
    for name in ("last.pt", "round_1.pt"):
        save_checkpoint(checkpoint, tmp_path / name)
    save_checkpoint({**checkpoint, "progress": {**checkpoint["progress"], "row": 1}}, tmp_path / "round_2.pt")
    first, same, other = (load_checkpoint(tmp_path / name)["checksum"] for name in ("last.pt", "round_1.pt", "round_2.pt"))
    assert first == same != other


@pytest.mark.parametrize("order", [("last.pt", "last.prev.pt", "round_1.pt"), ("round_1.pt", "last.pt", "last.prev.pt")])
def test_the_file_that_has_got_farthest_is_the_latest_whatever_its_name(tmp_path, order):
    for step, name in enumerate(reversed(order), 1):
        save_checkpoint(checkpoint_of(step), tmp_path / "written.pt")
        os.replace(tmp_path / "written.pt", tmp_path / name)
    for step, name in zip((3, 2, 1), order, strict=True):
        checkpoint, path = latest_checkpoint(tmp_path)
        assert (path.name, checkpoint["progress"]["step"]) == (name, step)
        (tmp_path / name).write_text("x")


def test_a_drive_that_drops_is_said_and_not_taken_for_damage(tmp_path, monkeypatch):
    save_checkpoint(checkpoint_of(1), tmp_path / "last.pt")
    reason = os.strerror(errno.ENOTCONN)
    monkeypatch.setattr("pathlib.Path.read_bytes", lambda path: (_ for _ in ()).throw(OSError(errno.ENOTCONN, reason, str(path))))
    with pytest.raises(UserError, match=reason) as caught:
        load_checkpoint(tmp_path / "last.pt")
    assert "damaged" not in str(caught.value)


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.EACCES])
def test_a_checkpoint_that_cannot_be_read_stops_the_run_and_stays_where_it_is(tmp_path, monkeypatch, code):
    """The older file is whole, but training on from it would do again what is safe in the newer one."""
    save_checkpoint(checkpoint_of(1), tmp_path / "round_1.pt")
    save_checkpoint(checkpoint_of(2), tmp_path / "last.pt")
    read = Path.read_bytes

    def drop(path):
        if path.name == "last.pt":
            raise OSError(code, os.strerror(code), str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", drop)
    with pytest.raises(UserError, match=f"last.pt: {os.strerror(code)}"):
        latest_checkpoint(tmp_path, move_aside=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.pt", "round_1.pt"]


def test_a_training_moves_a_damaged_checkpoint_aside_and_others_leave_it(tmp_path, caplog):
    save_checkpoint(checkpoint_of(1), tmp_path / "round_1.pt")
    (tmp_path / "last.pt").write_text("x")
    assert latest_checkpoint(tmp_path)[1].name == "round_1.pt" and (tmp_path / "last.pt").exists()
    assert latest_checkpoint(tmp_path, move_aside=True)[1].name == "round_1.pt"
    assert (tmp_path / "last.pt.bad-1").read_text() == "x" and not (tmp_path / "last.pt").exists()
    assert "last.pt.bad-1" in caplog.text


def test_a_checkpoint_of_another_vocabulary_is_refused(tmp_path, monkeypatch):
    save_checkpoint(checkpoint_of(1), tmp_path / "round_1.pt")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "vocabulary", ["1", "0", *checkpoints.vocabulary[2:]])
        patch.setattr(checkpoints, "VERSION", "7.8.9")
        save_checkpoint(checkpoint_of(2), tmp_path / "last.pt")
    for load in (lambda: latest_checkpoint(tmp_path), lambda: load_checkpoint(tmp_path / "last.pt")):
        with pytest.raises(UserError, match="last.pt was trained with the vocabulary '10234.* that wrote it, version 7.8.9"):
            load()


def test_a_checkpoint_says_what_wrote_it(monkeypatch, tmp_path):
    meta = checkpoint_of(1)["meta"]
    assert meta["version"] == VERSION and meta["vocabulary"] == "0123456789.:be p"
    checkpoints.source_commit.cache_clear()
    monkeypatch.setattr(checkpoints, "ROOT", tmp_path)  # no repository
    assert checkpoint_of(1)["meta"]["commit"] is None
    checkpoints.source_commit.cache_clear()
    for words in (["init", "-q"], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "--allow-empty", "-m", "x"]):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    head = subprocess.run(["git", "-C", str(tmp_path), "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    assert checkpoint_of(1)["meta"]["commit"] == head[:12]
    checkpoints.source_commit.cache_clear()
