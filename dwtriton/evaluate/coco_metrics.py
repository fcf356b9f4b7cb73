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
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
UNDEFINED = "\n -1.000: the data have no object of this size, so there is nothing to measure"


@dataclass(frozen=True)
class Evaluation:
    """COCOeval's box metrics in 0..1; -1 where there is nothing to measure, as in COCOeval."""

    metrics: dict[str, float]  # by METRICS
    class_metrics: dict[str, dict[str, float]]  # by class name, then by CLASS_METRICS
    table: str  # COCOeval's own summary, and what its -1 mean if there are any
    evaluator: COCOeval  # with the matches of all objects and detections

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
    evaluator = match(truth, results)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator.accumulate()
    with contextlib.redirect_stdout(io.StringIO()) as table:
        evaluator.summarize()
    precision = evaluator.eval["precision"][..., -1]  # [IoUs, recalls, classes, areas], 100 detections
    return Evaluation(
        metrics=dict(zip(METRICS, evaluator.stats.tolist())),
        class_metrics={
            str(truth.cats[category]["name"]): {
                metric: _mean_precision(precision[ious, :, k, area]) for metric, (ious, area) in CLASS_METRICS.items()
            }
            for k, category in enumerate(evaluator.params.catIds)
        },
        table=table.getvalue().rstrip() + (UNDEFINED if -1 in evaluator.stats else ""),
        evaluator=evaluator,
    )


def match(truth: COCO, results: list[dict], **params: object) -> COCOeval:
    """Return COCOeval with its matches of COCO box results and the ground truth; `params` replace its parameters."""
    found = COCO()
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints every step
        if results:
            found = truth.loadRes([dict(result) for result in results])  # copies: loadRes writes into its input
        evaluator = COCOeval(truth, found, "bbox")
        vars(evaluator.params).update(params)
        evaluator.evaluate()
    return evaluator


def _mean_precision(precision: np.ndarray) -> float:
    """Mean over the entries that are defined; -1 if the class has no ground truth."""
    defined = precision[precision > -1]
    return float(defined.mean()) if defined.size else -1.0
