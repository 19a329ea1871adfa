"""Batches are the rows in index order, from any start on, and errors of the background are not lost."""


import numpy as np
import pytest
import torch
from conftest import batch_of, whole_rows

from common.config import Config, ModelConfig, TrainingConfig
from data_utils import RiemannZerosDataset
from model import batches
from model.batches import index_noise, iterate_batches
from model.network import build_model
from model.tokenizer import encode_rows, targets_of_rows, token_ids

SMALL = ModelConfig(d_model=24, num_layers=2, num_heads=2, d_k=8, d_v=6, d_ff=40, max_prime=30)
ZEROS = [(10, 497738), (99, 2311886), (127, 2827651), (1234, 16559723)]


def small_dataset():
    return RiemannZerosDataset(*zip(*ZEROS, strict=True))


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
        assert batch.features.keys() == features.keys()
        for name in features:  # sums of more rows at once may be rounded otherwise
            torch.testing.assert_close(batch.features[name][:count], features[name], rtol=0, atol=1e-5)
        assert batch.targets[:count].tolist() == targets_of_rows(whole)[:, dataset.first : dataset.width - 1].tolist()
        assert (batch.targets[count:] == token_ids["p"]).all() and len(batch.tokens) == 3
        assert batch.num_targets == (batch.targets != token_ids["p"]).sum()


@pytest.mark.parametrize("cut_on_device, calls", [(True, [6] * 5), (False, [3] * 10)])
def test_what_needs_no_weights_is_computed_once_a_chunk_unless_batches_are_cut_elsewhere(monkeypatch, cut_on_device, calls):
    """Elsewhere as for XLA, for which a second number of the CPU stands here."""
    monkeypatch.setattr(batches, "PREFETCH_ZEROS", 7)
    indexes = np.arange(9_990, 10_018)
    dataset, model = RiemannZerosDataset(indexes, 98_777_777 + 9_876 * indexes), build_model(SMALL, seed=1)
    prepare, sizes = model.position_embedding.prepare, []

    def counted(features):
        sizes.append(len(features["slot"]))
        return prepare(features)

    monkeypatch.setattr(model.position_embedding, "prepare", counted)
    if not cut_on_device:
        monkeypatch.setattr(batches, "slicing_device", lambda device: torch.device("cpu", 1))
        monkeypatch.setattr(batches.Batch, "to", lambda batch, device: batch)
    found = list(iterate_batches(model, dataset, 3))
    assert sizes == calls and len(found) == 10
    assert not any(feature.requires_grad for batch in found for feature in batch.features.values())


def test_an_error_in_the_background_is_an_error_of_the_training():
    model = build_model(SMALL, seed=1)
    model.position_embedding.features = lambda *arguments: 1 / 0
    with pytest.raises(ZeroDivisionError):
        batch_of(model, small_dataset(), 4)


def noise_config(kind="waves", share=0.5):
    return Config(model=ModelConfig(index_embedding=kind), training=TrainingConfig(index_noise=share, seed=3))


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_noise_changes_digits_of_the_index_alone_and_nothing_that_is_told_of_it(share):
    indexes = np.arange(100_000, 100_000 + 6_000)
    dataset, model = RiemannZerosDataset(indexes, 748_800_000 + 7_000 * indexes), build_model(SMALL, seed=1)
    noisy = list(iterate_batches(model, dataset, 50, noise=index_noise(noise_config(share=share), 1, 0)))
    changed = []
    for plain, other in zip(iterate_batches(model, dataset, 50), noisy, strict=True):
        assert torch.equal(plain.targets, other.targets)
        assert all(torch.equal(plain.features[name], other.features[name]) for name in plain.features)
        assert torch.equal(plain.tokens[:, 0], other.tokens[:, 0]) and torch.equal(plain.tokens[:, 7:], other.tokens[:, 7:])
        changed.append(other.tokens[:, 1:7] != plain.tokens[:, 1:7])
        same = (plain.tokens == plain.tokens[0]).all(0)
        assert (other.tokens[:, same] == other.tokens[0, same]).all()  # columns that a batch shares stay shared
    assert torch.cat(changed).double().mean().item() == pytest.approx(0.9 * share, abs=0.05)  # a tenth are drawn as they were
    assert max(batch.tokens[:, 1:7].max() for batch in noisy) == 9


def test_noise_is_the_same_when_a_pass_is_resumed_and_another_in_the_next(monkeypatch):
    monkeypatch.setattr(batches, "PREFETCH_ZEROS", 7)
    indexes = np.arange(9_900, 9_930)
    dataset, model = RiemannZerosDataset(indexes, 98_777_777 + 9_876 * indexes), build_model(SMALL, seed=1)

    def tokens(start, *position):
        return [batch.tokens for batch in iterate_batches(model, dataset, 3, start, noise=index_noise(noise_config(), *position))]

    whole = tokens(0, 1, 0)
    assert all(torch.equal(*pair) for pair in zip(whole[4:], tokens(12, 1, 0), strict=True))
    assert not all(torch.equal(*pair) for pair in zip(whole, tokens(0, 1, 1), strict=True))
    assert not all(torch.equal(*pair) for pair in zip(whole, tokens(0, 2, 0), strict=True))


def test_kinds_that_need_the_digits_get_no_noise():
    assert index_noise(noise_config("primes"), 1, 0) is None and index_noise(noise_config(share=0.0), 1, 0) is None
