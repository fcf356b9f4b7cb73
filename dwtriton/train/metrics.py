"""Metrics of a run: `metrics.jsonl`, with one row for every iteration and evaluation, and the throughput."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

from dwtriton.core.files import AppendedFile, write_text

NEEDED = {"step": {"epoch", "lr", "loss"}, "evaluation": {"epoch", "AP", "AP50", "AP75"}}  # keys of a row, by its kind


class MetricsFile:
    """`metrics.jsonl`. Rows hold no times, so a resumed run writes the same file as an uninterrupted one.

    `unreadable` counts the lines that were left out when it was opened: damaged by a crash of the machine, or by hand.
    """

    def __init__(self, path: Path, iteration: int = 0) -> None:
        """Open the file of a run that has done `iteration` steps; drop the rows that it will write again."""
        rows, self.unreadable = _read_rows(path) if path.exists() else ([], 0)
        self.rows = [row for row in rows if row["iteration"] < iteration + (row["kind"] == "step")]
        write_text(path, "".join(json.dumps(row) + "\n" for row in self.rows))
        self._file = AppendedFile(path)  # a killed process loses no row

    def write(self, row: dict) -> None:
        """Append a row: `kind` ("step" or "evaluation"), `iteration` and `epoch`, both from 1, then the figures."""
        self.rows.append(row)
        self._file.write_line(json.dumps(row))

    def sync(self) -> None:
        """Have all rows on the disk, before a checkpoint that a resumed run continues them from."""
        self._file.sync()

    def close(self) -> None:
        self._file.close()


def read_metrics(path: Path) -> list[dict]:
    """Return the rows of a `metrics.jsonl`, without lines that cannot be read and a last one that a crash cut off."""
    return _read_rows(path)[0]


def _read_rows(path: Path) -> tuple[list[dict], int]:
    """Return the rows and the number of whole lines that are none."""
    found = [_read_row(line) for line in path.read_bytes().split(b"\n")[:-1]]
    rows = [row for row in found if row is not None]
    return rows, len(found) - len(rows)


def _read_row(line: bytes) -> dict | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):  # not JSON, or not UTF-8
        return None
    needed = NEEDED.get(str(row.get("kind"))) if isinstance(row, dict) else None
    whole = needed is not None and row.keys() >= needed and isinstance(row.get("iteration"), int)
    return row if whole else None


class Speed:
    """Throughput since the last reset: images per second, and the share of the time spent waiting for data."""

    def __init__(self, world_size: int = 1) -> None:
        """`world_size` ranks are assumed to be as fast as this one."""
        self.world_size = world_size
        self.reset()

    def reset(self) -> None:
        self.start, self.waited, self.images = time.perf_counter(), 0.0, 0

    def timed(self, batches: Iterator) -> Iterator:
        """Yield the batches and measure how long each was waited for."""
        while True:
            asked = time.perf_counter()
            if (batch := next(batches, None)) is None:
                return
            self.waited += time.perf_counter() - asked
            self.images += len(batch.images) * self.world_size
            yield batch

    def read(self) -> tuple[float, float]:
        """Return (images per second, share of the time waited) since the last reset."""
        elapsed = time.perf_counter() - self.start
        return self.images / elapsed, self.waited / elapsed

    def __str__(self) -> str:
        return "{:.1f} images/s  data wait {:.0%}".format(*self.read())


def losses_line(losses: dict[str, float]) -> str:
    """Return the losses of an iteration as text for the progress display."""
    return "  ".join(f"{name.removeprefix('loss_')} {value:.3f}" for name, value in losses.items())
