"""Ctrl-C, SIGTERM and a closed terminal: stopping where it is safe, and starting a process that they do not reach too early.

    with stop_requests() as stop:               # a list, in which a signal leaves its number
        for batch in batches:
            ...
            if stop:
                break
"""

import signal
from contextlib import contextmanager

from logging_utils import log
from process_utils import process_count

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def signals_held():
    """Start a process of multiprocessing within the block: no signal reaches it before it calls hear_signals.

    The terminal sends Ctrl-C to all processes at once. One that dies of it before it has read what it is given leaves
    its parent waiting for ever.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def hear_signals():
    """In a process that was started within signals_held: leave Ctrl-C and a closed terminal to the parent, and hear the rest."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


@contextmanager
def stop_requests():
    """Within the block Ctrl-C, SIGTERM and a closed terminal (SIGHUP) only leave their number in the list that is yielded.

    The loop looks at it once a step and ends where it is safe. A second Ctrl-C interrupts at once; not so where torchrun
    passes on to its processes what the terminal has told them already.
    """
    received = []

    def note(number, frame):
        if received and process_count() > 1:
            return
        if received:
            raise KeyboardInterrupt
        received.append(number)
        log.info("Stopping after this step … (Ctrl-C once more stops at once and saves nothing)")

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # under nohup a training outlives its terminal
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
