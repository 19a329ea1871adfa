"""From a dataset of zeros to batches on the device, prepared in the background.

    for batch in iterate_batches(model, dataset, batch_size=128):
        logits = logits_of(model, batch)
"""

import math
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch

from common.devices import slicing_device
from model.index_embedding import IndexFeatures
from model.tokenizer import PAD
from transformer import on_device

PREFETCH_ZEROS = 4096  # zeros whose features are prepared at once: enough that numpy's cost per call does not count, 8 MB


class Batch(NamedTuple):
    """B zeros in index order, as the model reads them."""

    tokens: torch.Tensor  # int64 (B, T)
    targets: torch.Tensor  # int64 (B, T - first): of the columns from the first ':' on
    features: IndexFeatures  # of all columns
    asked: int  # trajectories in the batch that is one update, of which this may be a piece

    @property
    def first(self):
        """The column of the first target."""
        return self.tokens.shape[1] - self.targets.shape[1]

    def piece(self, rows):
        """Return the part of it at `rows`, a slice."""
        features = IndexFeatures(*(None if part is None else part[rows] for part in self.features))
        return Batch(self.tokens[rows], self.targets[rows], features, self.asked)

    def to(self, device):
        return Batch(self.tokens.to(device), self.targets.to(device), on_device(self.features, device), self.asked)


def iterate_batches(model, dataset, batch_size, start=0, rank=0, processes=1):
    """Yield a Batch on the model's device for each update of an epoch, from row `start` on, a multiple of `batch_size`.

    All are of the same shape, the last one filled up with rows that carry no loss. They are prepared a chunk at a time,
    the next chunk in the background while this one is trained on, and chunks begin at the same rows wherever a training
    is resumed. Of several processes each gets its share of every batch, by its rank.
    """
    device = model.head.weight.device
    size = batch_size * max(1, PREFETCH_ZEROS // batch_size)
    share = math.ceil(batch_size / processes)
    mine = rank * share + np.arange(share)  # rows of a batch; the last process may have too few

    def prepare(row):
        return background.submit(prepare_chunk, model.position_embedding, dataset, row, size, batch_size, mine)

    chunks = range(start // size * size, len(dataset), size)
    with ThreadPoolExecutor(max_workers=1) as background:
        upcoming = [prepare(row) for row in chunks[:1]]
        for row in chunks:
            chunk, asked = upcoming.pop().result()
            if row != chunks[-1]:
                upcoming.append(prepare(row + size))
            chunk = chunk.to(slicing_device(device))
            for number, asked_here in enumerate(asked):
                if row + number * batch_size >= start:
                    batch = chunk.piece(slice(number * share, (number + 1) * share)).to(device)
                    yield batch._replace(asked=asked_here)


def prepare_chunk(position_embedding, dataset, row, size, batch_size, mine):
    """Return (chunk, asked): of up to `size` rows from `row` on, in batches, the rows `mine` of each as one Batch on the CPU,
    and for each batch how many trajectories all of it has.

    By numpy alone: a second thread that calls torch's operations has threads of its own for them, more than there are
    cores, and OpenMP then lets all of them sleep between operations, which makes training on a CPU a quarter slower.
    """
    size = math.ceil(min(size, len(dataset) - row) / batch_size) * batch_size
    tokens, targets, indexes = dataset.batch(row, size)
    asked = (targets != PAD).reshape(size // batch_size, -1).sum(1).tolist()
    chosen = (np.arange(0, size, batch_size)[:, None] + np.minimum(mine, batch_size - 1)).ravel()
    tokens, targets, indexes = tokens[chosen], targets[chosen, dataset.first :], indexes[chosen]
    targets[np.tile(mine >= batch_size, size // batch_size)] = PAD
    features = position_embedding.features(tokens, indexes)
    tokens, targets = (torch.from_numpy(array.astype(np.int64)) for array in (tokens, targets))
    return Batch(tokens, targets, features, sum(asked)), asked
