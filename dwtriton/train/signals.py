"""Stopping a run from outside, in order."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SAME_SIGNAL_SECONDS = (
    2.0  # seconds in which further signals belong to the first: torchrun passes on what all processes get
)


class Interrupted(Exception):
    """The run was asked to stop and has saved its state."""


@contextmanager
def stopping_on_signals(request_stop: Callable[[], None]) -> Iterator[None]:
    """Turn the first SIGINT (Ctrl-C) or SIGTERM into `request_stop()`.

    A later Ctrl-C stops at once. A later SIGTERM does nothing: who sends it has SIGKILL too.
    """
    signals = (signal.SIGINT, signal.SIGTERM)
    requested: list[float] = []

    def handle(number, _frame) -> None:
        if not requested:
            requested.append(time.monotonic())
            request_stop()
        elif number == signal.SIGINT and time.monotonic() - requested[0] > SAME_SIGNAL_SECONDS:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, handle) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
