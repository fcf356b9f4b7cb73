"""The folder of a run: config, metrics, checkpoints, plots and, on request, event files for TensorBoard."""

import shutil
from pathlib import Path

from dwtriton.checkpoints.checkpoint import Checkpoint, save_checkpoint
from dwtriton.config.load import dump_config
from dwtriton.config.schema import Config
from dwtriton.core.files import make_folder, write_atomically, write_text
from dwtriton.data.coco import CocoDataset
from dwtriton.evaluate.coco_metrics import Evaluation
from dwtriton.train.metrics import MetricsFile, Speed
from dwtriton.train.plots import draw_curves, draw_predictions
from dwtriton.train.tensorboard import TensorBoard

PLOTTED_IMAGES = 6  # validation images in predictions.png


class RunFolder:
    """Everything that a run writes; a job of several ranks has one, on rank 0.

    `last.pt`, `best.pt`, `epoch-001.pt`, `metrics.jsonl`, `config.toml`, `curves.png`, `predictions.png`.
    """

    def __init__(self, path: Path, cfg: Config, iteration: int) -> None:
        """Make the folder, or continue in it after `iteration` steps. Raises UserError if it cannot be written to."""
        self.path = path
        make_folder(path)
        write_text(path / "config.toml", dump_config(cfg))
        self.metrics = MetricsFile(path / "metrics.jsonl", iteration)
        self.tensorboard = TensorBoard(path, iteration, self.metrics.rows) if cfg.train.tensorboard else None

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *error) -> None:
        self.metrics.close()
        if self.tensorboard:
            self.tensorboard.close()

    def step(self, iteration: int, epoch: int, lr: float, losses: dict[str, float]) -> None:
        """Record an iteration; it and the epoch count from 1."""
        self.metrics.step(iteration, epoch, lr, losses)
        if self.tensorboard:
            self.tensorboard.row(self.metrics.rows[-1])

    def speed(self, iteration: int, speed: Speed) -> None:
        """Record the throughput, in the event files alone: `metrics.jsonl` is the same for a repeated run."""
        if self.tensorboard:
            self.tensorboard.speed(iteration, *speed.read())

    def evaluation(
        self, iteration: int, epoch: int, evaluation: Evaluation, data: CocoDataset, results: list[dict]
    ) -> None:
        """Record the evaluation of `last.pt`, keep the best, and plot curves and the COCO `results` on some images."""
        self.metrics.evaluation(iteration, epoch, evaluation)
        if evaluation.metrics["AP"] >= max(row["AP"] for row in self.metrics.evaluations()):
            self.keep_last("best.pt")
        draw_curves(self.metrics.rows, self.path / "curves.png")
        spread = range(0, len(data), max(1, len(data) // PLOTTED_IMAGES))
        images = [(data.image_ids[i], Path(data.paths[i])) for i in spread][:PLOTTED_IMAGES]
        draw_predictions(data.coco, results, images, self.path / "predictions.png")
        if self.tensorboard:
            self.tensorboard.row(self.metrics.rows[-1])
            self.tensorboard.predictions(iteration, self.path / "predictions.png")

    def save(self, checkpoint: Checkpoint) -> None:
        """Write `last.pt`, after flushing the event files: a resumed run finds every row up to the checkpoint."""
        if self.tensorboard:
            self.tensorboard.flush()
        save_checkpoint(self.path / "last.pt", checkpoint)

    def keep_last(self, name: str) -> None:
        """Copy `last.pt`, whole or not at all."""
        write_atomically(self.path / name, lambda file: shutil.copyfile(self.path / "last.pt", file))
