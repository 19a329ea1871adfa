import json
import logging
import os
import signal
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the commands that the tests start inherit it
torch.set_num_threads(1)  # for the tests themselves: torch has looked at the variable already

if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # under nohup; the commands that the tests start would ignore it too
    signal.signal(signal.SIGHUP, lambda *_: None)

SRC = Path(__file__).resolve().parent.parent / "src"
sys.path.insert(0, str(SRC))

DEVICE = os.environ.get("RZZ_TEST_DEVICE", "cpu")  # of the stages and the stacks
SMALL_RUN = {
    "data": {"K": 2, "N": 20, "interval_size": 300, "first_round": 0, "validation_fraction": 0.1},
    "model": {"d_model": 16, "num_layers": 1, "num_heads": 2, "dropout": 0.1, "index_embedding": "primes", "max_prime": 30},
    "training": {"epochs": 2, "batch_size": 64, "checkpoint_interval": 5, "log_interval": 4, "validation_interval": 7,
                 "validation_share": 1.0, "warmup_steps": 3, "mse_zeros": 5,
                 "compile": "off",  # on CUDA it would leave the last bits to chance
                 "precision": "float32"},  # and "auto" what two runs compute with
    "tuning": {"zeros": 400, "seeds": 1, "grid": {"epochs": [1, 2], "learning_rate": [0.0003, 0.01], "num_heads": [1, 3]}},
    "evaluation": {"runs": 3},
    "runtime": {"device": DEVICE},
}  # fmt: skip


@pytest.fixture
def run_folder(tmp_path):
    """A run folder whose config.json describes a training of seconds: 10 batches an epoch, rounds 0, 1 and 2."""
    write_config(tmp_path, SMALL_RUN)
    return tmp_path


@pytest.fixture(autouse=True)
def fresh_logging():
    """Undo what start_logging of a stage called in a test does, so that the next test's caplog sees the log."""
    yield
    for logger in (logging.getLogger("rzz"), logging.getLogger("rzz.training")):
        for handler in logger.handlers[:]:
            logger.removeHandler(handler)
            handler.close()
        logger.propagate = True


@pytest.fixture
def users_file(monkeypatch, tmp_path):
    """A function that makes a file with some text zeros_db.py; `own` in it is the function of ours. It returns the file's path."""

    def use(text):
        monkeypatch.delitem(sys.modules, "zeros_db", raising=False)
        path = tmp_path / "zeros_db.py"
        path.write_text("from own_zeros_db import zeros_starting_at_N as own\n" + text)
        return path

    import zeros_db

    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setitem(sys.modules, "own_zeros_db", zeros_db)
    monkeypatch.syspath_prepend(tmp_path)
    return use


def batch_of(model, dataset, size):
    """The first Batch of `size` zeros."""
    from model.batches import iterate_batches

    return next(iterate_batches(model, dataset, size))


def whole_rows(model, rows, indexes):
    """What a Transformer takes for the uint8 `rows` (n, T) of `indexes`: tokens and features."""
    return torch.from_numpy(rows).long(), model.features(rows, indexes)


def write_config(folder, settings):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(settings))
    return folder / "config.json"


def stop_after_step(number):
    """A stand-in for catch_stop_signals whose list of requests fills up during the step of this number."""

    class Requests(list):
        looks = 0

        def __bool__(self):
            self.looks += 1
            if self.looks == number:
                self.append(15)
            return len(self) > 0

    @contextmanager
    def requests():
        yield Requests()

    return requests


from searches import in_process, search_folder, searched_folder, whole_search  # noqa: E402, F401 - the fixtures of the search's tests
