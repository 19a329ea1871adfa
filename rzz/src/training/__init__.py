"""One training run: where it stands, its step, its checkpoints, what it logs."""
