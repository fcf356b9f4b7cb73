"""The pictures of a run folder: `curves.png` and `predictions.png`."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from pycocotools.coco import COCO

from dwtriton.console.drawing import COLOURS
from dwtriton.core.files import write_atomically
from dwtriton.data.images import BrokenImageError, read_image


def draw_curves(rows: list[dict], path: Path) -> None:
    """Losses and learning rate of every iteration and AP of every evaluation, from the rows of `metrics.jsonl`."""
    steps = [row for row in rows if row["kind"] == "step"]
    evaluations = [row for row in rows if row["kind"] == "evaluation"]
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    losses, rate, precision = figure.subplots(1, 3)
    iterations = [row["iteration"] for row in steps]
    for name, colour in zip(("loss_cls_pos", "loss_loc", "loss_cls_neg"), COLOURS):
        values = np.array([row[name] for row in steps])
        losses.plot(iterations, values, color=colour, alpha=0.2, linewidth=0.7)
        losses.plot(iterations, _smooth(values), color=colour, label=name)
    losses.set(title="losses", xlabel="iteration", yscale="log")
    losses.legend()
    rate.plot(iterations, [row["lr"] for row in steps], color=COLOURS[0])
    rate.set(title="learning rate", xlabel="iteration", ylim=(0, None))
    for name, colour in zip(("AP", "AP50", "AP75"), COLOURS):
        values = [row[name] for row in evaluations]
        precision.plot([row["epoch"] for row in evaluations], values, "o-", color=colour, label=name)
    precision.set(title="validation", xlabel="epoch", ylim=(0, 1))
    precision.xaxis.set_major_locator(MaxNLocator(integer=True))
    if evaluations:
        precision.legend()
    for axes in (losses, rate, precision):
        axes.grid(alpha=0.3)
    _save(figure, path)


def draw_predictions(
    truth: COCO, results: list[dict], images: list[tuple[int, Path]], path: Path, threshold: float = 0.4
) -> None:
    """For each (image id, file): the ground truth above, the detections with a score over `threshold` below."""
    shown = [(image_id, pixels) for image_id, file in images if (pixels := _read(file)) is not None]
    if not shown:
        return
    figure = Figure(figsize=(3.2 * len(shown), 6.6), layout="constrained")
    axes = figure.subplots(2, len(shown), squeeze=False)
    colour = {category: COLOURS[i % len(COLOURS)] for i, category in enumerate(sorted(truth.cats))}
    for (image_id, pixels), (above, below) in zip(shown, axes.T):
        annotations = truth.imgToAnns[image_id]
        found = [result for result in results if result["image_id"] == image_id and result["score"] > threshold]
        found.sort(key=lambda result: result["score"])  # the surest names on top
        for panel, boxes in ((above, annotations), (below, found)):
            panel.imshow(pixels)
            panel.axis("off")
            for box in boxes:
                _draw_box(panel, box, truth.cats[box["category_id"]]["name"], colour[box["category_id"]])
        above.set_title(f"image {image_id}: ground truth", fontsize=9)
        below.set_title(f"{len(found)} detections", fontsize=9)
    _save(figure, path)


def _read(file: Path) -> np.ndarray | None:
    """Pixels [h, w, 3], or None for a file that cannot be read; the evaluation has reported it."""
    try:
        return read_image(file).permute(1, 2, 0).numpy()
    except BrokenImageError:
        return None


def _draw_box(axes: Axes, box: dict, name: str, colour: str) -> None:
    x, y, width, height = box["bbox"]
    crowd = box.get("iscrowd", 0)
    axes.add_patch(
        Rectangle((x, y), width, height, fill=False, color=colour, linewidth=1.4, linestyle=":" if crowd else "-")
    )
    label = f"{name} {box['score']:.2f}" if "score" in box else f"{name} (crowd)" if crowd else name
    style = {"facecolor": colour, "edgecolor": "none", "pad": 0.6, "alpha": 0.85}
    above = y > 10  # else there is no room for the name but inside
    axes.text(x, y, label, fontsize=6, color="white", va="bottom" if above else "top", bbox=style, clip_on=True)


def _smooth(values: np.ndarray) -> np.ndarray:
    """Centred moving average over a fiftieth of the run, shorter at the ends."""
    window = np.ones(max(1, len(values) // 50))
    return np.convolve(values, window, "same") / np.convolve(np.ones(len(values)), window, "same")


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    write_atomically(path, lambda file: figure.savefig(file, dpi=130))
