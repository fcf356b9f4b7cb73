"""hotcoco and pycocotools have the same figures, on sets with all that COCO allows; a run's last are from both."""

import contextlib
import io
import json
import sys

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dwtriton.core.errors import UserError
from dwtriton.evaluate import __main__ as evaluate_command
from dwtriton.evaluate import coco_metrics
from dwtriton.evaluate.coco_metrics import METRICS, EvaluatorsDisagreeError, confirm, evaluate
from dwtriton.evaluate.evaluators import EVALUATORS, check_installed, default_evaluator
from dwtriton.evaluate.tide import analyse
from dwtriton.train import __main__ as train_command
from tests.conftest import TINY

hotcoco = pytest.importorskip("hotcoco", reason="hotcoco is not installed: pip install hotcoco")


def generated_set(seed, text_ids=False):
    """Ground truth and results: crowds, ties, areas apart from boxes, empty classes and images, ids in any order."""
    random = np.random.default_rng(seed)
    categories = random.choice(90, random.integers(1, 9), replace=False).tolist()  # with gaps, 0 among them
    images = random.choice(1000, random.integers(1, 8), replace=False).tolist()
    whole, tied = random.random(2) < 0.5
    id_of = str if text_ids else int
    annotations, results = [], []
    for image in images:
        objects = []
        for _ in range(random.integers(0, 12) * (random.random() < 0.8)):
            box = np.concatenate([random.uniform(0, 300, 2), random.uniform(2, 200, 2)])
            box = np.maximum(box.round(), 1) if whole else box
            objects.append((box, categories[random.integers(len(categories))]))
            category, crowd = objects[-1][1], int(random.random() < 0.15)
            area = float(box[2] * box[3] * random.uniform(0.3, 1.2))
            annotations.append((image, category, box, area, crowd))
        many = 260 if random.random() < 0.2 else 25  # more than the 100 of a class that count
        for _ in range(random.integers(0, many)):
            box, category = random.uniform(1, 200, 4), categories[random.integers(len(categories))]
            if objects and random.random() < 0.8:
                near, likely = objects[random.integers(len(objects))]
                box = near + random.normal(0, random.choice([0.01, 0.05, 0.2]), 4) * near[2:].mean()
                category = likely if random.random() < 0.8 else category
            box = np.maximum(box.round(), 1) if whole else np.maximum(box, 0.5)
            score = float(round(random.random(), 1) if tied else random.random())
            results.append(
                {"image_id": id_of(image), "category_id": id_of(category), "bbox": box.tolist(), "score": score}
            )
    numbers = random.choice(np.arange(1, 10_000), len(annotations), replace=False).tolist()
    truth = COCO()
    truth.dataset = {
        "images": [{"id": id_of(id_), "width": 500, "height": 500, "file_name": f"{id_}.png"} for id_ in images],
        "categories": [{"id": id_of(id_), "name": f"class {id_}"} for id_ in categories],
        "annotations": [
            {"id": number, "image_id": id_of(image), "category_id": id_of(category), "bbox": box.tolist(),
             "area": area, "iscrowd": crowd}
            for number, (image, category, box, area, crowd) in zip(numbers, annotations)
        ],
    }  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
    return truth, results


def reference(truth, results):
    """pycocotools' own COCOeval and table, of ground truth and results as they are."""
    with contextlib.redirect_stdout(io.StringIO()):
        detections = truth.loadRes([dict(result) for result in results]) if results else COCO()
        coco_eval = COCOeval(truth, detections, "bbox")
        coco_eval.evaluate()
        coco_eval.accumulate()
    with contextlib.redirect_stdout(io.StringIO()) as table:
        coco_eval.summarize()
    return coco_eval, table.getvalue()


@pytest.mark.parametrize("text_ids", [False, True], ids=["", "ids as text"])
def test_every_figure_is_that_of_pycocotools(text_ids):
    for seed in range(15 if text_ids else 40):
        truth, results = generated_set(seed, text_ids)
        expected, table = reference(truth, results)
        precision = expected.eval["precision"][..., -1]  # [IoUs, recalls, classes, areas]
        for evaluator in EVALUATORS:
            found = evaluate(truth, results, evaluator)
            np.testing.assert_allclose([found.metrics[name] for name in METRICS], expected.stats, rtol=0, atol=1e-12)
            assert found.table.startswith(table.rstrip())
            for number, category in enumerate(sorted(truth.cats)):
                of_class = precision[:, :, number, 0]
                ap = of_class[of_class > -1].mean() if (of_class > -1).any() else -1
                assert found.class_ap[truth.cats[category]["name"]] == pytest.approx(ap, abs=1e-12)


def dense_set(objects: int):
    """Images with that many objects of a class, each found with a small error, and at random scores."""
    random, truth = np.random.default_rng(0), COCO()
    boxes = np.concatenate([random.uniform(0, 900, (2 * objects, 2)), random.uniform(20, 60, (2 * objects, 2))], 1)
    truth.dataset = {
        "images": [{"id": image} for image in (1, 2)],
        "categories": [{"id": 7, "name": "tree"}],
        "annotations": [
            {"id": number, "image_id": number % 2 + 1, "category_id": 7, "bbox": box, "area": box[2] * box[3],
             "iscrowd": 0}
            for number, box in enumerate(boxes.tolist(), 1)
        ],
    }  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
    moved = (boxes + random.normal(0, 1, boxes.shape)).tolist()
    results = [
        {"image_id": number % 2 + 1, "category_id": 7, "bbox": box, "score": float(random.random())}
        for number, box in enumerate(moved, 1)
    ]
    return truth, results


def test_more_detections_than_coco_counts_have_figures_of_their_own():
    truth, results = dense_set(250)
    plain = evaluate(truth, results)
    for evaluator in EVALUATORS:
        found = evaluate(truth, results, evaluator, max_detections=300)
        assert {name: found.metrics[name] for name in METRICS} == plain.metrics
        assert found.class_metrics == plain.class_metrics
        assert plain.metrics["AP50"] < 100 / 250 + 0.01  # a recall of 40% at most
        assert found.metrics["AP50@300"] > 0.98
        assert 0.5 < found.metrics["AP@300"] < found.metrics["AR@300"] < 1
        assert found.table.splitlines()[:12] == plain.table.splitlines()[:12]  # COCO's own
        assert f"AP@300 = {found.metrics['AP@300']:.3f}, 300 detections counted" in found.table
        confirm(found, truth, results, max_detections=300)
    assert evaluate(truth, results, max_detections=30).metrics.keys() == plain.metrics.keys()


def test_a_difference_in_the_figures_of_many_detections_is_found_too():
    truth, results = dense_set(150)
    found = evaluate(truth, results, "hotcoco", max_detections=200)
    found.metrics["AR@200"] += 1e-9
    with pytest.raises(EvaluatorsDisagreeError, match="AR@200 of all classes"):
        confirm(found, truth, results, max_detections=200)


def test_errors_are_the_same_with_both():
    for seed in range(20):
        truth, results = generated_set(seed)
        found, expected = (analyse(truth, results, evaluator) for evaluator in EVALUATORS)
        assert found == expected
        ap50 = evaluate(truth, results, "pycocotools").metrics["AP50"]
        assert found.ap50 == pytest.approx(ap50, abs=1e-12)


def test_ground_truth_and_results_are_left_as_they_are():
    truth, results = generated_set(3)
    before = json.dumps([truth.dataset, results])
    for evaluator in EVALUATORS:
        evaluate(truth, results, evaluator)
    assert json.dumps([truth.dataset, results]) == before


def test_pycocotools_is_taken_where_hotcoco_is_not_installed(monkeypatch):
    assert default_evaluator() == "hotcoco"
    monkeypatch.setitem(sys.modules, "hotcoco", None)
    truth, results = generated_set(1)
    assert evaluate(truth, results).evaluator == "pycocotools"
    with pytest.raises(UserError, match=r"hotcoco is not installed: pip install hotcoco"):
        check_installed("hotcoco")


def test_a_disagreement_names_the_figure_of_both():
    truth, results = generated_set(5)
    evaluation = evaluate(truth, results)
    confirm(evaluation, truth, results)
    name, figures = max(evaluation.class_metrics.items(), key=lambda item: item[1]["AP"])
    figures["AP50"] += 1e-9
    with pytest.raises(EvaluatorsDisagreeError, match=rf"AP50 of {name} is \d.* by hotcoco and \d.* by pycocotools"):
        confirm(evaluation, truth, results)


def test_as_many_boxes_as_take_pycocotools_minutes_are_evaluated_and_not_confirmed():
    boxes = np.random.default_rng(0).uniform(4, 900, (100_000, 4))
    truth = COCO()
    truth.dataset = {
        "images": [{"id": 1, "width": 2000, "height": 2000}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [
            {"id": number, "image_id": 1, "category_id": 1, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            for number, box in enumerate(boxes.tolist(), 1)
        ],
    }
    truth.createIndex()
    results = [{"image_id": 1, "category_id": 1, "bbox": box, "score": 0.5} for box in boxes[:100].tolist()]
    evaluation = evaluate(truth, results)
    assert evaluation.metrics["AR100"] == pytest.approx(0.001)
    assert not confirm(evaluation, truth, results)
    assert confirm(evaluate(*generated_set(5)), *generated_set(5))


def test_the_option_of_the_command_chooses_the_evaluator(finished, tmp_path, call, monkeypatch):
    out, _ = finished
    chosen = []
    run = coco_metrics.run_coco_eval
    monkeypatch.setattr(coco_metrics, "run_coco_eval", lambda *a, **k: chosen.append(a[2]) or run(*a, **k))
    weights = ["--weights", out / "last.pt"]
    code, _, error = call(evaluate_command, *weights, "--out", tmp_path / "a", "--evaluator", "pycocotools")
    assert (code, chosen) == (0, ["pycocotools"]), error
    assert call(evaluate_command, *weights, "--out", tmp_path / "b")[0] == 0
    assert chosen.pop() == "hotcoco"
    first, second = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in "ab")
    assert first.pop("class_ap") == pytest.approx(second.pop("class_ap"), abs=1e-12)
    assert first == pytest.approx(second, abs=1e-12)


def test_a_run_whose_last_figures_differ_fails_in_one_line(tmp_path, call, monkeypatch, shapes_root):
    def disturbed(truth, results, evaluator=None, max_detections=100):
        evaluation = evaluate(truth, results, evaluator, max_detections)
        evaluation.metrics["AR1"] -= 1e-6 * (evaluation.evaluator == "pycocotools")
        return evaluation

    monkeypatch.setattr(coco_metrics, "evaluate", disturbed)
    settings = [part for key in [*TINY, "schedule.epochs=1"] for part in ("--set", key)]
    data = ["--cfg", "shapes", "--data", shapes_root, "--out", tmp_path / "run"]
    code, _, error = call(train_command, *data, *settings)
    assert code == 1
    assert "error: AR1 of all classes is" in error
    assert "trust the latter" in error
    assert (tmp_path / "run" / "best.pt").exists()
