"""The label assignment of one image as maps over its pixels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dwtriton.core.errors import UserError
from dwtriton.core.points import STRIDES
from dwtriton.core.text import one_line
from dwtriton.data.batch import collate
from dwtriton.data.coco import Sample
from dwtriton.inference.ready import ReadyDetector
from dwtriton.losses.dual_weight import DualWeightAssigner
from dwtriton.reference.dense_weights import DualWeights

WINDOW_MARGIN = 0.3  # around a box, in parts of its longer side
MIN_WINDOW_CELLS = 6  # side of a window, in cells of the finest level


class StrongestPoint(NamedTuple):
    """The point with the largest positive weight of a box, and the parts of that weight."""

    x: float  # pixels
    y: float
    level: int
    weight: float
    score: float
    iou: float
    prior: float


@dataclass(frozen=True)
class Explanation:
    """The label assignment of one image, in network pixels. Raises ValueError for parts that do not fit together."""

    image: np.ndarray  # uint8 [h, w, 3] RGB, without padding
    weights: DualWeights  # from DualWeightAssigner
    boxes: Tensor  # (G, 4) xyxy without crowds, in the order of the weights
    labels: Tensor  # (G,)
    level_sizes: Sequence[tuple[int, int]]  # (h, w) of each level in cells, finest first, with the padding
    names: Sequence[str]  # of label 0, 1, ...
    strides: Sequence[int] = STRIDES

    def __post_init__(self) -> None:
        points, boxes = self.weights.inside.shape
        if len(self.level_sizes) != len(self.strides):
            raise ValueError(f"{len(self.level_sizes)} level_sizes for the strides {tuple(self.strides)}")
        cells = sum(height * width for height, width in self.level_sizes)
        if cells != points:
            raise ValueError(f"level_sizes have {cells} cells together, the weights {points} points")
        for (height, width), stride in zip(self.level_sizes, self.strides):
            if height * stride < self.image.shape[0] or width * stride < self.image.shape[1]:
                level, image = f"{height} x {width} cells of {stride} pixels", "{} x {}".format(*self.image.shape)
                raise ValueError(f"a level of {level} does not cover an image of {image}")
        if not len(self.boxes) == len(self.labels) == boxes:
            found = f"{len(self.boxes)} boxes and {len(self.labels)} labels"
            raise ValueError(f"{found}, but weights of {boxes} boxes; crowds have none")

    def title(self, box: int) -> str:
        """Return "number: class"."""
        return f"{box}: {one_line(self.names[int(self.labels[box])])}"

    def level_name(self, level: int) -> str:
        """Return "P3, stride 8", "P4, stride 16" and so on."""
        return level_name(self.strides[level])

    def values(self, quantity: str, box: int) -> np.ndarray:
        """Return one quantity of a box at every point, float [P].

        `score` of the box's class; `iou`, `prior` and `pos`, which are 0 outside the box; `neg`, the paper's negative
        weight N s^2 of the box's class, with the N of the released code; `inside`, 1 at the points inside, else 0.
        """
        score, neg = (values[:, int(self.labels[box])] for values in (self.weights.score, self.weights.neg))
        of_class = {"score": score, "neg": neg * score**2}
        values = of_class[quantity] if quantity in of_class else getattr(self.weights, quantity)[:, box]
        return values.float().cpu().numpy()

    def map(self, quantity: str, box: int, level: int | None = None) -> np.ndarray:
        """Return a quantity over the pixels of the image, [h, w]; a point fills its cell, a square of the stride.

        Without a level: the largest value of all levels at each pixel.
        """
        if level is None:
            return np.maximum.reduce([self.map(quantity, box, level) for level in range(len(self.strides))])
        cells = self.values(quantity, box)[self._points_of(level)].reshape(self.level_sizes[level])
        pixels = cells.repeat(self.strides[level], 0).repeat(self.strides[level], 1)
        return pixels[: self.image.shape[0], : self.image.shape[1]]

    def points_inside(self, box: int, level: int | None = None) -> np.ndarray:
        """Return x and y of the points inside a box, of one level or of all, [n, 2]."""
        chosen = self._points_of(level)
        return self.weights.points[chosen][self.weights.inside[chosen, box]].cpu().numpy()

    def positive_sum(self, box: int, level: int | None = None) -> float:
        """Return the sum of the positive weights of a box, over one level or all."""
        return float(self.values("pos", box)[self._points_of(level)].sum())

    def strongest_point(self, box: int) -> StrongestPoint | None:
        """Return the point with the largest positive weight, or None if no point lies inside the box."""
        inside = self.values("inside", box)
        if not inside.any():
            return None
        point = int(np.where(inside, self.values("pos", box), -1).argmax())
        level = next(level for level in range(len(self.strides)) if point < self._points_of(level).stop)
        values = [float(self.values(quantity, box)[point]) for quantity in ("pos", "score", "iou", "prior")]
        return StrongestPoint(*self.weights.points[point].tolist(), level, *values)

    def summary(self, box: int) -> dict[str, Any]:
        """Return the figures of a box, ready for JSON."""
        point = self.strongest_point(box)
        return {
            "object": box,
            "class": self.names[int(self.labels[box])],
            "box": self.boxes[box].tolist(),
            "points": len(self.points_inside(box)),
            "positive_sum": self.positive_sum(box),
            "strongest_point": None if point is None else point._asdict() | {"stride": self.strides[point.level]},
        }

    def window(self, box: int) -> tuple[int, int, int, int]:
        """Return left, top, right, bottom of a square around a box, moved into the image where it fits."""
        return window(self.boxes[box].tolist(), self.image.shape[:2], self.strides[0])

    def _points_of(self, level: int | None) -> slice:
        if level is None:
            return slice(None)
        begin = sum(height * width for height, width in self.level_sizes[:level])
        height, width = self.level_sizes[level]
        return slice(begin, begin + height * width)


def level_name(stride: int) -> str:
    """Return "P3, stride 8", "P4, stride 16" and so on."""
    number = stride.bit_length() - 1
    return f"P{number}, stride {stride}" if stride == 1 << number else f"stride {stride}"


def window(box: Sequence[float], image_size: tuple[int, int], cell: int) -> tuple[int, int, int, int]:
    """Return left, top, right, bottom of a square around a box xyxy, moved into the image (h, w) where it fits.

    It is some cells of the finest level wide at least.
    """
    (x1, y1, x2, y2), (height, width) = box, image_size
    longest = max(x2 - x1, y2 - y1)
    side = min((1 + 2 * WINDOW_MARGIN) * longest, max(1.05 * longest, min(height, width)))
    side = round(max(side, MIN_WINDOW_CELLS * cell))
    left, top = (
        round((length - side) / 2 if side > length else min(max((low + high - side) / 2, 0), length - side))
        for low, high, length in ((x1, x2, width), (y1, y2, height))
    )
    return left, top, left + side, top + side


def explain(ready: ReadyDetector, sample: Sample) -> Explanation:
    """Run the detector and the label assignment of its config on one sample of a data set.

    Raises UserError for an image that could not be read.
    """
    objects = objects_of(sample)
    cfg = ready.config
    batch = collate([sample], cfg.head.num_classes, cfg.data.size_divisor)
    with torch.no_grad():
        outputs = ready.network.head_outputs(batch.images.to(ready.device), batch.image_sizes)
    strides = ready.network.detector.strides
    (weights,) = DualWeightAssigner(strides, cfg.loss.soft_prior, cfg.loss.backend)(*outputs, batch.targets)
    return Explanation(
        image=sample.image.permute(1, 2, 0).numpy(),
        weights=DualWeights(*(values.cpu() for values in weights)),
        boxes=sample.target["boxes"][objects],
        labels=sample.target["labels"][objects],
        level_sizes=[tuple(level.shape[2:]) for level in outputs[0]],
        names=ready.class_names,
        strides=strides,
    )


def objects_of(sample: Sample) -> Tensor:
    """Return which boxes are objects and not crowds, (G,) bool. Raises UserError if the image could not be read."""
    if sample.image is None:
        raise UserError(f"the image cannot be used: {sample.broken[0]}")
    crowd = sample.target.get("iscrowd", torch.zeros_like(sample.target["labels"]))
    return ~crowd.bool()
