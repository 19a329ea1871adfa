"""Trials trained as one stacked model get what they would have got alone, whatever happens to the others."""

import dataclasses

import conftest
import pytest
import torch

from common.config import Config, ModelConfig, TrainingConfig
from common.devices import seed_device
from data_utils import RiemannZerosDataset
from model.batches import iterate_batches
from model.network import build_model, cross_entropy_of
from training.optimizer import ADAMW, learning_rate_at, make_optimizer, training_step
from tuning.stacked import StackedModels, with_stacked_dropout
from zeta.riemann_siegel import smooth_zeros

SMALL = ModelConfig(d_model=16, num_layers=2, num_heads=2, d_k=8, d_v=6, d_ff=24, max_prime=30)
DEVICE = torch.device(conftest.DEVICE)
STEPS, SIZE = 50, 8


def some_zeros():
    """Numbers that are no zeros but as good to learn: of indexes with two and three digits."""
    indexes = torch.arange(60, 60 + 120).numpy()
    return RiemannZerosDataset(indexes, (smooth_zeros(indexes) * 10_000).astype("int64"))


def member(learning_rate, dropout, **model):
    return Config(model=dataclasses.replace(SMALL, dropout=dropout, **model),
                  training=TrainingConfig(learning_rate=learning_rate, batch_size=SIZE, warmup_steps=5, seed=3))  # fmt: skip


def train(members, steps=STEPS, stack=None):
    stack = stack or StackedModels(members, steps_per_epoch=40, device=DEVICE)
    ready = list(iterate_batches(stack.model, some_zeros(), SIZE))
    for _ in range(steps):
        stack.step(ready[stack.steps % 15])
    return stack


def train_alone(one, steps=STEPS):
    """The training step of stage 2 on a plain model with make_optimizer's AdamW; returns the model."""
    model = build_model(one.model, one.training.seed).to(DEVICE)
    optimizer, ready = make_optimizer(model, one.training), list(iterate_batches(model, some_zeros(), SIZE))
    if one.model.dropout:
        for name in with_stacked_dropout(model):
            model.get_buffer(name).fill_(one.model.dropout)
    for step in range(steps):
        rate = learning_rate_at(step, float("inf"), one.training)
        training_step(model, optimizer, ready[step % 15], rate, one.training.gradient_clip, (3, step))
    return model


def that_matter(stack, index, rows):
    """The weights of one trial without the biases of keys: no prediction depends on them, so their updates are rounding alone."""
    weights = {name: value[index].clone() for name, value in stack.named(rows.detach()).items()}
    keys = slice(0, SMALL.num_heads * SMALL.d_k)
    for name, value in weights.items():
        if name.endswith("key_value.bias"):
            value[keys] = 0
    return weights


@pytest.mark.parametrize("kind", ["digits", "primes"])
def test_each_trial_of_a_stack_gets_what_it_would_have_got_alone(kind):
    members = [member(rate, dropout, index_embedding=kind) for rate in (0.001, 0.01) for dropout in (0.0, 0.3)]
    together = train(members)
    for index, one in enumerate(members):
        alone = train([one])
        for stacked, expected in ((together.weights, alone.weights), (together.ema_weights, alone.ema_weights)):
            torch.testing.assert_close(that_matter(together, index, stacked), that_matter(alone, 0, expected), rtol=0, atol=1e-4)
        torch.testing.assert_close(together.last_losses[index, -1], alone.last_losses[0, -1], rtol=0, atol=1e-4)
    assert (together.weights[0] - together.weights[1]).abs().max() > 0.01  # dropout makes a difference
    assert (together.weights[0] - together.weights[2]).abs().max() > 0.01


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_stack_of_one_makes_the_updates_of_a_plain_training(dropout):
    one = member(0.003, dropout)
    stack = train([one])
    trained = stack.named(stack.weights.detach())
    for name, parameter in train_alone(one).named_parameters():
        torch.testing.assert_close(trained[name][0], parameter, rtol=0, atol=1e-4, msg=name)


@pytest.mark.parametrize("setting, value", [("betas", (0.5, 0.6)), ("eps", 0.01), ("weight_decay", 5.0)])
def test_a_change_of_the_optimizer_reaches_the_stacks(monkeypatch, setting, value):
    one = member(0.003, 0.0)
    unchanged = train([one], 5)
    if setting in ADAMW:
        monkeypatch.setitem(ADAMW, setting, value)
    else:
        one = dataclasses.replace(one, training=dataclasses.replace(one.training, **{setting: value}))
    changed = train([one], 5)
    expected = {name: parameter.detach() for name, parameter in train_alone(one, 5).named_parameters()}
    keys = slice(0, SMALL.num_heads * SMALL.d_k)
    for name in expected:
        if name.endswith("key_value.bias"):
            expected[name][keys] = 0
    torch.testing.assert_close(that_matter(changed, 0, changed.weights), expected, rtol=0, atol=1e-6)
    with pytest.raises(AssertionError, match="not close"):  # as the first comparison would be, with settings of its own
        torch.testing.assert_close(that_matter(unchanged, 0, unchanged.weights), expected, rtol=0, atol=1e-3)


def test_a_trial_that_diverges_disturbs_no_other_and_is_marked():
    good = [member(0.001, 0.1), member(0.003, 0.0)]
    with_bad = train([good[0], member(1e30, 0.1), good[1]])
    assert with_bad.finite.tolist() == [True, False, True]
    without = train(good)
    for index, other in ((0, 0), (2, 1)):
        torch.testing.assert_close(that_matter(with_bad, index, with_bad.weights), that_matter(without, other, without.weights),
                                   rtol=0, atol=1e-4)  # fmt: skip


def test_a_stack_that_goes_on_from_its_state_is_the_same_bit_for_bit():
    members = [member(0.001, 0.2), member(0.01, 0.0)]
    through = train(members, 30)
    half = train(members, 17)
    resumed = StackedModels(members[::-1], steps_per_epoch=40, device=DEVICE)
    resumed.load_states([half.state(1), half.state(0)])
    train(members[::-1], 13, resumed)
    assert resumed.steps == 30
    for index, other in ((0, 1), (1, 0)):
        state, expected = resumed.state(index), through.state(other)
        assert state.keys() == expected.keys() and state.pop("steps") == expected.pop("steps") == 30
        assert not [name for name in expected if not torch.equal(state[name], expected[name])]


def test_scores_of_a_stack_are_those_of_its_averaged_models():
    stack, dataset = train([member(0.001, 0.2), member(0.01, 0.0)], 20), some_zeros()
    for index, nats in enumerate(stack.nats_per_zero(list(iterate_batches(stack.model, dataset, 50)), len(dataset))):
        assert nats == pytest.approx(cross_entropy_of(stack.averaged_model(index), dataset).nats_per_zero, rel=1e-5)


def test_dropout_zeroes_its_share_and_keeps_the_mean_and_draws_a_function_of_seed_and_step():
    stack = train([member(0.001, 0.25)], 1)
    dropout = stack.model.embedding_dropout
    dropout.rate.fill_(0.25)
    dropout.train()
    x = torch.ones(200, 500, device=DEVICE)
    seed_device(DEVICE, 1)
    first = dropout(x)
    assert (first == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert first.mean().item() == pytest.approx(1, abs=0.01)
    seed_device(DEVICE, 1)
    assert torch.equal(dropout(x), first) and torch.equal(dropout.eval()(x), x)
