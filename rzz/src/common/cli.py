"""The command line that all scripts share, and what their exit codes mean.

    parser = stage_parser(__doc__)
    run_script(main)
"""

import argparse
import logging
import os
import shlex
import sys
import traceback
from pathlib import Path

from common import VERSION
from common.config import DEFAULT_CONFIG, SOURCE, UserError
from common.devices import is_out_of_memory
from common.files import remedy
from common.logs import log, redirect_to_devnull
from common.processes import exit_process, is_peer_failure
from common.signals import catch_stop_signals
from common.text import fit_docstring


def stage_parser(description):
    """The command line that all stages share. `description` is the module's docstring."""

    class OneLineParser(argparse.ArgumentParser):
        def error(self, message):
            raise UserError(f"{message}. See {self.prog} --help.")

    parser = OneLineParser(description=fit_docstring(description), formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=DEFAULT_CONFIG, help="settings file (default: %(default)s)")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", dest="overrides",
                        help="change one setting for this command; may be repeated")
    parser.add_argument("--device", help="auto, mps, cuda, xla or cpu (default: runtime.device of the settings)")
    parser.add_argument("--version", action="version", version=f"rzz {VERSION}")
    parser.add_argument("--quiet", action="store_true", help="show results, warnings and errors alone; the logs are the same")
    return parser


def command(config, words):
    """Return what to paste to run `words`, a script and its options, with this config.

    '.venv/bin/python rzz/src/train.py --resume' of (config, 'train.py --resume').
    The interpreter is the one that runs. Paths below the working directory are relative to it.
    """
    script, *options = words.split(" ", 1)
    parts = [from_here(sys.executable or "python3"), from_here(SOURCE / script), *options]
    return " ".join(parts if config.path == DEFAULT_CONFIG else [*parts, "--config", from_here(config.path)])


def from_here(path):
    """Return a path as a word of the shell, relative to the working directory if it lies below it."""
    path = Path(os.path.abspath(path))  # no link is followed: a virtual environment's interpreter is one
    return shlex.quote(str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path))


def run_script(main):
    """Run a command's main() and end the process with its exit code.

    0 on success, 2 with one line for a UserError, full memory, or a drive that fails, 130 on Ctrl-C, 143 on SIGTERM. Any
    other exception is a bug, exit code 1. logs/rzz.log gets the traceback of all but Ctrl-C, standard error that of a bug alone.
    """
    if hasattr(sys.stdout, "reconfigure"):  # a notebook's has not
        sys.stdout.reconfigure(errors="replace")  # a terminal that knows no … shows a ? instead
    code = None
    try:
        with catch_stop_signals(interrupt=True) as stop:
            code = main() or 0
        if code is None:
            code = 128 + stop[0]
            print("Interrupted.", file=sys.stderr)
    except UserError as error:
        code = fail_with(error, str(error))
    except BrokenPipeError:  # the reader closed the pipe
        redirect_to_devnull(sys.stdout)
        code = 1
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        code = 130
    except Exception as error:
        if isinstance(error, OSError) and error.errno:
            code = fail_with(error, f"{error.filename or 'The disk'}: {os.strerror(error.errno)}; {remedy(error)} and run again.")
        elif is_out_of_memory(error):
            code = fail_with(error, "There is too little memory: lower model.d_model, model.num_layers or training.batch_size.")
        elif is_peer_failure(error):
            log.error("Another process of this training has ended; it has said why.")
            code = 1
        elif log.handlers:
            log.exception("This is a bug in rzz, or something that it should have foreseen:")
            code = 1
        else:
            traceback.print_exc()
            code = 1
    exit_process(code)


def fail_with(error, text):
    """Say what the user has to do, in a line; rzz.log also gets where `error` was raised. Return the exit code for it."""
    if log.handlers:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        log.handle(log.makeRecord(log.name, logging.ERROR, frame.filename, frame.lineno, text, (),
                                  (type(error), error, error.__traceback__), extra={"one_line": True}))  # fmt: skip
    else:
        print(text, file=sys.stderr)
    return 2
