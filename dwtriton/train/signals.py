"""Stopping a run on SIGINT or SIGTERM after its state is saved. (Loader workers ignore both: `data/workers.py`.)"""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SAME_REQUEST_SECONDS = 2.0  # further signals within it are the same request: torchrun forwards what all processes get


class Interrupted(Exception):
    """The run was asked to stop and has saved its state."""


@contextmanager
def stop_on_signals(request_stop: Callable[[], None]) -> Iterator[None]:
    """Call `request_stop` at the first SIGINT (Ctrl-C) or SIGTERM.

    A later Ctrl-C raises KeyboardInterrupt. Further SIGTERMs are ignored; the sender can still use SIGKILL.
    """
    requested_at: float | None = None

    def handle(number: int, _frame: object) -> None:
        nonlocal requested_at
        if requested_at is None:
            requested_at = time.monotonic()
            request_stop()
        elif number == signal.SIGINT and time.monotonic() - requested_at > SAME_REQUEST_SECONDS:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
