"""The weights and losses of Dual Weighting, one function for each formula of the specification.

All functions are element-wise and take tensors of any shape that broadcasts. Tensors of coordinates have them first:
points are [2, ...] x and y; boxes are [4, ...] x1 y1 x2 y2; distances and sides are [4, ...] left, top, right, bottom;
all in pixels. Everything a weight is made of is for points strictly inside their box.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

SIGMA = 1.1100000143051147  # of the centre prior, in strides: the float32 value that released checkpoints hold
MAX_LOG = 100.0  # every -ln term of a loss is clamped here, its gradient is not


class Overlap(NamedTuple):
    iou: Tensor
    reg_loss: Tensor  # 1 - GIoU


def center_prior(points: Tensor, boxes: Tensor, stride: int | Tensor, soft: bool) -> Tensor:
    """Gaussian of the point's distance from the box centre in strides; if not `soft`, 1 where that is > 0.3, else 0."""
    x, y = (points - (boxes[:2] + boxes[2:]) / 2) / stride
    prior = ((x * x + y * y) * (-0.5 / SIGMA**2)).exp()
    return prior if soft else (prior > 0.3).to(prior.dtype)


def box_sides(points: Tensor, boxes: Tensor) -> Tensor:
    """Distances from points to the sides of boxes; all positive where the point is inside."""
    return torch.cat((points - boxes[:2], boxes[2:] - points))


def overlap(distances: Tensor, sides: Tensor) -> Overlap:
    """IoU and 1 - GIoU of the predicted box (the point and its `distances`) with the box whose `sides` these are."""
    inner, union, outer = _areas(distances, sides)
    union, outer = union.clamp(min=1e-6), outer.clamp(min=1e-6)
    return Overlap(inner / union, (union - inner) / union + (outer - union) / outer)


def reg_loss_gradient(distances: Tensor, sides: Tensor) -> Tensor:
    """d(1 - GIoU) / d(distances), [4, ...]; where a predicted side ties with the box's, the mean of both slopes."""
    inner, raw_union, raw_outer = _areas(distances, sides)
    union, outer = raw_union.clamp(min=1e-6), raw_outer.clamp(min=1e-6)
    within = 0.5 + 0.5 * (sides - distances).sign()  # 1: the side moves inside the box, 0: beyond it
    d_inner = within * _across(torch.minimum(distances, sides))
    d_outer = (1 - within) * _across(torch.maximum(distances, sides)) * (raw_outer > 1e-6)
    d_union = (_across(distances) - d_inner) * (raw_union > 1e-6)
    return (d_union * (inner / union) - d_inner) / union + (d_outer * (union / outer) - d_union) / outer


def _areas(distances: Tensor, sides: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Areas of intersection, union and enclosing box."""
    inner = _size(torch.minimum(distances, sides)).prod(0)
    outer = _size(torch.maximum(distances, sides)).prod(0)
    return inner, _size(distances).prod(0) + _size(sides).prod(0) - inner, outer


def _size(sides: Tensor) -> Tensor:
    """Width and height, [2, ...]."""
    return sides[:2] + sides[2:]


def _across(sides: Tensor) -> Tensor:
    """The length that each side sweeps over when it moves: height for left and right, width for top and bottom."""
    return _size(sides).flip(0).repeat(2, *[1] * (sides.ndim - 1))


def alignment(score: Tensor, reg_loss: Tensor) -> Tensor:
    """t: the joint score of the box's class times p_loc = exp(-5 reg_loss)."""
    return score * (-5 * reg_loss).exp()


def positive_mass(t: Tensor, prior: Tensor) -> Tensor:
    """What a pair adds to the denominator of its box's positive weights."""
    return (3 * t).exp() * t * prior


def positive_weight(t: Tensor, prior: Tensor, denominator: Tensor) -> Tensor:
    """w_pos. The exponent is 5 here and 3 in the denominator on purpose."""
    return (5 * t).exp() * t * prior / denominator


def iou_deficit(iou: Tensor) -> Tensor:
    """f(v) = (1 - v^2) / 0.75: 1 at an IoU of one half, 0 at a perfect one."""
    return (1 - iou) * (1 + iou) / 0.75


def negative_weight(iou: Tensor, deficit_min: Tensor, deficit_max: Tensor) -> Tensor:
    """m: the deficit stretched to 0..1 over the bag; 1 where the IoU is below one half."""
    stretched = (iou_deficit(iou) - deficit_min + 1e-12) / (deficit_max - deficit_min + 1e-12)
    return stretched.masked_fill_(iou < 0.5, 1)


def neg_log_score(z: Tensor, u: Tensor) -> Tensor:
    """-ln s, unclamped."""
    return -(logsigmoid(z) + logsigmoid(u))


def neg_log_complement(score: Tensor, z: Tensor, u: Tensor) -> Tensor:
    """-ln(1 - s), unclamped and accurate where s rounds to 0 or to 1."""
    value = torch.log1p(-score).neg_()
    if not _all_low(score):
        exact = -torch.logaddexp(logsigmoid(-z), logsigmoid(z) + logsigmoid(-u))
        value = torch.where(score < 0.5, value, exact)
    return value


def logit_gradients(z: Tensor, u: Tensor, neg: Tensor, pos: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of `neg s^2 (-ln(1 - s)) + pos (-ln s)` with the logits z, [B, C, H, W], and u, [B, 1, H, W]."""
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
    """Whether 1 - s is accurate for every score, as for most of an image: cheaper forms will do then."""
    return bool(score.amax() < 0.5)
