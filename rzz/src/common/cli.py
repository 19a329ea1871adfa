"""The command line that all scripts share, and what their exit codes mean.

    parser = stage_parser(__doc__)
    run_script(main)
"""

import argparse
import errno
import shlex
import sys
import traceback
from pathlib import Path

from common.config import DEFAULT_CONFIG, UserError
from common.devices import is_out_of_memory
from common.logs import log, redirect_to_devnull
from common.processes import exit_process, is_peer_failure


def stage_parser(description):
    """The command line that all stages share. `description` is the module's docstring."""

    class OneLineParser(argparse.ArgumentParser):
        def error(self, message):
            raise UserError(f"{message}. See {self.prog} --help.")

    parser = OneLineParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=DEFAULT_CONFIG, help="settings file (default: %(default)s)")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", dest="overrides",
                        help="change one setting for this command; may be repeated")
    parser.add_argument("--device", help="auto, mps, cuda, xla or cpu (default: runtime.device of the settings)")
    parser.add_argument("--quiet", action="store_true", help="show results, warnings and errors alone; the logs are the same")
    return parser


def command(config, words):
    """Return what to type to run `words`, a script and its options, with this config: 'python rzz/src/train.py --resume'."""
    where = "" if config.path == DEFAULT_CONFIG else f" --config {shlex.quote(str(config.path))}"
    return f"python rzz/src/{words}{where}"


DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
DISK_ERRORS = (*DISK_FULL, errno.EACCES, errno.EPERM, errno.EROFS)
INTERRUPTED = 130  # exit code of a program that Ctrl-C ended


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
        code = fail_with(str(error))
    except BrokenPipeError:  # the reader closed the pipe
        redirect_to_devnull(sys.stdout)
        code = 1
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        code = INTERRUPTED
    except Exception as error:
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            advice = "free some space" if error.errno in DISK_FULL else "make it accessible or choose another folder"
            code = fail_with(f"{error.filename or 'The disk'}: {error.strerror}; {advice}.")
        elif is_out_of_memory(error):
            code = fail_with("There is too little memory: lower model.d_model, model.num_layers or training.batch_size.")
        elif is_peer_failure(error):
            log.error("Another process of this training has ended; it has said why.")
            code = 1
        else:
            code = report_bug()
    exit_process(code)


def fail_with(text):
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
