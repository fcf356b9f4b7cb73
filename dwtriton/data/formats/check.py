"""Looking through a data set in COCO format before training on it: its figures, and everything wrong with it."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from rich.console import Console

from dwtriton.console.progress import progress
from dwtriton.data.annotations import Records
from dwtriton.data.formats.splits import FoundSplit
from dwtriton.data.images import BrokenImageError, upright_size
from dwtriton.data.problems import DataError, DataProblems
from dwtriton.data.usable import annotation_name, choose_usable

SMALL_AREA, LARGE_AREA = 32**2, 96**2  # pixels; COCO's borders between small, medium and large
TINY_SIDE = 4  # pixels; shorter sides are reported

Range = tuple[float, float, float]  # least, middle, largest
EMPTY: Range = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Figures:
    """Counts and sizes of the images and usable boxes of a split, crowd regions included."""

    images: int = 0
    boxes: int = 0
    crowds: int = 0
    classes: dict[str, int] = field(default_factory=dict)  # boxes of each category
    image_sides: Range = EMPTY  # pixels, middle: median
    boxes_per_image: Range = EMPTY  # middle: mean
    box_sides: Range = EMPTY  # square root of the area inside the image, pixels, middle: median
    box_aspects: Range = EMPTY  # width / height, middle: median
    box_sizes: dict[str, float] = field(default_factory=dict)  # shares of small, medium and large boxes


@dataclass(frozen=True)
class Findings:
    """What a split holds. If `fatal` gives reasons for which a run refuses it, the rest is empty."""

    split: FoundSplit
    fatal: list[str]
    problems: DataProblems = field(default_factory=DataProblems)
    boxes: dict[int, list[dict]] = field(default_factory=dict)  # usable ones by image id
    figures: Figures = Figures()


def check_split(split: FoundSplit, console: Console, training: bool = True) -> Findings:
    """Look through a split as training would, or evaluation. Image files are opened for their size and not decoded."""
    records, problems = split.records, DataProblems()
    if records.fatal:
        return Findings(split, records.fatal)
    try:
        boxes = choose_usable(records, split.images, training, problems).boxes
    except DataError as error:
        return Findings(split, [str(error)])
    fate = "replaced by another in training" if training else "but its ground truth still counts"
    with progress(console, f"opening images of {split.name}", len(records.images)) as advance:
        for image in records.images.values():
            path, size = split.images / image["file_name"], (image["width"], image["height"])
            try:
                found = upright_size(path) if path.is_file() else size  # `choose_usable` has reported missing files
                if found != size:
                    example = "{} ({}x{}, annotated {}x{})".format(path, *found, *size)
                    problems.add(f"image of another size than annotated, {fate}", example)
            except BrokenImageError as error:
                problems.add(f"image file that cannot be used, {fate}", str(error))
            advance()
    for name, times in Counter(image["file_name"] for image in records.images.values()).items():
        if times > 1:
            problems.add("file of several images", f"{name} ({times})")
    _check_boxes(boxes, records, problems)
    figures = measure(boxes, records)
    for name, count in figures.classes.items():
        if not count:
            problems.add("category without a box", name)
    return Findings(split, [], problems, boxes, figures)


def measure(boxes: dict[int, list[dict]], records: Records) -> Figures:
    """Return the figures of usable boxes, by image id, and of all images of a split."""
    every = [box for of_image in boxes.values() for box in of_image]
    used = Counter(box["category_id"] for box in every)
    xywh = np.array([box["bbox"] for box in every], dtype=float).reshape(-1, 4)
    images = [records.images[box["image_id"]] for box in every]
    limits = np.array([(image["width"], image["height"]) for image in images]).reshape(-1, 2)
    sizes = np.minimum(xywh[:, :2] + xywh[:, 2:], limits) - np.maximum(xywh[:, :2], 0)  # [N, 2] inside the image
    areas = sizes.prod(1)
    small, large = areas < SMALL_AREA, areas > LARGE_AREA
    shares = {"small": small, "medium": ~(small | large), "large": large}
    return Figures(
        images=len(records.images),
        boxes=len(every),
        crowds=sum(bool(box["iscrowd"]) for box in every),
        classes={name: used[id_] for id_, name in records.class_names.items()},
        image_sides=_range([image[side] for image in records.images.values() for side in ("width", "height")]),
        boxes_per_image=_range(list(map(len, boxes.values())), np.mean),
        box_sides=_range(np.sqrt(areas)),
        box_aspects=_range(sizes[:, 0] / sizes[:, 1]),
        box_sizes={name: round(float(chosen.sum()) / max(len(every), 1), 4) for name, chosen in shares.items()},
    )


def _check_boxes(boxes: dict[int, list[dict]], records: Records, problems: DataProblems) -> None:
    for image_id, of_image in boxes.items():
        image, seen = records.images[image_id], set()
        for box in of_image:
            name = annotation_name(box, records)
            x, y, width, height = box["bbox"]
            if x < -1 or y < -1 or x + width > image["width"] + 1 or y + height > image["height"] + 1:
                problems.add("box reaches over the border of its image, clipped", name)
            if min(width, height) < TINY_SIDE:
                problems.add(f"tiny box, a side under {TINY_SIDE} pixels, hard to learn", name)
            key = (box["category_id"], x, y, width, height)
            if key in seen:
                problems.add("the same box of the same category twice", name)
            seen.add(key)


def _range(values: Sequence[float] | np.ndarray, middle: Callable = np.median) -> Range:
    return tuple(round(float(f(values)), 2) for f in (np.min, middle, np.max)) if len(values) else EMPTY
