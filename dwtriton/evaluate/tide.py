"""What is behind an AP50: matches, kinds of error and what each costs, confusions, curves and the worst mistakes.

The kinds of error and their costs are those of TIDE (Bolya, Foley, Hays, Hoffman, ECCV 2020, arXiv 2008.08115): every
false positive has one cause, and the cost of a cause is what AP50 would gain if an oracle mended it and nothing else.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from pycocotools.coco import COCO
from pycocotools.mask import iou as mask_iou

FOREGROUND, BACKGROUND = 0.5, 0.1  # IoUs: enough for a match; too little to mean an object
MOST_DETECTIONS = 100  # of a class in an image, as COCOeval counts
RECALLS = np.linspace(0, 1, 101)  # at which COCO reads a precision
ERRORS = {
    "classification": "right place, another class",
    "localisation": "right class, IoU from 0.1 to 0.5",
    "both": "another class, IoU from 0.1 to 0.5",
    "duplicate": "an object that a surer detection has found",
    "background": "no object there",
    "missed": "objects that no detection comes near",
}
TOTALS = {  # TIDE's special errors
    "false positives": "all wrong detections together",
    "false negatives": "all objects that are not found",
}


class Truth(NamedTuple):
    """One object that is no crowd."""

    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]  # xywh, pixels
    area: float  # of the annotation, pixels
    found: bool  # matched by a detection of its class
    near: bool  # found, or some detection would be right if its class or its box were


class Detection(NamedTuple):
    """One detection that counts: COCO leaves out those without a match that lie on a crowd of their class."""

    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]  # xywh, pixels
    score: float
    error: str | None  # one of ERRORS but "missed"; None for a true positive
    truth: int | None  # number of the object that it matches, or would match but for its error
    truth_category: int | None  # class of that object
    mendable: bool  # the surest classification or localisation error of an object that is not found


@dataclass(frozen=True)
class Analysis:
    """Everything about the detections of a data set at an IoU of 0.5."""

    truths: list[Truth]
    detections: list[Detection]  # best first
    ap50: float  # as COCOeval has it: -1 if there are no objects
    costs: dict[str, float]  # by ERRORS and TOTALS: what AP50 would gain without them
    counts: dict[str, int]  # by ERRORS and TOTALS


def analyse(coco: COCO, results: list[dict]) -> Analysis:
    """Match detections (COCO results) with the ground truth image by image and find the cause of every mistake."""
    of_image: dict[int, list[dict]] = defaultdict(list)
    for result in results:
        of_image[result["image_id"]].append(result)
    truths: list[Truth] = []
    detections: list[Detection] = []
    for image_id in sorted(coco.imgs):  # COCOeval's order decides between equal scores
        _match_image(coco.imgToAnns[image_id], of_image[image_id], truths, detections)
    detections.sort(key=lambda detection: -detection.score)

    counts = {error: sum(detection.error == error for detection in detections) for error in ERRORS}
    counts["missed"] = sum(not truth.near for truth in truths)
    counts["false positives"] = sum(detection.error is not None for detection in detections)
    counts["false negatives"] = sum(not truth.found for truth in truths)
    kinds = [*ERRORS, *TOTALS]
    if not truths:
        return Analysis(truths, detections, -1.0, dict.fromkeys(kinds, 0.0), counts)
    categories = sorted({truth.category_id for truth in truths})
    ap50 = _mean_ap(truths, detections, categories)
    costs = {kind: max(0.0, _mean_ap(*_mended(truths, detections, kind), categories) - ap50) for kind in kinds}
    return Analysis(truths, detections, ap50, costs, counts)


def confusion_matrix(analysis: Analysis, categories: Sequence[int], threshold: float) -> np.ndarray:
    """Counts [C + 1, C + 1] of the detections that score at least `threshold`.

    Rows are the classes of objects, columns those of detections, in the order of `categories`; the last row is no
    object, the last column no detection. An object counts once, in the column of the surest detection that is in the
    right place, so a row of a class sums to its objects; all other detections stand in the last row.
    """
    place = {category: number for number, category in enumerate(categories)}
    nothing = len(categories)
    matrix = np.zeros((nothing + 1, nothing + 1), dtype=int)
    claimed: set[int | None] = set()
    for detection in analysis.detections:
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


def worst_misses(analysis: Analysis, count: int) -> list[tuple[Truth, Detection | None]]:
    """The largest objects that were not found, each with the surest detection that nearly found it, if one did."""
    nearest = {detection.truth: detection for detection in analysis.detections if detection.mendable}
    missed = [(truth, nearest.get(number)) for number, truth in enumerate(analysis.truths) if not truth.found]
    return sorted(missed, key=lambda pair: -pair[0].area)[:count]


def worst_false_positives(analysis: Analysis, count: int) -> list[Detection]:
    """The surest detections that are wrong; of those that concern one object the surest alone."""
    worst: list[Detection] = []
    shown: set[int] = set()
    for detection in analysis.detections:
        if detection.error is None or detection.truth in shown:
            continue
        if detection.truth is not None:
            shown.add(detection.truth)
        worst.append(detection)
    return worst[:count]


def precision_curves(truths: list[Truth], detections: list[Detection]) -> dict[int, np.ndarray]:
    """The `precision_curve` of every category that has objects or detections; detections are sorted, best first."""
    totals = Counter(truth.category_id for truth in truths)
    classes = np.array([detection.category_id for detection in detections], dtype=np.int64)
    right = np.array([detection.error is None for detection in detections], dtype=bool)
    categories = sorted(totals.keys() | set(classes.tolist()))
    return {category: precision_curve(right[classes == category], totals[category]) for category in categories}


def precision_curve(right: np.ndarray, total: int) -> np.ndarray:
    """Precision at each of RECALLS: the largest at that recall or beyond, 0 where it is never reached.

    `right` [D] bool says which detections are true positives, best first; `total` is the number of objects.
    """
    if total == 0:
        return np.zeros(len(RECALLS))
    hits = right.cumsum()
    recall, precision = hits / total, hits / np.arange(1, len(right) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    reached = np.searchsorted(recall, RECALLS, side="left")
    return np.append(envelope, 0.0)[reached]


def _match_image(
    annotations: list[dict], results: list[dict], truths: list[Truth], detections: list[Detection]
) -> None:
    """Match one image as COCOeval does, and add its objects to `truths` and its detections to `detections`."""
    objects = [annotation for annotation in annotations if not annotation["iscrowd"]]
    crowds = [annotation for annotation in annotations if annotation["iscrowd"]]
    results = _best_of_class(results)
    first = len(truths)
    ious, same = _ious(results, objects, crowd=False), _same_class(results, objects)  # [D, G] each
    matches = _match(ious, same)
    on_crowd = (_same_class(results, crowds) & (_ious(results, crowds, crowd=True) >= FOREGROUND)).any(1)  # [D]

    taken = {match for match in matches if match is not None}
    near = set(taken)
    for number, result in enumerate(results):
        error, truth, mendable = None, matches[number], False
        if truth is None:
            if on_crowd[number]:
                continue
            error, truth = _cause(ious[number], same[number])
            if error in ("classification", "localisation") and truth not in near:
                near.add(truth)
                mendable = True
        detections.append(
            Detection(
                result["image_id"],
                result["category_id"],
                tuple(result["bbox"]),
                result["score"],
                error,
                None if truth is None else first + truth,
                None if truth is None else objects[truth]["category_id"],
                mendable,
            )
        )
    truths += [
        Truth(o["image_id"], o["category_id"], tuple(o["bbox"]), o["area"], number in taken, number in near)
        for number, o in enumerate(objects)
    ]


def _best_of_class(results: list[dict]) -> list[dict]:
    """The results of an image that count, best first; of equal scores the first."""
    seen: Counter[int] = Counter()
    kept = []
    for result in sorted(results, key=lambda result: -result["score"]):
        seen[result["category_id"]] += 1
        if seen[result["category_id"]] <= MOST_DETECTIONS:
            kept.append(result)
    return kept


def _match(ious: np.ndarray, same: np.ndarray) -> list[int | None]:
    """The object of each detection, in their order: of its class, free, with the largest IoU from FOREGROUND on."""
    possible = np.where(same & (ious >= FOREGROUND), ious, -1.0)  # [D, G]
    matches: list[int | None] = []
    for of_detection in possible:
        best = None
        if of_detection.size and of_detection.max() >= 0:
            best = int(np.flatnonzero(of_detection == of_detection.max())[-1])  # COCOeval takes the last of equal ones
            possible[:, best] = -1.0
        matches.append(best)
    return matches


def _cause(ious: np.ndarray, same: np.ndarray) -> tuple[str, int | None]:
    """The kind of error of a detection without a match, and the object it concerns; whether that is found or not."""
    for error, mask, least, most in (
        ("localisation", same, BACKGROUND, FOREGROUND),
        ("classification", ~same, FOREGROUND, np.inf),
        ("duplicate", same, FOREGROUND, np.inf),
        ("both", ~same, BACKGROUND, FOREGROUND),
    ):
        if mask.any():
            best = int(np.where(mask, ious, -1.0).argmax())
            if least <= ious[best] < most:
                return error, best
    return "background", None


def _mended(truths: list[Truth], detections: list[Detection], kind: str) -> tuple[list[Truth], list[Detection]]:
    """Objects and detections as they would be without one of ERRORS or TOTALS.

    A wrong class or box is put right if its object then has this detection alone; otherwise the detection vanishes,
    as other false positives do. Missed objects are taken out.
    """
    if kind == "missed":
        return [truth for truth in truths if truth.near], detections
    if kind == "false negatives":
        return [truth for truth in truths if truth.found], detections
    mended = []
    for detection in detections:
        if detection.error == kind and detection.mendable:
            mended.append(detection._replace(error=None, category_id=detection.truth_category))
        elif detection.error != kind and (detection.error is None or kind != "false positives"):
            mended.append(detection)
    return truths, mended


def _mean_ap(truths: list[Truth], detections: list[Detection], categories: list[int]) -> float:
    """AP at an IoU of 0.5, averaged over those of `categories` that still have objects or detections.

    1 if none has: nothing is wrong any more.
    """
    curves = precision_curves(truths, detections)
    means = [curves[category].mean() for category in categories if category in curves]
    return float(np.mean(means)) if means else 1.0


def _same_class(results: list[dict], annotations: list[dict]) -> np.ndarray:
    """[D, G] bool"""
    classes, others = ([record["category_id"] for record in records] for records in (results, annotations))
    return np.array(classes, dtype=np.int64)[:, None] == np.array(others, dtype=np.int64)


def _ious(results: list[dict], annotations: list[dict], crowd: bool) -> np.ndarray:
    """IoUs [D, G]; for a crowd the share of the detection that lies in the region."""
    if not results or not annotations:
        return np.zeros((len(results), len(annotations)))
    boxes, others = ([record["bbox"] for record in records] for records in (results, annotations))
    return np.asarray(mask_iou(boxes, others, [int(crowd)] * len(others)))
