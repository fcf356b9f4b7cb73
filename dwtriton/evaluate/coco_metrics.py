"""COCOeval's figures for the detections of a data set."""

import contextlib
import io
from dataclasses import dataclass

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dwtriton.core import ranks

CLASS_METRICS = {  # where they stand in COCOeval's precisions: IoUs, area
    "AP": (slice(None), 0),
    "AP50": (slice(0, 1), 0),
    "APs": (slice(None), 1),
    "APm": (slice(None), 2),
    "APl": (slice(None), 3),
}
AREAS = {  # COCO's sizes of objects: name, and areas in pixels from and to
    "s": ("small", (0, 32**2)),
    "m": ("medium", (32**2, 96**2)),
    "l": ("large", (96**2, 1e10)),
}
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


@dataclass(frozen=True)
class Evaluation:
    """COCOeval's box figures; -1 where there is nothing to measure, as COCO writes it."""

    metrics: dict[str, float]  # METRICS, in 0..1
    classes: dict[str, dict[str, float]]  # CLASS_METRICS of every class by name
    table: str  # COCOeval's own summary

    @property
    def class_ap(self) -> dict[str, float]:
        """AP of every class by name."""
        return {name: figures["AP"] for name, figures in self.classes.items()}


def gather_results(results: list[dict], broken: set[str]) -> tuple[list[dict], set[str]] | None:
    """The results of all processes, and the files that none could read, on the first process; None on the others."""
    gathered = ranks.gather_object((results, broken))
    if gathered is None:
        return None
    return [result for own, _ in gathered for result in own], set().union(*(files for _, files in gathered))


def evaluate(truth: COCO, results: list[dict]) -> Evaluation:
    """COCOeval bbox of COCO results against the ground truth, over all of its images."""
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports every step
        evaluator = COCOeval(truth, _results(truth, results), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
    table = io.StringIO()
    with contextlib.redirect_stdout(table):
        evaluator.summarize()
    precision = evaluator.eval["precision"][..., -1]  # [IoUs, recalls, classes, areas], 100 detections
    names = [str(truth.cats[category]["name"]) for category in evaluator.params.catIds]
    return Evaluation(
        metrics=dict(zip(METRICS, evaluator.stats.tolist())),
        classes={
            name: {
                metric: _mean_precision(precision[ious, :, k, area]) for metric, (ious, area) in CLASS_METRICS.items()
            }
            for k, name in enumerate(names)
        },
        table=table.getvalue().rstrip(),
    )


def _results(truth: COCO, results: list[dict]) -> COCO:
    if results:
        return truth.loadRes([dict(result) for result in results])  # copies: loadRes writes into its input
    empty = COCO()
    empty.dataset = {**truth.dataset, "annotations": []}
    empty.createIndex()
    return empty


def _mean_precision(precision: np.ndarray) -> float:
    """Mean over the entries that are defined; -1 if the class has no ground truth."""
    defined = precision[precision > -1]
    return float(defined.mean()) if defined.size else -1.0
