"""The weights behind the loss as dense tensors, for people and for other losses; in plain PyTorch, for any device."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dwtriton import formulas
from dwtriton.points import pyramid_points
from dwtriton.targets import PackedTargets


class DualWeights(NamedTuple):
    """The weights of one image at P points, for its G boxes that are not crowd and C classes; all are constants."""

    points: Tensor  # (P, 2) x and y in pixels, finest level first, each row by row
    inside: Tensor  # (P, G) bool: point strictly inside the box
    iou: Tensor  # (P, G) of the predicted box with the ground truth; 0 outside
    prior: Tensor  # (P, G) centre prior; 0 outside
    score: Tensor  # (P, C) joint score: classification times objectness
    pos: Tensor  # (P, G) positive weight w_pos, times the weight of the box
    neg: Tensor  # (P, C) negative weight N, 0 at ignored points; the paper's negative weight is neg * score**2


def dual_weights(
    cls_logits: Sequence[Tensor],
    box_distances: Sequence[Tensor],
    objectness: Sequence[Tensor],
    targets: PackedTargets,
    strides: Sequence[int],
    soft_prior: bool,
) -> list[DualWeights]:
    """The weights of each image, in float32, or float64 if any input is float64. Shapes are those of the loss."""
    inputs = (*cls_logits, *box_distances, *objectness)
    dtype = torch.float64 if any(tensor.dtype == torch.float64 for tensor in inputs) else torch.float32
    sizes = [tuple(level.shape[2:]) for level in cls_logits]
    points = pyramid_points(sizes, strides, targets.boxes.device, dtype)
    point_strides = torch.cat([points.new_full((h * w,), stride) for (h, w), stride in zip(sizes, strides)])
    image_of_row = targets.image_index()
    labels = targets.labels.clamp(0, cls_logits[0].shape[1] - 1)  # unchecked on a device, where it must not go astray
    corners = targets.boxes.to(dtype)
    results = []
    for image in range(targets.batch_size):
        z, d, u = (
            torch.cat([level[image].flatten(1) for level in kind], 1).to(dtype)
            for kind in (cls_logits, box_distances, objectness)
        )
        truth, crowd = (mask & (image_of_row == image) for mask in (targets.box_mask(), targets.crowd_mask()))
        weights = None if targets.weights is None else targets.weights[truth]
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
    places = points.T[:, :, None]  # [2, P, 1]
    corners = boxes.T[:, None, :]  # [4, 1, G]
    sides = formulas.box_sides(places, corners)  # [4, P, G]
    inside = (sides > 0).all(0)
    overlap = formulas.overlap(d[:, :, None], sides)
    iou = overlap.iou.where(inside, 0)
    prior = formulas.center_prior(places, corners, strides[:, None], soft_prior).where(inside, 0)
    score = (z.sigmoid() * u.sigmoid()).T
    t = formulas.alignment(score[:, labels], overlap.reg_loss).where(inside, 0)
    denominator = formulas.positive_mass(t, prior).sum(0, dtype=torch.float64).clamp(min=1e-12).to(t.dtype)
    pos = formulas.positive_weight(t, prior, denominator)
    if weights is not None:
        pos = pos * weights

    deficit = formulas.iou_deficit(iou)
    deficit_min = deficit.masked_fill(~inside, torch.inf).amin(0)
    deficit_max = deficit.masked_fill(~inside, -torch.inf).amax(0).clamp(max=1)
    stretched = formulas.negative_weight(iou, deficit_min, deficit_max)
    neg = last_of_class(inside, labels, stretched, score.shape[1], weights)
    ignored = (formulas.box_sides(places, crowds.T[:, None, :]) > 0).all(0).any(1)
    return DualWeights(points, inside, iou, prior, score, pos, neg.masked_fill_(ignored[:, None], 0))


def last_of_class(
    inside: Tensor,  # [P, G] bool
    labels: Tensor,  # [G]
    stretched: Tensor,  # [P, G] m
    num_classes: int,
    weights: Tensor | None,  # [G]
) -> Tensor:
    """N, [P, C]: m of the last box of the class that holds the point, 0 if that box has no weight, else 1."""
    if weights is not None:
        stretched = stretched.masked_fill(weights == 0, 0)
    number = torch.arange(1, len(labels) + 1, device=inside.device) * inside  # from 1; 0 is no box
    last = torch.zeros(len(inside), num_classes, dtype=torch.int64, device=inside.device)
    last.scatter_reduce_(1, labels.expand_as(number), number, "amax")
    return torch.cat((stretched.new_ones(len(inside), 1), stretched), 1).gather(1, last)
