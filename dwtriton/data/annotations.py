"""Reading COCO's JSON: what makes it unusable stops the run, what can be left out is left out and reported."""

import contextlib
import io
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from pycocotools.coco import COCO

from dwtriton.core.text import first_of
from dwtriton.data.problems import DataError, DataProblems

KEYS = {
    "images": ("id", "file_name", "width", "height"),
    "categories": ("id", "name"),
    "annotations": ("id", "image_id", "category_id", "bbox"),
}


class OtherFormatError(DataError):
    """JSON that is no COCO detection file, such as COCO's captions or a detector's results."""


class Records(NamedTuple):
    """What a COCO detection file holds, by id; where `fatal` says why a training refuses it, not quite all."""

    content: dict[str, Any]
    images: dict[int, dict[str, Any]]
    categories: dict[int, dict[str, Any]]
    annotations: dict[int, dict[str, Any]]
    fatal: list[str]


def read_annotations(path: Path, problems: DataProblems) -> COCO:
    """Read and check a COCO detection file.

    Annotations with an unknown image, an unknown category, a box that is not four finite numbers or that lies wholly
    outside its image are removed and reported. A missing `iscrowd` becomes 0 and a missing `area` that of the box, as
    COCOeval needs both; segmentations are dropped, they would only fill the memory.
    Raises DataError for a file that is not COCO detection JSON, for missing keys and for duplicate ids or names.
    """
    content, images, categories, annotations, fatal = read_records(path)
    if fatal:
        raise DataError(f"{path}: {first_of(fatal, ': python -m dwtriton.data check')}")
    kept = [a for a in annotations.values() if is_usable(a, images, categories, problems)]
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


def read_records(path: Path) -> Records:
    """The images, categories and annotations of a file, and everything for which a training refuses it.

    Raises DataError for a file that is not valid JSON, and OtherFormatError for JSON of another kind.
    """
    content = _parse(path)
    if content["annotations"] and not any("bbox" in a for a in content["annotations"] if isinstance(a, dict)):
        raise OtherFormatError(f"{path} is not COCO detection JSON: none of its annotations has a 'bbox'")
    fatal: list[str] = []
    images, categories, annotations = (_by_id(content, section, fatal) for section in KEYS)
    if not categories:
        fatal.append("'categories' is empty; a detector needs at least one")
    for image in images.values():
        if not all(isinstance(image[side], int) and image[side] > 0 for side in ("width", "height")):
            fatal.append(f"image {image['id']}: width and height must be positive whole numbers")
        if not isinstance(image["file_name"], str):
            fatal.append(f"image {image['id']}: file_name must be a string")
    names = Counter(str(category["name"]) for category in categories.values())
    fatal += [f"two categories have the name {name!r}; give each its own" for name, n in names.items() if n > 1]
    return Records(content, images, categories, annotations, fatal)


def _parse(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not valid JSON ({error}); is the file truncated?") from None
    if not isinstance(content, dict):
        raise OtherFormatError(f"{path} is not COCO detection JSON: it holds a {type(content).__name__}, not an object")
    missing = [section for section in KEYS if not isinstance(content.get(section), list)]
    if missing:
        raise OtherFormatError(f"{path} is not COCO detection JSON: it has no list {', '.join(map(repr, missing))}")
    return content


def _by_id(content: dict[str, Any], section: str, fatal: list[str]) -> dict[int, dict[str, Any]]:
    """Records of a section by id; missing keys, ids that are not whole numbers and duplicates are added to `fatal`."""
    records = {}
    for position, record in enumerate(content[section]):
        missing = [key for key in KEYS[section] if not isinstance(record, dict) or key not in record]
        if missing:
            name = record["id"] if isinstance(record, dict) and "id" in record else f"number {position}"
            fatal.append(f"{section} entry {name} has no {', '.join(map(repr, missing))}")
        elif not isinstance(record["id"], int):
            fatal.append(f"{section} entry has id {record['id']!r}; ids must be whole numbers")
        elif record["id"] in records:
            fatal.append(f"two entries of {section} have the id {record['id']}; ids must be unique")
        else:
            records[record["id"]] = record
    return records


def is_usable(annotation: dict, images: dict, categories: dict, problems: DataProblems) -> bool:
    """Whether an annotation can be used; if not, it is reported."""
    name = f"annotation {annotation['id']} of image {annotation['image_id']}"
    if not isinstance(annotation["image_id"], int) or annotation["image_id"] not in images:
        problems.add("unknown image, annotation skipped", name)
        return False
    image = images[annotation["image_id"]]
    name += f" ({image['file_name']})"
    if not isinstance(annotation["category_id"], int) or annotation["category_id"] not in categories:
        problems.add("unknown category, annotation skipped", f"category {annotation['category_id']} in {name}")
        return False
    box = annotation["bbox"]
    if not _is_box(box):
        problems.add("box is not four finite numbers, annotation skipped", name)
        return False
    x, y, width, height = box
    outside = x >= image["width"] or y >= image["height"] or x + max(width, 0) <= 0 or y + max(height, 0) <= 0
    if outside:
        problems.add("box outside the image, annotation skipped", name)
    return not outside


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(_is_finite, value))


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max
