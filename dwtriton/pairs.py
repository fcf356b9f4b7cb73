"""Every pair of a box and a point strictly inside it, enumerated: no [points x boxes] tensor exists.

The points inside a box are a rectangle of cells on each level. Pairs come in chunks, box by box; classification logits
are read where they lie.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from dwtriton import formulas
from dwtriton.points import inside_rectangles
from dwtriton.targets import PackedTargets

PAIRS_PER_CHUNK = 2**16  # about 10 MB of temporary tensors


class Boxes(NamedTuple):
    """The rows of the packed targets, with what is invalid made harmless."""

    corners: Tensor  # [4, N] xyxy
    labels: Tensor  # [N] 0..C-1
    weights: Tensor  # [N]
    image: Tensor  # [N] 0..B-1
    is_truth: Tensor  # [N] bool
    is_crowd: Tensor  # [N] bool
    valid: Tensor  # () bool: no row that is in use had to be changed


class Level(NamedTuple):
    stride: int
    z: Tensor  # [B, C, H, W] as the caller gave it
    u: Tensor  # [B, 1, H, W] the same
    flat_u: Tensor  # [B*H*W] in the dtype of the arithmetic
    flat_d: Tensor  # [4, B*H*W]
    rectangles: Tensor  # [4, N] cells inside each box


class Pairs(NamedTuple):
    """A chunk of pairs of a box and a point strictly inside it, all [K] int64, in the order of the boxes."""

    box: Tensor
    image: Tensor
    row: Tensor
    column: Tensor
    point: Tensor  # number of the point among those of all images of the level


def read_boxes(targets: PackedTargets, num_classes: int, dtype: torch.dtype) -> Boxes:
    boxes, labels = targets.boxes, targets.labels
    valid = boxes.isfinite().all(1) & (boxes[:, :2] <= boxes[:, 2:]).all(1) & (labels >= 0) & (labels < num_classes)
    weights = torch.ones_like(boxes[:, 0]) if targets.weights is None else targets.weights
    valid = valid & weights.isfinite() & (weights >= 0)
    is_truth, is_crowd = targets.box_mask(), targets.crowd_mask()
    return Boxes(
        corners=boxes.to(dtype).nan_to_num().T.contiguous(),
        labels=labels.clamp(0, num_classes - 1),
        weights=weights.to(dtype).nan_to_num(),
        image=targets.image_index().clamp(max=max(targets.batch_size - 1, 0)),
        is_truth=is_truth,
        is_crowd=is_crowd,
        valid=(valid | ~(is_truth | is_crowd)).all(),
    )


def read_level(z: Tensor, d: Tensor, u: Tensor, stride: int, boxes: Boxes) -> Level:
    dtype = boxes.corners.dtype
    flat_d = d.transpose(0, 1).reshape(4, -1).to(dtype)
    rectangles = inside_rectangles(boxes.corners, *z.shape[2:], stride)
    return Level(stride, z, u, u.reshape(-1).to(dtype), flat_d, rectangles)


def pairs_inside(level: Level, boxes: Boxes, selected: Tensor) -> Iterator[Pairs]:
    """All pairs of the selected boxes on a level, box by box, in chunks. A box may be split between chunks."""
    left, top, right, bottom = level.rectangles
    widths = right - left
    counts = widths * (bottom - top) * selected
    ends = counts.cumsum(0)
    begins = ends - counts
    total = int(counts.sum())
    height, width = level.z.shape[2:]
    for start in range(0, total, PAIRS_PER_CHUNK):
        stop = min(start + PAIRS_PER_CHUNK, total)
        lengths = ends.clamp(start, stop) - begins.clamp(start, stop)
        box = torch.repeat_interleave(lengths, output_size=stop - start)
        within = torch.arange(start, stop, device=box.device) - begins[box]
        row = within.div(widths[box], rounding_mode="floor")
        column = within - row * widths[box] + left[box]
        row = row + top[box]
        image = boxes.image[box]
        yield Pairs(box, image, row, column, (image * height + row) * width + column)


class PairTerms(NamedTuple):
    """What the weights of a chunk of pairs are made of, each [K]; coordinates [4, K]."""

    z: Tensor
    u: Tensor
    t: Tensor
    prior: Tensor
    overlap: formulas.Overlap
    distances: Tensor
    sides: Tensor


def pair_terms(level: Level, boxes: Boxes, pairs: Pairs, soft_prior: bool) -> PairTerms:
    corners = boxes.corners[:, pairs.box]
    points = (torch.stack((pairs.column, pairs.row)).to(corners.dtype) + 0.5) * level.stride
    distances = level.flat_d[:, pairs.point]
    sides = formulas.box_sides(points, corners)
    overlap = formulas.overlap(distances, sides)
    z = memory(level.z)[places_in(level.z, pairs, boxes)].to(corners.dtype)
    u = level.flat_u[pairs.point]
    t = formulas.alignment(z.sigmoid() * u.sigmoid(), overlap.reg_loss)
    prior = formulas.center_prior(points, corners, level.stride, soft_prior)
    return PairTerms(z, u, t, prior, overlap, distances, sides)


def memory(tensor: Tensor) -> Tensor:
    """All memory from a tensor's first entry to its last, as one dimension."""
    span = 1 + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride()))
    return tensor.as_strided((span,), (1,))


def places_in(tensor: Tensor, pairs: Pairs, boxes: Boxes) -> Tensor:
    """Where in `memory` of a [B, C, H, W] tensor each pair's point has the class of its box, [K]."""
    image, channel, row, column = tensor.stride()
    return pairs.image * image + boxes.labels[pairs.box] * channel + pairs.row * row + pairs.column * column
