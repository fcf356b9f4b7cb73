"""How far long work is, and how long it will take: a live bar on a terminal, elsewhere a line now and then."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dwtriton.console.cli import say

EVERY = 10.0  # seconds between two lines


@contextmanager
def progress(
    console: Console, what: str, total: int | None, clock: Callable[[], float] = time.monotonic
) -> Iterator[Callable[[], None]]:
    """Show the progress of `total` pieces of work (None: nobody knows how many); call what is yielded after each."""
    if not console.is_terminal:
        yield _lines(console, what, total, clock)
        return
    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda: bar.advance(task)


def _lines(console: Console, what: str, total: int | None, clock: Callable[[], float]) -> Callable[[], None]:
    """Counts its calls, and prints the count when the last line is old enough."""
    started = printed = clock()
    done = 0

    def advance() -> None:
        nonlocal done, printed
        done += 1
        now = clock()
        if now - printed < EVERY:
            return
        printed = now
        pace = done / (now - started)
        of_total = "" if total is None else f"/{total}"
        left = "" if total is None else f"  ETA {_clock_time(max(0, total - done) / pace)}"
        say(console, f"{what}  {done}{of_total}  {pace:.1f}/s{left}")

    return advance


def _clock_time(seconds: float) -> str:
    """h:mm:ss"""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
