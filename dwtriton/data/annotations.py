"""Reading COCO's JSON: what makes it unusable stops the run, what can be left out is left out and reported."""

import contextlib
import io
import json
import math
from pathlib import Path
from typing import Any

from pycocotools.coco import COCO

from dwtriton.data.report import DataError, DataReport

KEYS = {
    "images": ("id", "file_name", "width", "height"),
    "categories": ("id", "name"),
    "annotations": ("id", "image_id", "category_id", "bbox"),
}


def read_annotations(path: Path, report: DataReport) -> COCO:
    """Read and check a COCO detection file.

    Annotations with an unknown image, an unknown category, a box that is not four finite numbers or that lies wholly
    outside its image are removed and reported. A missing `iscrowd` becomes 0 and a missing `area` that of the box, as
    COCOeval needs both; segmentations are dropped, they would only fill the memory.
    Raises DataError for a file that is not COCO detection JSON, for missing keys and for duplicate ids or names.
    """
    content = _parse(path)
    images, categories, annotations = (_by_id(content, section, path) for section in KEYS)
    if not categories:
        raise DataError(f"{path}: 'categories' is empty; a detector needs at least one")
    for image in images.values():
        if not all(isinstance(image[side], int) and image[side] > 0 for side in ("width", "height")):
            raise DataError(f"{path}: image {image['id']}: width and height must be positive whole numbers")
        if not isinstance(image["file_name"], str):
            raise DataError(f"{path}: image {image['id']}: file_name must be a string")
    names = [str(category["name"]) for category in categories.values()]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{path}: two categories have the name {twice!r}; give each its own")

    kept = [a for a in annotations.values() if _usable(a, images, categories, report)]
    for annotation in kept:
        annotation.pop("segmentation", None)
        annotation.setdefault("iscrowd", 0)
        if not _is_finite(annotation.get("area")):
            annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]
        if annotation["id"] == 0:  # COCOeval reads the id of a match as true or false: 0 would count as unmatched
            annotation["id"] = max(annotations) + 1

    coco = COCO()
    coco.dataset = {"info": {}, "licenses": [], **content, "annotations": kept}
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def _parse(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not valid JSON ({error}); is the file truncated?") from None
    if not isinstance(content, dict):
        raise DataError(f"{path} is not COCO detection JSON: it holds a {type(content).__name__}, not an object")
    missing = [section for section in KEYS if not isinstance(content.get(section), list)]
    if missing:
        raise DataError(f"{path} is not COCO detection JSON: it has no list {', '.join(map(repr, missing))}")
    return content


def _by_id(content: dict[str, Any], section: str, path: Path) -> dict[int, dict[str, Any]]:
    """Records of a section by id. Raises DataError for missing keys, ids that are not whole numbers, duplicates."""
    records = {}
    for position, record in enumerate(content[section]):
        missing = [key for key in KEYS[section] if not isinstance(record, dict) or key not in record]
        if missing:
            name = record["id"] if isinstance(record, dict) and "id" in record else f"number {position}"
            raise DataError(f"{path}: {section} entry {name} has no {', '.join(map(repr, missing))}")
        if not isinstance(record["id"], int):
            raise DataError(f"{path}: {section} entry has id {record['id']!r}; ids must be whole numbers")
        if record["id"] in records:
            raise DataError(f"{path}: two entries of {section} have the id {record['id']}; ids must be unique")
        records[record["id"]] = record
    return records


def _usable(annotation: dict, images: dict, categories: dict, report: DataReport) -> bool:
    """Whether an annotation can be used; if not, it is reported."""
    name = f"annotation {annotation['id']} of image {annotation['image_id']}"
    if not isinstance(annotation["image_id"], int) or annotation["image_id"] not in images:
        report.add("unknown image, annotation skipped", name)
        return False
    image = images[annotation["image_id"]]
    name += f" ({image['file_name']})"
    if not isinstance(annotation["category_id"], int) or annotation["category_id"] not in categories:
        report.add("unknown category, annotation skipped", f"category {annotation['category_id']} in {name}")
        return False
    box = annotation["bbox"]
    if not (isinstance(box, list) and len(box) == 4 and all(_is_finite(value) for value in box)):
        report.add("box is not four finite numbers, annotation skipped", name)
        return False
    x, y, width, height = box
    outside = x >= image["width"] or y >= image["height"] or x + max(width, 0) <= 0 or y + max(height, 0) <= 0
    if outside:
        report.add("box outside the image, annotation skipped", name)
    return not outside


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
