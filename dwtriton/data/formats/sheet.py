"""A sheet of sample images with their boxes."""

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torchvision.ops import box_convert, clip_boxes_to_image

from dwtriton.console.drawing import draw_boxes
from dwtriton.data.formats.splits import FoundSplit
from dwtriton.data.images import BrokenImageError, read_image

MAX_IMAGES = 12
MAX_COLUMNS = 4
MAX_NAMED_BOXES = 25  # of an image; more names would hide what is below
MAX_NAME_LENGTH, MAX_FILE_LENGTH = 24, 44  # characters


def draw_sheet(split: FoundSplit, boxes: dict[int, list[dict]]) -> Figure:
    """Draw images spread evenly over the split with their `boxes`, by image id; unreadable ones become a note."""
    images, names = list(split.records.images.values()), split.records.class_names
    label_of = {category_id: label for label, category_id in enumerate(names)}
    chosen = np.linspace(0, len(images) - 1, min(len(images), MAX_IMAGES)).round().astype(int).tolist()
    columns = min(MAX_COLUMNS, len(chosen))
    rows = -(-len(chosen) // columns)
    figure = Figure(figsize=(3.6 * columns, 3.4 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for place, index in enumerate(chosen, 1):
        axes = figure.add_subplot(rows, columns, place)
        axes.axis("off")
        shown, file = boxes[images[index]["id"]], images[index]["file_name"]
        title = file if len(file) <= MAX_FILE_LENGTH else f"...{file[3 - MAX_FILE_LENGTH :]}"
        axes.set_title(f"{title}: {len(shown)} {'box' if len(shown) == 1 else 'boxes'}", fontsize=7, parse_math=False)
        try:
            pixels = read_image(split.images / file)
        except BrokenImageError:
            axes.text(0.5, 0.5, "cannot be read", ha="center", va="center", color="#e45756")
            continue
        xywh = torch.tensor([box["bbox"] for box in shown], dtype=torch.float32).reshape(-1, 4)
        xyxy = clip_boxes_to_image(box_convert(xywh, "xywh", "xyxy"), pixels.shape[1:])
        labels = [label_of[box["category_id"]] for box in shown]
        texts = [_short(names[box["category_id"]]) + " (crowd)" * bool(box["iscrowd"]) for box in shown]
        texts = texts if len(texts) <= MAX_NAMED_BOXES else []
        axes.imshow(draw_boxes(pixels, xyxy, labels, texts).permute(1, 2, 0).numpy())
    return figure


def _short(name: str) -> str:
    return name if len(name) <= MAX_NAME_LENGTH else f"{name[: MAX_NAME_LENGTH - 3]}..."
