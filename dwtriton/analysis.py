"""What is behind an AP: matches, kinds of error and what each costs, confusions, curves and the worst mistakes.

The kinds of error and their costs are those of TIDE (Bolya, Foley, Hays, Hoffman, ECCV 2020, arXiv 2008.08115): every
false positive has one cause, and its cost is what AP50 would gain if an oracle mended just that.
"""

from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from pycocotools.coco import COCO
from pycocotools.mask import iou as mask_iou

FOREGROUND, BACKGROUND = 0.5, 0.1  # IoUs: enough for a match; too little to mean an object
MOST_DETECTIONS = 100  # of an image, as COCOeval counts
RECALLS = np.linspace(0, 1, 101)  # at which COCO reads a precision
ERRORS = {
    "classification": "right place, another class",
    "localisation": "right class, IoU from 0.1 to 0.5",
    "both": "another class, IoU from 0.1 to 0.5",
    "duplicate": "an object that was found already",
    "background": "no object there",
    "missed": "objects that no detection comes near",
}


class Truth(NamedTuple):
    """One object."""

    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]  # xywh, pixels
    area: float
    found: bool  # matched by a detection of its class
    near: bool  # found, or else some detection would be right if its class or its box were


class Found(NamedTuple):
    """One detection that counts: those on crowd regions do not."""

    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    score: float
    error: str | None  # one of ERRORS but "missed"; None for a true positive
    truth: int | None  # number of the object that it matches, or would match but for its error
    truth_category: int | None  # class of that object


@dataclass(frozen=True)
class Analysis:
    """Everything about the detections of a data set at an IoU of 0.5."""

    truths: list[Truth]
    found: list[Found]  # best first
    ap50: float
    costs: dict[str, float]  # by kind of error: what AP50 would gain without it
    counts: dict[str, int]  # by kind of error


def analyse(coco: COCO, results: list[dict]) -> Analysis:
    """Match the detections (COCO results) with the ground truth image by image and find the cause of every mistake."""
    by_image: dict[int, list[dict]] = {image_id: [] for image_id in coco.imgs}
    for result in results:
        by_image[result["image_id"]].append(result)
    truths: list[Truth] = []
    found: list[Found] = []
    for image_id, detections in by_image.items():
        _match_image(coco, image_id, detections, truths, found)
    found.sort(key=lambda detection: -detection.score)
    categories = sorted(coco.cats)
    ap50 = _mean_ap(truths, found, categories)
    counts = {error: sum(detection.error == error for detection in found) for error in ERRORS}
    counts["missed"] = sum(not truth.near for truth in truths)
    costs = {error: max(0.0, _mean_ap(*_mended(truths, found, error), categories) - ap50) for error in ERRORS}
    return Analysis(truths, found, ap50, costs, counts)


def confusion_matrix(analysis: Analysis, categories: list[int], threshold: float) -> np.ndarray:
    """Counts [C + 1, C + 1], objects by rows, detections scoring at least `threshold` by columns; the last is nothing.

    A detection counts for the object of its cause: the one it matches, or would but for its class.
    """
    place = {category: number for number, category in enumerate(categories)}
    nothing = len(categories)
    matrix = np.zeros((nothing + 1, nothing + 1), dtype=int)
    claimed: set[int | None] = set()
    for detection in analysis.found:
        if detection.score < threshold:
            break
        column = place[detection.category_id]
        if detection.error in (None, "classification") and detection.truth not in claimed:
            claimed.add(detection.truth)
            matrix[place[detection.truth_category], column] += 1
        else:
            matrix[nothing, column] += 1
    for number, truth in enumerate(analysis.truths):
        if number not in claimed:
            matrix[place[truth.category_id], nothing] += 1
    return matrix


def worst_misses(analysis: Analysis, count: int) -> list[Truth]:
    """The largest objects that no detection found."""
    return sorted((truth for truth in analysis.truths if not truth.found), key=lambda truth: -truth.area)[:count]


def worst_false_positives(analysis: Analysis, count: int) -> list[Found]:
    """The surest detections that are wrong."""
    return [detection for detection in analysis.found if detection.error is not None][:count]


def _match_image(coco: COCO, image_id: int, detections: list[dict], truths: list[Truth], found: list[Found]) -> None:
    """Add the objects and the detections of an image. Matching is COCO's: best score first, each to its best object."""
    annotations = coco.imgToAnns[image_id]
    objects = [a for a in annotations if not a["iscrowd"]]
    crowds = [a for a in annotations if a["iscrowd"]]
    detections = sorted(detections, key=lambda d: -d["score"])[:MOST_DETECTIONS]
    first = len(truths)
    ious = _ious(detections, objects, crowd=False)  # [D, G]
    same = np.array([[d["category_id"] == o["category_id"] for o in objects] for d in detections], bool)
    same = same.reshape(ious.shape)
    matched = _match(ious, same)
    taken = {truth for truth in matched if truth is not None}
    in_crowd = _ious(detections, crowds, crowd=True)  # [D, K]

    near = set(taken)
    for number, detection in enumerate(detections):
        truth = matched[number]
        if truth is None:
            of_class = np.array([c["category_id"] == detection["category_id"] for c in crowds], bool)
            if (in_crowd[number] * of_class >= FOREGROUND).any():
                continue
            error, truth = _cause(ious[number], same[number])
            if error in ("classification", "localisation"):
                near.add(truth)
        else:
            error = None
        found.append(
            Found(
                image_id,
                detection["category_id"],
                tuple(detection["bbox"]),
                detection["score"],
                error,
                None if truth is None else first + truth,
                None if truth is None else objects[truth]["category_id"],
            )
        )
    truths += [
        Truth(image_id, o["category_id"], tuple(o["bbox"]), o["area"], number in taken, number in near)
        for number, o in enumerate(objects)
    ]


def _match(ious: np.ndarray, same: np.ndarray) -> list[int | None]:
    """The object of each detection, in their order: of its class, free, with the largest IoU from FOREGROUND on."""
    free = np.ones(ious.shape[1], bool)
    matched: list[int | None] = []
    for of_detection, of_class in zip(ious, same):
        possible = np.where(free & of_class & (of_detection >= FOREGROUND), of_detection, -1.0)
        best = int(possible.argmax()) if possible.size and possible.max() >= 0 else None
        if best is not None:
            free[best] = False
        matched.append(best)
    return matched


def _cause(ious: np.ndarray, same: np.ndarray) -> tuple[str, int | None]:
    """The kind of error of a detection without a match, and the object it concerns; whether that is found or not."""
    for error, mask, least, most in (
        ("localisation", same, BACKGROUND, FOREGROUND),
        ("classification", ~same, FOREGROUND, np.inf),
        ("duplicate", same, FOREGROUND, np.inf),
        ("both", ~same, BACKGROUND, FOREGROUND),
    ):
        if mask.any():
            number = int(np.where(mask, ious, -1.0).argmax())
            if least <= ious[number] < most:
                return error, number
    return "background", None


def _mended(truths: list[Truth], found: list[Found], error: str) -> tuple[list[Truth], list[Found]]:
    """Objects and detections as they would be without one kind of error.

    Wrong classes and boxes are put right, and of several detections of an object the surest stays; other false
    positives vanish; missed objects are taken out.
    """
    if error == "missed":
        return [truth for truth in truths if truth.near], found
    if error not in ("classification", "localisation"):
        return truths, [detection for detection in found if detection.error != error]
    claimed, mended = set(), []
    for detection in found:  # best first
        if detection.error in (None, error):
            if detection.truth in claimed:
                continue
            claimed.add(detection.truth)
            detection = detection._replace(error=None, category_id=detection.truth_category)
        mended.append(detection)
    return truths, mended


def _mean_ap(truths: list[Truth], found: list[Found], categories: list[int]) -> float:
    """AP at an IoU of 0.5, averaged over the classes that have objects, as COCOeval computes it."""
    curves = precision_curves(truths, found, categories)
    return float(np.mean([curve.mean() for curve in curves.values()])) if curves else 0.0


def precision_curves(truths: list[Truth], found: list[Found], categories: list[int]) -> dict[int, np.ndarray]:
    """The `precision_curve` of every category that has objects; detections are sorted, best first."""
    totals = Counter(truth.category_id for truth in truths)
    of_detection = np.array([detection.category_id for detection in found], dtype=np.int64)
    right = np.array([detection.error is None for detection in found], bool)
    return {c: precision_curve(right[of_detection == c], totals[c]) for c in categories if totals[c]}


def precision_curve(right: np.ndarray, total: int) -> np.ndarray:
    """Precision at each of RECALLS: the largest at that recall or beyond, 0 where it is never reached."""
    hits = right.cumsum()
    recall, precision = hits / total, hits / np.arange(1, len(right) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    place = np.searchsorted(recall, RECALLS, side="left")
    return np.array([envelope[i] if i < len(envelope) else 0.0 for i in place])


def _ious(detections: list[dict], annotations: list[dict], crowd: bool) -> np.ndarray:
    """IoUs [D, G]; for a crowd the share of the detection that lies in the region."""
    if not detections or not annotations:
        return np.zeros((len(detections), len(annotations)))
    boxes, others = ([record["bbox"] for record in records] for records in (detections, annotations))
    return np.asarray(mask_iou(boxes, others, [int(crowd)] * len(others)))
