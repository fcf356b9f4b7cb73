"""Event files of a run for TensorBoard, an optional dependency; `metrics.jsonl` remains the record of the run.

Tags: `train/...` (losses, lr, images/s, data wait), `evaluation/...` (COCO metrics), `class_ap/...` and `predictions`
(the plot), by iteration.
"""

import threading
from pathlib import Path
from typing import TYPE_CHECKING

from dwtriton.console.terminal import printable
from dwtriton.core.errors import UserError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

NOT_SCALARS = ("kind", "iteration", "epoch", "class_ap")  # keys of a row in metrics.jsonl


def import_writer() -> type["SummaryWriter"]:
    """Return PyTorch's SummaryWriter. Raises UserError if TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError(
            "train.tensorboard = true needs TensorBoard: pip install 'dwtriton[tensorboard]', or leave the key out"
        ) from None
    return SummaryWriter


def open_writer(folder: Path, iteration: int, rows: list[dict]) -> "SummaryWriter":
    """Return a writer for a run that has done `iteration` steps; `rows` are those of `metrics.jsonl` up to there.

    Events of later iterations are purged, as the run will repeat them. In a folder without event files all rows are
    written. Raises UserError for a path that is not UTF-8, which TensorBoard cannot open. A disk that refuses a part is
    an OSError of a later call.
    """
    if printable(str(folder)) != str(folder):
        raise UserError(f"TensorBoard cannot write to {folder}, whose name is not plain text: choose another --out")
    report = threading.excepthook
    threading.excepthook = lambda args: None if issubclass(args.exc_type, OSError) else report(args)  # once is enough
    begin = iteration if any(folder.glob("events.out.tfevents.*")) else 0
    writer = import_writer()(str(folder), purge_step=iteration)
    for row in rows:
        if row["iteration"] >= begin:
            write_row(writer, row)
    return writer


def write_row(writer: "SummaryWriter", row: dict) -> None:
    """Write a row of `metrics.jsonl`, of an iteration or an evaluation."""
    group = "train" if row["kind"] == "step" else "evaluation"
    scalars = {f"{group}/{name}": value for name, value in row.items() if name not in NOT_SCALARS}
    scalars |= {f"class_ap/{printable(name)}": ap for name, ap in row.get("class_ap", {}).items()}
    for tag, value in scalars.items():
        writer.add_scalar(tag, value, row["iteration"])
