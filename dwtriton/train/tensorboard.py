"""Curves and pictures of a run for TensorBoard, which is optional; `metrics.jsonl` stays the record of the run."""

from pathlib import Path
from typing import Any

from dwtriton.core.errors import UserError
from dwtriton.data.images import read_image

POSITION = ("kind", "iteration", "epoch", "class_ap")  # what a row of metrics holds besides figures


def import_writer() -> type:
    """PyTorch's SummaryWriter. Raises UserError if TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError(
            "train.tensorboard = true needs TensorBoard: pip install 'dwtriton[tensorboard]', or leave the key out"
        ) from None
    return SummaryWriter


class TensorBoard:
    """Event files in a run folder. The tags are `train/...` (losses, lr, images/s, data wait), `evaluation/...` (COCO
    figures), `class_ap/...` and `predictions` (the picture); the step is the iteration.
    """

    def __init__(self, folder: Path, iteration: int, rows: list[dict[str, Any]]) -> None:
        """Begin, or go on after `iteration` steps; `rows` are those of `metrics.jsonl` up to there.

        What earlier event files hold from that iteration on is dropped, as the run does it again. In a folder without
        event files all rows are written.
        """
        first = iteration if any(folder.glob("events.out.tfevents.*")) else 0
        self.writer = import_writer()(str(folder), purge_step=iteration)
        for row in rows:
            if row["iteration"] >= first:
                self.row(row)

    def row(self, row: dict[str, Any]) -> None:
        """A row of `metrics.jsonl`: an iteration or an evaluation."""
        group = "train" if row["kind"] == "step" else "evaluation"
        figures = {f"{group}/{name}": value for name, value in row.items() if name not in POSITION}
        figures |= {f"class_ap/{name}": ap for name, ap in row.get("class_ap", {}).items()}
        for tag, value in figures.items():
            self.writer.add_scalar(tag, value, row["iteration"])

    def speed(self, iteration: int, images_per_second: float, waited: float) -> None:
        """Throughput, and the share of the time in which the step waited for data."""
        self.writer.add_scalar("train/images_per_second", images_per_second, iteration)
        self.writer.add_scalar("train/data_wait", waited, iteration)

    def predictions(self, iteration: int, picture: Path) -> None:
        """The picture that an evaluation has drawn."""
        self.writer.add_image("predictions", read_image(picture).numpy(), iteration)

    def flush(self) -> None:
        """Write what is waiting in memory."""
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()
