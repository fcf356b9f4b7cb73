"""What every worker process of the data code does first."""

import signal


def leave_interrupts_to_parent(*_worker_id: int) -> None:
    """Ignore Ctrl-C, which a terminal sends to workers too: the main process decides when they end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
