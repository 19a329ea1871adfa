"""What a run leaves behind in logs/ and shows on the terminal.

    logs/rzz.log          everything that any stage says, with file:line, and the traceback of every error
    logs/training.log     the training loop for a reader
    logs/training.jsonl   the same for programs, one object a line (tuning.jsonl likewise)

    start_logging(config.log_folder)
    log.info("device %s", device)
"""

import errno
import json
import logging
import os
import sys
import traceback

from tqdm import tqdm

from config_utils import UserError, require_writable
from device_utils import is_out_of_memory
from file_utils import atomic_write
from process_utils import has_lost_another, leave, process_rank

log = logging.getLogger("rzz")
training_log = logging.getLogger("rzz.training")
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
DISK_ERRORS = (*DISK_FULL, errno.EACCES, errno.EPERM, errno.EROFS)
INTERRUPTED = 130  # exit code of a program that Ctrl-C ended


class TerminalHandler(logging.Handler):
    """Writes lines to standard error above a progress bar, if there is one.

    Where its reader has gone, as tee in `train.py 2>&1 | tee file` after Ctrl-C or a terminal that was closed, the program goes
    on to its end unheard.
    """

    def emit(self, record):
        try:
            tqdm.write(self.format(record), file=sys.stderr)
        except OSError:
            write_nowhere(sys.stderr)


terminal = TerminalHandler()


class LogFile(logging.FileHandler):
    """A file of the log. Where its disk is full, the line is on the terminal alone."""

    def __init__(self, path):
        super().__init__(path, encoding="utf-8", errors="backslashreplace")

    def handleError(self, record):
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


def write_nowhere(stream):
    """Let a stream whose reader has gone take everything, what it still holds too."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def start_logging(folder, quiet=False):
    """Send the log to `folder`/rzz.log with file and line, training lines also to training.log, and all to stderr.

    Of several processes only the first says what all of them could say. quiet: nothing but warnings and errors, and no
    progress bar, reaches stderr.
    """
    terminal.setLevel(logging.WARNING if quiet else logging.INFO)
    require_writable(folder)
    for logger in (log, training_log):
        for handler in logger.handlers[:]:
            logger.removeHandler(handler)
            handler.close()
    log.propagate = False
    log.setLevel(logging.INFO if process_rank() == 0 else logging.ERROR)
    add_handler(log, LogFile(folder / "rzz.log"), "%(asctime)s %(levelname)s %(filename)s:%(lineno)d %(message)s")
    add_handler(training_log, LogFile(folder / "training.log"), "%(asctime)s %(message)s")
    add_handler(log, terminal, "%(message)s")


def add_handler(logger, handler, form):
    handler.setFormatter(logging.Formatter(form))
    logger.addHandler(handler)


def run_script(main):
    """Run a stage's main() and leave with the exit code that its outcome deserves.

    0 on success, 2 with one line for a UserError, full memory, or a disk that is full or not accessible, 130 on Ctrl-C. Any
    other exception is a bug: its traceback goes to logs/rzz.log and to standard error, exit code 1.
    """
    if hasattr(sys.stdout, "reconfigure"):  # a notebook's has not
        sys.stdout.reconfigure(errors="replace")  # a terminal that knows no … shows a ? instead
    try:
        code = main() or 0
    except UserError as error:
        code = refuse(str(error))
    except BrokenPipeError:  # whoever read the output has gone
        write_nowhere(sys.stdout)
        code = 1
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        code = INTERRUPTED
    except Exception as error:
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            advice = "free some space" if error.errno in DISK_FULL else "make it accessible or choose another folder"
            code = refuse(f"{error.filename or 'The disk'}: {error.strerror}; {advice}.")
        elif is_out_of_memory(error):
            code = refuse("There is too little memory: lower model.d_model, model.num_layers or training.batch_size.")
        elif has_lost_another(error):
            log.error("Another process of this training has ended; it has said why.")
            code = 1
        else:
            code = report_bug()
    leave(code)


def refuse(text):
    """Say what the user has to do, in a line; return the exit code for it."""
    if log.handlers:
        log.error("%s", text)
    else:
        print(text, file=sys.stderr)
    return 2


def report_bug():
    """Log the exception in flight with its traceback; return the exit code for it."""
    if log.handlers:
        log.exception("This is a bug in rzz, or something that it should have foreseen:")
    else:
        traceback.print_exc()
    return 1


def progress_bar(total, description, unit, initial=0, form=None):
    """A tqdm bar on standard error with rate and time left, or in the `form` given.

    Nothing under --quiet, nor where that is not a terminal: the lines of the log stand in its place there, so that a log
    file does not fill with half-drawn bars.
    """
    off = True if process_rank() > 0 or terminal.level > logging.INFO else None  # None: where it is not a terminal
    return tqdm(total=total, desc=description, unit=unit, unit_scale=total > 10_000, initial=initial, disable=off,
                dynamic_ncols=True, leave=False, bar_format=form)


def write_json_line(path, values):
    """Append `values` as one line of JSON to `path`."""
    append_json_lines(path, [values])


def append_json_lines(path, objects):
    """Append `objects` to `path`, a line of JSON each, in one piece, on lines of their own also after one that was cut short."""
    with open(path, "ab+") as file:
        if file.tell() and file.seek(-1, 2) and file.read(1) != b"\n":
            file.write(b"\n")
        file.write(b"".join(json.dumps(values).encode() + b"\n" for values in objects))


def write_json_lines(path, objects):
    """Replace `path` by a file of `objects`, one line of JSON each."""
    with atomic_write(path, "w") as file:
        file.writelines(json.dumps(values) + "\n" for values in objects)


def read_json_lines(path):
    """Return the objects of a file of JSON lines; none where there is no file. A line cut short is left out."""
    if not path.exists():
        return []
    objects = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            objects.append(dict(json.loads(line)))
        except (ValueError, TypeError):
            log.warning("%s: a line that is no JSON object was left out: %.60s", path.name, line)
    return objects


def duration(seconds):
    """'45 s', '12 min 3 s' or '5 h 20 min'."""
    seconds = int(round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"


def number(value):
    """A measure with four digits, '–' where there is none."""
    return "–" if value is None else f"{value:.4g}"
