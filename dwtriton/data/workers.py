"""Worker processes of loaders: how many, and what signals do to them."""

import atexit
import math
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterable
from functools import partial
from multiprocessing.synchronize import Event
from typing import Literal

import torch

WORKER_GRACE_SECONDS = 60  # that a worker survives SIGTERM while the main process saves its state


def choose_workers(setting: int | Literal["auto"], load: Iterable[object] = (), images_per_second: float = 0) -> int:
    """Return the number of loader processes for the setting `data.workers`.

    "auto" is none without a GPU, as the network needs the cores itself. With one it is as many as load
    `images_per_second`, by the time that `load` takes to yield images, and one more to absorb a slow batch; but one
    core of those that the rank has stays with the main process.
    """
    if setting != "auto":
        return setting
    if not torch.cuda.is_available():
        return 0
    free = max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)) - 1)
    began = time.perf_counter()
    loaded = sum(1 for _ in load)
    if not loaded:
        return free
    return min(free, math.ceil((time.perf_counter() - began) / loaded * images_per_second) + 1)


def leave_signals_to_main(*_worker_id: int, main_ends: Event | None = None) -> None:
    """Set the signal handlers of a worker process so that its main process decides when it ends.

    Ctrl-C reaches all processes of a terminal; workers ignore it, as the main process ends them when it stops.
    SIGTERM ends a worker, without a word.
    A cluster may send SIGTERM to all processes of a job. If a DataLoader's worker died of it, DataLoader would raise in
    the main process, which then could not save its state. With `main_ends` it therefore ends a worker only once
    that is set, or after WORKER_GRACE_SECONDS, so that no worker outlives a main process that was killed.
    For `worker_init_fn` of a DataLoader, which passes the worker's number, and `initializer` of a Pool, which does not.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(
        signal.SIGTERM,
        signal.SIG_DFL
        if main_ends is None
        else lambda _number, _frame: os._exit(0) if main_ends.is_set() else signal.alarm(WORKER_GRACE_SECONDS),
    )


def outlive_sigterm() -> Callable[[int], None]:
    """Return a `worker_init_fn` for a main process that saves its state on SIGTERM; at its exit `main_ends` is set."""
    main_ends = multiprocessing.Event()
    atexit.register(main_ends.set)
    return partial(leave_signals_to_main, main_ends=main_ends)
