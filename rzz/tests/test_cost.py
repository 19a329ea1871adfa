"""Forecasts of memory, operations and time agree with what is counted, and the figures of a host are found again."""

import dataclasses

import pytest
import torch
from conftest import batch_of
from torch.utils.flop_counter import FlopCounterMode

from common.config import Config, ModelConfig, Throughput, TrainingConfig
from model.batches import first_batch, iterate_batches
from model.index_embedding import KINDS
from model.network import build_model, cross_entropy, logits_of, parameter_count
from training.optimizer import make_optimizer
from tuning import cost
from tuning.cost import (
    activation_bytes,
    fitted_speed,
    flops_per_zero,
    parameters_of,
    prepare_seconds,
    some_zeros,
    state_bytes,
    step_seconds,
)

MODELS = [
    ModelConfig(d_model=32, num_layers=1, num_heads=2, index_embedding="smooth"),
    ModelConfig(d_model=64, num_layers=2, num_heads=8, d_k=32, d_v=16, dropout=0.1),
    ModelConfig(d_model=128, num_layers=4),
    ModelConfig(d_model=192, num_layers=2, num_heads=4, dropout=0.1, index_embedding="digits"),
]


def measured_bytes(model, size):
    """Bytes that an update holds at once, counted on the CPU: weights, gradients, AdamW's averages, what autograd saves."""
    built = build_model(model, seed=1)
    batch = next(iterate_batches(built, some_zeros(size), size))
    parameters = {parameter.untyped_storage().data_ptr() for parameter in built.parameters()}
    saved = {}  # the tensors are held as well, so that no address is given out twice

    def note(tensor):
        if tensor.untyped_storage().data_ptr() not in parameters:
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = cross_entropy(logits_of(built, batch), batch.targets)
    loss.backward()
    optimizer = make_optimizer(built, TrainingConfig())
    optimizer.step()
    averages = sum(value.nbytes for state in optimizer.state.values() for value in state.values() if value.dim())
    weights = sum(parameter.nbytes + parameter.grad.nbytes for parameter in built.parameters())
    return weights + averages + sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("size", [16, 64])
def test_forecast_of_memory_is_what_autograd_and_the_optimizer_hold(model, size):
    T = some_zeros(1).width - 1
    forecast = state_bytes(model) + size * activation_bytes(model, T)
    assert 1 / 1.3 < forecast / measured_bytes(model, size) < 1.3


@pytest.mark.parametrize("model", [*MODELS, *(dataclasses.replace(MODELS[2], index_embedding=kind) for kind in KINDS)])
def test_forecast_of_operations_is_what_torch_counts(model):
    zeros, built = some_zeros(8), build_model(model, seed=1)
    batch = batch_of(built, zeros, 8)
    with FlopCounterMode(display=False) as counter:
        cross_entropy(logits_of(built, batch), batch.targets).backward()
    assert 1 / 1.1 < 8 * flops_per_zero(model, zeros.width - 1) / counter.get_total_flops() < 1.1


def test_forecast_of_what_it_takes_to_prepare_a_zero_is_what_torch_counts():
    built = build_model(MODELS[1], seed=1)
    batch = first_batch(built, some_zeros(8), 8)
    with FlopCounterMode(display=False) as counter:
        batch.prepared(built)
    seconds = 8 * prepare_seconds(MODELS[1], Throughput(tflops=1e-12, gb_per_s=1e12))
    assert 1 / 1.1 < seconds / counter.get_total_flops() < 1.1


@pytest.mark.parametrize("speed", [Throughput(0.2, 1.5, 1.4), Throughput(4.0, 100.0, 0.1), Throughput(0.01, 50.0, 2.0)])
def test_the_figures_of_a_host_are_found_again_from_its_times(monkeypatch, speed):
    T = some_zeros(1).width - 1
    draw = torch.Generator().manual_seed(1)

    def seconds(model, size, device):
        return step_seconds(model, size, T, speed) * (1 + 0.02 * torch.randn((), generator=draw).item())

    monkeypatch.setattr(cost, "measured_step_seconds", seconds)
    found = fitted_speed(torch.device("cpu"))
    for model, size in cost.COMPARED:
        assert step_seconds(model, size, T, found) == pytest.approx(step_seconds(model, size, T, speed), rel=0.1)


def test_a_figure_that_does_not_show_in_the_times_is_not_negative(monkeypatch):
    monkeypatch.setattr(cost, "measured_step_seconds", lambda model, size, device: 0.002 * (model.num_layers + 1))
    found = fitted_speed(torch.device("cpu"))
    assert found.layer_ms == pytest.approx(2) and found.tflops > 0 and found.gb_per_s > 0
    assert step_seconds(MODELS[2], 128, 23, found) == pytest.approx(0.01, rel=1e-3)


def test_a_launch_that_does_not_show_in_the_times_is_a_number_that_the_settings_take(monkeypatch):
    T = some_zeros(1).width - 1
    monkeypatch.setattr(cost, "measured_step_seconds", lambda model, size, device: 1e-9 * size * flops_per_zero(model, T))
    found = fitted_speed(torch.device("cpu"))
    assert found.tflops == pytest.approx(1e-3) and 1e-9 < found.layer_ms < 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_forecast_of_parameters_is_the_number_of_parameters(kind):
    for settings in (*MODELS, Config().model):
        settings = dataclasses.replace(settings, index_embedding=kind)
        assert parameters_of(settings) == parameter_count(build_model(settings, seed=0))
