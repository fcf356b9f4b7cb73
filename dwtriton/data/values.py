"""Numbers, ids and boxes as exporters write them: as strings, as floats that are whole, as null."""

import math
import re
import sys
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from pycocotools import mask

from dwtriton.config.kinds import MAX_PIXELS

RLE_TEXT = re.compile(r"(?:[P-o]{0,6}[0-O])+")  # COCO's compressed counts, each complete: its decoder does not check

MAX_DIGITS = 1000  # of whole numbers in strings: Python's int() refuses some thousands
HABIT_SHARE = 0.9  # of the boxes of a file that show what an exporter means by its numbers; a few strays do not matter
ROTATED_LENGTHS = (5, 8)  # numbers of a rotated box: with an angle, or its corners
ROUNDING = 0.01  # by which shares of 1 may lie outside

Id = int | str


def number(value: Any) -> float | None:
    """Return a finite number, also from a string that holds one; None for everything else. Integers stay integers."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    return value if is_finite(value) else None


def is_finite(value: Any) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max


def whole_number(value: Any) -> int | None:
    """Return a whole number, also from "7", 7.0 and "7.0"; None for everything else."""
    if isinstance(value, str) and len(value) <= MAX_DIGITS and value.strip().lstrip("+-").isdecimal():
        return int(value)  # exact
    value = number(value)
    return int(value) if value is not None and value == int(value) else None


def url_path(url: str) -> str:
    """Return the path in a URL, without host and query; the empty string for what is no URL."""
    try:
        return urlsplit(url).path
    except ValueError:
        return ""


def id_text(value: Any) -> str | None:
    """Return the text by which ids are compared: 7, 7.0 and "7" are the same; None for what is no id."""
    whole = whole_number(value)
    if whole is not None:
        return str(whole)
    return value.strip() or None if isinstance(value, str) else None


def box_of(annotation: dict[str, Any]) -> list[float] | None:
    """Return the box [x, y, width, height] of an annotation, from its segmentation where it has none; or else None."""
    box = annotation.get("bbox")
    if isinstance(box, list) and any(number(value) != 0 for value in box):
        numbers = [number(value) for value in box]
        if not has_rotated_numbers(annotation):
            return numbers if len(numbers) == 4 and None not in numbers else None
    segmentation = annotation.get("segmentation")
    around = mask_box(segmentation) if isinstance(segmentation, dict) else polygon_box(segmentation)
    return around or (box if isinstance(box, list) and len(box) == 4 else None)


def polygon_box(polygons: Any) -> list[float] | None:
    """Return the box around COCO's polygons, lists x1, y1, x2, y2, ...; None for everything else."""
    if isinstance(polygons, list) and polygons and not isinstance(polygons[0], list):
        polygons = [polygons]  # a single one, without the outer list
    if not isinstance(polygons, list) or not all(map(_is_polygon, polygons)):
        return None
    x = [number(value) for polygon in polygons for value in polygon[::2]]
    y = [number(value) for polygon in polygons for value in polygon[1::2]]
    return [min(x), min(y), max(x) - min(x), max(y) - min(y)] if x else None


def mask_box(rle: dict[str, Any]) -> list[float] | None:
    """Return the box around a mask in COCO's run-length encoding, compressed or not; None if it is empty or broken."""
    size, counts = rle.get("size"), rle.get("counts")
    sides = list(map(whole_number, size)) if isinstance(size, list) else []
    if len(sides) != 2 or None in sides or min(sides) < 1 or math.prod(sides) > MAX_PIXELS:
        return None
    if isinstance(counts, list):
        runs = list(map(whole_number, counts))
        if None in runs or min(runs, default=0) < 0 or sum(runs) > math.prod(sides):
            return None
        rle = mask.frPyObjects({"size": sides, "counts": runs}, *sides)
    elif isinstance(counts, str) and RLE_TEXT.fullmatch(counts):
        rle = {"size": sides, "counts": counts}
    else:
        return None
    x, y, width, height = mask.toBbox(rle).tolist()
    is_inside = x + width <= sides[1] and y + height <= sides[0]
    return [x, y, width, height] if is_inside and width > 0 and height > 0 else None


def _is_polygon(values: Any) -> bool:
    is_list = isinstance(values, list) and len(values) >= 6 and len(values) % 2 == 0
    return is_list and all(number(value) is not None for value in values)


def is_share(box: Sequence[float]) -> bool:
    """Whether a box has an area and lies in the square from 0 to 1, as boxes in shares of the image's sides do."""
    return min(box[2:]) > 0 and all(-ROUNDING <= value <= 1 + ROUNDING for value in box)


def are_shares(boxes: Sequence[Sequence[float]]) -> bool:
    """Whether boxes are in shares of the image's sides, not in pixels: nearly all that have an area can be."""
    with_area = [box for box in boxes if min(box[2:]) > 0]
    return bool(with_area) and sum(map(is_share, with_area)) >= HABIT_SHARE * len(with_area)


def are_corners(boxes: Sequence[Sequence[float]], limits: Sequence[tuple[float, float]]) -> bool:
    """Whether boxes are probably corners: nearly all can be, and as x, y, width, height many leave the image.

    `limits` are the (width, height) of the image of each box.
    """
    possible = leaving = 0
    for (x, y, third, fourth), (width, height) in zip(boxes, limits):
        possible += x < third <= width + 1 and y < fourth <= height + 1
        leaving += x + third > width + 1 or y + fourth > height + 1
    return len(boxes) > 1 and possible >= HABIT_SHARE * len(boxes) and leaving > len(boxes) / 4


def has_rotated_numbers(annotation: dict[str, Any]) -> bool:
    """Whether the box has an angle as fifth number, or the four corners of a rotated one."""
    box = annotation.get("bbox")
    return isinstance(box, list) and len(box) in ROTATED_LENGTHS and all(number(value) is not None for value in box)


def is_rotated(annotation: dict[str, Any]) -> bool:
    """Whether an exporter says that the box is rotated, as CVAT does in `attributes.rotation`, in degrees."""
    attributes = annotation.get("attributes")
    values = [annotation.get("rotation"), attributes.get("rotation") if isinstance(attributes, dict) else None]
    return any(math.fmod(number(value) or 0, 360) != 0 for value in values)
