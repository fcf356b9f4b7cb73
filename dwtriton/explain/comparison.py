"""The positive points that several assigners give to the objects of one image, from the same outputs of a detector."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dwtriton.core.head_outputs import Levels
from dwtriton.core.text import one_line
from dwtriton.data.batch import collate
from dwtriton.data.coco import Sample
from dwtriton.inference.ready import ReadyDetector
from dwtriton.losses import DualWeightAssigner, PointLoss
from dwtriton.model.losses import build_loss

ASSIGNERS = ("dual_weight", "fcos", "atss", "simota", "tal")  # whose positive points can be drawn


@dataclass(frozen=True)
class Positives:
    """The positive points of one image by one assigner."""

    strength: Tensor  # (P, G) how much a point counts as a positive of an object that is no crowd; 0 if it is none
    ignored: Tensor  # (P,) bool: without negative losses of any class

    def summary(self, box: int) -> dict[str, Any]:
        """Return the figures of an object, ready for JSON.

        `effective` is the number of equally strong points that would be as concentrated: (sum of w)^2 / sum of w^2.
        """
        strength = self.strength[:, box].double()
        total = float(strength.sum())
        return {
            "points": int((strength > 0).sum()),
            "sum": total,
            "effective": total**2 / float(strength.square().sum()) if total else 0.0,
        }


@dataclass(frozen=True)
class Comparison:
    """One image with its objects, in network pixels, and the positive points by each assigner."""

    image: np.ndarray  # uint8 [h, w, 3] RGB, without padding
    boxes: Tensor  # (G, 4) xyxy without crowds
    labels: Tensor  # (G,)
    crowds: Tensor  # (K, 4)
    level_sizes: Sequence[tuple[int, int]]  # (h, w) of each level in cells, finest first, with the padding
    names: Sequence[str]  # of label 0, 1, ...
    strides: Sequence[int]
    positives: dict[str, Positives]  # by the name of the assigner

    def title(self, box: int) -> str:
        """Return "number: class"."""
        return f"{box}: {one_line(self.names[int(self.labels[box])])}"


def compare(
    image: np.ndarray,
    assigners: Mapping[str, DualWeightAssigner | PointLoss],
    cls_logits: Levels,
    box_distances: Levels,
    objectness: Levels | None,
    target: Mapping[str, Tensor],
    names: Sequence[str],
) -> Comparison:
    """Assign the points of one image by each of the named assigners.

    `image` is uint8 [h, w, 3] RGB in network pixels, without padding; `cls_logits`, `box_distances` and `objectness`
    are a head's outputs for a batch of this image, `target` its boxes and labels, as for the assigners; `names` are
    those of the classes. Raises the assigners' errors.
    """
    crowd = target.get("iscrowd", torch.zeros(len(target["labels"]))).bool().cpu()
    positives = {
        name: find_positives(assigner, cls_logits, box_distances, objectness, target, ~crowd)
        for name, assigner in assigners.items()
    }
    boxes, labels = target["boxes"].cpu(), target["labels"].cpu()
    sizes = [tuple(level.shape[2:]) for level in cls_logits]
    strides = next(iter(assigners.values())).strides
    return Comparison(image, boxes[~crowd], labels[~crowd], boxes[crowd], sizes, names, strides, positives)


def find_positives(
    assigner: DualWeightAssigner | PointLoss,
    cls_logits: Levels,
    box_distances: Levels,
    objectness: Levels | None,
    target: Mapping[str, Tensor],
    objects: Tensor,
) -> Positives:
    """Return the positive points of one image; `objects` (G + K,) bool are the boxes of the target that are no crowd.

    The strength is w_pos of Dual Weighting, and `Assignment.weight` of the others.
    """
    if isinstance(assigner, DualWeightAssigner):
        (weights,) = assigner(cls_logits, box_distances, objectness, [target])
        return Positives(weights.pos.cpu(), (weights.neg == 0).all(1).cpu())
    (found,) = assigner.assign(cls_logits, box_distances, objectness, [target])
    box, weight = found.box.cpu(), found.weight.cpu()
    of_box = box[:, None] == torch.arange(len(objects))  # [P, G + K]
    return Positives((of_box * weight[:, None])[:, objects], box == -2)


def compare_sample(ready: ReadyDetector, sample: Sample, names: Sequence[str]) -> Comparison:
    """Run a detector on one sample of a data set, and the named assigners with the settings of its config."""
    cfg = ready.config
    batch = collate([sample], cfg.head.num_classes, cfg.data.size_divisor)
    with torch.no_grad():
        outputs = ready.network.head_outputs(batch.images.to(ready.device), batch.image_sizes)
    strides = ready.network.detector.strides
    assigners = {
        name: DualWeightAssigner(strides, cfg.loss.soft_prior, cfg.loss.backend)
        if name == "dual_weight"
        else build_loss(cfg.loss.model_copy(update={"assigner": name}), strides)
        for name in names
    }
    target = {name: values.to(ready.device) for name, values in batch.targets[0].items()}
    return compare(sample.image.permute(1, 2, 0).numpy(), assigners, *outputs, target, ready.class_names)
