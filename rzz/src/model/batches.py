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
from model.index_embedding import Boundaries, parts_of
from model.tokenizer import COLON, PAD
from transformer import on_device

PREFETCH_ZEROS = 4096  # zeros whose features are prepared at once: enough that numpy's cost per call does not count, 8 MB


class IndexNoise(NamedTuple):
    """That digits of the index are random in training."""

    share: float  # of the digits
    seed: tuple[int, ...]


class Batch(NamedTuple):
    """B zeros in index order, as the model reads them."""

    tokens: torch.Tensor  # int64 (B, T)
    targets: torch.Tensor  # int64 (B, T - first): of the columns from the first ':' on
    features: dict[str, torch.Tensor]  # of all columns, what the IndexEmbedding reads, or what it prepares that from
    num_targets: int  # trajectories in the batch that is one update, of which this may be a micro-batch

    @property
    def first(self):
        """The column of the first target."""
        return self.tokens.shape[1] - self.targets.shape[1]

    def rows(self, chosen):
        """Return the micro-batch of the rows `chosen`, a slice."""
        features = {name: feature[chosen] for name, feature in self.features.items()}
        return Batch(self.tokens[chosen], self.targets[chosen], features, self.num_targets)

    def prepared(self, model):
        """Return the batch as `model`, on the same device, takes it."""
        return self._replace(features=model.position_embedding.prepare(self.features))

    def to(self, device):
        return Batch(self.tokens.to(device), self.targets.to(device), on_device(self.features, device), self.num_targets)


def index_noise(config, *position):
    """Return the IndexNoise of a pass over an interval, or None if the embedding needs the digits. position: which pass.

    With all that "waves" tells of the index its digits are of no use. But the leading ones stay the same for a million zeros, so
    weights come to rely on them, and the next ones that come are new: characters are then unsure that were certain before.
    """
    if Boundaries not in parts_of(config.model.index_embedding) or not config.training.index_noise:
        return None
    return IndexNoise(config.training.index_noise, (config.training.seed, *position))


def iterate_batches(model, dataset, batch_size, start=0, rank=0, world_size=1, noise=None):
    """Yield a Batch on the model's device for each update of an epoch, from row `start` on, a multiple of `batch_size`.

    All have the same shape, the last one filled up with rows that carry no loss. Each rank gets its own rows of every batch.
    The next chunk is made in the background; chunks begin at the same rows no matter where a training is resumed. noise: an
    IndexNoise or None.
    """
    device = model.head.weight.device
    cut_on_device = slicing_device(device) == device
    size = batch_size * max(1, PREFETCH_ZEROS // batch_size)
    rows_per_rank = math.ceil(batch_size / world_size)
    rank_rows = rank * rows_per_rank + np.arange(rows_per_rank)  # rows of a batch; the last rank may have too few

    def make(row):
        return background.submit(make_chunk, model.position_embedding, dataset, row, size, batch_size, rank_rows, noise)

    chunks = range(start // size * size, len(dataset), size)
    with ThreadPoolExecutor(max_workers=1) as background:
        upcoming = [make(row) for row in chunks[:1]]
        for row in chunks:
            chunk, num_targets = upcoming.pop().result()
            if row != chunks[-1]:
                upcoming.append(make(row + size))
            chunk = chunk.to(slicing_device(device))
            chunk = chunk.prepared(model) if cut_on_device else chunk  # many batches at once take fewer launches
            for number, count in enumerate(num_targets):
                if row + number * batch_size >= start:
                    batch = chunk.rows(slice(number * rows_per_rank, (number + 1) * rows_per_rank)).to(device)
                    batch = batch if cut_on_device else batch.prepared(model)
                    yield batch._replace(num_targets=count)


def first_batch(model, dataset, size):
    """Return the first Batch of an epoch on the model's device before it is prepared, for timing what that takes as well."""
    chunk, _ = make_chunk(model.position_embedding, dataset, 0, size, size, np.arange(size))
    return chunk.to(model.head.weight.device)


def make_chunk(position_embedding, dataset, row, size, batch_size, rank_rows, noise=None):
    """Return (chunk, num_targets): of up to `size` rows from `row` on, in batches, the rows `rank_rows` of each as one Batch
    on the CPU, and for each batch how many trajectories all of it has.

    With numpy alone: torch's operations in a second thread would have OpenMP threads of their own, more than there are
    cores, which then sleep between operations and make training on a CPU a quarter slower.
    """
    size = math.ceil(min(size, len(dataset) - row) / batch_size) * batch_size
    tokens, targets, indexes = dataset.batch(row, size)
    num_targets = (targets != PAD).reshape(size // batch_size, -1).sum(1).tolist()
    chosen = (np.arange(0, size, batch_size)[:, None] + np.minimum(rank_rows, batch_size - 1)).ravel()
    tokens, targets, indexes = tokens[chosen], targets[chosen, dataset.first :], indexes[chosen]
    targets[np.tile(rank_rows >= batch_size, size // batch_size)] = PAD
    features = position_embedding.features(tokens, indexes)
    if noise is not None:
        tokens = with_random_index(tokens, len(rank_rows), noise.share, np.random.default_rng((*noise.seed, row)))
    tokens, targets = (torch.from_numpy(array.astype(np.int64)) for array in (tokens, targets))
    return Batch(tokens, targets, features, sum(num_targets)), num_targets


def with_random_index(tokens, rows, share, rng):
    """Return `tokens`, uint8 (n · rows, T), with about `share` of the index's digits random, alike in each batch of `rows` rows."""
    T = tokens.shape[1]
    shape = len(tokens) // rows, T
    chosen = rng.random(shape) < share
    digits = rng.integers(0, 10, shape, dtype=np.uint8)
    is_digit = (np.arange(T) > 0) & (np.arange(T) < (tokens == COLON).argmax(1)[:, None])
    return np.where(is_digit & chosen.repeat(rows, 0), digits.repeat(rows, 0), tokens)
