"""The weights behind the loss as dense tensors, for people and for other losses; in plain PyTorch, for any device."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dwtriton.core.head_outputs import HeadOutputs
from dwtriton.core.points import pyramid_points
from dwtriton.core.targets import PackedTargets
from dwtriton.reference import formulas


class DualWeights(NamedTuple):
    """The weights of one image with P points, G boxes that are not crowd and C classes; all are constants."""

    points: Tensor  # (P, 2) x and y in pixels, finest level first, each level row by row
    inside: Tensor  # (P, G) bool: the point is strictly inside the box
    iou: Tensor  # (P, G) of the predicted box with the ground truth; 0 outside
    prior: Tensor  # (P, G) centre prior; 0 outside
    score: Tensor  # (P, C) joint score s: classification times objectness
    pos: Tensor  # (P, G) positive weight w_pos, times the weight of the box
    neg: Tensor  # (P, C) N, the paper's P_neg, 0 where ignored; the paper's negative weight is neg * score**2


def dual_weights(
    outputs: HeadOutputs, targets: PackedTargets, strides: Sequence[int], soft_prior: bool
) -> list[DualWeights]:
    """Return the weights of each image, in float32, or in float64 if any input is float64."""
    dtype = outputs.arithmetic
    sizes = [(level.shape[2], level.shape[3]) for level in outputs.cls_logits]
    points = pyramid_points(sizes, strides, targets.boxes.device, dtype)
    point_strides = torch.cat([points.new_full((h * w,), stride) for (h, w), stride in zip(sizes, strides)])
    num_classes = outputs.cls_logits[0].shape[1]
    labels = targets.labels.clamp(0, num_classes - 1)  # not validated on a GPU: keep the indexing in bounds
    corners = targets.boxes.to(dtype)
    image_of_row = targets.image_index()
    results = []
    for image in range(targets.batch_size):
        z, d, u = (torch.cat([level[image].flatten(1) for level in kind], 1).to(dtype) for kind in outputs)
        truth, crowd = (mask & (image_of_row == image) for mask in (targets.box_mask(), targets.crowd_mask()))
        weights = None if targets.weights is None else targets.weights[truth].to(dtype)
        boxes = (corners[truth], labels[truth], weights, corners[crowd])
        results.append(_image_weights(points, point_strides, z, d, u, *boxes, soft_prior))
    return results


def _image_weights(
    points: Tensor,  # [P, 2]
    strides: Tensor,  # [P]
    z: Tensor,  # [C, P]
    d: Tensor,  # [4, P]
    u: Tensor,  # [1, P]
    boxes: Tensor,  # [G, 4]
    labels: Tensor,  # [G]
    weights: Tensor | None,  # [G]
    crowds: Tensor,  # [K, 4]
    soft_prior: bool,
) -> DualWeights:
    """Return the weights of one image; `crowds` are its K regions to ignore."""
    xy = points.T[:, :, None]  # [2, P, 1]
    corners = boxes.T[:, None, :]  # [4, 1, G]
    sides = formulas.box_sides(xy, corners)  # [4, P, G]
    inside = (sides > 0).all(0)  # [P, G]
    overlap = formulas.overlap(d[:, :, None], sides)
    iou = overlap.iou.where(inside, 0)
    prior = formulas.center_prior(xy, corners, strides[:, None], soft_prior).where(inside, 0)
    score = (z.sigmoid() * u.sigmoid()).T  # [P, C]
    t = formulas.alignment(score[:, labels], overlap.reg_loss).where(inside, 0)  # [P, G]
    denominator = formulas.positive_mass(t, prior).sum(0, dtype=torch.float64)  # [G]
    pos = formulas.positive_weight(t, prior, denominator.clamp(min=formulas.MIN_POSITIVE_SUM).to(t.dtype))
    if weights is not None:
        pos = pos * weights

    deficit = formulas.iou_deficit(overlap)
    deficit_min = deficit.masked_fill(~inside, torch.inf).amin(0)
    deficit_max = deficit.masked_fill(~inside, -torch.inf).amax(0).clamp(max=1)
    p_neg = formulas.p_neg(overlap, deficit_min, deficit_max)  # [P, G]
    neg = negative_weights(inside, labels, p_neg, score.shape[1], weights)
    ignored = (formulas.box_sides(xy, crowds.T[:, None, :]) > 0).all(0).any(1)
    return DualWeights(points, inside, iou, prior, score, pos, neg.masked_fill_(ignored[:, None], 0))


def negative_weights(
    inside: Tensor,  # [P, G] bool
    labels: Tensor,  # [G]
    p_neg: Tensor,  # [P, G]
    num_classes: int,
    weights: Tensor | None,  # [G]
) -> Tensor:
    """Return N, [P, C]: p_neg of the last box of the class that holds the point, 0 if its weight is 0; else 1."""
    if weights is not None:
        p_neg = p_neg.masked_fill(weights == 0, 0)
    number = torch.arange(1, len(labels) + 1, device=inside.device) * inside  # [P, G] from 1; 0 is no box
    owner = torch.zeros(len(inside), num_classes, dtype=torch.int64, device=inside.device)
    owner.scatter_reduce_(1, labels.expand_as(number), number, "amax")
    return torch.cat((p_neg.new_ones(len(inside), 1), p_neg), 1).gather(1, owner)
