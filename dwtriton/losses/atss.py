"""The loss of ATSS, Adaptive Training Sample Selection (Zhang et al., CVPR 2020, arXiv 1912.02424)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dwtriton.core.boxes import central_squares, iou
from dwtriton.core.head_outputs import HeadOutputs
from dwtriton.core.points import STRIDES
from dwtriton.core.targets import PackedTargets
from dwtriton.losses.point_loss import Choice, Grid, PointLoss, PointTargets, mean_over_ranks
from dwtriton.losses.selection import best_boxes
from dwtriton.losses.terms import centerness, focal_and_centerness_losses
from dwtriton.reference.formulas import box_sides
from dwtriton.reference.pairs import Boxes

MIN_INSIDE = 0.01  # pixels that a positive point is inside its box, at least


class ATSSLoss(PointLoss):
    """A box takes those of its nearest points whose anchors overlap it more than is usual among them.

    On every level the `topk` points nearest to the centre of a box are its candidates; a point's anchor is the square
    of `anchor_scale` strides around it. Positive are candidates inside the box whose IoU reaches the mean plus the
    standard deviation of all candidates' (arXiv 1912.02424, algorithm 1); of several boxes a point takes that of the
    highest IoU. Of equal distances the lowest point counts, of equal IoUs the first box.
    Losses: `loss_cls`, the focal loss; `loss_bbox`, 1 - GIoU weighted by centerness, times `box_weight`;
    `loss_centerness`, if the head has the branch. Details are MMDetection's: docs/assigners.md#atss.
    """

    def __init__(
        self, strides: Sequence[int] = STRIDES, topk: int = 9, anchor_scale: float = 8.0, box_weight: float = 2.0
    ) -> None:
        super().__init__(strides)
        if topk < 1 or not anchor_scale > 0:
            raise ValueError(f"topk must be at least 1 and anchor_scale positive, not {topk} and {anchor_scale}")
        self.topk, self.anchor_scale, self.box_weight = topk, anchor_scale, box_weight

    def extra_repr(self) -> str:
        settings = f"topk={self.topk}, anchor_scale={self.anchor_scale}, box_weight={self.box_weight}"
        return f"strides={self.strides}, {settings}"

    def choose(self, outputs: HeadOutputs, targets: PackedTargets, boxes: Boxes, grid: Grid) -> Choice:
        """Give each point the box that its anchor overlaps most, of those for which it is positive."""
        row = overlapping_boxes(
            list(outputs.cls_logits),
            grid.points,
            boxes.corners,
            boxes.image.where(boxes.is_truth, targets.batch_size),
            list(map(float, self.strides)),
            self.topk,
            self.anchor_scale,
        )
        return Choice(row, (row >= 0).double())

    def losses(self, outputs: HeadOutputs, targets: PointTargets, grid: Grid) -> dict[str, Tensor]:
        """Normalise by the weights of each image's positive points, at least 1 an image."""
        centre = targets.weight * centerness(targets.sides)
        positives, centre_sum = mean_over_ranks(targets.weight.sum(1).clamp(min=1).sum(), centre.sum())
        return focal_and_centerness_losses(
            outputs, targets, grid, positives, centre_sum.clamp(min=1), box_weight=self.box_weight
        )


@torch.library.custom_op("dwtriton::overlapping_boxes", mutates_args=())
def overlapping_boxes(
    cls_logits: Sequence[Tensor],
    points: Tensor,
    corners: Tensor,
    image: Tensor,
    strides: Sequence[float],
    topk: int,
    anchor_scale: float,
) -> Tensor:
    """Return the box of each point, [B, P] int64, -1 for none.

    It visits `topk` points a level for each box. An operator, which `torch.compile` keeps whole: traced, it takes long
    to compile. Only shapes of `cls_logits` are used; `points` are [2, P], `corners` [4, N] float64, `image` [N]; rows
    of images that the batch does not have are unused.
    """
    candidates, begin = [], 0
    for level, stride in zip(cls_logits, strides):
        height, width = level.shape[2:]
        point = begin + nearest_cells(corners, height, width, stride, topk)  # [N, topk]
        centers = points[:, point]
        anchors = central_squares(torch.cat((centers, centers)), anchor_scale * stride / 2)
        candidates.append((point, iou(anchors, corners[..., None])))
        begin += height * width
    point, overlap = (torch.cat(parts, 1) for parts in zip(*candidates))  # [N, candidates of all levels]
    mean, others = overlap.mean(1, keepdim=True), max(point.shape[1] - 1, 1)
    deviation = ((overlap - mean).square().sum(1, keepdim=True) / others).sqrt()  # of a sample
    inside = box_sides(points[:, point], corners[..., None]).amin(0) > MIN_INSIDE
    valid = inside & (overlap >= mean + deviation)
    return best_boxes(image, point, overlap, valid, (len(cls_logits[0]), begin))


@overlapping_boxes.register_fake
def _(cls_logits, points, corners, image, *settings):
    return image.new_empty(len(cls_logits[0]), points.shape[1])


def nearest_cells(boxes: Tensor, height: int, width: int, stride: float, count: int) -> Tensor:
    """Return the `count` cells of a level nearest to the centre of each box [4, N], [N, count]; all if there are fewer.

    They lie in the nearest `count` rows and columns. Of equal distances the lowest cell comes first.
    """
    (columns, across), (rows, down) = (
        _nearest_lines((low + high) / 2, cells, stride, count)
        for low, high, cells in ((boxes[0], boxes[2], width), (boxes[1], boxes[3], height))
    )
    distance = (across.square()[:, None] + down.square()[..., None]).sqrt().flatten(1)  # [N, rows * columns]
    cells = (rows[..., None] * width + columns[:, None]).flatten(1)  # ascending
    return cells.gather(1, distance.sort(dim=1, stable=True).indices[:, :count])


def _nearest_lines(center: Tensor, cells: int, stride: float, count: int) -> tuple[Tensor, Tensor]:
    """Return rows (or columns) nearest to [N] centres, ascending, and their distances in pixels, [N, span] each."""
    span = min(cells, count + 2)  # one more at either end, for the rounding of the division
    begin = (center / stride - 0.5 - count / 2).ceil().clamp(-1, cells).long() - 1
    line = begin.clamp(0, cells - span)[:, None] + torch.arange(span, device=center.device)
    return line, (line + 0.5) * stride - center[:, None]
