"""Looking at a data set in COCO format before training on it: figures, everything wrong with it, and sample images."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from torchvision.ops import box_convert, clip_boxes_to_image

from dwtriton.config.schema import DataConfig
from dwtriton.console.drawing import draw_boxes
from dwtriton.console.fonts import drawable
from dwtriton.console.progress import progress
from dwtriton.core.text import one_line
from dwtriton.data.annotations import SIDES, Records
from dwtriton.data.classes import match_classes
from dwtriton.data.formats.splits import FoundSplit
from dwtriton.data.images import (
    NEARLY_BLACK,
    BrokenImageError,
    OtherSizeError,
    decode,
    is_nearly_black,
    read_image,
)
from dwtriton.data.problems import DataError, DataProblems
from dwtriton.data.usable import annotation_name, check_measurable, choose_usable
from dwtriton.data.values import Id

SMALL_AREA, LARGE_AREA = 32**2, 96**2  # pixels; COCO's borders between small, medium and large
TINY_SIDE = 4  # pixels; shorter sides are reported
MAX_IMAGES, MAX_COLUMNS = 12, 4  # of the sample images
MAX_NAMED_BOXES = 25  # of an image; more names would hide what is below
MAX_NAME_LENGTH, MAX_FILE_LENGTH = 24, 44  # characters


@dataclass(frozen=True)
class Findings:
    """What a split holds. If `fatal` gives reasons for which a run refuses it, there are no boxes and figures are 0."""

    split: FoundSplit
    fatal: list[str]
    problems: DataProblems
    boxes: dict[Id, list[dict]]  # usable ones by image id
    figures: dict[str, Any]  # see `measure`
    cfg: DataConfig  # with `exif` as found

    @property
    def trained_on(self) -> int:
        """Images that a training would take."""
        return len(self.boxes) if self.cfg.background else sum(map(bool, self.boxes.values()))

    def files(self) -> list[Path]:
        """Return the image files."""
        return [self.split.images / image["file_name"] for image in self.split.records.images.values()]


def check_split(
    split: FoundSplit,
    console: Console,
    training: bool = True,
    cfg: DataConfig | None = None,
    classes: Sequence[str] | None = None,
) -> Findings:
    """Look through a split as training would, or evaluation with the `classes` of training, and decode its images."""
    cfg, records, problems, fatal = cfg or DataConfig(), split.records, DataProblems(), split.records.fatal
    try:
        if classes is not None and not fatal:
            records = match_classes(records, classes, problems)
        usable = None if fatal else choose_usable(records, split.images, training, problems, cfg)
        if usable and not training:
            check_measurable(records.path, usable.annotations, problems)
    except DataError as error:
        fatal = [str(error)]
    if fatal:
        return Findings(split, fatal, DataProblems(), {}, measure({}, Records(records.path, {}, {}, {}, {}, [])), cfg)
    cfg = cfg.model_copy(update={"exif": usable.exif})
    _check_images(usable.images, split, training, cfg, problems, console)
    for name, times in Counter(image["file_name"] for image in records.images.values()).items():
        if times > 1:
            problems.note("file of several images", f"{name} ({times})")
    _check_boxes(usable.boxes, records, problems)
    figures = measure(usable.boxes, records)
    for name, count in figures["classes"].items():
        if not count:
            problems.note("category without a box", name)
    for name in records.groups:
        problems.note("category that only groups others, no class", name)
    return Findings(split._replace(records=records), [], problems, usable.boxes, figures, cfg)


def _check_images(
    images: Sequence[dict[str, Any]],
    split: FoundSplit,
    training: bool,
    cfg: DataConfig,
    problems: DataProblems,
    console: Console,
) -> None:
    """Decode the images as training does, several at a time."""
    fate = "replaced by another in training" if training else "but its ground truth still counts"
    with (
        ThreadPoolExecutor() as pool,  # decoders run outside of Python's lock
        progress(console, f"decoding images of {split.name}", len(images)) as advance,
    ):
        for image, doubt in zip(images, pool.map(partial(_decode, split.images, cfg), images)):
            if isinstance(doubt, OtherSizeError):
                problems.add(f"image of another size than annotated, {fate}", str(doubt))
            elif isinstance(doubt, BrokenImageError):
                problems.add(f"image file that cannot be used, {fate}", str(doubt))
            elif doubt:
                problems.note(f"image {NEARLY_BLACK}", image["file_name"])
            advance()


def _decode(folder: Path, cfg: DataConfig, image: dict[str, Any]) -> bool | BrokenImageError:
    """Return whether an image is nearly black, or why it cannot be used."""
    size = image["height"], image["width"]
    try:
        return is_nearly_black(decode(folder / image["file_name"], size, cfg.exif, cfg.max_pixels))
    except BrokenImageError as error:
        return error


def measure(boxes: dict[Id, list[dict]], records: Records) -> dict[str, Any]:
    """Return counts and sizes of all images of a split and of its usable boxes by image id, crowd regions included.

    `weighted` boxes have a weight other than 1, for those that `choose_usable` chose to train on.
    Sizes are (least, middle, largest) in pixels; the middle of `boxes_per_image` is the mean, else the median.
    """
    every = [box for of_image in boxes.values() for box in of_image]
    used = Counter(box["category_id"] for box in every)
    xywh = np.array([box["bbox"] for box in every], dtype=float).reshape(-1, 4)
    weights = np.array([box["weight"] for box in every], dtype=np.float32)
    images = [records.images[box["image_id"]] for box in every]
    limits = np.array([[image[side] for side in SIDES] for image in images], dtype=float).reshape(-1, 2)  # NaN: unknown
    sizes = np.fmin(xywh[:, :2] + xywh[:, 2:], limits) - np.maximum(xywh[:, :2], 0)  # [N, 2] inside the image
    areas = sizes.prod(1)
    small, large = areas < SMALL_AREA, areas > LARGE_AREA
    shares = {"small": small, "medium": ~(small | large), "large": large}
    return {
        "images": len(records.images),
        "boxes": len(every),
        "crowds": sum(bool(box["iscrowd"]) for box in every),
        "weighted": int((weights != 1).sum()),
        "weight_0": int((weights == 0).sum()),
        "classes": {name: used[id_] for id_, name in records.class_names.items()},  # boxes of each
        "image_sides": _range([i[side] for i in records.images.values() for side in SIDES if i[side] is not None]),
        "boxes_per_image": _range(list(map(len, boxes.values())), np.mean),
        "box_sides": _range(np.sqrt(areas)),
        "box_aspects": _range(sizes[:, 0] / sizes[:, 1]),
        "box_sizes": {name: round(float(chosen.sum()) / max(len(every), 1), 4) for name, chosen in shares.items()},
    }


def _check_boxes(boxes: dict[Id, list[dict]], records: Records, problems: DataProblems) -> None:
    for image_id, of_image in boxes.items():
        image, seen = records.images[image_id], set()
        for box in of_image:
            name = annotation_name(box, records)
            x, y, width, height = box["bbox"]
            limits = [math.inf if image[side] is None else image[side] + 1 for side in SIDES]
            if x < -1 or y < -1 or x + width > limits[0] or y + height > limits[1]:
                problems.note("box reaches over the border of its image, clipped", name)
            if min(width, height) < TINY_SIDE:
                problems.note(f"tiny box, a side under {TINY_SIDE} pixels, hard to learn", name)
            key = (box["category_id"], x, y, width, height)
            if key in seen:
                problems.note("the same box of the same category twice", name)
            seen.add(key)


def _range(values: Sequence[float] | np.ndarray, middle: Callable = np.median) -> tuple[float, float, float]:
    return tuple(round(float(f(values)), 2) for f in (np.min, middle, np.max)) if len(values) else (0.0, 0.0, 0.0)


def draw_sheet(found: Findings) -> Figure:
    """Draw images spread evenly over a split with their usable boxes; unreadable ones become a note."""
    split, boxes = found.split, found.boxes
    images, names = list(split.records.images.values()), split.records.class_names
    label_of = {category_id: label for label, category_id in enumerate(names)}
    chosen = np.linspace(0, len(images) - 1, min(len(images), MAX_IMAGES)).round().astype(int).tolist()
    columns = min(MAX_COLUMNS, len(chosen))
    rows = -(-len(chosen) // columns)
    figure = Figure(figsize=(3.6 * columns, 3.4 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for position, index in enumerate(chosen, 1):
        axes = figure.add_subplot(rows, columns, position)
        axes.axis("off")
        shown, file = boxes[images[index]["id"]], images[index]["file_name"]
        title = file if len(file) <= MAX_FILE_LENGTH else f"...{file[3 - MAX_FILE_LENGTH :]}"
        title, font = drawable(f"{one_line(title)}: {len(shown)} {'box' if len(shown) == 1 else 'boxes'}")
        axes.set_title(title, font=font, fontsize=7, parse_math=False)
        try:
            size = images[index]["height"], images[index]["width"]
            pixels = read_image(
                split.images / file, None if None in size else size, found.cfg.exif, found.cfg.max_pixels
            )
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
