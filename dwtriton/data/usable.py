"""Which records of a COCO file can be used. Data sets and `check` both ask `choose_usable`, so they never disagree."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from dwtriton.config.kinds import MAX_PIXELS, MAX_WEIGHT
from dwtriton.config.schema import DataConfig
from dwtriton.core.text import first_of
from dwtriton.data.annotations import Records
from dwtriton.data.problems import DataError, DataProblems
from dwtriton.data.usable_images import choose_exif, images_with_files, readable_images, warn_of_dark_images
from dwtriton.data.values import Id, are_corners, are_shares, is_finite, is_share

MIN_IMAGE_SIDE = 32  # pixels; smaller images are not trained on (docs/recipe.md#data)
MIN_BOX_SIDE = 1  # pixels; smaller boxes are no targets (docs/recipe.md#data)
SMALL_KIND = f"box without area or under {MIN_BOX_SIDE} pixel, not used as a target"
SHARE_KIND = "box in shares of the image's sides, as it lies in 0..1, not used as a target"
EVALUATED_OBJECTS = 100  # detections of an image that COCO's metrics count
CROWD_SHARE = 0.25  # of all boxes, from which on crowd regions are probably an exporter's habit
CROWD_FATES = {  # in training, by `data.crowd`
    "background": "crowd region, not learned: trained as background",
    "ignore": "crowd region, not learned: ignored in training",
}


class Usable(NamedTuple):
    """The records of a COCO file that can be used, crowd regions among them."""

    images: list[dict[str, Any]]  # their files exist; for training, each has a box that is not crowd, or is background
    annotations: list[dict[str, Any]]  # ground truth for COCOeval, also on images without a file
    boxes: dict[Id, list[dict[str, Any]]]  # by image id, of all images: the annotations that can be targets
    exif: str  # `data.exif`, settled for these images


def choose_usable(
    records: Records, folder: Path, training: bool, problems: DataProblems, cfg: DataConfig | None = None
) -> Usable:
    """Choose the records to train on or to evaluate with, and add what is left out and what is doubtful to `problems`.

    `folder` holds the image files. Records are completed in place. Of images, `file_name` becomes that of the file that
    was found, and a missing size the file's. Of annotations, a missing `iscrowd` becomes 0 and an `area` that is
    missing or 0 that of the box, as COCOeval needs both; a missing `weight` becomes 1, in evaluation every one does;
    segmentations are dropped.
    Raises MissingImagesError if no image file exists, and DataError if no image is left, if none can be decoded, for
    boxes in shares of 1, and for training with a weight that is not a finite number of 0 or more.
    """
    cfg = cfg or DataConfig()
    images = images_with_files(records, folder, training, cfg, problems)
    annotations = _ground_truth(records, problems)
    boxes: dict[Id, list[dict[str, Any]]] = {image_id: [] for image_id in records.images}
    for annotation in annotations:
        _complete(annotation, records, training, cfg.crowd, problems)
        if min(annotation["bbox"][2:]) >= MIN_BOX_SIDE:
            boxes[annotation["image_id"]].append(annotation)
        else:
            kind = SHARE_KIND if is_share(annotation["bbox"]) else SMALL_KIND
            problems.add(kind, annotation_name(annotation, records))
    _warn_of_habits(boxes, records, training, cfg.crowd, problems)
    if training:
        _check_weights(annotations, records)
        annotated = {str(annotation["image_id"]) for annotation in records.annotations.values()}
        images = [
            image
            for image in images
            if _is_trainable(image, boxes[image["id"]], cfg.background, str(image["id"]) in annotated, problems)
        ]
    if not images or (training and not any(boxes[image["id"]] for image in images)):
        raise DataError(f"{records.path}: no image is left; {'; '.join(problems.summary())}")
    exif = choose_exif(images, folder, cfg.exif, problems)
    images = readable_images(images, folder, training, cfg.model_copy(update={"exif": exif}), problems)
    warn_of_dark_images(images, folder, cfg, problems)
    added = sum(not boxes[image["id"]] for image in images) if training else 0
    if added:
        problems.warn(
            f"{added} images without an annotation are trained on as background (data.background = true): "
            f"{added / len(images):.0%} of the images of an epoch, and about as much of its time"
        )
    return Usable(images, annotations, boxes, exif)


def check_measurable(path: Path, annotations: Iterable[dict[str, Any]], problems: DataProblems) -> None:
    """Raise DataError unless the ground truth of an evaluation has an object: every AP would be -1."""
    if all(annotation["iscrowd"] or min(annotation["bbox"][2:]) <= 0 for annotation in annotations):
        reasons = "".join(f"; {line}" for line in problems.summary())
        raise DataError(f"{path}: there is no object to measure a detector by{reasons}")


def annotation_name(annotation: dict[str, Any], records: Records) -> str:
    """Return how messages name an annotation: `annotation 7 of image 3 (a.jpg)`."""
    image = records.images[annotation["image_id"]]
    return f"annotation {annotation['id']} of image {image['id']} ({image['file_name']})"


def _ground_truth(records: Records, problems: DataProblems) -> list[dict[str, Any]]:
    """Return the annotations that have a box inside an image that is known. Raises DataError for boxes in shares."""
    with_box = [annotation for annotation in records.annotations.values() if _has_box(annotation, records, problems)]
    if are_shares([annotation["bbox"] for annotation in with_box]):
        raise DataError(
            f"{records.path}: its boxes are shares of the images' sides, as nearly all lie in 0..1, but COCO's "
            "are pixels: multiply x and width by the width of the image, y and height by its height"
        )
    return [annotation for annotation in with_box if not _is_outside(annotation, records, problems)]


def _has_box(annotation: dict[str, Any], records: Records, problems: DataProblems) -> bool:
    image_id, category_id = annotation["image_id"], annotation["category_id"]
    if not isinstance(image_id, Id) or image_id not in records.images:
        problems.add("unknown image, annotation skipped", f"annotation {annotation['id']} of image {image_id!r}")
        return False
    name = annotation_name(annotation, records)
    if not isinstance(category_id, Id) or category_id not in records.categories:
        problems.add("unknown category, annotation skipped", f"category {category_id!r} in {name}")
        return False
    box = annotation["bbox"]
    if box is None and annotation["rotated"]:
        problems.add("rotated box without an upright one, annotation skipped", name)
    elif box is None:
        problems.add("box is not four finite numbers, annotation skipped", name)
    elif max(map(abs, box)) > MAX_PIXELS:
        problems.add("box that no image can hold, annotation skipped", name)
        return False
    return box is not None


def _is_outside(annotation: dict[str, Any], records: Records, problems: DataProblems) -> bool:
    (x, y, width, height), image = annotation["bbox"], records.images[annotation["image_id"]]
    beyond = image["width"] is not None and (x >= image["width"] or y >= image["height"])
    outside = beyond or x + max(width, 0) <= 0 or y + max(height, 0) <= 0
    if outside:
        problems.add("box outside the image, annotation skipped", annotation_name(annotation, records))
    return outside


def _complete(annotation: dict[str, Any], records: Records, training: bool, crowd: str, problems: DataProblems) -> None:
    """Give an annotation all that COCOeval and a target need, and count what is special about it."""
    name = annotation_name(annotation, records)
    annotation.pop("segmentation", None)
    annotation["weight"] = annotation.get("weight", 1) if training else 1
    width, height = annotation["bbox"][2:]
    if annotation["area"] is not None and annotation["area"] <= 0 < min(width, height):
        problems.note("area of 0 though the box has one, that of the box is used", name)
        annotation["area"] = None
    if annotation["area"] is None:
        annotation["area"] = width * height
    if annotation["iscrowd"] and crowd == "train":
        problems.note("crowd region, used as an object (data.crowd = train)", name)
        annotation["iscrowd"] = 0
    elif annotation["iscrowd"] and training:
        problems.add(CROWD_FATES[crowd], name)
    elif annotation["iscrowd"]:
        problems.note("crowd region, neither right nor wrong in the evaluation", name)
    annotation["iscrowd"] = annotation["iscrowd"] or 0
    if annotation["rotated"]:
        problems.note("rotated box, used as if it were upright", name)


def _warn_of_habits(
    boxes: dict[Id, list[dict[str, Any]]], records: Records, training: bool, crowd: str, problems: DataProblems
) -> None:
    """Warn of what is probably an exporter's doing: crowd everywhere, corners as sides; and of very many objects."""
    every = [box for of_image in boxes.values() for box in of_image]
    crowds = sum(box["iscrowd"] for box in every)
    if crowds and crowds >= CROWD_SHARE * len(every):
        fate = "they are not learned" if training else "they are neither right nor wrong"
        ignore = "; --set data.crowd=ignore keeps their places out of the negative loss" if training else ""
        problems.warn(
            f"{crowds} of {len(every)} boxes are marked as crowd (iscrowd = 1), as CVAT marks every mask: {fate}. If "
            f"they are single objects, --set data.crowd=train uses them{ignore}"
        )
    sized = [box for box in every if records.images[box["image_id"]]["width"] is not None]
    limits = [(records.images[box["image_id"]]["width"], records.images[box["image_id"]]["height"]) for box in sized]
    if are_corners([box["bbox"] for box in sized], limits):
        problems.warn(
            "the boxes look like corners x1, y1, x2, y2, but COCO's are x, y, width, height: look at the sheet of "
            "samples, and subtract x1 from x2 and y1 from y2 if it shows boxes that are too large"
        )
    objects = Counter(box["image_id"] for box in every if not box["iscrowd"])
    dense = [count for count in objects.values() if count > EVALUATED_OBJECTS]
    if dense and not training:
        problems.warn(
            f"{len(dense)} images hold more than {EVALUATED_OBJECTS} objects, the fullest {max(dense)}: an evaluation "
            f"counts {EVALUATED_OBJECTS} detections of an image, so that AP stays below 1 however good they are; "
            f"--set inference.max_detections={max(dense)} adds figures that count so many"
        )


def _check_weights(annotations: list[dict[str, Any]], records: Records) -> None:
    bad = [annotation for annotation in annotations if not _is_weight(annotation["weight"])]
    if bad:
        named = [f"{annotation_name(a, records)} has the weight {a['weight']!r}" for a in bad]
        rule = f"a weight is a number from 0 to {MAX_WEIGHT:g}, and 1 where it is left out"
        raise DataError(f"{records.path}: {first_of(named)}; {rule}")


def _is_trainable(
    image: dict[str, Any], boxes: list[dict[str, Any]], background: bool, annotated: bool, problems: DataProblems
) -> bool:
    if min(image["width"], image["height"]) < MIN_IMAGE_SIDE:
        reason = f"image with a side under {MIN_IMAGE_SIDE} pixels, not trained on"
    elif not all(box["iscrowd"] for box in boxes):
        return True
    elif annotated:
        reason = "image without a usable box, not trained on"
    elif background:
        return True
    else:
        reason = "image without an annotation, not trained on (data.background = true trains on it as background)"
    problems.add(reason, image["file_name"])
    return False


def _is_weight(value: Any) -> bool:
    return is_finite(value) and not isinstance(value, bool) and 0 <= value <= MAX_WEIGHT
