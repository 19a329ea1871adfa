"""One masked pass over a row gives the loss and the gradients of all its trajectories fed one by one, as specified."""

import dataclasses

import numpy as np
import pytest
import torch
from conftest import batch_of, whole_rows
from torch.nn import functional as F

from common.config import ModelConfig
from data_utils import RiemannZerosDataset
from model.index_embedding import KINDS
from model.network import build_model, cross_entropy, cross_entropy_of, logits_of
from model.tokenizer import encode, token_ids, trajectories, zero_text

SMALL = ModelConfig(d_model=24, num_layers=2, num_heads=2, d_k=8, d_v=6, d_ff=40, max_prime=30)
ZEROS = [(10, 497738), (99, 2311886), (127, 2827651), (1234, 16559723)]


def small_dataset():
    return RiemannZerosDataset(*zip(*ZEROS, strict=True))


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("kind", KINDS)
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
