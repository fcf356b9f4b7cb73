"""Box geometry: boxes are [4, ...] x1 y1 x2 y2 in pixels, coordinates first."""

import torch
from torch import Tensor

MIN_AREA = 1e-6  # square pixels: least union that an IoU divides by


def predicted_boxes(points: Tensor, distances: Tensor) -> Tensor:
    """Return the boxes [4, ...] at `distances` left, top, right, bottom [4, ...] from points [2, ...]."""
    return torch.cat((points - distances[:2], points + distances[2:]))


def iou(first: Tensor, second: Tensor) -> Tensor:
    """Return the intersection over union of boxes [4, ...] of shapes that broadcast, wherever they lie."""
    sides = torch.minimum(first[2:], second[2:]) - torch.maximum(first[:2], second[:2])
    intersection = sides.clamp(min=0).prod(0)
    union = _area(first) + _area(second) - intersection
    return intersection / union.clamp(min=MIN_AREA)


def central_squares(boxes: Tensor, half_side: float | Tensor) -> Tensor:
    """Return the squares [4, ...] around the centres of boxes, `half_side` pixels from centre to side."""
    centers = (boxes[:2] + boxes[2:]) / 2
    return torch.cat((centers - half_side, centers + half_side))


def intersection(first: Tensor, second: Tensor) -> Tensor:
    """Return the boxes [4, ...] that two boxes have in common; x1 > x2 or y1 > y2 where there is none."""
    return torch.cat((torch.maximum(first[:2], second[:2]), torch.minimum(first[2:], second[2:])))


def _area(boxes: Tensor) -> Tensor:
    return (boxes[2] - boxes[0]) * (boxes[3] - boxes[1])
