"""A step is one AdamW update: clipped, scheduled, its dropout a function of its seeds, and a small model learns by it."""

import dataclasses

import pytest
import torch
from conftest import batch_of

from common.config import ModelConfig, TrainingConfig
from data_utils import RiemannZerosDataset
from model.network import build_model, cross_entropy_of
from training.optimizer import learning_rate_at, make_optimizer, training_step

SMALL = ModelConfig(d_model=24, num_layers=2, num_heads=2, d_k=8, d_v=6, d_ff=40, max_prime=30)
ZEROS = [(10, 497738), (99, 2311886), (127, 2827651), (1234, 16559723)]


def small_dataset():
    return RiemannZerosDataset(*zip(*ZEROS, strict=True))


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
