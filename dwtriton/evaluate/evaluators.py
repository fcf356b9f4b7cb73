"""The two programs that evaluate COCO boxes, with equal figures: hotcoco in a second, pycocotools as the reference."""

import contextlib
import io
from importlib.util import find_spec
from typing import Any, Literal

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dwtriton.core.errors import UserError

Evaluator = Literal["hotcoco", "pycocotools"]
EVALUATORS: tuple[Evaluator, ...] = ("hotcoco", "pycocotools")


def default_evaluator() -> Evaluator:
    """Return "hotcoco", or "pycocotools" where that is not installed."""
    return "hotcoco" if find_spec("hotcoco") else "pycocotools"


def run_coco_eval(truth: COCO, results: list[dict], evaluator: Evaluator, **params: object) -> Any:
    """Return the `COCOeval` of an evaluator, after `evaluate`, of COCO box results; `params` replace its parameters.

    Both evaluators have the interface of pycocotools. Images and categories are numbered from 1 in it, in the order of
    their ids, as are objects and detections, in the order of `truth.anns` and of `results`: hotcoco takes integers
    alone, and an object of id 0 would read as no match.
    """
    coco_class, coco_eval_class = _classes(evaluator)
    dataset, numbered_results = _numbered(truth, results)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints every step
        objects = coco_class()
        objects.dataset = dataset
        objects.createIndex()
        detections = objects.loadRes(numbered_results) if results else coco_class()
        coco_eval = coco_eval_class(objects, detections, "bbox")
        for name, value in params.items():
            setattr(coco_eval.params, name, value)
        coco_eval.evaluate()
    return coco_eval


def check_installed(evaluator: Evaluator | None) -> None:
    """Raise UserError unless the named evaluator is installed."""
    if evaluator and not find_spec(evaluator):
        raise UserError(f"{evaluator} is not installed: pip install {evaluator}, or leave --evaluator out")


def _classes(evaluator: Evaluator) -> tuple[type, type]:
    """Return the evaluator's `COCO` and `COCOeval`."""
    if evaluator == "pycocotools":
        return COCO, COCOeval
    import hotcoco

    return hotcoco.COCO, hotcoco.COCOeval


def _numbered(truth: COCO, results: list[dict]) -> tuple[dict[str, list[dict]], list[dict]]:
    """Return ground truth and results with numbers for ids, and with nothing but what an evaluation reads."""
    images = {id_: number for number, id_ in enumerate(sorted(truth.imgs), 1)}
    categories = {id_: number for number, id_ in enumerate(sorted(truth.cats), 1)}

    def numbered(record: dict) -> dict:
        place = {"image_id": images[record["image_id"]], "category_id": categories[record["category_id"]]}
        return place | {"bbox": record["bbox"]}

    dataset = {
        "images": [{"id": number} for number in images.values()],
        "categories": [{"id": number, "name": str(number)} for number in categories.values()],
        "annotations": [
            numbered(annotation) | {"id": number, "area": annotation["area"], "iscrowd": int(annotation["iscrowd"])}
            for number, annotation in enumerate(truth.anns.values(), 1)
        ],
    }
    return dataset, [numbered(result) | {"score": result["score"]} for result in results]
