"""Reading labelme's layout: a JSON file for each image."""

import math
from functools import partial
from pathlib import Path
from typing import Any

from dwtriton.data.formats.convert import Box, Source, clip
from dwtriton.data.formats.folders import split_by_folder
from dwtriton.data.formats.named_images import NamedImages
from dwtriton.data.problems import DataError
from dwtriton.data.text_files import read_json
from dwtriton.data.values import number

SHAPES = ("rectangle", "polygon", "circle")  # those that have an area; a mask has the corners of its box


def is_labelme(root: Path) -> bool:
    """Whether a folder, or one in it, has a JSON file of labelme."""
    return next(_label_files(root), None) is not None


def _label_files(root: Path):
    for path in sorted(root.rglob("*.json")):
        try:
            content = read_json(path)
        except DataError:
            continue
        if isinstance(content, dict) and isinstance(content.get("shapes"), list) and "imagePath" in content:
            yield path


def read_labelme(root: Path) -> Source:
    """Read the JSON files of labelme, with splits by the names of folders. Classes are the labels that occur.

    A rectangle, a polygon and a circle become the box around them; other shapes have no area and are problems. An image
    without a JSON file is background. Raises DataError.
    """
    problems: list[str] = []
    labels: dict[Path, Path] = {}  # by image
    named = NamedImages(root)
    for path in _label_files(root):
        name = str(read_json(path)["imagePath"])
        image = named.find(name, path.parent)
        if image is None:
            problems.append(f"{path}: its image {path.parent / name} does not exist")
        elif image in labels:
            problems.append(f"{path}: its image {image} is that of {labels[image]} too")
        else:
            labels[image] = path
    images = [image for image in named.images if image not in labels]
    splits, notes = split_by_folder(root, sorted([*labels, *images]))
    if images:
        notes.append(f"{len(images)} images without a JSON file are background")
    return Source(splits, None, partial(_read, labels), problems, notes)


def _read(labels: dict[Path, Path], image: Path, height: int, width: int, problems: list[str]) -> list[Box]:
    if image not in labels:
        return []
    path, boxes = labels[image], []
    content = read_json(path)
    sides = content.get("imageHeight"), content.get("imageWidth")
    if None not in sides and sides != (height, width):
        raise DataError(
            f"{path}: is of an image of {sides[1]}x{sides[0]}, but {image} has {width}x{height} when upright"
        )
    for position, shape in enumerate(content["shapes"], 1):
        try:
            boxes.append(_box(shape, height, width))
        except ValueError as error:
            problems.append(f"{path}: shape {position}: {error}")
    return boxes


def _box(shape: Any, height: int, width: int) -> Box:
    """Raises ValueError, saying what is wrong with the shape."""
    label = shape.get("label") if isinstance(shape, dict) else None
    if not isinstance(label, str | int) or not str(label).strip():
        raise ValueError("it has no label")
    kind, points = shape.get("shape_type", "polygon"), shape.get("points")
    if kind not in (*SHAPES, "mask"):
        raise ValueError(f"a {kind} has no box")
    try:
        x, y = zip(*[(number(px), number(py)) for px, py in points])
    except (TypeError, ValueError):
        raise ValueError("its points are not pairs of numbers") from None
    if None in (*x, *y) or len(x) < 2:
        raise ValueError("its points are not two or more pairs of numbers")
    corners = (min(x), min(y), max(x), max(y))
    if kind == "circle":  # its centre and a point on it
        radius = math.hypot(x[1] - x[0], y[1] - y[0])
        corners = (x[0] - radius, y[0] - radius, x[0] + radius, y[0] + radius)
    return Box(str(label).strip(), clip(corners, height, width))
