"""What a run leaves behind in logs/ and shows on the terminal.

    logs/rzz.log          everything that any stage says, with file:line, and the traceback of every error
    logs/training.log     the training loop for a reader
    logs/training.jsonl   the same for programs, one object a line (tuning.jsonl likewise)

    start_logging(config.log_folder)
    log.info("device %s", device)
"""

import logging
import os
import sys
from logging.handlers import WatchedFileHandler

from tqdm import tqdm

from common.config import require_writable
from common.processes import rank

log = logging.getLogger("rzz")
training_log = logging.getLogger("rzz.training")


class TerminalHandler(logging.Handler):
    """Writes lines to standard error above a progress bar, if there is one.

    If the reader closed the pipe, as `train.py 2>&1 | tee file` after Ctrl-C, the program continues without output.
    """

    def emit(self, record):
        try:
            text = record.getMessage() if hasattr(record, "one_line") else self.format(record)  # without a traceback
            text = getattr(record, "short", text)
            tqdm.write(text, file=sys.stderr)
        except OSError:
            redirect_to_devnull(sys.stderr)


terminal = TerminalHandler()


class LogFile(WatchedFileHandler):
    """A file of the log, opened again if it was moved. If its disk is full, the line is on the terminal alone."""

    def __init__(self, path):
        super().__init__(path, encoding="utf-8", errors="backslashreplace")

    def emit(self, record):
        try:
            super().emit(record)
        except OSError:  # from looking whether the file was moved
            self.handleError(record)

    def handleError(self, record):
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


def redirect_to_devnull(stream):
    """Let a stream whose reader closed the pipe take everything, what it still holds too."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def start_logging(folder, quiet=False):
    """Send the log to `folder`/rzz.log with file and line, training lines also to training.log, and all to stderr.

    Ranks other than 0 log errors alone. quiet: nothing but warnings and errors, and no progress bar, reaches stderr.
    """
    terminal.setLevel(logging.WARNING if quiet else logging.INFO)
    require_writable(folder)
    for logger in (log, training_log):
        for handler in logger.handlers[:]:
            logger.removeHandler(handler)
            handler.close()
    log.propagate = False
    log.setLevel(logging.INFO if rank() == 0 else logging.ERROR)
    add_handler(log, LogFile(folder / "rzz.log"), "%(asctime)s %(levelname)s %(filename)s:%(lineno)d %(message)s")
    add_handler(training_log, LogFile(folder / "training.log"), "%(asctime)s %(message)s")
    add_handler(log, terminal, "%(message)s")


def add_handler(logger, handler, form):
    handler.setFormatter(logging.Formatter(form))
    logger.addHandler(handler)


def progress_bar(total, description, unit, initial=0, form=None):
    """A tqdm bar on standard error with rate and time left, or in the `form` given.

    Nothing under --quiet, nor if that is not a terminal, where lines of the log take its place.
    """
    off = True if rank() > 0 or terminal.level > logging.INFO else None  # None: if it is not a terminal
    return tqdm(total=total, desc=description, unit=unit, unit_scale=total > 10_000, initial=initial, disable=off,
                dynamic_ncols=True, leave=False, bar_format=form)
