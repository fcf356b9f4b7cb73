"""What a run tells: the live display, and `metrics.jsonl` with one line for every iteration and evaluation."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from dwtriton.console.cli import print_line
from dwtriton.core.files import write_text
from dwtriton.evaluate.coco_metrics import Evaluation


class MetricsFile:
    """`metrics.jsonl`: figures that depend on the run alone; a resumed run writes what an uninterrupted one would."""

    def __init__(self, path: Path, iteration: int = 0) -> None:
        """Open for a run that has done `iteration` steps; what it will write again after a resume is dropped."""
        self.path = path
        rows = read_metrics(path) if path.exists() else []
        self.rows = [row for row in rows if row["iteration"] < iteration + (row["kind"] == "step")]
        write_text(path, "".join(json.dumps(row) + "\n" for row in self.rows))

    def write(self, **row) -> None:
        self.rows.append(row)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def step(self, iteration: int, epoch: int, lr: float, losses: dict[str, float]) -> None:
        """`iteration` and `epoch` count from 1."""
        self.write(kind="step", iteration=iteration, epoch=epoch, lr=lr, **losses)

    def evaluation(self, iteration: int, epoch: int, evaluation: Evaluation) -> None:
        self.write(
            kind="evaluation", iteration=iteration, epoch=epoch, **evaluation.metrics, class_ap=evaluation.class_ap
        )

    def evaluations(self) -> list[dict]:
        return [row for row in self.rows if row["kind"] == "evaluation"]


def read_metrics(path: Path) -> list[dict]:
    """Rows of a `metrics.jsonl`; a last line cut off by a crash is left out."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


class Speed:
    """Throughput since the last reading: images a second, and the share of time spent waiting for data."""

    def __init__(self, processes: int = 1) -> None:
        """Of a job of so many processes, which all do as much as this one."""
        self.processes = processes
        self.reset()

    def reset(self) -> None:
        self.start, self.waited, self.images = time.perf_counter(), 0.0, 0

    def timed(self, batches: Iterator) -> Iterator:
        """Pass batches on and add up how long each was waited for."""
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            if batch is None:
                return
            self.waited += time.perf_counter() - asked
            self.images += len(batch.images) * self.processes
            yield batch

    def read(self) -> tuple[float, float]:
        """(images/s, share of the time waited) since the last reset."""
        elapsed = time.perf_counter() - self.start
        return self.images / elapsed, self.waited / elapsed


class Display:
    """Progress of a run on the console: a live bar on a terminal, a line every `log_every` iterations elsewhere."""

    def __init__(self, console: Console, total: int, done: int, log_every: int) -> None:
        """`total` iterations, of which `done` were done before a resume."""
        self.console, self.total, self.resumed_at, self.log_every = console, total, done, log_every
        self.started, self.paused = time.perf_counter(), 0.0
        columns = (
            TextColumn("{task.description}"),
            BarColumn(None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[eta]}"),
        )
        self.bar = Progress(*columns, console=console, expand=True)
        self.task = self.bar.add_task("training", total=total, completed=done, eta="")
        self.figures = ""
        self.live = Live(get_renderable=lambda: Group(self.bar, self.figures), console=console, transient=True)

    def __enter__(self) -> "Display":
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *error) -> None:
        self.live.stop()

    def step(self, iteration: int, epoch: int, losses: dict[str, float], speed: Speed) -> None:
        """Show an iteration (counted from 1); prints a line and restarts the speed reading every `log_every`."""
        images_per_second, waited = speed.read()
        terms = "  ".join(f"{name.removeprefix('loss_')} {value:.3f}" for name, value in losses.items())
        self.figures = f"{terms}  {images_per_second:.1f} images/s  data wait {waited:.0%}"
        eta = f"ETA {self.eta(iteration)}"
        self.bar.update(self.task, completed=iteration, description=f"epoch {epoch}", eta=eta)
        if iteration % self.log_every == 0:
            speed.reset()
            if not self.console.is_terminal:
                print_line(self.console, f"epoch {epoch}  {iteration}/{self.total}  {self.figures}  {eta}")

    def eta(self, iteration: int) -> str:
        """Time left for training at the pace so far, evaluations not counted, as h:mm:ss."""
        busy = time.perf_counter() - self.started - self.paused
        seconds = round(busy / max(1, iteration - self.resumed_at) * (self.total - iteration))
        return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"

    @contextmanager
    def stage(self, description: str, total: int) -> Iterator[Callable[[], None]]:
        """A second bar for work between iterations; yields the function that advances it."""
        began = time.perf_counter()
        task = self.bar.add_task(description, total=total, eta="")
        try:
            yield lambda: self.bar.advance(task)
        finally:
            self.bar.remove_task(task)
            self.paused += time.perf_counter() - began
