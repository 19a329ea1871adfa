"""One masked pass over a row gives the loss and the gradients of all its trajectories fed one by one, as specified."""

import dataclasses

import numpy as np
import pytest
import torch
from conftest import batch_of, whole_rows
from torch.nn import functional as F

from common.config import INDEX_EMBEDDINGS, Config, ModelConfig, TrainingConfig
from data_utils import RiemannZerosDataset
from model import batches
from model.batches import iterate_batches
from model.network import build_model, cross_entropy, cross_entropy_of, logits_of, parameter_count
from model.tokenizer import encode, encode_rows, targets_of_rows, token_ids, trajectories, zero_text
from training.optimizer import learning_rate_at, make_optimizer, training_step
from tuning.cost import parameter_forecast

SMALL = ModelConfig(d_model=24, num_layers=2, num_heads=2, d_k=8, d_v=6, d_ff=40, max_prime=30)
ZEROS = [(10, 497738), (99, 2311886), (127, 2827651), (1234, 16559723)]


def small_dataset():
    return RiemannZerosDataset(*zip(*ZEROS, strict=True))


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("kind", INDEX_EMBEDDINGS)
def test_loss_and_gradients_equal_those_of_literally_expanded_trajectories(kind):
    model, dataset = build_model(dataclasses.replace(SMALL, index_embedding=kind), seed=1), small_dataset()
    batch = batch_of(model, dataset, 6)
    loss = cross_entropy(logits_of(model, batch), batch.targets)
    ours = gradients(model, loss)

    rows, indexes, wanted, ends = [], [], [], []
    for index, value in ZEROS:
        for prefix, target in trajectories(zero_text(index, value)):
            rows.append(encode(prefix.ljust(32, "p")))
            indexes.append(index)
            wanted.append(token_ids[target])
            ends.append(len(prefix) - 1)
    rows = np.array(rows, np.uint8)
    logits = model(*whole_rows(model, rows, indexes))[torch.arange(len(rows)), ends]
    expanded = F.cross_entropy(logits, torch.tensor(wanted))
    theirs = gradients(model, expanded)

    assert len(rows) == sum(len(zero_text(*zero).split(":")[1]) for zero in ZEROS)
    torch.testing.assert_close(loss, expanded)
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-7, msg=name)


def test_loss_does_not_depend_on_the_columns_beyond_the_longest_row():
    model, dataset = build_model(SMALL, seed=1), small_dataset()
    wide = small_dataset()
    wide.width = 32
    losses = []
    for zeros in (dataset, wide):
        batch = batch_of(model, zeros, 4)
        losses.append(cross_entropy(logits_of(model, batch), batch.targets))
    torch.testing.assert_close(*losses)


def test_rows_that_fill_the_last_batch_change_nothing():
    model, dataset = build_model(SMALL, seed=1), small_dataset()
    losses = []
    for size in (4, 9):
        batch = batch_of(model, dataset, size)
        losses.append(cross_entropy(logits_of(model, batch), batch.targets))
    torch.testing.assert_close(*losses)


def test_columns_before_the_first_target_may_be_left_out_of_the_last_block():
    model, dataset = build_model(SMALL, seed=1), small_dataset()
    batch = batch_of(model, dataset, 4)
    assert dataset.first == 3 and batch.targets.shape[1] == batch.tokens.shape[1] - 3
    everywhere = model(batch.tokens, batch.features)
    torch.testing.assert_close(logits_of(model, batch), everywhere[:, 3:])


@pytest.mark.parametrize("start", [0, 6, 12, 24, 27])
def test_batches_are_the_rows_in_index_order_from_any_start_on(monkeypatch, start):
    monkeypatch.setattr(batches, "PREFETCH_ZEROS", 7)  # two batches a chunk
    indexes = np.arange(9_990, 10_018)
    dataset, model = RiemannZerosDataset(indexes, 98_777_777 + 9_876 * indexes), build_model(SMALL, seed=1)
    found = list(iterate_batches(model, dataset, 3, start))
    assert len(found) == -(-(len(indexes) - start) // 3)
    for number, batch in enumerate(found):
        rows = slice(start + 3 * number, min(start + 3 * number + 3, len(indexes)))
        whole = encode_rows(dataset.indexes[rows], dataset.values[rows])
        tokens, features = whole_rows(model, whole[:, : dataset.width - 1], indexes[rows])
        count = len(tokens)
        assert torch.equal(batch.tokens[:count], tokens)
        assert all(torch.equal(part[:count], expected) for part, expected in zip(batch.features, features, strict=True))
        assert batch.targets[:count].tolist() == targets_of_rows(whole)[:, dataset.first : dataset.width - 1].tolist()
        assert (batch.targets[count:] == token_ids["p"]).all() and len(batch.tokens) == 3
        assert batch.asked == (batch.targets != token_ids["p"]).sum()


def test_an_error_in_the_background_is_an_error_of_the_training():
    model = build_model(SMALL, seed=1)
    model.position_embedding.features = lambda *arguments: 1 / 0
    with pytest.raises(ZeroDivisionError):
        batch_of(model, small_dataset(), 4)


def test_cross_entropy_of_a_set_counts_every_character_once():
    model, dataset = build_model(SMALL, seed=1), small_dataset()
    found = cross_entropy_of(model, dataset)
    batch = batch_of(model, dataset, 4)
    logits, targets = logits_of(model, batch), batch.targets
    asked = sum(len(zero_text(*zero).split(":")[1]) for zero in ZEROS)
    assert found.nats_per_token == pytest.approx(cross_entropy(logits, targets).item(), rel=1e-6)
    assert found.nats_per_zero == pytest.approx(found.nats_per_token * asked / 4, rel=1e-6)
    right = sum(int(logits[row, column].argmax()) == int(targets[row, column])
                for row in range(4) for column in range(targets.shape[1]) if targets[row, column] != 15)  # fmt: skip
    counts = [4] * 8 + [3, 1]  # the four values have 8, 9, 9 and 10 characters with their 'e'
    assert sum(share * count for share, count in zip(found.accuracy_by_position, counts, strict=True)) == pytest.approx(right)


def test_dropout_of_a_step_is_a_function_of_its_seeds():
    settings = dataclasses.replace(SMALL, dropout=0.5)
    results = []
    for seeds, noise in (((1, 7), 0), ((1, 7), 1), ((1, 8), 0)):
        model = build_model(settings, seed=1)
        optimizer = make_optimizer(model, TrainingConfig())
        torch.rand(noise)  # whatever was drawn before does not matter
        training_step(model, optimizer, batch_of(model, small_dataset(), 4), 1e-3, 1.0, seeds)
        results.append(model.head.weight.detach().clone())
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


def test_only_matrices_decay():
    optimizer = make_optimizer(model := build_model(SMALL, seed=1), TrainingConfig(weight_decay=0.5))
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    names = {name for name, parameter in model.named_parameters() if id(parameter) in decayed}
    assert "head.weight" in names and "blocks.0.attention.output.weight" in names
    assert not any(name.endswith("bias") or "norm" in name or "token_embedding" in name or ".position." in name for name in names)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))


def test_gradients_are_clipped_to_their_norm():
    model = build_model(SMALL, seed=1)
    optimizer = make_optimizer(model, TrainingConfig())
    training_step(model, optimizer, batch_of(model, small_dataset(), 4), 0.0, 0.01, (1, 0))
    norm = sum(float((parameter.grad**2).sum()) for parameter in model.parameters()) ** 0.5
    assert norm == pytest.approx(0.01, rel=1e-3)


def test_learning_rate_warms_up_then_falls_to_zero():
    training = TrainingConfig(learning_rate=0.01, warmup_steps=4)
    rates = [learning_rate_at(step, 104, training) for step in range(105)]
    assert rates[:5] == pytest.approx([0.002, 0.004, 0.006, 0.008, 0.01])
    assert all(later < earlier for earlier, later in zip(rates[4:], rates[5:], strict=False))
    assert rates[54] == pytest.approx(0.005) and rates[104] == pytest.approx(0)


def test_a_small_model_learns_its_zeros_by_heart():
    model = build_model(dataclasses.replace(SMALL, index_embedding="digits"), seed=1)
    optimizer, dataset = make_optimizer(model, TrainingConfig()), small_dataset()
    batch = batch_of(model, dataset, 4)
    for step in range(300):
        training_step(model, optimizer, batch, 0.01, 1.0, (1, step))
    assert cross_entropy_of(model, dataset).nats_per_zero < 0.05


@pytest.mark.parametrize("kind", INDEX_EMBEDDINGS)
def test_forecast_of_parameters_is_the_number_of_parameters(kind):
    for settings in (SMALL, Config().model):
        settings = dataclasses.replace(settings, index_embedding=kind)
        assert parameter_forecast(settings) == parameter_count(build_model(settings, seed=0))
