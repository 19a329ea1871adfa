"""The model sees no later position, generation with cached keys equals generation without, sampling keeps to the nucleus."""

import dataclasses

import numpy as np
import pytest
import torch
from conftest import whole_rows

from common.config import ModelConfig
from common.devices import derive_seed
from data_utils import RiemannZerosDataset
from model import sampling
from model.index_embedding import KINDS
from model.network import build_model, parameter_count
from model.sampling import sampled_texts
from model.tokenizer import END, encode_prompts
from transformer import generate, nucleus_sample

SMALL = ModelConfig(d_model=24, num_layers=2, num_heads=3, d_k=5, d_v=7, d_ff=50, max_prime=20)


def small_model(kind, seed=3):
    model = build_model(dataclasses.replace(SMALL, index_embedding=kind), seed)
    with torch.no_grad():  # larger weights than at the start, so that every path matters to the logits
        for parameter in model.parameters():
            parameter.normal_(0, 0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    return model.eval()


def dataset_around(first, count):
    indexes = np.arange(first, first + count)
    values = np.array([int(23456.7891 * 10000) + 777 * k for k in range(count)])
    return RiemannZerosDataset(indexes, values)


@pytest.mark.parametrize("kind", KINDS)
def test_no_position_sees_a_later_character(kind):
    model, dataset = small_model(kind), dataset_around(25_000, 8)
    inputs, _, indexes = dataset.batch(0, 8)
    with torch.no_grad():
        before = model(*whole_rows(model, inputs, indexes))
        for column in range(7, inputs.shape[1]):  # everything after ':' (column 6) is the model's to write
            changed = inputs.copy()
            changed[:, column:] = np.random.default_rng(column).integers(0, 16, changed[:, column:].shape)
            after = model(*whole_rows(model, changed, indexes))
            assert torch.equal(before[:, :column], after[:, :column])
            assert not torch.equal(before[:, column], after[:, column])


def test_parameters_have_the_asked_shapes():
    model = small_model("digits")
    attention = model.blocks[0].attention
    assert attention.query.weight.shape == (3 * 5, 24)
    assert attention.key_value.weight.shape == (3 * (5 + 7), 24)
    assert attention.output.weight.shape == (24, 3 * 7)
    assert model.head.weight.shape == (16, 24)
    assert len(model.blocks) == 2 and parameter_count(model) > 0


def test_attention_equals_the_textbook_formula_written_out():
    model = small_model("digits")
    attention = model.blocks[0].attention
    x = torch.randn(2, 6, 24, generator=torch.Generator().manual_seed(0))
    projected = torch.cat([attention.query(x), attention.key_value(x)], -1)
    expected = torch.zeros(2, 6, 21)
    for b in range(2):
        for h in range(3):
            q = projected[b, :, 5 * h : 5 * h + 5]
            k = projected[b, :, 15 + 5 * h : 15 + 5 * h + 5]
            v = projected[b, :, 30 + 7 * h : 30 + 7 * h + 7]
            for t in range(6):
                weights = torch.softmax(torch.stack([q[t] @ k[s] / 5**0.5 for s in range(t + 1)]), 0)
                expected[b, t, 7 * h : 7 * h + 7] = sum(weight * v[s] for s, weight in enumerate(weights))
    torch.testing.assert_close(attention(x), attention.output(expected))


@pytest.mark.parametrize("kind", KINDS)
def test_cached_generation_writes_what_the_whole_row_recomputed_at_each_step_writes(kind):
    model = small_model(kind)
    indexes = torch.arange(995, 1000)
    ((_, prompts),) = encode_prompts(indexes)
    prompts = torch.from_numpy(prompts)
    uniforms = torch.rand(5, 3, 32, generator=torch.Generator().manual_seed(1))
    rows = generate(model, prompts, indexes, uniforms, 0.9, END)

    for zero in range(5):
        for run in range(3):
            row = prompts[zero].tolist()
            while len(row) < 32 and END not in row:
                padded = np.array([row + [15] * (32 - len(row))], np.uint8)
                with torch.no_grad():
                    logits = model(*whole_rows(model, padded, indexes[zero : zero + 1]))[:, len(row) - 1]
                row.append(int(nucleus_sample(logits, 0.9, uniforms[zero, run, len(row)][None])))
            assert rows[zero, run, : len(row)].tolist() == row


def test_indexes_of_different_lengths_are_written_as_if_each_were_alone():
    model = small_model("primes")
    written = []
    together = sampled_texts(model, np.array([9, 10, 12345, 98, 11]), runs=2, top_p=0, seed=1, written=written.append)
    assert sum(written) == 5
    alone = [sampled_texts(model, np.array([index]), runs=2, top_p=0, seed=1)[0] for index in (9, 10, 12345, 98, 11)]
    assert together == alone and together[2][0].startswith("b12345:")


def test_more_runs_than_a_batch_holds_are_the_runs_of_fewer_batches(monkeypatch):
    model, indexes = small_model("primes"), np.array([9, 10, 11])
    texts = sampled_texts(model, indexes, runs=5, top_p=0.9, seed=1)
    monkeypatch.setattr(sampling, "GENERATION_BATCH", 2)
    assert sampled_texts(model, indexes, runs=5, top_p=0.9, seed=1) == texts


def test_nucleus_holds_the_most_probable_tokens_up_to_p_and_no_other():
    logits = torch.log(torch.tensor([[0.5, 0.05, 0.3, 0.15]])).repeat(10_000, 1)
    uniform = (torch.arange(10_000) + 0.5) / 10_000
    counts = torch.bincount(nucleus_sample(logits, 0.8, uniform), minlength=4) / 10_000
    torch.testing.assert_close(counts, torch.tensor([0.625, 0.0, 0.375, 0.0]), atol=1e-3, rtol=0)
    counts = torch.bincount(nucleus_sample(logits, 0.81, uniform), minlength=4) / 10_000
    torch.testing.assert_close(counts, torch.tensor([0.5, 0, 0.3, 0.15]) / 0.95, atol=1e-3, rtol=0)
    assert (nucleus_sample(logits, 0.0, uniform) == 0).all()
    counts = torch.bincount(nucleus_sample(logits, 1.0, uniform), minlength=4) / 10_000
    torch.testing.assert_close(counts, torch.tensor([0.5, 0.05, 0.3, 0.15]), atol=1e-3, rtol=0)


def test_nucleus_never_leaves_itself_at_the_ends_of_the_random_numbers():
    logits = torch.tensor([[3.0, 2.0, -40.0, -60.0]]).repeat(2, 1)
    assert nucleus_sample(logits, 0.9, torch.tensor([0.0, 1.0 - 2**-24])).tolist() == [0, 1]


def test_seeds_of_neighbouring_steps_are_unrelated_and_fit_a_generator():
    seeds = {derive_seed(seed, step) for seed in range(20) for step in range(50)}
    assert len(seeds) == 1000 and all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(1, 0) != derive_seed(0, 1)
