"""The loss of FCOS (Tian et al., ICCV 2019, arXiv 1904.01355), with centre sampling as in its later versions."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from dwtriton.core.boxes import central_squares, intersection
from dwtriton.core.head_outputs import HeadOutputs
from dwtriton.core.points import STRIDES, inside_rectangles
from dwtriton.core.targets import PackedTargets
from dwtriton.losses.point_loss import Choice, Grid, PointLoss, PointTargets, mean_over_ranks
from dwtriton.losses.selection import best_boxes
from dwtriton.losses.terms import centerness, focal_and_centerness_losses
from dwtriton.reference.formulas import box_sides
from dwtriton.reference.pairs import Boxes

RANGE = 8  # strides: the longest distance from a point to a side of its box, on all levels but the last


class FCOSLoss(PointLoss):
    """A point takes the smallest box whose centre region holds it, on the level of the box's size.

    The centre region of a box reaches `center_radius` strides from its centre, and no farther than the box (arXiv
    2006.09214, section 3.2). On level l the largest of the distances from the point to the sides of the box lies in
    `size_ranges[l]`, both ends included, in pixels (arXiv 1904.01355, section 3.2); None: from 8 strides of the level
    before to 8 of its own, without end on the last level: 0, 64, 128, 256, 512, infinity for strides 8 to 128. Of equal
    areas the first box counts.
    Losses: `loss_cls`, the focal loss; `loss_bbox`, 1 - GIoU weighted by centerness; `loss_centerness`, if the head has
    the branch. Numbers and normalisers are MMDetection's: docs/assigners.md#fcos.
    """

    def __init__(
        self,
        strides: Sequence[int] = STRIDES,
        center_radius: float = 1.5,
        size_ranges: Sequence[tuple[float, float]] | None = None,
    ) -> None:
        super().__init__(strides)
        if size_ranges is None:
            ends = [0, *(RANGE * stride for stride in self.strides[:-1]), math.inf]
            size_ranges = list(pairwise(ends))
        if not center_radius > 0:
            raise ValueError(f"center_radius must be positive, in strides, not {center_radius}")
        if len(size_ranges) != len(self.strides):
            raise ValueError(
                f"{len(size_ranges)} size_ranges for strides {self.strides}: give one (low, high) for each"
            )
        self.center_radius, self.size_ranges = center_radius, [tuple(span) for span in size_ranges]

    def extra_repr(self) -> str:
        return f"strides={self.strides}, center_radius={self.center_radius}, size_ranges={self.size_ranges}"

    def choose(self, outputs: HeadOutputs, targets: PackedTargets, boxes: Boxes, grid: Grid) -> Choice:
        """Give each point the smallest box for which it is a candidate."""
        row = smallest_boxes(
            list(outputs.cls_logits),
            grid.points,
            boxes.corners,
            boxes.image.where(boxes.is_truth, targets.batch_size),
            list(map(float, self.strides)),
            self.center_radius,
            *map(list, zip(*self.size_ranges)),
        )
        return Choice(row, (row >= 0).double())

    def losses(self, outputs: HeadOutputs, targets: PointTargets, grid: Grid) -> dict[str, Tensor]:
        """Normalise by the weights of the positive points, and the boxes' loss by the same times centerness."""
        centre = targets.weight * centerness(targets.sides)
        positives, centre_sum = mean_over_ranks(targets.weight.sum(), centre.sum())
        return focal_and_centerness_losses(
            outputs, targets, grid, positives.clamp(min=1), centre_sum.clamp(min=1e-6), box_weight=1.0
        )


@torch.library.custom_op("dwtriton::smallest_boxes", mutates_args=())
def smallest_boxes(
    cls_logits: Sequence[Tensor],
    points: Tensor,
    corners: Tensor,
    image: Tensor,
    strides: Sequence[float],
    center_radius: float,
    least_sizes: Sequence[float],
    largest_sizes: Sequence[float],
) -> Tensor:
    """Return the smallest box that has each point as a candidate, [B, P] int64, -1 for none.

    It visits the cells around the centre of each box, at most 3 x 3 on a level for a radius of 1.5 strides. An
    operator, which `torch.compile` keeps whole: traced, it takes long to compile. Only shapes of `cls_logits` are used;
    `points` are [2, P], `corners` [4, N] float64, `image` [N]; rows of images that the batch does not have are unused.
    """
    batch, count = len(cls_logits[0]), points.shape[1]
    area = (corners[2:] - corners[:2]).prod(0)
    cells = math.ceil(2 * center_radius)
    step = torch.arange(cells * cells, device=points.device)
    candidates, begin = [], 0
    for level, stride, low, high in zip(cls_logits, strides, least_sizes, largest_sizes):
        height, width = level.shape[2:]
        region = intersection(corners, central_squares(corners, center_radius * stride))
        left, top, right, bottom = inside_rectangles(region, height, width, stride)[..., None]
        column, line = left + step % cells, top + step // cells  # [N, cells^2]
        inside = (column < right) & (line < bottom) & (image < batch)[:, None]
        point = (begin + line * width + column).where(inside, 0)
        size = box_sides(points[:, point], corners[..., None]).amax(0)
        candidates.append((point, inside & (low <= size) & (size <= high)))
        begin += height * width
    point, valid = (torch.cat(parts, 1) for parts in zip(*candidates))
    return best_boxes(image, point, -area[:, None].expand(point.shape), valid, (batch, count))


@smallest_boxes.register_fake
def _(cls_logits, points, corners, image, *settings):
    return image.new_empty(len(cls_logits[0]), points.shape[1])
