"""The weights and losses of Dual Weighting, one function for each formula of docs/method.md.

All functions are element-wise and take tensors of any shapes that broadcast. Coordinates come first: points are
[2, ...] x and y; boxes are [4, ...] x1 y1 x2 y2; distances and sides are [4, ...] left, top, right, bottom; all in
pixels. Ingredients of a weight are defined for points strictly inside their box.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from dwtriton.reference import devices

# Deviation of the centre prior in strides: the float32 value of 1.11, as released checkpoints hold it
SIGMA = 1.1100000143051147
HARD_PRIOR_THRESHOLD = 0.3  # the hard centre prior is 1 above it, else 0
MIN_AREA = 1e-6  # square pixels: least union and least enclosing area that IoU and GIoU divide by
BETA = 5  # p_loc = exp(-BETA (1 - GIoU))
MU = 5  # exponent of t in the numerator of the positive weight
MU_SUM = 3  # and in its denominator, the sum over the bag
MIN_POSITIVE_SUM = 1e-12  # least denominator of the positive weights
MIN_IOU = 0.5  # predictions below it are negatives for certain: their p_neg is 1
DEFICIT_SCALE = 1 - MIN_IOU**2  # 0.75: makes the IoU deficit 1 at MIN_IOU
SPREAD_EPSILON = 1e-12  # added above and below the fraction that stretches a bag's deficits to 0..1
POSITIVE_FACTOR = 0.25  # of both positive losses
MAX_LOG = 100.0  # every -ln term of a loss is clamped here; its gradient is not


class Overlap(NamedTuple):
    """Agreement of predicted boxes with ground-truth boxes."""

    iou: Tensor
    iou_loss: Tensor  # 1 - IoU
    reg_loss: Tensor  # 1 - GIoU


def center_prior(points: Tensor, boxes: Tensor, stride: int | Tensor, soft: bool) -> Tensor:
    """Return the centre prior (docs/method.md#centre-prior); if not `soft`, 1 above HARD_PRIOR_THRESHOLD, else 0."""
    x, y = (points - (boxes[:2] + boxes[2:]) / 2) / stride
    prior = ((x * x + y * y) * (-0.5 / SIGMA**2)).exp()
    return prior if soft else (prior > HARD_PRIOR_THRESHOLD).to(prior.dtype)


def box_sides(points: Tensor, boxes: Tensor) -> Tensor:
    """Return the distances from points to the sides of boxes; all four are positive where the point is inside."""
    return torch.cat((points - boxes[:2], boxes[2:] - points))


def overlap(distances: Tensor, sides: Tensor) -> Overlap:
    """Return the agreement of predicted and ground-truth boxes (docs/method.md#localisation).

    Both boxes are given as seen from the point: `distances` to the predicted sides, `sides` to those of the truth.
    """
    areas = _areas(distances, sides)
    union, outer = areas.union.clamp(min=MIN_AREA), areas.outer.clamp(min=MIN_AREA)
    added, added_outer = union - areas.union, outer - areas.outer  # 0 but for boxes of nearly no area
    iou_loss = (areas.beside + added) / union
    return Overlap(areas.inner / union, iou_loss, iou_loss + (areas.gap + added_outer - added) / outer)


def reg_loss_gradient(distances: Tensor, sides: Tensor) -> Tensor:
    """Return d(1 - GIoU) / d(distances), [4, ...] (docs/method.md#gradients).

    Where a predicted side coincides with the box's, this is the mean of the slopes on both sides.
    """
    areas = _areas(distances, sides)
    union, outer = areas.union.clamp(min=MIN_AREA), areas.outer.clamp(min=MIN_AREA)
    grows = areas.union > MIN_AREA
    over_union = areas.inner / union
    inner_size, outer_size = _size(torch.minimum(distances, sides)), _size(torch.maximum(distances, sides))
    more, less = _beyond(distances, sides), _beyond(sides, distances)
    across, more_across, less_across = (size.flip(0) for size in (_size(distances), more, less))
    # Slopes by width and height of a side inside the box, and of one beyond it: dE U / E - dU, without cancellation
    inside = (grows * more_across * over_union - inner_size.flip(0)) / union - grows * more_across / outer
    gap = torch.where(grows, less_across * _size(sides) - more_across * less, union) * (areas.outer > MIN_AREA)
    beyond = grows * across * over_union / union + gap / outer / outer_size
    within = 0.5 + 0.5 * (sides - distances).sign()  # 1: the side is inside the box, 0: beyond it
    return within * torch.cat((inside, inside)) + (1 - within) * torch.cat((beyond, beyond))


class _Areas(NamedTuple):
    """Areas of two boxes that hold one point, in square pixels."""

    inner: Tensor  # of the intersection
    beside: Tensor  # of the union without the intersection
    gap: Tensor  # of the enclosing box without the union

    @property
    def union(self) -> Tensor:
        return self.inner + self.beside

    @property
    def outer(self) -> Tensor:
        return self.union + self.gap


def _areas(distances: Tensor, sides: Tensor) -> _Areas:
    """Return areas as sums of products of which none is negative: float32 keeps the digits of small ones."""
    inner_width, inner_height = _size(torch.minimum(distances, sides))
    more_width, more_height = _beyond(distances, sides)
    less_width, less_height = _beyond(sides, distances)
    of_predicted = more_width * _size(distances)[1] + inner_width * more_height
    of_truth = less_width * _size(sides)[1] + inner_width * less_height
    gap = more_width * less_height + less_width * more_height
    return _Areas(inner_width * inner_height, of_predicted + of_truth, gap)


def _size(sides: Tensor) -> Tensor:
    """Return width and height, [2, ...]."""
    return sides[:2] + sides[2:]


def _beyond(sides: Tensor, others: Tensor) -> Tensor:
    """Return by how much one box sticks out of the other in width and height, [2, ...]."""
    return _size((sides - others).clamp(min=0))


def alignment(score: Tensor, reg_loss: Tensor) -> Tensor:
    """Return t = s p_loc, the paper's consistency of classification and localisation.

    `score` is that of the box's class. See docs/method.md#positive-weight.
    """
    return score * (-BETA * reg_loss).exp()


def positive_mass(t: Tensor, prior: Tensor) -> Tensor:
    """Return the term that a pair adds to the denominator of its box's positive weights."""
    return (MU_SUM * t).exp() * t * prior


def positive_weight(t: Tensor, prior: Tensor, denominator: Tensor) -> Tensor:
    """Return w_pos (docs/method.md#positive-weight). `denominator`: the sum of `positive_mass` over the box's bag."""
    return (MU * t).exp() * t * prior / denominator


def iou_deficit(overlap: Overlap) -> Tensor:
    """Return f = (1 - IoU^2) / 0.75, the paper's -k IoU^gamma1 + b: 1 at an IoU of one half, 0 at a perfect one."""
    return overlap.iou_loss * (1 + overlap.iou) / DEFICIT_SCALE


def p_neg(overlap: Overlap, deficit_min: Tensor, deficit_max: Tensor) -> Tensor:
    """Return m, the paper's P_neg: the probability of being a negative (docs/method.md#negative-weight).

    The deficit of a box's bag is stretched from `deficit_min` .. `deficit_max` to 0..1; below MIN_IOU m is 1.
    """
    spread = (deficit_max - deficit_min).clamp(min=0)  # an IoU that rounds to one half may have a deficit above 1
    stretched = (iou_deficit(overlap) - deficit_min + SPREAD_EPSILON) / (spread + SPREAD_EPSILON)
    return stretched.clamp_(max=1).masked_fill_(overlap.iou < MIN_IOU, 1)


def neg_log_score(z: Tensor, u: Tensor) -> Tensor:
    """Return -ln s, unclamped."""
    return -(logsigmoid(z) + logsigmoid(u))


def neg_log_complement(score: Tensor, z: Tensor, u: Tensor) -> Tensor:
    """Return -ln(1 - s), unclamped and accurate where s rounds to 0 or to 1 (docs/method.md#rounding)."""
    value = torch.log1p(-score).neg_()
    if not _all_low(score):
        exact = -torch.logaddexp(logsigmoid(-z), logsigmoid(z) + logsigmoid(-u))
        value = torch.where(score < 0.5, value, exact)
    return value


def logit_gradients(z: Tensor, u: Tensor, neg: Tensor, pos: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of `neg s^2 (-ln(1 - s)) + pos (-ln s)` by the logits z [B, C, H, W] and u [B, 1, H, W].

    `neg` and `pos` are [B, C, H, W] constants. See docs/method.md#gradients.
    """
    score = z.sigmoid() * u.sigmoid()
    not_z, not_u = (-z).sigmoid(), (-u).sigmoid()
    slope = neg_log_complement(score, z, u).mul_(2)
    if _all_low(score):
        slope.add_(score / (1 - score)).mul_(score).mul_(score).mul_(neg).sub_(pos)
        return slope * not_z, slope.sum(1, keepdim=True) * not_u
    neg = neg * score * score
    grad_z = neg * (slope * not_z + score * (softplus(u) - z).sigmoid()) - pos * not_z
    grad_u = neg * (slope * not_u + score * (softplus(z) - u).sigmoid()) - pos * not_u
    return grad_z, grad_u.sum(1, keepdim=True)


def _all_low(score: Tensor) -> bool:
    """Return whether 1 - s is accurate for every score, as in most of an image: then cheaper forms suffice.

    False on a GPU, where the answer would cost more than it saves.
    """
    return devices.on_cpu(score) and bool(score.amax() < 0.5)
