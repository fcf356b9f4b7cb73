"""What tests run in processes of their own; it imports nothing that takes long."""

import time
from pathlib import Path


def leave_a_mark(folder: Path, name: str, waits_for: str, seconds: float) -> None:
    """Write the file `name`, then wait until `waits_for` is there, and at least some seconds."""
    (folder / name).touch()
    while not (folder / waits_for).exists():
        time.sleep(0.01)
    time.sleep(seconds)
    (folder / f"{name} ended").touch()
