"""Plots of a run folder: `curves.png` and `predictions.png`."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageDraw, ImageFont
from pycocotools.coco import COCO
from torch import Tensor
from torchvision.ops import box_convert
from torchvision.transforms.v2.functional import resize, to_pil_image

from dwtriton.console.drawing import COLOURS, draw_boxes
from dwtriton.console.fonts import drawable
from dwtriton.core.files import write_file
from dwtriton.core.text import one_line
from dwtriton.data.images import BrokenImageError, read_image
from dwtriton.data.values import Id

DPI = 130
PANEL_SIDE = 416  # long side of an image in predictions.png, in pixels, as
TITLE, GAP = 28, 8  # the height of a title, and the white space between the images


def draw_curves(rows: list[dict], path: Path) -> None:
    """Plot losses and learning rate of each iteration and AP of each evaluation, from rows of `metrics.jsonl`."""
    steps, evaluations = ([row for row in rows if row["kind"] == kind] for kind in ("step", "evaluation"))
    figure = Figure(figsize=(12, 3.6))  # with fixed margins: a layout engine takes longer than everything else here
    losses, rate, precision = figure.subplots(
        1, 3, gridspec_kw={"left": 0.05, "right": 0.99, "bottom": 0.15, "top": 0.91, "wspace": 0.2}
    )
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
    write_file(path, lambda file: figure.savefig(file, format="png", dpi=DPI))


def draw_predictions(
    truth: COCO,
    results: list[dict],
    images: list[tuple[Id, Path]],
    path: Path,
    threshold: float = 0.4,
    read: Callable[[Path], Tensor] = read_image,
) -> None:
    """Draw each (image id, file): its ground truth above, its detections that score more than `threshold` below.

    `read` decodes a file as the evaluation did.
    """
    shown = []
    for image_id, file in images:
        with suppress(BrokenImageError):  # the evaluation has reported it
            shown.append((image_id, read(file)))
    if not shown:
        return
    panels = []  # (column, row, title, picture)
    for column, (image_id, pixels) in enumerate(shown):
        found = [result for result in results if result["image_id"] == image_id and result["score"] > threshold]
        found.sort(key=lambda result: -result["score"])  # the highest-scoring on top
        panels.append((column, 0, f"image {image_id}: ground truth", _draw(pixels, truth.imgToAnns[image_id], truth)))
        panels.append((column, 1, f"detections: {len(found)}", _draw(pixels, found, truth)))
    cell = PANEL_SIDE + GAP
    height = TITLE + max(picture.height for *_, picture in panels) + GAP
    sheet = Image.new("RGB", (cell * len(shown), height * 2), "white")
    texts = ImageDraw.Draw(sheet)
    for column, row, title, picture in panels:
        middle = cell * column + cell // 2
        title, font = drawable(one_line(title))  # the id of an image may be any text
        texts.text((middle, height * row + TITLE // 2), title, "black", ImageFont.truetype(font, 16), anchor="mm")
        sheet.paste(picture, (middle - picture.width // 2, height * row + TITLE))
    write_file(path, lambda file: sheet.save(file, "PNG", compress_level=1))  # level 6 takes ten times as long


def _draw(pixels: Tensor, boxes: list[dict], truth: COCO) -> Image.Image:
    """Return the image in a panel's size with COCO annotations or results in the colours of their classes."""
    scale = PANEL_SIDE / max(pixels.shape[1:])
    pixels = resize(pixels, [max(1, round(side * scale)) for side in pixels.shape[1:]], antialias=True)
    categories = sorted(truth.cats)
    labels = [categories.index(box["category_id"]) for box in boxes]
    details = [f"{box['score']:.2f}" if "score" in box else "(crowd)" if box.get("iscrowd") else "" for box in boxes]
    texts = [f"{truth.cats[box['category_id']]['name']} {detail}" for box, detail in zip(boxes, details)]
    xywh = torch.tensor([box["bbox"] for box in boxes]).reshape(-1, 4) * scale
    return to_pil_image(draw_boxes(pixels, box_convert(xywh, "xywh", "xyxy"), labels, texts, enlarge_to=0))


def _smooth(values: np.ndarray) -> np.ndarray:
    """Centred moving average over 2% of the run, shorter at the ends."""
    window = np.ones(max(1, len(values) // 50))
    return np.convolve(values, window, "same") / np.convolve(np.ones(len(values)), window, "same")
