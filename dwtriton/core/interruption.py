"""Ctrl-C and SIGTERM while a command starts, works and ends. (A training has its own handler: train/signals.py.)"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

INTERRUPTED = 130  # exit code
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def end_on_signals() -> None:
    """From now on, end the process at once, with exit code 130: while modules are imported, and when the work is done.

    A KeyboardInterrupt in the middle of an import prints a traceback, or is taken for another error by what imports.
    """
    _handle(lambda _number, _frame: os._exit(INTERRUPTED))


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise KeyboardInterrupt where a signal comes inside, also if a library makes another error of it."""
    requested = False

    def interrupt(_number: int, _frame: object) -> None:
        nonlocal requested
        requested = True
        raise KeyboardInterrupt

    _handle(interrupt)
    try:
        yield
    except Exception:
        if requested:
            raise KeyboardInterrupt from None
        raise
    finally:
        end_on_signals()


def _handle(handler: Callable[[int, object], None]) -> None:
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as in the background of a shell
            signal.signal(number, handler)
