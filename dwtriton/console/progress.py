"""Progress of long work and the time left for it (ETA): a live bar on a terminal, elsewhere a line now and then."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress

from dwtriton.console.cli import print_line

SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def progress(console: Console, what: str, total: int | None) -> Iterator[Callable[[], None]]:
    """Show the progress of `total` steps, None if unknown; call the function it yields after each."""
    with ProgressDisplay(console, what, total) as display:
        yield display.advance


class ProgressDisplay:
    """Progress of work that also has figures to show, stages between its steps, or limited time.

    `done` steps were done before a resume. Lines, where there is no terminal, are `SECONDS_BETWEEN_LINES` apart, or
    `steps_between_lines`. The work ends after `time_limit` seconds even if steps are left. The ETA follows from the
    mean pace since `with`; the time of stages does not count.
    """

    def __init__(
        self,
        console: Console,
        what: str,
        total: int | None,
        *,
        done: int = 0,
        steps_between_lines: int | None = None,
        time_limit: float = math.inf,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.console, self.resumed_at, self.clock = console, done, clock
        self.steps_between_lines, self.time_limit = steps_between_lines, time_limit
        options = {"transient": True, "expand": True, "disable": not console.is_terminal, "get_time": clock}
        columns = "{task.description}", BarColumn(None), MofNCompleteColumn(), "{task.fields[eta]}"
        self.bars = _Bars(*columns, console=console, **options)
        self.bars.add_task(what, start=False, total=total, completed=done, eta="")
        [self.task] = self.bars.tasks
        self.seconds_in_stages = 0.0

    def __enter__(self) -> "ProgressDisplay":
        self.bars.start_task(self.task.id)
        self.last_line = self.clock()
        self.bars.start()
        return self

    def __exit__(self, *error) -> None:
        self.bars.stop()

    def advance(self, steps: int = 1, *, what: str | None = None, figures: str = "") -> None:
        """Count finished steps. `what` renames the work; `figures` stand below the bar, in a line for the pace."""
        task, done = self.task, self.task.completed + steps
        seconds = max(1e-9, task.elapsed - self.seconds_in_stages)
        pace = (done - self.resumed_at) / seconds
        eta = ""
        if task.total is not None and pace:
            left = min((task.total - done) / pace, self.time_limit - seconds)
            eta = f"ETA {clock_time(max(0, left))}"
        self.bars.figures = figures
        self.bars.update(task.id, completed=done, description=what, eta=eta)
        if self.steps_between_lines:
            line_is_due = done % self.steps_between_lines == 0
        else:
            line_is_due = self.clock() - self.last_line >= SECONDS_BETWEEN_LINES
        if line_is_due and not self.console.is_terminal:
            self.last_line = self.clock()
            count = f"{done}" if task.total is None else f"{done}/{task.total}"
            parts = task.description, count, figures or f"{pace:.1f}/s", eta
            print_line(self.console, "  ".join(filter(None, parts)))

    @contextmanager
    def stage(self, what: str, total: int) -> Iterator[Callable[..., None]]:
        """Show a second bar for other work of `total` steps.

        Call the function it yields after each; `steps=0, what=NAME` only renames the work.
        """
        began = self.clock()
        task = self.bars.add_task(what, total=total, eta="")
        try:
            yield lambda steps=1, what=None: self.bars.update(task, advance=steps, description=what)
        finally:
            self.bars.remove_task(task)
            self.seconds_in_stages += self.clock() - began


class _Bars(Progress):
    """Bars, and a line of figures below them."""

    figures = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self.figures:
            yield self.figures


def clock_time(seconds: float) -> str:
    """h:mm:ss"""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
