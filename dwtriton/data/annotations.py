"""Reading a COCO detection file into records by id, with everything for which a training refuses the file."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dwtriton.config.kinds import MAX_PIXELS
from dwtriton.core.text import first_of
from dwtriton.data.problems import DataError
from dwtriton.data.text_files import read_json
from dwtriton.data.values import (
    Id,
    box_of,
    has_rotated_numbers,
    id_text,
    is_rotated,
    number,
    url_path,
    whole_number,
)

KEYS = {
    "images": ("id", "file_name"),
    "categories": ("id", "name"),
    "annotations": ("id", "image_id", "category_id", "bbox"),
}
SIDES = ("width", "height")
URL_KEYS = ("coco_url", "url", "flickr_url")  # of images without a file_name; LVIS has the first
NO_GROUP = (None, "", "none")  # supercategories that stand for none


class OtherFormatError(DataError):
    """JSON that is not a COCO detection file, such as COCO's captions or a detector's results."""


class Records(NamedTuple):
    """Contents of a COCO detection file, indexed by id, with numbers where exporters write strings.

    Ids are whole numbers where all of a section are, else strings. An image's width and height are None unless both
    are positive whole numbers, an annotation's bbox is None unless it is four finite numbers, its iscrowd and area are
    None where they are absent or no numbers, and `rotated` says whether it stands for a rotated box.
    `fatal` lists the reasons for which a training refuses the file; if there are any, records may be missing.
    """

    path: Path
    info: dict[str, Any]
    images: dict[Id, dict[str, Any]]
    categories: dict[Id, dict[str, Any]]
    annotations: dict[Id, dict[str, Any]]
    fatal: list[str]
    groups: Sequence[str] = ()  # categories that only group others, as Roboflow writes, and are no classes

    @property
    def class_names(self) -> dict[Id, str]:
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
    entries = [entry for entry in content["annotations"] if isinstance(entry, dict)]
    if content["annotations"] and not any("bbox" in entry or "segmentation" in entry for entry in entries):
        raise OtherFormatError(f"{path} is not COCO detection JSON: none of its annotations has a 'bbox'")
    for image in content["images"]:
        if isinstance(image, dict) and not image.get("file_name"):
            _name_by_url(image)
    for entry in entries:
        if "segmentation" in entry:
            entry.setdefault("bbox", None)
    fatal: list[str] = []
    images, categories, annotations = (_by_id(content, section, fatal) for section in KEYS)
    for image in images.values():
        if not isinstance(image["file_name"], str):
            fatal.append(f"image {image['id']}: file_name must be a string")
        sizes = [whole_number(image.get(side)) for side in SIDES]
        known = all(size is not None and 0 < size <= MAX_PIXELS for size in sizes)
        image.update(zip(SIDES, sizes if known else (None, None)))
    image_ids, category_ids = ({str(id_): id_ for id_ in section} for section in (images, categories))
    for annotation in annotations.values():
        annotation["rotated"] = is_rotated(annotation) or has_rotated_numbers(annotation)
        annotation["bbox"] = box_of(annotation)
        annotation["area"], annotation["iscrowd"] = number(annotation.get("area")), _flag(annotation.get("iscrowd"))
        for key, known in (("image_id", image_ids), ("category_id", category_ids)):
            annotation[key] = known.get(id_text(annotation[key]), annotation[key])
    groups = _drop_groups(categories, annotations)
    if not categories:
        fatal.append("'categories' is empty; a detector needs at least one")
    fatal += [f"category {id_}: name must be text" for id_, c in categories.items() if not _is_text(c["name"])]
    names = Counter(str(category["name"]) for category in categories.values() if _is_text(category["name"]))
    fatal += [f"two categories have the name {name!r}; give each its own" for name, n in names.items() if n > 1]
    return Records(path, content.get("info") or {}, images, categories, annotations, fatal, groups)


def _parse(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise OtherFormatError(f"{path} is not COCO detection JSON: it holds a {type(content).__name__}, not an object")
    missing = [section for section in KEYS if not isinstance(content.get(section), list)]
    if missing:
        raise OtherFormatError(f"{path} is not COCO detection JSON: it has no list {', '.join(map(repr, missing))}")
    return content


def _name_by_url(image: dict[str, Any]) -> None:
    """Name an image without a file_name by its URL; the folder of images has the last part of it."""
    url = next((image[key] for key in URL_KEYS if isinstance(image.get(key), str)), None)
    if url is not None:
        image["file_name"] = url_path(url).rpartition("/")[2]


def _by_id(content: dict[str, Any], section: str, fatal: list[str]) -> dict[Id, dict[str, Any]]:
    """Index the entries of a section by id; add missing keys, values that are no ids and duplicates to `fatal`."""
    records: dict[str, dict[str, Any]] = {}
    for position, record in enumerate(content[section]):
        missing = [key for key in KEYS[section] if not isinstance(record, dict) or key not in record]
        text = None if missing else id_text(record["id"])
        if missing:
            name = record["id"] if isinstance(record, dict) and "id" in record else f"number {position}"
            fatal.append(f"{section} entry {name} has no {', '.join(map(repr, missing))}")
        elif text is None:
            fatal.append(f"{section} entry has id {record['id']!r}; ids must be whole numbers or names")
        elif text in records:
            fatal.append(f"two entries of {section} have the id {record['id']}; ids must be unique")
        else:
            records[text] = record
    are_whole = all(whole_number(text) is not None for text in records)
    for text, record in records.items():
        record["id"] = int(text) if are_whole else text
    return {record["id"]: record for record in records.values()}


def _flag(value: Any) -> int | None:
    value = whole_number(value)
    return None if value is None else int(value != 0)


def _drop_groups(categories: dict[Id, dict[str, Any]], annotations: dict[Id, dict[str, Any]]) -> list[str]:
    """Remove categories without a box that others have as supercategory, as Roboflow adds one; return their names."""
    used = {annotation["category_id"] for annotation in annotations.values() if _is_id(annotation["category_id"])}
    parents = {str(category.get("supercategory")) for category in categories.values()}
    groups = [
        id_
        for id_, category in categories.items()
        if id_ not in used and category.get("supercategory", "given") in NO_GROUP and str(category["name"]) in parents
    ]
    return [str(categories.pop(id_)["name"]) for id_ in groups if len(categories) > 1]


def _is_text(name: Any) -> bool:
    """Whether the name of a category is text, or a number that can stand for it."""
    return isinstance(name, str | int | float) and not isinstance(name, bool)


def _is_id(value: Any) -> bool:
    return isinstance(value, int | str)
