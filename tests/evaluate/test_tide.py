"""Matches and metrics equal pycocotools'; error types and their costs equal those of TIDE."""

import contextlib
import io

import numpy as np
import pytest
from pycocotools.coco import COCO

from dwtriton.evaluate.coco_metrics import evaluate
from dwtriton.evaluate.tide import ERROR_TYPES, analyse, confusion_matrix, worst_false_positives, worst_misses

A, B = 1, 2  # categories
BOX, FAR, THIRD = [0, 0, 40, 40], [100, 100, 40, 40], [0, 100, 60, 60]
SHIFTED = [20, 0, 40, 40]  # IoU of 1/3 with BOX
CLOSE = [4, 0, 40, 40]  # IoU of 9/11 with BOX


def ground_truth(*objects, crowds=(), classes=2):
    """A COCO of (image, category, bbox)."""
    annotations = [
        {"image_id": image, "category_id": category, "bbox": bbox, "area": bbox[2] * bbox[3], "iscrowd": crowd}
        for crowd, group in enumerate((objects, crowds))
        for image, category, bbox in group
    ]
    coco = COCO()
    coco.dataset = {
        "info": {},
        "images": [{"id": id_, "width": 200, "height": 200, "file_name": f"{id_}.png"} for id_ in (4, 2, 3, 1)],
        "annotations": [{"id": number, **annotation} for number, annotation in enumerate(annotations, 1)],
        "categories": [{"id": id_, "name": f"class {id_}"} for id_ in range(1, classes + 1)],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def detected(*found):
    """COCO results of (image, category, bbox, score)."""
    return [
        {"image_id": image, "category_id": category, "bbox": bbox, "score": score}
        for image, category, bbox, score in found
    ]


def random_case(seed, crowds=False, ties=False, most=25, classes=3, least_objects=0):
    """Four images of random objects, and detections of which most lie near one."""
    random = np.random.default_rng(seed)
    objects, regions, found = [], [], []
    for image in (1, 2, 3, 4):
        boxes = []
        for _ in range(random.integers(least_objects, 8)):
            bbox = np.concatenate([random.uniform(0, 120, 2), random.uniform(10, 80, 2)])
            bbox = np.maximum((bbox / 20).round() * 20, 20) if ties else bbox
            boxes.append((int(random.integers(1, classes + 1)), bbox))
            group = regions if crowds and random.random() < 0.3 else objects
            group.append((image, boxes[-1][0], bbox.tolist()))
        for _ in range(random.integers(0, most)):
            category, bbox = int(random.integers(1, classes + 1)), random.uniform(10, 80, 4)
            if boxes and random.random() < 0.8:
                near, of_object = boxes[random.integers(len(boxes))]
                category = near if random.random() < 0.6 else category
                bbox = of_object + random.normal(0, 1, 4) * of_object[2:].mean() * random.choice([0.02, 0.1, 0.3])
            bbox, score = np.maximum(bbox, 2), random.random()
            if ties:
                bbox, score = np.maximum((bbox / 10).round() * 10, 10), round(score, 1)
            found.append((image, category, bbox.tolist(), float(score)))
    return ground_truth(*objects, crowds=regions, classes=classes), detected(*found)


@pytest.mark.parametrize("ties", [False, True], ids=["", "ties"])
@pytest.mark.parametrize("crowds", [False, True], ids=["", "crowds"])
def test_ap50_is_that_of_pycocotools(crowds, ties):
    for seed in range(25):
        coco, results = random_case(seed, crowds, ties)
        assert analyse(coco, results).ap50 == pytest.approx(evaluate(coco, results).metrics["AP50"], abs=1e-12), seed


def test_of_objects_with_equal_ious_the_last_is_taken_as_in_pycocotools():
    coco = ground_truth((1, A, [0, 0, 40, 40]), (1, A, [20, 0, 40, 40]))
    found = detected((1, A, [10, 0, 40, 40], 0.9), (1, A, [20, 0, 40, 40], 0.8))
    analysis = analyse(coco, found)
    assert [detection.truth for detection in analysis.detections] == [1, 1]
    assert analysis.ap50 == pytest.approx(evaluate(coco, found).metrics["AP50"], abs=1e-12)


def test_a_hundred_detections_of_a_class_count_in_an_image():
    coco, results = random_case(3, crowds=True, ties=True, most=500, classes=2)
    most = max(sum((r["image_id"], r["category_id"]) == (i, c) for r in results) for i in range(1, 5) for c in (1, 2))
    assert most > 150
    assert analyse(coco, results).ap50 == pytest.approx(evaluate(coco, results).metrics["AP50"], abs=1e-12)
    at_limit = detected(*[(1, A, FAR, 0.9)] * 99, (1, B, BOX, 0.8), (1, A, BOX, 0.7), (1, A, BOX, 0.6))
    assert [d.score for d in analyse(ground_truth((1, A, BOX)), at_limit).detections if d.category_id == A][-1] == 0.7


@pytest.mark.parametrize(
    ("objects", "found", "errors", "error_type", "fixed"),
    [  # `fixed`: AP50 without that error type
        ([(1, A, BOX)], [(1, A, CLOSE, 0.9)], [None], None, 1.0),
        ([(1, A, BOX), (1, B, FAR)], [(1, B, BOX, 0.9), (1, B, FAR, 0.8)],
         ["classification", None], "classification", 1.0),
        ([(1, A, BOX)], [(1, A, SHIFTED, 0.9)], ["localisation"], "localisation", 1.0),
        ([(1, A, BOX), (2, B, BOX)], [(1, B, SHIFTED, 0.9), (2, B, BOX, 0.8)], ["both", None], "both", 0.5),
        ([(1, A, BOX), (2, A, BOX)], [(1, A, BOX, 0.9), (1, A, CLOSE, 0.8), (2, A, BOX, 0.7)],
         [None, "duplicate", None], "duplicate", 1.0),
        ([(1, A, BOX)], [(1, A, FAR, 0.9), (1, A, BOX, 0.8)], ["background", None], "background", 1.0),
        ([(1, A, BOX), (1, A, FAR)], [(1, A, BOX, 0.9)], [None], "missed", 1.0),
        ([(1, A, BOX)], [(2, A, BOX, 0.9), (1, A, BOX, 0.8)], ["background", None], "false positives", 1.0),
        ([(1, A, BOX), (1, A, FAR)], [(1, B, FAR, 0.9), (1, A, BOX, 0.8)],
         ["classification", None], "false negatives", 1.0),
    ],
)  # fmt: skip
def test_each_error_type_and_its_cost(objects, found, errors, error_type, fixed):
    analysis = analyse(ground_truth(*objects), detected(*found))
    assert [detection.error_type for detection in analysis.detections] == errors
    assert analysis.ap50 == pytest.approx(evaluate(ground_truth(*objects), detected(*found)).metrics["AP50"], abs=1e-12)
    if error_type is None:
        assert analysis.ap50 == fixed
        assert set(analysis.costs.values()) == {0.0}
    else:
        assert analysis.counts[error_type] == 1
        assert analysis.costs[error_type] == pytest.approx(fixed - analysis.ap50)
        assert analysis.costs[error_type] > 0.1


def test_an_error_on_an_object_that_is_found_is_removed_when_it_is_fixed():
    coco = ground_truth((1, A, BOX), (2, B, BOX))
    analysis = analyse(coco, detected((1, B, BOX, 0.9), (1, A, BOX, 0.8), (2, B, BOX, 0.7)))
    assert [detection.error_type for detection in analysis.detections] == ["classification", None, None]
    assert analysis.ap50 == pytest.approx((1 + 0.5) / 2)
    assert analysis.costs["classification"] == pytest.approx(0.25)
    assert not analysis.detections[0].fixable


def test_of_several_errors_on_an_object_the_highest_scoring_is_fixed():
    """And none of another type: an object can be found once."""
    coco = ground_truth((1, A, BOX), (2, B, BOX))
    analysis = analyse(coco, detected((1, A, SHIFTED, 0.9), (1, B, BOX, 0.8), (1, B, CLOSE, 0.7), (2, B, BOX, 0.6)))
    assert [detection.error_type for detection in analysis.detections[:3]] == ["localisation", *["classification"] * 2]
    assert [detection.fixable for detection in analysis.detections] == [True, False, False, False]
    assert analysis.ap50 == pytest.approx(1 / 6)
    assert analysis.costs["localisation"] == pytest.approx(0.5)
    assert analysis.costs["classification"] == pytest.approx((0 + 1) / 2 - 1 / 6)
    assert analysis.counts["missed"] == 0


def test_detections_on_a_crowd_of_their_class_do_not_count():
    coco = ground_truth((1, A, BOX), crowds=[(1, A, [90, 90, 100, 100])])
    analysis = analyse(coco, detected((1, A, FAR, 0.9), (1, B, FAR, 0.8), (1, A, BOX, 0.7)))
    assert [(d.category_id, d.error_type) for d in analysis.detections] == [(B, "background"), (A, None)]
    assert analysis.ap50 == 1
    assert len(analysis.truths) == 1


def fix(coco, results, analysis, error_type):
    """Objects and results without an error type, for pycocotools to evaluate."""
    objects = [
        (t.image_id, t.category_id, list(t.bbox)) for t in analysis.truths if error_type != "missed" or t.reachable
    ]
    found = []
    for detection in analysis.detections:
        category, bbox = detection.category_id, list(detection.bbox)
        if detection.error_type == error_type:
            if not detection.fixable:
                continue
            category = analysis.truths[detection.truth].category_id
            bbox = list(analysis.truths[detection.truth].bbox) if error_type == "localisation" else bbox
        found.append((detection.image_id, category, bbox, detection.score))
    return ground_truth(*objects, classes=len(coco.cats)), detected(*found)


@pytest.mark.parametrize("seed", range(8))
def test_costs_are_what_pycocotools_measures_once_the_errors_are_fixed(seed):
    coco, results = random_case(seed, least_objects=5)
    analysis = analyse(coco, results)
    assert sum(map(bool, analysis.costs.values())) >= 5
    for error_type in ERROR_TYPES:
        fixed, better = fix(coco, results, analysis, error_type)
        assert {a["category_id"] for a in fixed.dataset["annotations"]} == {A, B, 3}
        gain = evaluate(fixed, better).metrics["AP50"] - analysis.ap50
        assert analysis.costs[error_type] == pytest.approx(gain, abs=1e-12), error_type


def test_counts_and_costs_are_those_of_the_authors_program():
    """Count and cost of each error type in points of AP50, from tidecv 1.0.1 for the same case."""
    tidecv = {
        "classification": (4, 15.207340282900478),
        "localisation": (14, 5.699187713257544),
        "both": (5, 0.5625562556255623),
        "duplicate": (12, 0.4758260913810659),
        "background": (7, 6.2066712347189394),
        "missed": (9, 9.145440859875457),
        "false positives": (42, 22.792016043709626),
        "false negatives": (None, 22.479826930061417),  # it gives no count
    }
    analysis = analyse(*random_case(5, least_objects=5))
    for error_type, (count, cost) in tidecv.items():
        assert count in (analysis.counts[error_type], None)
        assert 100 * analysis.costs[error_type] == pytest.approx(cost, abs=1e-9), error_type


def test_the_confusion_matrix_counts_every_object_once_and_every_detection_over_the_threshold():
    coco = ground_truth((1, A, BOX), (1, B, FAR), (2, A, BOX), (3, B, BOX), classes=3)
    found = detected(
        (1, A, BOX, 0.9),
        (1, A, CLOSE, 0.8),  # once more
        (1, A, FAR, 0.7),  # a B
        (2, A, SHIFTED, 0.6),  # not in the right place
        (3, 3, BOX, 0.55),  # a B; scores higher than the right class
        (3, B, BOX, 0.5),
        (4, B, BOX, 0.3),  # of nothing
        (2, A, BOX, 0.2),  # below the threshold
    )
    matrix = confusion_matrix(analyse(coco, found), [A, B, 3], threshold=0.3)
    assert matrix.tolist() == [[1, 0, 0, 1], [1, 0, 1, 0], [0, 0, 0, 0], [2, 2, 0, 0]]


def test_the_worst_misses_are_the_largest_and_the_worst_false_positives_the_highest_scoring_of_each_object():
    coco = ground_truth((1, A, BOX), (1, A, THIRD), (2, B, BOX), (2, B, FAR))
    found = detected(
        (1, A, BOX, 0.9),
        (2, A, BOX, 0.5),  # classification
        (2, B, SHIFTED, 0.6),  # localisation of the same object
        (3, A, BOX, 0.3),
        (3, A, FAR, 0.7),
    )
    analysis = analyse(coco, found)
    misses = worst_misses(analysis, 2)
    assert [(truth.image_id, list(truth.bbox)) for truth, _ in misses] == [(1, THIRD), (2, BOX)]
    assert [near and (near.error_type, near.score) for _, near in misses] == [None, ("localisation", 0.6)]
    assert len(worst_misses(analysis, 9)) == 3
    assert [detection.score for detection, _ in worst_false_positives(analysis, 9)] == [0.7, 0.6, 0.3]
    assert [detection.score for detection, _ in worst_false_positives(analysis, 2)] == [0.7, 0.6]
    assert [truth and list(truth.bbox) for _, truth in worst_false_positives(analysis, 9)] == [None, BOX, None]


def test_without_detections_all_is_missed():
    analysis = analyse(ground_truth((1, A, BOX), (2, B, BOX)), [])
    assert (analysis.ap50, analysis.counts["missed"], analysis.costs["missed"]) == (0.0, 2, 1.0)
    assert analysis.counts["false positives"] == 0


def test_without_objects_there_is_nothing_to_measure():
    coco = ground_truth()
    analysis = analyse(coco, detected((1, A, BOX, 0.9)))
    assert analysis.ap50 == evaluate(coco, detected((1, A, BOX, 0.9))).metrics["AP50"] == -1
    assert set(analysis.costs.values()) == {0.0}
    assert analysis.counts["background"] == 1
    assert analyse(coco, []).detections == []


def test_classes_without_objects_leave_ap50_alone():
    coco = ground_truth((1, A, BOX))
    found = detected((1, A, BOX, 0.9), (1, B, FAR, 0.95))
    assert analyse(coco, found).ap50 == 1
    assert evaluate(coco, found).metrics["AP50"] == pytest.approx(1, abs=1e-12)
