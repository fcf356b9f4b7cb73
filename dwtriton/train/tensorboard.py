"""Event files of a run for TensorBoard, an optional dependency; `metrics.jsonl` remains the record of the run."""

from pathlib import Path
from typing import Any

from dwtriton.core.errors import UserError
from dwtriton.data.images import read_image

NOT_SCALARS = ("kind", "iteration", "epoch", "class_ap")  # keys of a row in metrics.jsonl


def import_writer() -> type:
    """Return PyTorch's SummaryWriter. Raises UserError if TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError(
            "train.tensorboard = true needs TensorBoard: pip install 'dwtriton[tensorboard]', or leave the key out"
        ) from None
    return SummaryWriter


class TensorBoard:
    """Event files in a run folder, by iteration.

    Tags: `train/...` (losses, lr, images/s, data wait), `evaluation/...` (COCO metrics), `class_ap/...` and
    `predictions` (the plot).
    """

    def __init__(self, folder: Path, iteration: int, rows: list[dict[str, Any]]) -> None:
        """Open a writer for a run that has done `iteration` steps; `rows` are those of `metrics.jsonl` up to there.

        Events of later iterations are purged, as the run will repeat them. In a folder without event files all rows are
        written.
        """
        begin = iteration if any(folder.glob("events.out.tfevents.*")) else 0
        self.writer = import_writer()(str(folder), purge_step=iteration)
        for row in rows:
            if row["iteration"] >= begin:
                self.row(row)

    def row(self, row: dict[str, Any]) -> None:
        """Write a row of `metrics.jsonl`, of an iteration or an evaluation."""
        group = "train" if row["kind"] == "step" else "evaluation"
        scalars = {f"{group}/{name}": value for name, value in row.items() if name not in NOT_SCALARS}
        scalars |= {f"class_ap/{name}": ap for name, ap in row.get("class_ap", {}).items()}
        for tag, value in scalars.items():
            self.writer.add_scalar(tag, value, row["iteration"])

    def speed(self, iteration: int, images_per_second: float, waited: float) -> None:
        """Write the throughput and the share of the time spent waiting for data."""
        self.writer.add_scalar("train/images_per_second", images_per_second, iteration)
        self.writer.add_scalar("train/data_wait", waited, iteration)

    def predictions(self, iteration: int, plot: Path) -> None:
        """Write the plot of an evaluation."""
        self.writer.add_image("predictions", read_image(plot).numpy(), iteration)

    def flush(self) -> None:
        """Write buffered events to disk."""
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()
