"""Stopping a run from outside, in order."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Interrupted(Exception):
    """The run was asked to stop and has saved its state."""


@contextmanager
def stopping_on_signals(request_stop: Callable[[], None]) -> Iterator[None]:
    """Turn the first SIGINT (Ctrl-C) or SIGTERM into `request_stop()`; a second one acts as it always does."""
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in signals}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def handle(_number, _frame) -> None:
        restore()
        request_stop()

    for number in signals:
        signal.signal(number, handle)
    try:
        yield
    finally:
        restore()
