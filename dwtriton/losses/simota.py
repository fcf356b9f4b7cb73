"""The loss of SimOTA, the assigner of YOLOX (Ge et al., arXiv 2107.08430, section 2)."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from dwtriton.core.boxes import central_squares, iou, predicted_boxes
from dwtriton.core.head_outputs import HeadOutputs
from dwtriton.core.points import STRIDES
from dwtriton.core.targets import PackedTargets
from dwtriton.losses.point_loss import Choice, Grid, PointLoss, PointTargets, mean_over_ranks
from dwtriton.losses.selection import chunks, largest, rounded
from dwtriton.losses.terms import cross_entropy, negative_logits, own_logits, points_of_levels
from dwtriton.reference.pairs import Boxes

MAX_LOG = 100.0  # every -ln of a probability in a cost is clamped here
IOU_EPSILON = 1e-7  # added to the IoU in a cost
OUTSIDE = 1e5  # added to the cost of a point outside the box or outside its centre region


class SimOTALoss(PointLoss):
    """Every box takes as many points as its predictions are good for: those that cost least.

    Candidates lie inside any box or in its centre region, the open square that reaches `center_radius` strides from its
    centre. The cost of a candidate for a box is `cls_weight` times the cross entropy of all classes with the box's, at
    the score sqrt(sigmoid(cls) sigmoid(obj)), plus `iou_weight` times -ln IoU, plus 1e5 unless it lies inside both the
    box and its region. A box takes k candidates, the integer part of the sum of its `candidate_topk` largest IoUs, at
    least 1; contested points go to the box of the lowest cost. Of equal costs the lowest point and the first box count.
    Losses: `loss_cls`, cross entropy with the IoU at positive points; `loss_bbox`, 1 - IoU^2 there, times `box_weight`;
    `loss_obj`, cross entropy of the objectness at all points. Details are MMDetection's: docs/assigners.md#simota.
    """

    def __init__(
        self,
        strides: Sequence[int] = STRIDES,
        center_radius: float = 2.5,
        candidate_topk: int = 10,
        iou_weight: float = 3.0,
        cls_weight: float = 1.0,
        box_weight: float = 5.0,
    ) -> None:
        super().__init__(strides)
        if not center_radius > 0 or candidate_topk < 1:
            given = f"{center_radius} and {candidate_topk}"
            raise ValueError(f"center_radius must be positive and candidate_topk at least 1, not {given}")
        self.center_radius, self.candidate_topk = center_radius, candidate_topk
        self.iou_weight, self.cls_weight, self.box_weight = iou_weight, cls_weight, box_weight

    def extra_repr(self) -> str:
        names = ("strides", "center_radius", "candidate_topk", "iou_weight", "cls_weight", "box_weight")
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)

    def choose(self, outputs: HeadOutputs, targets: PackedTargets, boxes: Boxes, grid: Grid) -> Choice:
        """Let boxes choose among the candidates of their image. Raises ValueError if there is no objectness."""
        if not outputs.objectness:
            raise ValueError("SimOTALoss needs objectness: without it nothing would learn what background is")
        row, quality = cheapest(
            *(list(kind) for kind in outputs),
            grid.points,
            boxes.corners,
            boxes.labels,
            boxes.image.where(boxes.is_truth, targets.batch_size),
            list(map(float, self.strides)),
            self.center_radius,
            self.candidate_topk,
            self.iou_weight,
            self.cls_weight,
        )
        return Choice(row, quality)

    def losses(self, outputs: HeadOutputs, targets: PointTargets, grid: Grid) -> dict[str, Tensor]:
        """Normalise by the weights of the positive points."""
        weight = targets.weight
        (positives,) = mean_over_ranks(weight.sum())
        others = zip(negative_logits(outputs, targets, grid), grid.split(weight.to(outputs.arithmetic)))
        other_classes = torch.stack([(softplus(z) * w).sum(dtype=torch.float64) for z, w in others]).sum()
        own_class = (weight * cross_entropy(own_logits(outputs.cls_logits, targets, grid), targets.quality)).sum()

        distances = points_of_levels(outputs.box_distances).where(targets.positive, 1)
        points = grid.points[:, None]
        overlap = iou(predicted_boxes(points, distances), predicted_boxes(points, targets.sides))
        box = self.box_weight * (weight * (1 - overlap.square())).sum()

        (u,) = points_of_levels(outputs.objectness)
        objectness = (weight * softplus(-u)).sum() + (softplus(u) * ~(targets.positive | targets.ignored)).sum()
        losses = {"loss_cls": own_class + other_classes, "loss_bbox": box, "loss_obj": objectness}
        return {name: loss / positives.clamp(min=1) for name, loss in losses.items()}


@torch.library.custom_op("dwtriton::cheapest", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,))
def cheapest(
    cls_logits: Sequence[Tensor],
    box_distances: Sequence[Tensor],
    objectness: Sequence[Tensor],
    points: Tensor,
    corners: Tensor,
    labels: Tensor,
    image: Tensor,
    strides: Sequence[float],
    center_radius: float,
    candidate_topk: int,
    iou_weight: float,
    cls_weight: float,
) -> tuple[Tensor, Tensor]:
    """Return the box that each point is given, [B, P] int64, -1 for none, and the IoU of its predicted box with it.

    An operator, which `torch.compile` keeps whole: it reads numbers of boxes and candidates on the host. `points` are
    [2, P], `corners` [4, N] float64, `labels` and `image` [N]; rows of images that the batch does not have are unused.
    """
    levels = zip(cls_logits, strides)
    reach = torch.cat([points.new_full((z[0, 0].numel(),), center_radius * stride) for z, stride in levels])  # [P]
    row = image.new_full((len(cls_logits[0]), points.shape[1]), -1)
    quality = points.new_zeros(row.shape)
    for index in range(len(row)):
        rows = (image == index).nonzero()[:, 0]
        if len(rows) == 0:
            continue
        z, d, u = (
            torch.cat([level[index].flatten(1) for level in kind], 1)
            for kind in (cls_logits, box_distances, objectness)
        )
        candidate = torch.zeros_like(reach, dtype=torch.bool)
        for some in chunks(rows, len(reach)):
            in_box, in_region = _location(points, reach, corners[:, some])
            candidate |= (in_box | in_region).any(0)
        candidate = candidate.nonzero()[:, 0]  # [K]
        z, d, u = (values[:, candidate].double() for values in (z, d, u))
        costs = _Costs(z, d, u, points[:, candidate], reach[candidate], iou_weight, cls_weight)
        chosen = _choose(costs, rows, corners, labels, candidate_topk)
        has_box = chosen >= 0
        row[index, candidate] = chosen
        own = iou(costs.predicted, corners[:, chosen.clamp(min=0)])
        quality[index, candidate] = own * has_box
    return row, quality


class _Costs:
    """Costs of the K candidates of an image for its boxes."""

    def __init__(
        self, z: Tensor, d: Tensor, u: Tensor, points: Tensor, reach: Tensor, iou_weight: float, cls_weight: float
    ) -> None:
        """`z` [C, K], `d` [4, K], `u` [1, K], `points` [2, K], `reach` [K] of the centre regions; all float64."""
        self.points, self.reach, self.iou_weight, self.cls_weight = points, reach, iou_weight, cls_weight
        self.predicted = predicted_boxes(points, d)  # [4, K]
        log_score = (logsigmoid(z) + logsigmoid(u)) / 2  # [C, K]
        of_zero = log_score.expm1().neg_().log_().clamp_(min=-MAX_LOG).neg_()  # -ln(1 - score)
        self.of_background = of_zero.sum(0)  # [K] cross entropy of all classes with none
        self.of_class = of_zero.neg_().sub_(log_score.clamp_(min=-MAX_LOG))  # [C, K] what it grows by if one is there

    def __call__(self, corners: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return costs and IoUs of candidates for boxes [4, n] of [n] labels, [n, K] each."""
        overlap = iou(self.predicted[:, None], corners[..., None])
        cost = self.cls_weight * (self.of_background + self.of_class[labels])
        cost = rounded(cost - self.iou_weight * (overlap + IOU_EPSILON).log())
        in_box, in_region = _location(self.points, self.reach, corners)
        return cost + OUTSIDE * ~(in_box & in_region), overlap


def _choose(costs: _Costs, rows: Tensor, corners: Tensor, labels: Tensor, candidate_topk: int) -> Tensor:
    """Return the box of each candidate, [K], one of the `rows` or -1."""
    wanted_by = rows.new_zeros(len(costs.reach))
    chosen = torch.full_like(wanted_by, -1)
    best, best_cost = chosen.clone(), costs.reach.new_full(chosen.shape, torch.inf)
    for some in chunks(rows, len(chosen)):
        cost, overlap = costs(corners[:, some], labels[some])
        count = overlap.topk(min(candidate_topk, overlap.shape[1])).values.sum(1).long().clamp(min=1)  # k of each box
        order = largest(-cost, candidate_topk)  # [n, candidate_topk]
        takes = torch.arange(order.shape[1], device=order.device) < count[:, None]
        point, row = order[takes], some[:, None].expand_as(order)[takes]
        wanted_by.index_add_(0, point, torch.ones_like(point))
        chosen[point] = row  # the only one, or contested
        least, box = cost.min(0)  # the first of equal ones
        better = least < best_cost
        best, best_cost = some[box].where(better, best), least.where(better, best_cost)
    return best.where(wanted_by > 1, chosen)


def _location(points: Tensor, reach: Tensor, corners: Tensor) -> tuple[Tensor, Tensor]:
    """Return which points [2, P] are inside boxes [4, n] and inside their centre regions, [n, P] bool each."""
    corners = corners[..., None]
    return _inside(points, corners), _inside(points, central_squares(corners, reach))


def _inside(points: Tensor, boxes: Tensor) -> Tensor:
    """Return which points [2, P] lie strictly inside boxes [4, n, P or 1]; faster than by distances to the sides."""
    (x, y), (left, top, right, bottom) = points, boxes
    return (x > left) & (y > top) & (x < right) & (y < bottom)


@cheapest.register_fake
def _(cls_logits, box_distances, objectness, points, corners, labels, image, *settings):
    shape = (len(cls_logits[0]), points.shape[1])
    return image.new_empty(shape), points.new_empty(shape)
