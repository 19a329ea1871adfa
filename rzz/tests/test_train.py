"""What the loop feeds to a step and to its measures: every zero in its order, the scheduled rate, the right sets."""

import json
import re

import pytest
import torch
from conftest import DEVICE, SMALL_RUN, stop_after_step, write_config

import evaluate
import train
from common.config import UserError, load_config
from common.devices import compile_failure
from common.signals import StopRequested
from data_utils import validation_zeros
from model.tokenizer import PAD, decode
from training import run, run_log
from training.checkpoints import load_checkpoint, trained_zeros
from training.optimizer import learning_rate_at


@pytest.fixture
def config_path(tmp_path):
    return write_config(tmp_path, SMALL_RUN)


def recorded(monkeypatch, module, name):
    """Let `module.name` work as before and collect its positional arguments."""
    real, calls = getattr(module, name), []

    def record(*arguments, **options):
        calls.append(arguments)
        return real(*arguments, **options)

    monkeypatch.setattr(module, name, record)
    return calls


def indexes_of(batch):
    """The indexes that the model reads in the rows of a Batch that carry a loss."""
    rows = batch.tokens[(batch.targets != PAD).any(1)]
    return [int(decode(row.tolist())[1:].split(":")[0]) for row in rows]


def test_every_zero_is_trained_on_in_index_order_in_every_epoch_of_every_round(config_path, monkeypatch):
    steps = recorded(monkeypatch, run, "training_step")
    train.main(["--config", str(config_path)])
    seen = [index for _, _, batch, *_ in steps for index in indexes_of(batch)]
    rounds = [range(1, 300), range(300, 600), range(600, 900)]
    assert seen == [index for indexes in rounds for _ in range(2) for index in indexes]


def test_each_step_has_the_scheduled_learning_rate_and_its_own_seed(config_path, monkeypatch):
    steps = recorded(monkeypatch, run, "training_step")
    train.main(["--config", str(config_path)])
    settings = load_config(config_path).training
    assert [step[3] for step in steps] == [learning_rate_at(k, 30, settings) for k in range(30)]
    assert [step[5] for step in steps] == [(1, k, 0) for k in range(30)]
    lines = [json.loads(line) for line in (config_path.parent / "logs" / "training.jsonl").read_text().splitlines()]
    rates = {line["step"]: line["learning_rate"] for line in lines if line["kind"] == "training"}
    assert rates == {step: learning_rate_at(step - 1, 30, settings) for step in {*range(4, 31, 4), 10, 20, 30}}


def test_the_logged_mse_is_of_the_zeros_trained_last_and_of_the_validation_sample(config_path, monkeypatch):
    sampled = recorded(monkeypatch, run_log, "sampled_predictions")
    train.main(["--config", str(config_path), "--set", "data.K=0"])
    indexes = [call[1].indexes.tolist() for call in sampled[1:]]  # the first was before training
    assert indexes[0] == list(range(124, 129))  # step 7: two batches of 64 into the second epoch, the last five zeros
    assert indexes[2] == list(range(270, 300))  # the end of the round: as many as the sample has
    sample = validation_zeros(load_config(config_path), 0).indexes.tolist()
    assert set(indexes[1]) <= set(sample) and len(indexes[1]) == 5 and indexes[3] == sample


def test_fewer_epochs_on_a_resumed_run_never_skip_zeros_of_the_next_round(config_path, monkeypatch):
    train.main(["--config", str(config_path), "--set", "data.K=0", "--set", "training.epochs=1"])
    with monkeypatch.context() as patch:
        patch.setattr(train, "catch_stop_signals", stop_after_step(3))
        train.main(["--config", str(config_path), "--resume", "--set", "training.epochs=2"])
    steps = recorded(monkeypatch, run, "training_step")
    train.main(["--config", str(config_path), "--resume", "--set", "training.epochs=1", "--set", "data.K=1",
                "--set", "training.log_interval=1"])  # fmt: skip
    seen = [index for _, _, batch, *_ in steps for index in indexes_of(batch)]
    assert seen == list(range(300, 600))


def test_the_zeros_that_a_validation_writes_out_are_of_its_sample(config_path):
    train.main(["--config", str(config_path), "--set", "data.K=0"])
    log = (config_path.parent / "logs" / "training.log").read_text()
    sample = validation_zeros(load_config(config_path), 0)
    true = dict(zip(sample.indexes.tolist(), sample.values.tolist(), strict=True))
    written = re.findall(r"b(\d+): (\d+)\.(\d{4}) · the model ", log)
    assert len(written) == 6 and all(true[int(index)] == int(whole + decimals) for index, whole, decimals in written)


def test_a_run_that_stops_between_two_rounds_knows_what_it_was_trained_on_and_goes_on_with_one_line_of_a_round(
    config_path, monkeypatch
):
    def stop_as_the_last_begins(current):
        run_log.log_start_of_round(current)
        if current.progress.round == 2:
            raise StopRequested

    with monkeypatch.context() as patch:
        patch.setattr(train, "log_start_of_round", stop_as_the_last_begins)
        train.main(["--config", str(config_path)])
    checkpoint = load_checkpoint(config_path.parent / "checkpoints" / "last.pt")
    assert (checkpoint["progress"]["round"], checkpoint["progress"]["row"]) == (2, 0) and trained_zeros(checkpoint) == (1, 599)
    with pytest.raises(UserError, match="was trained on zeros up to 599, but the test set begins at 300"):
        evaluate.main(["--config", str(config_path), "--set", "data.K=0"])
    train.main(["--config", str(config_path), "--resume", "--set", "data.K=1"])  # which is done
    assert load_checkpoint(config_path.parent / "checkpoints" / "round_1.pt")["progress"]["step"] == checkpoint["progress"]["step"]
    train.main(["--config", str(config_path), "--resume"])
    lines = [json.loads(line) for line in (config_path.parent / "logs" / "training.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines if line["kind"] == "round"] == [0, 1, 2]


@pytest.mark.parametrize(("first", "then"), [("on", "off"), ("off", "on")])
def test_a_run_goes_on_with_and_without_torch_compile(tmp_path, monkeypatch, first, then):
    if failure := compile_failure(torch.device(DEVICE)):
        pytest.skip(failure)
    checkpoints = []
    for name, ways in (("plain", ("off", "off")), ("mixed", (first, then))):
        config = write_config(tmp_path / name, SMALL_RUN)
        options = ["--config", str(config), "--set", "data.K=0", "--set", "model.dropout=0", "--set"]
        with monkeypatch.context() as patch:
            patch.setattr(train, "catch_stop_signals", stop_after_step(3))
            train.main([*options, f"training.compile={ways[0]}"])
        train.main([*options, f"training.compile={ways[1]}", "--resume"])
        checkpoints.append(load_checkpoint(config.parent / "checkpoints" / "last.pt"))
    assert [checkpoint["progress"]["step"] for checkpoint in checkpoints] == [10, 10]
    for part in ("model", "optimizer"):
        torch.testing.assert_close(checkpoints[0][part], checkpoints[1][part], rtol=1e-3, atol=1e-5)


def test_bfloat16_multiplies_and_leaves_all_else_in_float32(tmp_path, monkeypatch):
    """Stopped after the third step, a run goes on bit for bit, and its losses are nearly those of float32."""
    checkpoints, seen = {}, set()
    linear = torch.nn.functional.linear

    def recorded_linear(*arguments):
        product = linear(*arguments)
        seen.add((torch.is_autocast_enabled(DEVICE), product.dtype))
        return product

    monkeypatch.setattr(torch.nn.functional, "linear", recorded_linear)
    for name in ("float32", "bfloat16", "interrupted"):
        options = ["--config", str(write_config(tmp_path / name, SMALL_RUN)), "--set", "data.K=0", "--set"]
        options.append(f"training.precision={name if name != 'interrupted' else 'bfloat16'}")
        if name == "interrupted":
            with monkeypatch.context() as patch:
                patch.setattr(train, "catch_stop_signals", stop_after_step(3))
                train.main(options)
        train.main([*options, "--resume"])
        checkpoints[name] = load_checkpoint(tmp_path / name / "checkpoints" / "last.pt")
        assert all(weight.dtype == torch.float32 for weight in checkpoints[name]["model"].values())
    assert seen == {(False, torch.float32), (True, torch.bfloat16)}
    torch.testing.assert_close(checkpoints["interrupted"]["model"], checkpoints["bfloat16"]["model"], rtol=0, atol=0)
    assert "; bfloat16: asked for" in (tmp_path / "bfloat16" / "logs" / "rzz.log").read_text()
    losses = [json.loads((tmp_path / name / "logs" / "training.jsonl").read_text().splitlines()[-1])["nats_per_zero"]
              for name in ("float32", "bfloat16")]
    assert losses[0] != losses[1] and losses[1] == pytest.approx(losses[0], rel=0.01)


def test_evaluation_samples_as_the_settings_say(config_path, monkeypatch):
    train.main(["--config", str(config_path)])
    sampled = recorded(monkeypatch, evaluate, "sampled_predictions")
    evaluate.main(["--config", str(config_path), "--set", "evaluation.seed=5"])
    ((_, dataset, runs, top_p, seed, _),) = sampled
    assert (dataset.indexes.tolist(), runs, top_p, seed) == (list(range(900, 920)), 3, 0.9, 5)


def test_a_larger_test_set_than_the_training_left_out_is_warned_of(config_path):
    train.main(["--config", str(config_path)])
    for size in (10, 20, 21):
        evaluate.main(["--config", str(config_path), "--set", f"data.N={size}"])
        assert ("may hold zeros of this test set" in (config_path.parent / "logs" / "rzz.log").read_text()) == (size > 20)
