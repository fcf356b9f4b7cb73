"""COCO's metrics of the detections of a data set."""

import contextlib
import io
from collections import Counter
from dataclasses import dataclass

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dwtriton.core import ranks
from dwtriton.core.errors import RunError
from dwtriton.evaluate.evaluators import Evaluator, default_evaluator, run_coco_eval

CLASS_METRICS = {  # indices into COCOeval's precision: IoUs, area
    "AP": (slice(None), 0),
    "AP50": (slice(0, 1), 0),
    "APs": (slice(None), 1),
    "APm": (slice(None), 2),
    "APl": (slice(None), 3),
}
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
COUNTED = (1, 10, 100)  # detections of an image and class, in COCO's figures
MOST_STEPS = 2 * 10**8  # of pycocotools; 10^5 boxes of a class in one image are twice as many, and take it minutes
TOLERANCE = 1e-12  # of figures that both evaluators compute
UNDEFINED = "\n -1.000: the data have no object of this size, so there is nothing to measure"


class EvaluatorsDisagreeError(RunError):
    """Two evaluators have different figures of the same detections."""


@dataclass(frozen=True)
class Evaluation:
    """COCO's box metrics in 0..1; -1 where there is nothing to measure, as in COCOeval."""

    metrics: dict[str, float]  # by METRICS, and AP, AP50 and AR of more detections than COCO counts: "AP@500"
    class_metrics: dict[str, dict[str, float]]  # by class name, then by CLASS_METRICS
    table: str  # COCOeval's own summary, and what its -1 mean if there are any
    evaluator: Evaluator  # that computed them

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


def evaluate(
    truth: COCO, results: list[dict], evaluator: Evaluator | None = None, max_detections: int = COUNTED[-1]
) -> Evaluation:
    """Evaluate COCO box results against the ground truth of all its images, with hotcoco if it is installed.

    `evaluator` names one of `evaluators.EVALUATORS` instead. COCO's figures count 100 detections of an image and class;
    if `max_detections` is more, figures with that many stand beside them.
    """
    evaluator = evaluator or default_evaluator()
    more = [max_detections] if max_detections > COUNTED[-1] else []
    coco_eval = run_coco_eval(truth, results, evaluator, maxDets=[*COUNTED, *more])
    with contextlib.redirect_stdout(io.StringIO()):
        coco_eval.accumulate()
    summary = COCOeval(iouType="bbox")  # pycocotools' means and table of either's precision and recall
    summary.eval = coco_eval.eval
    with contextlib.redirect_stdout(io.StringIO()) as table:
        summary.summarize()
    precision = summary.eval["precision"][..., 2]  # [IoUs, recalls, classes, areas], 100 detections
    dense = {f"{name}@{count}": value for count in more for name, value in _with_most(summary.eval).items()}
    lines = "".join(f"\n {name} = {value:.3f}, {more[0]} detections counted" for name, value in dense.items())
    return Evaluation(
        metrics=dict(zip(METRICS, summary.stats.tolist())) | dense,
        class_metrics={
            str(truth.cats[category]["name"]): {
                metric: _defined_mean(precision[ious, :, k, area]) for metric, (ious, area) in CLASS_METRICS.items()
            }
            for k, category in enumerate(sorted(truth.cats))
        },
        table=table.getvalue().rstrip() + lines + (UNDEFINED if -1 in summary.stats else ""),
        evaluator=evaluator,
    )


def _with_most(figures: dict[str, np.ndarray]) -> dict[str, float]:
    """Return AP, AP50 and AR over all sizes, of COCOeval's figures with the most detections that were counted."""
    precision, recall = figures["precision"][..., 0, -1], figures["recall"][..., 0, -1]
    return {"AP": _defined_mean(precision), "AP50": _defined_mean(precision[0]), "AR": _defined_mean(recall)}


def confirm(evaluation: Evaluation, truth: COCO, results: list[dict], max_detections: int = COUNTED[-1]) -> bool:
    """Compute the figures of an evaluation again with pycocotools; return False where that would take too long.

    Raises EvaluatorsDisagreeError if a metric, of all classes or of one, differs by more than TOLERANCE.
    """
    if evaluation.evaluator == "pycocotools":
        return True
    if _reference_steps(truth, results, max_detections) > MOST_STEPS:
        return False
    reference = evaluate(truth, results, "pycocotools", max_detections)
    found, expected = ({"all classes": each.metrics} | each.class_metrics for each in (evaluation, reference))
    for name, metrics in expected.items():
        for metric, value in metrics.items():
            if abs(found[name][metric] - value) > TOLERANCE:
                both = f"{found[name][metric]} by {evaluation.evaluator} and {value} by pycocotools"
                remedy = "trust the latter, from dwtriton.evaluate --evaluator pycocotools, and report both versions"
                raise EvaluatorsDisagreeError(f"{metric} of {name} is {both}; {remedy}")
    return True


def _reference_steps(truth: COCO, results: list[dict], max_detections: int) -> int:
    """Return how often pycocotools compares a detection with an object or visits a class in an image."""
    objects, detections = (
        Counter((each["image_id"], each["category_id"]) for each in every) for every in (truth.anns.values(), results)
    )
    pairs = sum(count * min(detections[place], max(max_detections, COUNTED[-1])) for place, count in objects.items())
    return 40 * pairs + 4 * len(truth.imgs) * len(truth.cats)  # 10 IoUs and 4 ranges of areas


def _defined_mean(values: np.ndarray) -> float:
    """Return the mean over the entries that are defined; -1 if there is no ground truth."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else -1.0
