"""Reading Label Studio's own JSON and JSON-MIN: a list of tasks, each with an image and the regions drawn in it."""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dwtriton.data.formats.convert import Box, Source, clip
from dwtriton.data.formats.folders import split_by_folder
from dwtriton.data.formats.named_images import NamedImages, path_parts
from dwtriton.data.image_files import has_image_suffix
from dwtriton.data.problems import DataError
from dwtriton.data.text_files import json_files, read_json
from dwtriton.data.values import number

PREFIX = re.compile(r"^[0-9a-f]{8}-")  # that it puts before the name of an uploaded file
REGION = ("x", "points", "rle", "format")  # keys, one of which every region has


def is_label_studio(root: Path) -> bool:
    """Whether a folder, or one in it, has a JSON file of Label Studio."""
    return next(_files(root), None) is not None


def _files(root: Path) -> Iterator[tuple[Path, list[dict[str, Any]]]]:
    for path in json_files(root):
        try:
            tasks = read_json(path)
        except DataError:
            continue
        if isinstance(tasks, list) and tasks and all(map(_is_task, tasks)):
            yield path, tasks


def _is_task(task: Any) -> bool:
    if not isinstance(task, dict):
        return False
    return "annotation_id" in task or (isinstance(task.get("data"), dict) and isinstance(task.get("annotations"), list))


def read_label_studio(root: Path) -> Source:
    """Read the tasks, with splits by the names of folders. Classes are the labels that occur.

    A rotated rectangle, a polygon and an ellipse become the box around them; a brush stroke and a key point have none
    and are problems. Of several annotations of an image the first is taken. Raises DataError.
    """
    problems: list[str] = []
    regions: dict[Path, tuple[str, list[dict[str, Any]]]] = {}  # the task's name and its regions, by image
    named, several = NamedImages(root), 0
    for path, tasks in _files(root):
        for position, task in enumerate(tasks, 1):
            name = _image_name(task["data"] if isinstance(task.get("data"), dict) else task)
            image = named.find(name, path.parent) or named.find(PREFIX.sub("", name.rpartition("/")[2]), path.parent)
            if image is None:
                there = f"{name} is not in {root}" if name else "is not named"
                problems.append(f"{path}: task {position}: its image {there}")
            elif image in regions:
                problems.append(f"{path}: task {position}: {image} is the image of another task too")
            else:
                given = task.get("annotations")
                done = [a for a in given if not a.get("was_cancelled")] if _are_records(given) else []
                several += len(done) > 1
                regions[image] = f"{path}: task {position}", _regions(task, done)

    def read(image: Path, height: int, width: int, problems: list[str]) -> list[Box]:
        task, found = regions[image]
        boxes = []
        for number_, region in enumerate(found, 1):
            try:
                boxes.append(_box(region, height, width))
            except ValueError as error:
                problems.append(f"{task}, region {number_}: {error}")
        return boxes

    splits, notes = split_by_folder(root, sorted(regions))
    left = [image for image in named.images if image not in regions]
    if left:
        notes.append(f"{len(left)} images are in no task and not converted, such as {left[0]}")
    if several:
        notes.append(f"{several} images have several annotations, of which the first is taken")
    return Source(splits, None, read, problems, notes)


def _are_records(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, dict) for entry in value)


def _image_name(data: dict[str, Any]) -> str:
    texts = [value for value in data.values() if isinstance(value, str)]
    return next((text for text in texts if has_image_suffix(path_parts(text)[-1])), next(iter(texts), ""))


def _regions(task: dict[str, Any], done: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the values of an annotation's regions; in JSON-MIN they lie in the task itself."""
    if _are_records(task.get("annotations")):
        results = done[0].get("result") if done else []
        values = [result.get("value") for result in results] if _are_records(results) else []
    else:
        values = [value for part in task.values() if isinstance(part, list) for value in part]
    found = [value for value in values if isinstance(value, dict) and any(key in value for key in REGION)]
    labelled = [value for value in found if _label(value)]
    return labelled or found  # a rectangle and its label may be two regions, of which one has both


def _label(region: dict[str, Any]) -> str:
    labels = next((value for key, value in region.items() if key.endswith("labels") and value), [""])
    return str(labels[0]).strip() if isinstance(labels, list) else ""


def _box(region: dict[str, Any], height: int, width: int) -> Box:
    """Positions are percents of the image's sides. Raises ValueError, saying what is wrong with the region."""
    if not (label := _label(region)):
        raise ValueError("it has no label")

    def pixels(*keys: str) -> list[float]:
        """Values of keys, across and down by turns."""
        values = [number(region.get(key)) for key in keys]
        if None in values:
            raise ValueError(f"it lacks the numbers {', '.join(keys)}")
        return [value * side / 100 for value, side in zip(values, [width, height] * 2)]

    angle = math.radians(number(region.get("rotation")) or 0.0)
    sine, cosine = math.sin(angle), math.cos(angle)
    if isinstance(region.get("points"), list):
        try:
            x, y = zip(*[(number(px) * width / 100, number(py) * height / 100) for px, py in region["points"]])
        except (TypeError, ValueError):
            raise ValueError("its points are not pairs of numbers") from None
    elif "radiusX" in region:
        cx, cy, rx, ry = pixels("x", "y", "radiusX", "radiusY")
        half_w, half_h = math.hypot(rx * cosine, ry * sine), math.hypot(rx * sine, ry * cosine)
        x, y = (cx - half_w, cx + half_w), (cy - half_h, cy + half_h)
    elif "height" in region:  # turned about its first corner
        left, top, w, h = pixels("x", "y", "width", "height")
        x = [left + u * cosine - v * sine for u in (0, w) for v in (0, h)]
        y = [top + u * sine + v * cosine for u in (0, w) for v in (0, h)]
    else:
        raise ValueError("it has no box: a brush stroke or a key point")
    is_askew = "points" not in region and "radiusX" not in region and abs(sine * cosine) > 1e-9
    return Box(label, clip((min(x), min(y), max(x), max(y)), height, width), rotation=math.degrees(angle) * is_askew)
