"""Which records of a COCO file can be used. Data sets and `check` both ask `choose_usable`, so they never disagree."""

import sys
from pathlib import Path
from typing import Any, NamedTuple

from dwtriton.config.schema import MAX_WEIGHT
from dwtriton.core.text import first_of
from dwtriton.data.annotations import Records
from dwtriton.data.problems import DataError, DataProblems

MIN_IMAGE_SIDE = 32  # pixels; smaller images are not trained on (docs/recipe.md#data)
MIN_BOX_SIDE = 1  # pixels; smaller boxes are no targets (docs/recipe.md#data)


class MissingImagesError(DataError):
    """Not a single image file is where the data set has them."""


class Usable(NamedTuple):
    """The records of a COCO file that can be used, crowd regions among them."""

    images: list[dict[str, Any]]  # their files exist; for training, each has a box that is not crowd
    annotations: list[dict[str, Any]]  # ground truth for COCOeval, also on images without a file
    boxes: dict[int, list[dict[str, Any]]]  # by image id, of all images: the annotations that can be targets


def choose_usable(records: Records, folder: Path, training: bool, problems: DataProblems) -> Usable:
    """Choose the records to train on or to evaluate with, and add what is left out to `problems`.

    `folder` holds the image files. Annotations are completed in place: a missing `iscrowd` becomes 0 and a missing
    `area` that of the box, as COCOeval needs both; a missing `weight` becomes 1, in evaluation every one does;
    segmentations are dropped.
    Raises MissingImagesError if no image file exists, and DataError if no image is left or, for training, a weight is
    not a finite number of 0 or more.
    """
    annotations = [a for a in records.annotations.values() if _is_ground_truth(a, records, problems)]
    boxes: dict[int, list[dict[str, Any]]] = {image_id: [] for image_id in records.images}
    for annotation in annotations:
        annotation.pop("segmentation", None)
        annotation.setdefault("iscrowd", 0)
        annotation["weight"] = annotation.get("weight", 1) if training else 1
        width, height = annotation["bbox"][2:]
        if not _is_finite(annotation.get("area")):
            annotation["area"] = width * height
        if annotation["area"] > 0 and min(width, height) >= MIN_BOX_SIDE:
            boxes[annotation["image_id"]].append(annotation)
        else:
            kind = f"box without area or under {MIN_BOX_SIDE} pixel, not used as a target"
            problems.add(kind, annotation_name(annotation, records))
    bad = [a for a in annotations if not _is_weight(a["weight"])]
    if bad:
        named = [f"{annotation_name(a, records)} has the weight {a['weight']!r}" for a in bad]
        rule = f"a weight is a number from 0 to {MAX_WEIGHT:g}, and 1 where it is left out"
        raise DataError(f"{records.path}: {first_of(named)}; {rule}")

    images = []
    for image in records.images.values():
        path = folder / image["file_name"]
        if path.is_file():
            images.append(image)
        else:
            kind = "image file missing, image skipped" + ("" if training else ", but its ground truth still counts")
            problems.add(kind, str(path))
    if not images:
        raise MissingImagesError(f"none of the images of {records.path} is in {folder}")
    if training:
        images = [image for image in images if _is_trainable(image, boxes[image["id"]], problems)]
    if not images:
        raise DataError(f"{records.path}: no image is left; {'; '.join(problems.summary())}")
    return Usable(images, annotations, boxes)


def different_categories(train: dict[int, str], val: dict[int, str]) -> list[str]:
    """Return the categories, names by id, that only one of two splits has. A run needs the same in both."""
    return sorted(f"{id_} {name}" for id_, name in train.items() ^ val.items())


def annotation_name(annotation: dict[str, Any], records: Records) -> str:
    """Return how messages name an annotation: `annotation 7 of image 3 (a.jpg)`."""
    image = records.images[annotation["image_id"]]
    return f"annotation {annotation['id']} of image {image['id']} ({image['file_name']})"


def _is_ground_truth(annotation: dict[str, Any], records: Records, problems: DataProblems) -> bool:
    image_id, category_id = annotation["image_id"], annotation["category_id"]
    if not isinstance(image_id, int) or image_id not in records.images:
        problems.add("unknown image, annotation skipped", f"annotation {annotation['id']} of image {image_id}")
        return False
    name = annotation_name(annotation, records)
    if not isinstance(category_id, int) or category_id not in records.categories:
        problems.add("unknown category, annotation skipped", f"category {category_id} in {name}")
        return False
    box, image = annotation["bbox"], records.images[image_id]
    if not (isinstance(box, list) and len(box) == 4 and all(map(_is_finite, box))):
        problems.add("box is not four finite numbers, annotation skipped", name)
        return False
    x, y, width, height = box
    outside = x >= image["width"] or y >= image["height"] or x + max(width, 0) <= 0 or y + max(height, 0) <= 0
    if outside:
        problems.add("box outside the image, annotation skipped", name)
    return not outside


def _is_trainable(image: dict[str, Any], boxes: list[dict[str, Any]], problems: DataProblems) -> bool:
    small = min(image["width"], image["height"]) < MIN_IMAGE_SIDE
    if small or all(box["iscrowd"] for box in boxes):
        reason = f"image with a side under {MIN_IMAGE_SIDE} pixels" if small else "image without a usable box"
        problems.add(f"{reason}, not trained on", image["file_name"])
        return False
    return True


def _is_weight(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= MAX_WEIGHT


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max
