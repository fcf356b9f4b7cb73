"""Error analysis at an IoU of 0.5: matches, error types and their costs, confusions, curves, the worst mistakes.

Error types and costs are those of TIDE (Bolya, Foley, Hays, Hoffman, ECCV 2020, arXiv 2008.08115): each false positive
has one type, and the cost of a type is the AP50 gained if an oracle fixed that type and nothing else.
docs/evaluation.md has the rules.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from pycocotools.coco import COCO
from pycocotools.mask import iou as mask_iou

from dwtriton.data.values import Id
from dwtriton.evaluate.evaluators import Evaluator, default_evaluator, run_coco_eval

FOREGROUND_IOU, BACKGROUND_IOU = 0.5, 0.1  # a match has at least the first; an error below the second is background
RECALLS = np.linspace(0, 1, 101)  # COCO's recall grid
ERROR_TYPES = {
    "classification": "right place, wrong class",
    "localisation": "right class, IoU from 0.1 to 0.5",
    "both": "wrong class, IoU from 0.1 to 0.5",
    "duplicate": "the object has a higher-scoring detection",
    "background": "no object there",
    "missed": "objects that no detection comes near",
}
SPECIAL_ERRORS = {
    "false positives": "all wrong detections together",
    "false negatives": "all objects without a right detection",
}


class Truth(NamedTuple):
    """An object; crowd regions are not objects."""

    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]  # xywh, pixels
    area: float  # of the annotation, pixels
    found: bool  # matched by a detection of its class
    reachable: bool  # found, or a detection would match it if its class or its box were fixed


class Detection(NamedTuple):
    """A detection that counts in COCOeval: of the 100 best of its class and image, and not on a crowd of its class."""

    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]  # xywh, pixels
    score: float
    error_type: str | None  # one of ERROR_TYPES except "missed"; None for a true positive
    truth: int | None  # index of the object that it matches, or that its error concerns
    fixable: bool  # highest-scoring classification or localisation error of an object that is not found


@dataclass(frozen=True)
class Analysis:
    """Objects and detections of a data set, matched at an IoU of 0.5."""

    truths: list[Truth]
    detections: list[Detection]  # by descending score
    ap50: float  # COCOeval's; -1 if there are no objects
    costs: dict[str, float]  # by ERROR_TYPES and SPECIAL_ERRORS: gain of AP50 without them
    counts: dict[str, int]  # by ERROR_TYPES and SPECIAL_ERRORS


def analyse(coco: COCO, results: list[dict], evaluator: Evaluator | None = None) -> Analysis:
    """Find the type and cost of every error of COCO results, from their matches in COCOeval.

    `evaluator` as in `coco_metrics.evaluate`.
    """
    matches: dict[Id, list[tuple[dict, Id | None]]] = {image_id: [] for image_id in coco.imgs}
    for number, object_id in sorted(_match(coco, results, evaluator or default_evaluator()).items()):
        matches[results[number]["image_id"]].append((results[number], object_id))
    truths: list[Truth] = []
    detections: list[Detection] = []
    for image_id in sorted(coco.imgs):  # COCOeval's order decides between equal scores
        objects = [annotation for annotation in coco.imgToAnns[image_id] if not annotation["iscrowd"]]
        found = sorted(matches[image_id], key=lambda match: -match[0]["score"])
        _analyse_image(objects, found, truths, detections)
    detections.sort(key=lambda detection: -detection.score)

    types = Counter(detection.error_type for detection in detections)
    counts = {error_type: types[error_type] for error_type in ERROR_TYPES}
    counts["missed"] = sum(not truth.reachable for truth in truths)
    counts["false positives"] = len(detections) - types[None]
    counts["false negatives"] = sum(not truth.found for truth in truths)
    categories = sorted({truth.category_id for truth in truths})
    ap50 = _mean_ap(truths, detections, categories)
    costs = {error: max(0.0, _mean_ap(*_fixed(truths, detections, error), categories) - ap50) for error in counts}
    return Analysis(truths, detections, ap50 if truths else -1.0, costs, counts)


def confusion_matrix(analysis: Analysis, categories: Sequence[int], threshold: float) -> np.ndarray:
    """Counts [C + 1, C + 1] of the detections that score at least `threshold`.

    Rows are classes of objects, columns classes of detections, in the order of `categories`; the last row is "no
    object", the last column "no detection". Each object counts once, in the column of the highest-scoring detection in
    its place, so that the row of a class sums to its objects. All other detections count in the last row.
    """
    index = {category: number for number, category in enumerate(categories)}
    nothing = len(categories)
    matrix = np.zeros((nothing + 1, nothing + 1), dtype=int)
    claimed: set[int | None] = set()
    for detection in analysis.detections:
        if detection.score < threshold:
            break
        row = nothing
        if detection.error_type in (None, "classification") and detection.truth not in claimed:
            claimed.add(detection.truth)
            row = index[analysis.truths[detection.truth].category_id]
        matrix[row, index[detection.category_id]] += 1
    for number, truth in enumerate(analysis.truths):
        if number not in claimed:
            matrix[index[truth.category_id], nothing] += 1
    return matrix


def worst_misses(analysis: Analysis, count: int) -> list[tuple[Truth, Detection | None]]:
    """Return the largest objects that were not found, each with its fixable detection, if it has one."""
    fixable = {detection.truth: detection for detection in analysis.detections if detection.fixable}
    missed = [(truth, fixable.get(number)) for number, truth in enumerate(analysis.truths) if not truth.found]
    return sorted(missed, key=lambda pair: -pair[0].area)[:count]


def worst_false_positives(analysis: Analysis, count: int) -> list[tuple[Detection, Truth | None]]:
    """Return the highest-scoring false positives, one per object, each with the object that its error concerns."""
    worst: dict[object, Detection] = {}
    for number, detection in enumerate(analysis.detections):
        if detection.error_type is not None:
            worst.setdefault(("no object", number) if detection.truth is None else detection.truth, detection)
    highest = list(worst.values())[:count]
    return [(error, None if error.truth is None else analysis.truths[error.truth]) for error in highest]


def precision_curves(truths: list[Truth], detections: list[Detection]) -> dict[int, np.ndarray]:
    """Return the precision at each of RECALLS of every category that has objects or detections (sorted by score)."""
    totals = Counter(truth.category_id for truth in truths)
    categories = sorted(totals.keys() | {detection.category_id for detection in detections})
    number = {category: number for number, category in enumerate(categories)}
    classes = np.array([number[detection.category_id] for detection in detections], dtype=np.int64)
    correct = np.array([detection.error_type is None for detection in detections], dtype=bool)
    return {name: _precision_curve(correct[classes == k], totals[name]) for name, k in number.items()}


def _precision_curve(correct: np.ndarray, total: int) -> np.ndarray:
    """Interpolated precision at each of RECALLS: the largest at that recall or beyond, 0 where it is not reached.

    `correct` [D] bool marks the true positives, by descending score; `total` is the number of objects.
    """
    if total == 0:
        return np.zeros(len(RECALLS))
    hits = correct.cumsum()
    recall, precision = hits / total, hits / np.arange(1, len(correct) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    reached = np.searchsorted(recall, RECALLS, side="left")
    return np.append(envelope, 0.0)[reached]


def _match(coco: COCO, results: list[dict], evaluator: Evaluator) -> dict[int, Id | None]:
    """Return the id of the object, or None, that each detection matches which counts, by its position in `results`."""
    params = {"iouThrs": np.array([FOREGROUND_IOU]), "areaRng": [[0, 1e10]], "areaRngLbl": ["all"]}
    coco_eval = run_coco_eval(coco, results, evaluator, **params)
    object_ids = [None, *coco.anns]
    return {
        number - 1: object_ids[int(match)]
        for found in filter(None, coco_eval.evalImgs)
        for number, match, ignored in zip(found["dtIds"], found["dtMatches"][0], found["dtIgnore"][0])
        if not ignored
    }


def _analyse_image(
    objects: list[dict], matches: list[tuple[dict, Id | None]], truths: list[Truth], detections: list[Detection]
) -> None:
    """Append the objects and the (result, id of its object) by descending score of an image to the last two."""
    boxes, others = [result["bbox"] for result, _ in matches], [o["bbox"] for o in objects]
    ious = np.reshape(mask_iou(boxes, others, [0] * len(others)), (len(boxes), len(others)))  # [D, G]
    own, others = [result["category_id"] for result, _ in matches], [record["category_id"] for record in objects]
    same = np.reshape([one == other for one in own for other in others], ious.shape).astype(bool)  # [D, G]
    numbers = {record["id"]: number for number, record in enumerate(objects)}
    found = {numbers[object_id] for _, object_id in matches if object_id is not None}
    reachable = set(found)
    for (result, object_id), row, same_class in zip(matches, ious, same):
        error_type, truth, fixable = None, numbers.get(object_id), False
        if truth is None:
            error_type, truth = _error_type(row, same_class)
            if error_type in ("classification", "localisation") and truth not in reachable:
                reachable.add(truth)
                fixable = True
        index = None if truth is None else len(truths) + truth
        record = result["image_id"], result["category_id"], tuple(result["bbox"]), result["score"]
        detections.append(Detection(*record, error_type, index, fixable))
    truths += [
        Truth(o["image_id"], o["category_id"], tuple(o["bbox"]), o["area"], number in found, number in reachable)
        for number, o in enumerate(objects)
    ]


def _error_type(ious: np.ndarray, same: np.ndarray) -> tuple[str, int | None]:
    """Return the error type of a detection without a match and the object it concerns, which may have been found."""
    for error_type, mask, low, high in (
        ("localisation", same, BACKGROUND_IOU, FOREGROUND_IOU),
        ("classification", ~same, FOREGROUND_IOU, np.inf),
        ("duplicate", same, FOREGROUND_IOU, np.inf),
        ("both", ~same, BACKGROUND_IOU, FOREGROUND_IOU),
    ):
        if mask.any():
            best = int(np.where(mask, ious, -1.0).argmax())
            if low <= ious[best] < high:
                return error_type, best
    return "background", None


def _fixed(truths: list[Truth], detections: list[Detection], error: str) -> tuple[list[Truth], list[Detection]]:
    """Return objects and detections as an oracle would leave them that fixes one of ERROR_TYPES or SPECIAL_ERRORS.

    Fixable detections become true positives; other false positives of the type are removed, as are missed objects.
    """
    if error == "missed":
        return [truth for truth in truths if truth.reachable], detections
    if error == "false negatives":
        return [truth for truth in truths if truth.found], detections
    if error == "false positives":
        return truths, [detection for detection in detections if detection.error_type is None]
    fixed = [
        detection._replace(error_type=None, category_id=truths[detection.truth].category_id)
        if detection.error_type == error
        else detection
        for detection in detections
        if detection.error_type != error or detection.fixable
    ]
    return truths, fixed


def _mean_ap(truths: list[Truth], detections: list[Detection], categories: list[int]) -> float:
    """AP50 averaged over those of `categories` that have objects or detections; 1 if none has: no error is left."""
    curves = precision_curves(truths, detections)
    means = [curves[category].mean() for category in categories if category in curves]
    return float(np.mean(means)) if means else 1.0
