"""The plain versions compute what the program does: the same rows, logits, losses, updates and texts."""

import dataclasses

import numpy as np
import pytest
import torch
from conftest import batch_of

from common.config import CONTEXT, ModelConfig, TrainingConfig
from data_utils import RiemannZerosDataset
from model import reference
from model.batches import iterate_batches
from model.network import build_model, cross_entropy, logits_of
from model.sampling import up_to_end
from model.tokenizer import END, PAD, encode_prompts, encode_rows
from training.optimizer import make_optimizer, training_step
from transformer import generate
from zeta.riemann_siegel import smooth_zeros

SETTINGS = ModelConfig(d_model=16, num_layers=2, num_heads=2, index_embedding="digits")
TRAINING = TrainingConfig(batch_size=8, learning_rate=1e-3)
MAKERS = [reference.whole_rows, reference.literal_trajectories]


@pytest.fixture
def zeros():
    indexes = np.arange(9_980, 10_020)  # rows of two lengths
    return RiemannZerosDataset(indexes, (smooth_zeros(indexes) * 10_000).astype(np.int64))


@pytest.fixture
def model():
    model = build_model(SETTINGS, seed=1)
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms too are not what they are at first
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def test_rows_encoded_one_by_one_are_those_of_encode_rows(zeros):
    assert (reference.encoded_one_by_one(zeros.indexes, zeros.values) == encode_rows(zeros.indexes, zeros.values)).all()


def test_other_libraries_give_the_same_zeros():
    known = [14.134725141734693, 21.022039638771554, 25.010857580145688]
    for zeros in (reference.mpmath_zeros(1, 3), reference.flint_zeros(1, 3)):
        assert [float(zero) for zero in zeros] == pytest.approx(known, abs=1e-12)


def test_a_plain_gpt_has_the_logits_of_the_model_and_weights_of_its_own(model, zeros):
    batch = batch_of(model, zeros, 40)
    plain = reference.PlainGPT(model)
    assert torch.allclose(plain(batch.tokens)[:, batch.first :], logits_of(model, batch), atol=1e-5)
    assert not {p.data_ptr() for p in plain.parameters()} & {p.data_ptr() for p in model.parameters()}
    assert all(parameter.requires_grad for parameter in plain.parameters())


@pytest.mark.parametrize("make_batch", MAKERS)
def test_both_forms_of_a_batch_have_the_loss_of_the_masked_pass(model, zeros, make_batch):
    inputs, targets = make_batch(zeros, 0, 40)
    assert inputs.shape == targets.shape and inputs.shape[1] == CONTEXT - 1
    batch = batch_of(model, zeros, 40)
    assert (targets != PAD).sum() == (batch.targets != PAD).sum()
    loss = cross_entropy(reference.PlainGPT(model)(inputs), targets)
    assert loss.item() == pytest.approx(cross_entropy(logits_of(model, batch), batch.targets).item(), rel=1e-5)


def test_every_literal_trajectory_is_a_row_with_one_target(zeros):
    _, targets = reference.literal_trajectories(zeros, 0, 40)
    assert ((targets != PAD).sum(1) == 1).all()


def test_the_optimizer_of_a_plain_gpt_decays_the_same_weights(model):
    plain = reference.PlainGPT(model)
    sizes = []
    for each in (model, plain):
        groups = make_optimizer(each, dataclasses.replace(TRAINING, weight_decay=0.5), fused=False).param_groups
        assert [group["weight_decay"] for group in groups] == [0.5, 0.0]
        sizes.append(sum(parameter.numel() for parameter in groups[0]["params"]))
    assert sizes[0] == sizes[1] == sum(p.numel() for name, p in plain.named_parameters()
                                       if name.endswith("weight") and "norm" not in name and "embedding" not in name)  # fmt: skip


@pytest.mark.parametrize("make_batch", MAKERS)
def test_the_plain_training_has_the_losses_of_the_programs_own(zeros, make_batch):
    model = build_model(SETTINGS, seed=1)
    plain = reference.PlainGPT(model)
    batches = [make_batch(zeros, start, 8) for start in range(0, 40, 8)]
    losses = reference.train_reference(plain, make_optimizer(plain, TRAINING, fused=False), batches)
    optimizer = make_optimizer(model, TRAINING)
    ours = [training_step(model, optimizer, batch, 1e-3, 1.0, (1, step)).item()
            for step, batch in enumerate(iterate_batches(model, zeros, 8))]  # fmt: skip
    assert losses == pytest.approx(ours, rel=1e-4)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("kind", ["digits", "primes"])
def test_generation_without_a_cache_writes_the_same_texts(kind):
    model = build_model(dataclasses.replace(SETTINGS, index_embedding=kind, max_prime=30), seed=2)
    indexes = np.arange(10_000, 10_020)
    ((_, prompts),) = encode_prompts(indexes)
    uniforms = torch.rand(20, 3, CONTEXT, generator=torch.Generator().manual_seed(3))
    cached = generate(model, torch.from_numpy(prompts), torch.from_numpy(indexes), uniforms, 0.9, END)
    slow = reference.generate_without_cache(model, prompts, indexes, uniforms, 0.9)
    assert cached.shape == slow.shape == (20, 3, CONTEXT)
    for one, other in zip(cached.view(-1, CONTEXT).tolist(), slow.reshape(-1, CONTEXT).tolist(), strict=True):
        assert up_to_end(one) == up_to_end(other)
