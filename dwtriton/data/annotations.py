"""Reading a COCO detection file into records by id, with everything for which a training refuses the file."""

import json
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from dwtriton.core.text import first_of
from dwtriton.data.problems import DataError

KEYS = {
    "images": ("id", "file_name", "width", "height"),
    "categories": ("id", "name"),
    "annotations": ("id", "image_id", "category_id", "bbox"),
}


class OtherFormatError(DataError):
    """JSON that is not a COCO detection file, such as COCO's captions or a detector's results."""


class Records(NamedTuple):
    """Contents of a COCO detection file, indexed by id.

    `fatal` lists the reasons for which a training refuses the file; if there are any, records may be missing.
    """

    path: Path
    info: dict[str, Any]
    images: dict[int, dict[str, Any]]
    categories: dict[int, dict[str, Any]]
    annotations: dict[int, dict[str, Any]]
    fatal: list[str]

    @property
    def class_names(self) -> dict[int, str]:
        """Names of the categories by id, in the order of the ids, which is that of the labels."""
        return {id_: str(self.categories[id_]["name"]) for id_ in sorted(self.categories)}


def read_valid_records(path: Path) -> Records:
    """Read a COCO detection file. Raises DataError if it cannot be read or if anything in it is fatal."""
    records = read_records(path)
    if records.fatal:
        raise DataError(f"{path}: {first_of(records.fatal, ': python -m dwtriton.data check')}")
    return records


def read_records(path: Path) -> Records:
    """Read a COCO detection file, and list in `fatal` the missing keys, the duplicates and the values of a wrong type.

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
    return Records(path, content.get("info") or {}, images, categories, annotations, fatal)


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
    """Index the entries of a section by id; add missing keys, ids that are not integers and duplicates to `fatal`."""
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
