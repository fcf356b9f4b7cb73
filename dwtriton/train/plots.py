"""Plots of a run folder: `curves.png` and `predictions.png`."""

from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from pycocotools.coco import COCO
from torch import Tensor
from torchvision.ops import box_convert
from torchvision.transforms.v2.functional import resize

from dwtriton.console.drawing import COLOURS, draw_boxes
from dwtriton.console.fonts import drawable
from dwtriton.core.files import write_atomically
from dwtriton.data.images import BrokenImageError, read_image
from dwtriton.data.values import Id

DPI = 130
PANEL_SIDE = 416  # pixels, long side of an image in predictions.png


def draw_curves(rows: list[dict], path: Path) -> None:
    """Plot losses and learning rate of each iteration and AP of each evaluation, from rows of `metrics.jsonl`."""
    steps, evaluations = ([row for row in rows if row["kind"] == kind] for kind in ("step", "evaluation"))
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    losses, rate, precision = figure.subplots(1, 3)
    iterations = [row["iteration"] for row in steps]
    names = [name for name in steps[0] if name.startswith("loss_")] if steps else []
    for name, colour in zip(names, COLOURS):
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
    write_atomically(path, lambda file: figure.savefig(file, dpi=DPI))


def draw_predictions(
    truth: COCO, results: list[dict], images: list[tuple[Id, Path]], path: Path, threshold: float = 0.4
) -> None:
    """Draw each (image id, file): its ground truth above, its detections that score more than `threshold` below."""
    shown = []
    for image_id, file in images:
        with suppress(BrokenImageError):  # the evaluation has reported it
            shown.append((image_id, read_image(file)))
    if not shown:
        return
    figure = Figure(figsize=(PANEL_SIDE / DPI * len(shown), 2.06 * PANEL_SIDE / DPI), layout="constrained")
    axes = figure.subplots(2, len(shown), squeeze=False)
    for (image_id, pixels), (above, below) in zip(shown, axes.T):
        found = [result for result in results if result["image_id"] == image_id and result["score"] > threshold]
        found.sort(key=lambda result: -result["score"])  # the highest-scoring on top
        for panel, boxes in ((above, truth.imgToAnns[image_id]), (below, found)):
            panel.imshow(_draw(pixels, boxes, truth))
            panel.axis("off")
        title, font = drawable(f"image {image_id}: ground truth")  # an id may be any text
        above.set_title(title, font=font, fontsize=9, parse_math=False)
        below.set_title(f"{len(found)} detections", fontsize=9)
    write_atomically(path, lambda file: figure.savefig(file, dpi=DPI))


def _draw(pixels: Tensor, boxes: list[dict], truth: COCO) -> np.ndarray:
    """Image [h, w, 3] of a panel's size with COCO annotations or results in the colours of their classes."""
    scale = PANEL_SIDE / max(pixels.shape[1:])
    pixels = resize(pixels, [max(1, round(side * scale)) for side in pixels.shape[1:]], antialias=True)
    categories = sorted(truth.cats)
    labels = [categories.index(box["category_id"]) for box in boxes]
    details = [f"{box['score']:.2f}" if "score" in box else "(crowd)" if box.get("iscrowd") else "" for box in boxes]
    texts = [f"{truth.cats[box['category_id']]['name']} {detail}" for box, detail in zip(boxes, details)]
    xywh = torch.tensor([box["bbox"] for box in boxes]).reshape(-1, 4) * scale
    return draw_boxes(pixels, box_convert(xywh, "xywh", "xyxy"), labels, texts, enlarge_to=0).permute(1, 2, 0).numpy()


def _smooth(values: np.ndarray) -> np.ndarray:
    """Centred moving average over 2% of the run, shorter at the ends."""
    window = np.ones(max(1, len(values) // 50))
    return np.convolve(values, window, "same") / np.convolve(np.ones(len(values)), window, "same")
