"""Sick steps are skipped, full memory and full disks are survived, and the update stays the same."""

import errno
import json
import math
import signal
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from conftest import SMALL_RUN, batch_of, stop_after_step, write_config

import train
from common.config import ModelConfig, TrainingConfig, UserError, load_config
from common.devices import FusedAdamW, fused_adamw
from common.logs import LogFile, add_handler, log, terminal
from common.signals import StopRequested, catch_stop_signals
from data_utils import RiemannZerosDataset
from model import network
from model.network import build_model
from training import checkpoints, progress, run, run_log
from training.checkpoints import load_checkpoint
from training.optimizer import make_optimizer, training_step

ZEROS = RiemannZerosDataset([9, 10, 11, 12, 13], [480051, 497738, 529703, 564462, 593470])
SMALL = ModelConfig(d_model=16, num_layers=1, num_heads=2, max_prime=10)


def copies(values):
    return [value.detach().clone() for value in values]


def state_of(model, optimizer):
    moments = [torch.as_tensor(value) for state in optimizer.state.values() for value in state.values()]
    return copies([*model.parameters(), *moments])


def spoil(model):
    """Make the loss of the next step infinite without touching a weight."""
    return model.final_norm.register_forward_hook(lambda module, inputs, output: output * math.inf)


OPTIMIZERS = {  # made for a model: the program's own, the same without a fused kernel, and others that somebody may put there
    "fused": lambda model: make_optimizer(model, TrainingConfig()),
    "not fused": lambda model: make_optimizer(model, TrainingConfig(), fused=False),
    "RMSprop": lambda model: torch.optim.RMSprop(model.parameters()),
    "SGD": lambda model: torch.optim.SGD(model.parameters(), momentum=0.9),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("by_the_kernel", [True, False])
def test_a_step_that_is_not_finite_changes_neither_weights_nor_optimizer(by_the_kernel, make, monkeypatch):
    assert fused_adamw(torch.device("cpu")) == (True, True)
    monkeypatch.setattr("training.optimizer.fused_adamw", lambda device: FusedAdamW(by_the_kernel, by_the_kernel))
    model = build_model(SMALL, 1)
    optimizer = make(model)
    training_step(model, optimizer, batch_of(model, ZEROS, 5), 1e-2, 1.0, (1, 0))
    before = state_of(model, optimizer)
    hook = spoil(model)
    assert training_step(model, optimizer, batch_of(model, ZEROS, 5), 1e-2, 1.0, (1, 1)).isnan()
    assert all(torch.equal(old, new) for old, new in zip(before, state_of(model, optimizer), strict=True))
    hook.remove()
    assert training_step(model, optimizer, batch_of(model, ZEROS, 5), 1e-2, 1.0, (1, 1)).isfinite()
    assert not all(torch.equal(old, new) for old, new in zip(before, state_of(model, optimizer), strict=True))


@pytest.mark.parametrize("micro_batches", [2, 3, 5])
def test_a_batch_in_micro_batches_makes_the_same_update(micro_batches):
    results = []
    for cut in (1, micro_batches):
        model = build_model(SMALL, 1)
        optimizer = make_optimizer(model, TrainingConfig())
        loss = training_step(model, optimizer, batch_of(model, ZEROS, 6), 1e-2, 1.0, (1, 0), micro_batches=cut)
        results.append((loss, [parameter.grad for parameter in model.parameters()]))
    torch.testing.assert_close(results[0], results[1])


def test_a_fused_kernel_that_ignores_found_inf_is_found_out(monkeypatch):
    real = torch.optim.AdamW.step

    def without_looking(self):
        self.found_inf = None
        real(self)

    monkeypatch.setattr(torch.optim.AdamW, "step", without_looking)
    assert fused_adamw.__wrapped__(torch.device("cpu")) == (True, False)


@pytest.fixture
def config(tmp_path):
    return write_config(tmp_path, SMALL_RUN)


def training(config, *arguments):
    return train.main(["--config", str(config), "--set", "data.K=0", *arguments])


def lines(config):
    return [json.loads(line) for line in (config.parent / "logs" / "training.jsonl").read_text().splitlines()]


def test_skipped_updates_are_logged_with_where_they_were(config, monkeypatch):
    real = training_step

    def sick_twice(model, *arguments, **options):
        hook = spoil(model) if arguments[4][1] in (1, 6) else None  # the seeds are (seed, step)
        try:
            return real(model, *arguments, **options)
        finally:
            if hook:
                hook.remove()

    monkeypatch.setattr("training.run.training_step", sick_twice)
    training(config)
    text = (config.parent / "logs" / "rzz.log").read_text()
    assert "Skipped the update of step 2 (round 0, epoch 1, row 64, lr 2.00e-03)" in text
    assert "Skipped the update of step 7 (round 0, epoch 2, row 64" in text
    assert text.count("Skipped") == 2
    assert all(math.isfinite(line["loss"]) for line in lines(config) if line["kind"] != "round")


def test_too_many_skipped_updates_in_a_row_stop_the_training_and_keep_the_checkpoint(config, monkeypatch):
    real = training_step

    def sick_from_step_5(model, *arguments, **options):
        if arguments[4][1] == 5:
            spoil(model)
        return real(model, *arguments, **options)

    monkeypatch.setattr("training.run.training_step", sick_from_step_5)
    with pytest.raises(UserError, match="3 updates in a row"):
        training(config, "--set", "training.max_bad_steps=3", "--set", "training.validation_interval=1000")
    good = load_checkpoint(config.parent / "checkpoints" / "last.pt")
    assert good["progress"]["step"] == 5
    assert all(tensor.isfinite().all() for tensor in good["model"].values())


class Compiled(torch.nn.Module):
    """Stands for what torch.compile makes of a model."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, *arguments, **options):
        return self.model(*arguments, **options)


def test_out_of_memory_halves_what_is_computed_at_a_time_and_the_run_is_the_same(config, monkeypatch, tmp_path):
    other = write_config(tmp_path / "other", SMALL_RUN)
    no_dropout = ("--set", "model.dropout=0")
    training(other, *no_dropout)
    real = network.logits_of
    monkeypatch.setattr("training.run.compiled", lambda model, device, setting: Compiled(model))

    def too_much_for_20(model, batch, *dtype):
        trains = torch.is_grad_enabled()
        assert isinstance(model, Compiled) == (trains and len(batch.tokens) == 64)  # its CUDA graphs cannot do micro-batches
        if trains and len(batch.tokens) > 20:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return real(model, batch, *dtype)

    monkeypatch.setattr("training.optimizer.logits_of", too_much_for_20)
    training(config, *no_dropout)
    checkpoints = [load_checkpoint(path.parent / "checkpoints" / "last.pt") for path in (config, other)]
    assert checkpoints[0]["progress"]["step"] == checkpoints[1]["progress"]["step"] == 10
    for name, tensor in checkpoints[0]["model"].items():
        torch.testing.assert_close(tensor, checkpoints[1]["model"][name], rtol=1e-3, atol=1e-5)
    text = (config.parent / "logs" / "rzz.log").read_text()
    assert text.count("Out of memory") == 2 and "in 4 parts" in text


def test_another_error_is_not_taken_for_full_memory(config, monkeypatch):
    def broken(*arguments, **options):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr("training.run.training_step", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        training(config)


class FullDisk:
    """A file on a disk with room for 20,000 bytes."""

    def __init__(self, file):
        self.file = file

    def write(self, data):
        if self.file.tell() + len(data) > 20_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.file.write(data)

    def __getattr__(self, name):
        return getattr(self.file, name)


def test_a_full_disk_is_said_and_training_goes_on(config, monkeypatch):
    """As on a real disk, what is smaller may still fit after something that did not."""
    real, paths = checkpoints.atomic_write, []

    @contextmanager
    def full_the_second_time(path, mode="wb"):
        paths.append(path.name)
        with real(path, mode) as file:
            yield FullDisk(file) if len(paths) == 2 else file

    monkeypatch.setattr(checkpoints, "atomic_write", full_the_second_time)
    training(config)
    assert paths == ["last.pt.new", "last.pt.new", "round_0.pt.new", "last.pt.new"]
    text = (config.parent / "logs" / "rzz.log").read_text()
    assert text.count("Could not save last.pt (No space left on device)") == 1
    names = {path.name for path in (config.parent / "checkpoints").iterdir()}
    assert names == {"last.pt", "last.prev.pt", "round_0.pt", "model_card.md", ".lock"}


def test_a_line_of_the_log_that_does_not_fit_the_disk_is_lost_and_the_run_is_the_same(config, monkeypatch, tmp_path):
    other = write_config(tmp_path / "other", SMALL_RUN)
    training(other)
    real, calls = run_log.append_json_lines, []

    def full_the_third_time(path, values):
        calls.append(values)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, values)

    monkeypatch.setattr(run_log, "append_json_lines", full_the_third_time)
    training(config)
    assert "Could not write a line of training.jsonl (No space left on device)" in (config.parent / "logs" / "rzz.log").read_text()
    assert len(lines(config)) == len(lines(other)) - 1
    found = [load_checkpoint(path.parent / "checkpoints" / "last.pt") for path in (config, other)]
    assert [checkpoint["progress"]["log_lines"] for checkpoint in found] == [len(lines(config)), len(lines(other))]
    torch.testing.assert_close(found[0]["model"], found[1]["model"], rtol=0, atol=0)


def disk_that_refuses(monkeypatch, *names):
    """Let the disk be full when files of these names are written, once for each name."""
    real, refused = checkpoints.atomic_write, list(names)

    @contextmanager
    def full_at_times(path, mode="wb"):
        with real(path, mode) as file:
            name = path.name.removesuffix(".new")
            if name in refused:
                refused.remove(name)
                raise OSError(errno.ENOSPC, "No space left on device")
            yield file

    monkeypatch.setattr(checkpoints, "atomic_write", full_at_times)


def test_the_checkpoint_of_a_round_that_did_not_fit_the_disk_is_written_when_there_is_space(config, monkeypatch):
    disk_that_refuses(monkeypatch, "round_0.pt")
    training(config, "--set", "data.K=1")
    found = [load_checkpoint(config.parent / "checkpoints" / f"round_{t}.pt") for t in (0, 1)]
    assert [(each["progress"]["round"], each["progress"]["step"]) for each in found] == [(0, 10), (1, 20)]
    text = (config.parent / "logs" / "rzz.log").read_text()
    assert "Could not save round_0.pt (No space left on device); the older checkpoint stays and training goes on. Free" in text


def test_a_training_that_ends_without_the_checkpoint_of_its_round_says_so(config, monkeypatch):
    disk_that_refuses(monkeypatch, "round_0.pt")
    training(config)
    assert "round_0.pt could not be saved; last.pt is whole." in (config.parent / "logs" / "rzz.log").read_text()
    disk_that_refuses(monkeypatch, "last.pt")
    with pytest.raises(UserError, match="Stopped at .*, which could not be saved in .*: free some space"):
        training(config, "--resume", "--set", "data.K=1", "--set", "training.checkpoint_interval=1000")


def test_on_a_disk_too_full_for_the_zeros_of_a_round_what_was_trained_is_saved_once_there_is_space_for_it(config, monkeypatch):
    real = run.training_zeros

    def full(settings, t):
        if t == 1:
            raise UserError("Cannot write zeros_300_300.npy (No space left on device); free some space")
        return real(settings, t)

    monkeypatch.setattr(run, "training_zeros", full)
    disk_that_refuses(monkeypatch, "round_0.pt", "last.pt", "last.pt", "last.pt")  # after 5 and 10 steps, and the round
    with pytest.raises(UserError, match="Cannot write zeros_300_300.npy"):
        training(config, "--set", "data.K=1")
    assert load_checkpoint(config.parent / "checkpoints" / "last.pt")["progress"]["step"] == 10
    assert load_checkpoint(config.parent / "checkpoints" / "round_0.pt")["progress"]["step"] == 10


def test_waiting_for_zeros_is_no_training(config, monkeypatch):
    real, late = run.training_zeros, [0.0]
    clock = progress.time.monotonic

    def slow(settings, t):
        late[0] += 1000.0
        if t == 1:
            raise StopRequested
        return real(settings, t)

    monkeypatch.setattr(progress.time, "monotonic", lambda: clock() + late[0])
    monkeypatch.setattr(run, "training_zeros", slow)
    training(config, "--set", "data.K=1")
    found = load_checkpoint(config.parent / "checkpoints" / "last.pt")["progress"]
    assert found["step"] == 10 and 0 < found["seconds"] < 1000


def test_fewer_epochs_than_a_round_has_begun_end_it_with_all_that_ends_a_round(config, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("train.catch_stop_signals", stop_after_step(14))  # in the third of four epochs, where it has just validated
        training(config, "--set", "training.epochs=4")
    training(config, "--resume", "--set", "training.epochs=1")
    ended = load_checkpoint(config.parent / "checkpoints" / "round_0.pt")
    assert (ended["progress"]["step"], ended["progress"]["row"], ended["config"]["training"]["epochs"]) == (14, 0, 1)
    last = [line for line in lines(config) if line["kind"] == "validation"][-1]
    assert (last["step"], last["mse_zeros"]) == (14, 30)  # the whole sample
    assert (config.parent / "checkpoints" / "model_card.md").exists()


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_request_to_stop_ends_a_validation_and_where_other_ranks_wait_no_more_than_that(config, monkeypatch, ranks):
    training(config)
    current = run.TrainingRun.load_or_create(load_config(config), torch.device("cpu"))
    settings, t = current.config, current.progress.round
    current.training, current.validation = run.training_zeros(settings, t), run.validation_zeros(settings, t)
    monkeypatch.setattr(run_log, "world_size", lambda: ranks)
    written, goes_on = lines(config), False
    with catch_stop_signals() as stop:
        stop.append(signal.SIGTERM)
        run_log.log_validation(current)
        goes_on = True  # to the next step, in which the other rank waits
    assert goes_on == (ranks == 2) and lines(config) == written


def other_disk(tmp_path):
    """A folder on another disk, where there is one."""
    there = Path("/dev/shm")
    if not there.is_dir() or there.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no other disk here")
    return tempfile.TemporaryDirectory(dir=there)


def test_a_run_whose_folders_are_links_to_another_disk_begins_again(config, tmp_path):
    with other_disk(tmp_path) as there:
        for name in ("checkpoints", "logs"):
            (Path(there) / name).mkdir()
            (config.parent / name).symlink_to(Path(there) / name)
        training(config)
        before = {path.name: path.read_bytes() for path in (config.parent / "checkpoints").glob("*.pt")}
        training(config, "--fresh", "--set", "training.seed=2")
        (archive,) = (config.parent / "previous_runs").iterdir()
        assert before == {path.name: path.read_bytes() for path in archive.glob("*.pt")} and (archive / "training.jsonl").exists()


def test_ctrl_c_while_a_run_is_moved_aside_ends_the_program_after_that(config, monkeypatch):
    training(config)
    names, moved, real = {path.name for path in (config.parent / "checkpoints").glob("*.pt")}, [], run.shutil.move

    def interrupted(source, target):
        signal.raise_signal(signal.SIGINT)
        moved.append(source.name)
        return real(source, target)

    monkeypatch.setattr(run.shutil, "move", interrupted)
    with pytest.raises(KeyboardInterrupt):
        training(config, "--fresh")
    assert names < set(moved) and moved[len(names) - 1] == "last.pt" and not list((config.parent / "checkpoints").glob("*.pt"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no disk that is always full")
def test_the_terminal_has_what_a_full_disk_does_not_take(capsys):
    add_handler(log, LogFile("/dev/full"), "%(message)s")
    add_handler(log, terminal, "%(message)s")
    log.error("said all the same")
    log.handlers[-2].stream = None  # whose close would find the disk full as well
    assert capsys.readouterr().err == "said all the same\n"


def test_a_run_moved_aside_twice_in_one_second_keeps_both(config, monkeypatch):
    class Frozen(run.datetime.datetime):
        @classmethod
        def now(cls, *arguments):
            return cls(2026, 1, 1)

    training(config)
    monkeypatch.setattr(run.datetime, "datetime", Frozen)
    first = (config.parent / "checkpoints" / "last.pt").read_bytes()
    training(config, "--fresh", "--set", "training.epochs=1")
    training(config, "--fresh")
    names = {path.name: path for path in (config.parent / "previous_runs").iterdir()}
    assert set(names) == {"2026-01-01_00-00-00", "2026-01-01_00-00-00-1"}
    assert (names["2026-01-01_00-00-00"] / "last.pt").read_bytes() == first


def test_a_log_that_lost_lines_has_none_twice_after_resumes(config, tmp_path, monkeypatch):
    """Two lines were lost before the checkpoint, as on a full disk, and the run went on beyond it before it was killed."""
    whole = write_config(tmp_path / "whole", SMALL_RUN)
    training(whole)
    monkeypatch.setattr("train.catch_stop_signals", stop_after_step(3))
    training(config, "--set", "training.log_interval=1")
    monkeypatch.undo()
    log = config.parent / "logs" / "training.jsonl"
    kept = log.read_text().splitlines(keepends=True)
    beyond = json.loads(kept[-1]) | {"step": 4, "row": 256}
    log.write_text("".join([kept[0], *kept[3:], json.dumps(beyond) + "\n"]))
    training(config, "--resume", "--set", "training.log_interval=1")
    found = [(line["kind"], line["step"]) for line in lines(config)]
    assert len(found) == len(set(found)) and found.count(("training", 4)) == 1
    assert [step for kind, step in found if kind == "training"][-7:] == list(range(4, 11))


@pytest.mark.parametrize("kind, warned", [("waves", True), ("primes", False)])
def test_sums_that_end_too_early_for_the_height_are_warned_of(run_folder, caplog, kind, warned):
    settings = json.loads((run_folder / "config.json").read_text())
    settings["model"] |= {"index_embedding": kind, "max_number": 8}  # √(t/2π) is 14.9 at zero 920
    settings["data"]["K"] = 2
    config = load_config(write_config(run_folder, settings))
    run.warn_of_few_numbers(config)
    assert ("√(t/2π) = 15 at zero" in caplog.text) == warned


def test_a_resumed_run_computes_with_as_many_threads_as_before(config, monkeypatch, caplog):
    asked = []

    def choose_threads(device, work, before=None):
        if before is None:
            work()
        asked.append(before)
        return before or 1, "because"

    whole = write_config(config.parent / "whole", SMALL_RUN)
    training(whole)
    monkeypatch.setattr(run, "choose_threads", choose_threads)
    monkeypatch.setattr("train.catch_stop_signals", stop_after_step(3))
    training(config)
    monkeypatch.setattr("train.catch_stop_signals", catch_stop_signals)
    training(config, "--resume")
    assert asked == [None, 1]
    assert "threads 1: because" in (config.parent / "logs" / "rzz.log").read_text()
    first, second = (load_checkpoint(each.parent / "checkpoints" / "last.pt") for each in (whole, config))
    # Steps that are timed leave no trace.
    assert all(torch.equal(first["model"][name], second["model"][name]) for name in first["model"])


@pytest.mark.parametrize("first", ["float32", "bfloat16"])
def test_a_resumed_run_multiplies_in_the_precision_that_it_began_with(config, monkeypatch, first):
    """Bit for bit, although the second start would measure that the other one is faster."""
    dtypes, other = {"float32": torch.float32, "bfloat16": torch.bfloat16}, {"float32": "bfloat16", "bfloat16": "float32"}
    asked = []

    def choose_precision(device, setting, work, before=None):
        asked.append(before)
        name = setting if setting != "auto" else before or (other[first] if len(asked) > 2 else first)
        return dtypes[name], "because"

    monkeypatch.setattr(run, "choose_precision", choose_precision)
    whole = write_config(config.parent / "whole", SMALL_RUN)
    training(whole, "--set", f"training.precision={first}")
    auto = ("--set", "training.precision=auto")
    monkeypatch.setattr("train.catch_stop_signals", stop_after_step(3))
    training(config, *auto)
    monkeypatch.setattr("train.catch_stop_signals", catch_stop_signals)
    training(config, *auto, "--resume")
    assert asked == [None, None, first]
    one, two = (load_checkpoint(each.parent / "checkpoints" / "last.pt") for each in (whole, config))
    assert two["progress"]["precision"] == first
    assert all(torch.equal(one["model"][name], two["model"][name]) for name in one["model"])
    assert f"; {first}: because" in (config.parent / "logs" / "rzz.log").read_text()


def test_a_run_of_an_older_version_goes_on_in_float32(config, monkeypatch):
    monkeypatch.setattr("train.catch_stop_signals", stop_after_step(3))
    training(config)
    monkeypatch.setattr("train.catch_stop_signals", catch_stop_signals)
    path = config.parent / "checkpoints" / "last.pt"
    checkpoint = load_checkpoint(path)
    del checkpoint["progress"]["precision"]
    checkpoints.save_checkpoint(checkpoint, path)
    asked = []
    monkeypatch.setattr(run, "choose_precision", lambda *arguments: asked.append(arguments[3]) or (torch.float32, "because"))
    training(config, "--resume")
    assert asked == ["float32"]
