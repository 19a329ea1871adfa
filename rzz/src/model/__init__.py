"""Everything around the transformer: characters, what it is told, batches, loss, sampling, measures. Opens no data file."""
