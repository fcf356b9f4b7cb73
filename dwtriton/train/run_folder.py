"""The folder of a run, written by rank 0: config, metrics, checkpoints, plots and, on request, event files."""

import shutil
from pathlib import Path

from dwtriton.checkpoints.checkpoint import Checkpoint, save_checkpoint
from dwtriton.config.load import dump_config
from dwtriton.config.schema import Config
from dwtriton.core.files import make_folder, write_atomically, write_text
from dwtriton.data.coco import CocoDataset
from dwtriton.data.images import read_image
from dwtriton.evaluate.coco_metrics import Evaluation
from dwtriton.train.metrics import MetricsFile, Speed
from dwtriton.train.plots import draw_curves, draw_predictions
from dwtriton.train.tensorboard import open_writer, write_row

PLOTTED_IMAGES = 6  # validation images in predictions.png


class RunFolder:
    """`last.pt`, `best.pt`, `epoch-001.pt`, `metrics.jsonl`, `config.toml`, `curves.png`, `predictions.png`."""

    def __init__(self, path: Path, cfg: Config, iteration: int) -> None:
        """Make the folder, or continue in it after `iteration` steps. Raises UserError if it cannot be written to."""
        self.path = path
        make_folder(path)
        write_text(path / "config.toml", dump_config(cfg))
        self.metrics = MetricsFile(path / "metrics.jsonl", iteration)
        self.events = open_writer(path, iteration, self.metrics.rows) if cfg.train.tensorboard else None

    def close(self) -> None:
        self.metrics.close()
        if self.events:
            self.events.close()

    def record(self, kind: str, iteration: int, epoch: int, **figures) -> None:
        """Record a "step" or an "evaluation"; iteration and epoch count from 1."""
        self.metrics.write({"kind": kind, "iteration": iteration, "epoch": epoch, **figures})
        if self.events:
            write_row(self.events, self.metrics.rows[-1])

    def record_speed(self, iteration: int, speed: Speed) -> None:
        """Record the throughput, in the event files alone: `metrics.jsonl` is the same for a repeated run."""
        if self.events:
            for tag, value in zip(("train/images_per_second", "train/data_wait"), speed.read()):
                self.events.add_scalar(tag, value, iteration)

    def record_evaluation(
        self, iteration: int, epoch: int, evaluation: Evaluation, data: CocoDataset, results: list[dict]
    ) -> None:
        """Record the evaluation of `last.pt`, keep the best, and plot curves and the COCO `results` on some images."""
        self.record("evaluation", iteration, epoch, **evaluation.metrics, class_ap=evaluation.class_ap)
        if evaluation.metrics["AP"] >= max(row["AP"] for row in self.metrics.rows if row["kind"] == "evaluation"):
            self.keep_last("best.pt")
        draw_curves(self.metrics.rows, self.path / "curves.png")
        spread = range(0, len(data), max(1, len(data) // PLOTTED_IMAGES))
        images = [(data.image_ids[i], Path(data.paths[i])) for i in spread][:PLOTTED_IMAGES]
        draw_predictions(data.coco, results, images, self.path / "predictions.png")
        if self.events:
            self.events.add_image("predictions", read_image(self.path / "predictions.png").numpy(), iteration)

    def save(self, checkpoint: Checkpoint) -> None:
        """Write `last.pt`, after flushing the event files: a resumed run finds every row up to the checkpoint."""
        if self.events:
            self.events.flush()
        save_checkpoint(self.path / "last.pt", checkpoint)

    def keep_last(self, name: str) -> None:
        """Copy `last.pt`, whole or not at all."""
        write_atomically(self.path / name, lambda file: shutil.copyfile(self.path / "last.pt", file))
