"""Signals: who asks a program to stop or to save, and where it may be interrupted.

    with catch_stop_signals() as stop:      # a list, in which a signal leaves its number
        with interruptible():               # long work that leaves nothing half done: a request ends it, and the outer block
            fetch_zeros()
        while not stop:                     # all else is finished first
            train_step()

Clusters send SIGKILL 10 to 30 seconds after SIGTERM, so every stage has saved what it has and ended long before that.
"""

import os
import signal
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SAVE_SIGNAL = signal.SIGUSR1  # Slurm's warning, if it is asked for one
SAME_REQUEST = 1.0  # seconds; a terminal and a notebook, or torchrun, may pass on the same Ctrl-C twice
BEGAN = time.monotonic()  # nearly when the program began: scripts import this first of all


class StopRequested(KeyboardInterrupt):
    """Raised within `interruptible` by a request to stop."""


class State:
    """Of the innermost catch_stop_signals. requests: the numbers of the signals, as it yields them."""

    requests = []
    interruptible = False
    save_requested = False


def exit_on_ctrl_c():
    """Let Ctrl-C end a script without a traceback while it imports torch, until run_script begins; SIGUSR1 is too early to matter.

    An exception could end up within what torch's import raises.
    """

    def end(number, frame):
        with suppress(OSError):  # standard error is closed
            os.write(2, b"Interrupted.\n")
        os._exit(128 + number)

    started = Path(getattr(sys.modules["__main__"], "__file__", None) or "").resolve()
    if started.parent == Path(__file__).resolve().parent.parent:  # not within pytest or a notebook
        signal.signal(signal.SIGINT, end)
        signal.signal(SAVE_SIGNAL, signal.SIG_IGN)


@contextmanager
def catch_stop_signals(interrupt=False):
    """Within the block Ctrl-C, SIGTERM, a closed terminal (SIGHUP) and stop_after leave their number in the list that is yielded.

    Where the block is interruptible (all of it, with `interrupt`) the first one also raises StopRequested, which ends the block
    and goes no further. A second Ctrl-C raises KeyboardInterrupt at once; not so under torchrun, which passes on to its
    processes what the terminal has told them already.
    """
    requests, first, before = [], time.monotonic(), (State.requests, State.interruptible)

    def note(number, frame):
        nonlocal first
        if number == SAVE_SIGNAL:
            State.save_requested = True
        elif not requests:
            requests.append(number)
            first = time.monotonic()
            if State.interruptible:
                raise StopRequested
        elif number == signal.SIGINT and time.monotonic() > first + SAME_REQUEST and "LOCAL_RANK" not in os.environ:
            raise KeyboardInterrupt

    ignored = [signal.SIGHUP] if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else []  # nohup: outlives its terminal
    State.requests, State.interruptible = requests, interrupt
    numbers = [number for number in (*STOP_SIGNALS, signal.SIGALRM, SAVE_SIGNAL) if number not in ignored]
    handlers = {number: signal.signal(number, note) for number in numbers}
    try:
        yield requests
    except StopRequested:
        pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        State.requests, State.interruptible = before
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextmanager
def interruptible(wanted=True):
    """Within the block a request to stop raises StopRequested, also one that came before; nothing changes unless `wanted`."""
    before = State.interruptible
    State.interruptible = before or wanted
    try:
        if wanted and State.requests:
            raise StopRequested
        yield
    finally:
        State.interruptible = before


def stop_after(seconds):
    """Request a stop, with the number of SIGALRM, `seconds` after the program began."""
    signal.setitimer(signal.ITIMER_REAL, max(1e-3, BEGAN + seconds - time.monotonic()))


def save_requested():
    """Whether SIGUSR1 has come since the last call."""
    requested, State.save_requested = State.save_requested, False
    return requested


@contextmanager
def signals_blocked():
    """Start a process of multiprocessing within the block: no signal reaches it before it calls unblock_signals.

    The terminal sends Ctrl-C to all. A process that dies of it before it has read its arguments leaves its parent waiting forever.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (*STOP_SIGNALS, SAVE_SIGNAL))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def unblock_signals():
    """In a process that was started within signals_blocked: leave Ctrl-C, a closed terminal and SIGUSR1 to the parent."""
    for number in (signal.SIGINT, signal.SIGHUP, SAVE_SIGNAL):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (*STOP_SIGNALS, SAVE_SIGNAL))
