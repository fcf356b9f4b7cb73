"""The folder of a run, written by rank 0: config, metrics, checkpoints, plots and, on request, event files."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from dwtriton.checkpoints.checkpoint import Checkpoint, save_checkpoint
from dwtriton.config.load import dump_config
from dwtriton.config.schema import Config
from dwtriton.core.errors import UserError
from dwtriton.core.files import copy_file, explain_writes, keep_file, make_folder, write_text
from dwtriton.data.coco import CocoDataset
from dwtriton.data.images import read_image
from dwtriton.evaluate.coco_metrics import Evaluation
from dwtriton.train.lock import RunLock
from dwtriton.train.metrics import MetricsFile, Speed
from dwtriton.train.plots import draw_curves, draw_predictions
from dwtriton.train.tensorboard import open_writer, write_row

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

RUNS = Path("runs")
LAST, PREVIOUS, BEST = "last.pt", "previous.pt", "best.pt"
EVENTS = "events.out.tfevents"  # beginning of the names of TensorBoard's files
PLOTTED_IMAGES = 6  # validation images in predictions.png


@contextmanager
def new_folder(name: str) -> Iterator[Path]:
    """Make a folder `runs/NAME-DATE-TIME` for a run, that no other run has; remove it if nothing is written to it."""
    make_folder(RUNS)
    path = first = RUNS / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    for number in count(2):
        with suppress(FileExistsError):
            path.mkdir()
            break
        path = first.with_name(f"{first.name}-{number}")
    try:
        yield path
    finally:
        with suppress(OSError):  # not empty
            path.rmdir()
            RUNS.rmdir()


def written_at(path: Path) -> int | None:
    """Return when a file was written, in ns; None if it is absent."""
    return path.stat().st_mtime_ns if path.exists() else None


class RunFolder:
    """`last.pt`, `best.pt`, `epoch-001.pt`, `metrics.jsonl`, `config.toml`, `curves.png`, `predictions.png`.

    `previous.pt` is the checkpoint before `last.pt`, for when the disk damages that. `notes` say what else it damaged.
    """

    def __init__(self, path: Path, cfg: Config, iteration: int, per_epoch: int, last_written: int | None) -> None:
        """Make the folder, or continue in it after `iteration` steps, and lock it until `close`.

        Raises UserError if it cannot be written to, if another run is in it, and if one has been since its `last.pt`,
        which was written at `last_written`, was read.
        """
        self.path, self.per_epoch, self.keep_every = path, per_epoch, cfg.train.keep_every
        make_folder(path)
        self.lock = RunLock(path)
        if written_at(path / LAST) != last_written:
            raise UserError(f"another run has just written to {path}: choose another --out, or add --resume")
        write_text(path / "config.toml", dump_config(cfg))
        self.metrics = MetricsFile(path / "metrics.jsonl", iteration)
        damaged = f"{self.metrics.unreadable} lines of {path / 'metrics.jsonl'} cannot be read and were left out"
        self.notes = [damaged] if self.metrics.unreadable else []
        self._keep_epoch(iteration, again=False)  # a run may be killed between last.pt and this
        with explain_writes(path / EVENTS):
            self.events = open_writer(path, iteration, self.metrics.rows) if cfg.train.tensorboard else None

    def close(self) -> None:
        self.metrics.close()
        try:
            self._to_events(lambda events: events.close())
        finally:
            self.lock.release()

    def record(self, kind: str, iteration: int, epoch: int, **figures) -> None:
        """Record a "step" or an "evaluation"; iteration and epoch count from 1."""
        self.metrics.write({"kind": kind, "iteration": iteration, "epoch": epoch, **figures})
        self._to_events(lambda events: write_row(events, self.metrics.rows[-1]))

    def record_speed(self, iteration: int, speed: Speed) -> None:
        """Record the throughput, in the event files alone: `metrics.jsonl` is the same for a repeated run."""
        for tag, value in zip(("train/images_per_second", "train/data_wait"), speed.read()):
            self._to_events(lambda events, tag=tag, value=value: events.add_scalar(tag, value, iteration))

    def _to_events(self, write: Callable[["SummaryWriter"], object]) -> None:
        """Let `write` add to the event files, if the run has any."""
        if self.events:
            with explain_writes(self.path / EVENTS):
                write(self.events)

    def record_evaluation(
        self, iteration: int, epoch: int, evaluation: Evaluation, data: CocoDataset, results: list[dict]
    ) -> None:
        """Record the evaluation of `last.pt`, keep the best, and plot curves and the COCO `results` on some images."""
        self.record("evaluation", iteration, epoch, **evaluation.metrics, class_ap=evaluation.class_ap)
        if evaluation.metrics["AP"] >= max(row["AP"] for row in self.metrics.rows if row["kind"] == "evaluation"):
            self.keep_last(BEST)
        draw_curves(self.metrics.rows, self.path / "curves.png")
        spread = range(0, len(data), max(1, len(data) // PLOTTED_IMAGES))
        index_of = {Path(data.paths[i]): i for i in spread[:PLOTTED_IMAGES]}
        images = [(data.image_ids[i], path) for path, i in index_of.items()]
        drawn = self.path / "predictions.png"
        draw_predictions(data.coco, results, images, drawn, read=lambda path: data.read(index_of[path]))
        self._to_events(lambda events: events.add_image("predictions", read_image(drawn).numpy(), iteration))

    def save(self, checkpoint: Checkpoint) -> None:
        """Write `last.pt`, after all rows: a resumed run finds every row up to the checkpoint."""
        self.metrics.sync()
        self._to_events(lambda events: events.flush())
        if (self.path / LAST).exists():
            keep_file(self.path / LAST, self.path / PREVIOUS)
        save_checkpoint(self.path / LAST, checkpoint)
        self._keep_epoch(checkpoint.iteration, again=True)

    def _keep_epoch(self, iteration: int, again: bool) -> None:
        """Copy `last.pt` to `epoch-N.pt` if it ends an epoch that is kept; only `again` if that is there."""
        epoch, within = divmod(iteration, self.per_epoch)
        kept = self.path / f"epoch-{epoch:03}.pt"
        due = epoch and not within and self.keep_every and epoch % self.keep_every == 0
        if due and (again or not kept.exists()):
            self.keep_last(kept.name)

    def keep_last(self, name: str) -> None:
        """Copy `last.pt`, whole or not at all."""
        copy_file(self.path / LAST, self.path / name)
