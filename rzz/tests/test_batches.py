"""Batches are the rows in index order, from any start on, and errors of the background are not lost."""


import numpy as np
import pytest
import torch
from conftest import batch_of, whole_rows

from common.config import ModelConfig
from data_utils import RiemannZerosDataset
from model import batches
from model.batches import iterate_batches
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
        assert all(torch.equal(batch.features[name][:count], features[name]) for name in features)
        assert batch.targets[:count].tolist() == targets_of_rows(whole)[:, dataset.first : dataset.width - 1].tolist()
        assert (batch.targets[count:] == token_ids["p"]).all() and len(batch.tokens) == 3
        assert batch.num_targets == (batch.targets != token_ids["p"]).sum()


def test_an_error_in_the_background_is_an_error_of_the_training():
    model = build_model(SMALL, seed=1)
    model.position_embedding.features = lambda *arguments: 1 / 0
    with pytest.raises(ZeroDivisionError):
        batch_of(model, small_dataset(), 4)
