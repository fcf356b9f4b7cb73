"""Terms of the losses of FCOS, ATSS, SimOTA and TAL.

What is computed for single points is in float64, of which there are few; class logits are read a level at a time, in
the dtype of the arithmetic.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from dwtriton.core.head_outputs import HeadOutputs, Levels
from dwtriton.losses.point_loss import Grid, PointTargets
from dwtriton.reference.formulas import overlap

FOCAL_POSITIVE = 0.25  # alpha of the focal loss
FOCAL_NEGATIVE = 1 - FOCAL_POSITIVE


def points_of_levels(levels: Levels) -> Tensor:
    """Return [B, K, H, W] levels as [K, B, P] float64."""
    return torch.cat([level.double().flatten(2) for level in levels], 2).transpose(0, 1)


def own_logits(cls_logits: Levels, targets: PointTargets, grid: Grid) -> Tensor:
    """Return the logit of each point's class, [B, P] float64."""
    pairs = zip(cls_logits, grid.split(targets.label))
    return torch.cat([level.gather(1, label).flatten(1) for level, label in pairs], 1).double()


def negative_logits(outputs: HeadOutputs, targets: PointTargets, grid: Grid) -> list[Tensor]:
    """Return the class logits with minus infinity where there is no negative loss: own classes, ignored points."""
    own = grid.split(targets.label.where(targets.positive, -1))
    classes = torch.arange(outputs.cls_logits[0].shape[1], device=own[0].device)[:, None, None]
    return [
        level.to(outputs.arithmetic).masked_fill((classes == label) | ignored, -torch.inf)
        for level, label, ignored in zip(outputs.cls_logits, own, grid.split(targets.ignored))
    ]


class _Background(torch.autograd.Function):
    """Sum of p^2 (-ln(1 - p)), p = sigmoid(z). Of all tensors of that size only z is kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return z.sigmoid().square().mul(softplus(z)).sum(dtype=torch.float64)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        p = z.sigmoid()
        return ((2 - 2 * p) * softplus(z) + p) * p * p * grad.to(z.dtype)


def background_sum(outputs: HeadOutputs, targets: PointTargets, grid: Grid) -> Tensor:
    """Return the sum of p^2 (-ln(1 - p)), p = sigmoid(z), over all negatives, 0-d float64."""
    return torch.stack([_Background.apply(level) for level in negative_logits(outputs, targets, grid)]).sum()


def cross_entropy(z: Tensor, target: Tensor) -> Tensor:
    """Return -target ln p - (1 - target) ln(1 - p), p = sigmoid(z)."""
    return target * softplus(-z) + (1 - target) * softplus(z)


def giou_loss(outputs: HeadOutputs, targets: PointTargets) -> Tensor:
    """Return 1 - GIoU of the predicted box and the truth at positive points, anything at others, [B, P] float64."""
    distances = points_of_levels(outputs.box_distances).where(targets.positive, 1)
    return overlap(distances, targets.sides).reg_loss


def centerness(sides: Tensor) -> Tensor:
    """Return the centerness of points inside boxes, from distances to sides [4, ...] (arXiv 1904.01355, equation 3)."""
    left, top, right, bottom = sides
    across = torch.minimum(left, right) / torch.maximum(left, right)
    down = torch.minimum(top, bottom) / torch.maximum(top, bottom)
    return (across * down).sqrt()


def focal_and_centerness_losses(
    outputs: HeadOutputs, targets: PointTargets, grid: Grid, positives: Tensor, centre_sum: Tensor, box_weight: float
) -> dict[str, Tensor]:
    """Return the losses that FCOS and ATSS share, divided by their normalisers.

    `loss_cls`: focal loss (arXiv 1708.02002, equation 5), by `positives`. `loss_bbox`: `box_weight` (1 - GIoU),
    weighted by centerness, by `centre_sum`. `loss_centerness`: cross entropy with the centerness, by `positives`.
    """
    z = own_logits(outputs.cls_logits, targets, grid)
    focal = FOCAL_POSITIVE * (targets.weight * (-z).sigmoid().square() * softplus(-z)).sum()
    centre = centerness(targets.sides)
    box = box_weight * (targets.weight * centre * giou_loss(outputs, targets)).sum()
    losses = {
        "loss_cls": (focal + FOCAL_NEGATIVE * background_sum(outputs, targets, grid)) / positives,
        "loss_bbox": box / centre_sum,
    }
    if outputs.objectness:
        (u,) = points_of_levels(outputs.objectness)
        losses["loss_centerness"] = (targets.weight * cross_entropy(u, centre)).sum() / positives
    return losses
