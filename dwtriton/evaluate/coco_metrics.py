"""COCOeval's metrics of the detections of a data set."""

import contextlib
import io
from dataclasses import dataclass

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dwtriton.core import ranks

CLASS_METRICS = {  # indices into COCOeval's precision: IoUs, area
    "AP": (slice(None), 0),
    "AP50": (slice(0, 1), 0),
    "APs": (slice(None), 1),
    "APm": (slice(None), 2),
    "APl": (slice(None), 3),
}
AREAS = {  # COCO's object sizes: name, smallest and largest area in pixels
    "s": ("small", (0, 32**2)),
    "m": ("medium", (32**2, 96**2)),
    "l": ("large", (96**2, 1e10)),
}
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


@dataclass(frozen=True)
class Evaluation:
    """COCOeval's box metrics in 0..1; -1 where there is nothing to measure, as in COCOeval."""

    metrics: dict[str, float]  # by METRICS
    class_metrics: dict[str, dict[str, float]]  # by class name, then by CLASS_METRICS
    table: str  # COCOeval's own summary

    @property
    def class_ap(self) -> dict[str, float]:
        """AP by class name."""
        return {name: metrics["AP"] for name, metrics in self.class_metrics.items()}


def gather_results(results: list[dict], broken: set[str]) -> tuple[list[dict], set[str]] | None:
    """Return the results and unreadable files of all ranks on rank 0, None on the other ranks."""
    gathered = ranks.gather_object((results, broken))
    if gathered is None:
        return None
    return [result for own, _ in gathered for result in own], set().union(*(files for _, files in gathered))


def evaluate(truth: COCO, results: list[dict]) -> Evaluation:
    """Evaluate COCO box results with COCOeval against the ground truth of all its images."""
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints every step
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
        class_metrics={
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
