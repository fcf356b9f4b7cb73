"""All pairs of a box and a point strictly inside it, enumerated: no [points x boxes] tensor exists.

The points inside a box are a rectangle of grid cells on each level. Pairs come in chunks, box by box; classification
logits are read in place.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from dwtriton.core.points import inside_rectangles
from dwtriton.core.targets import PackedTargets
from dwtriton.reference import formulas

PAIRS_PER_CHUNK = 2**16  # about 10 MB of temporary tensors


class Boxes(NamedTuple):
    """The N rows of the packed targets; values that are invalid are replaced, so that indexing stays in bounds."""

    corners: Tensor  # [4, N] xyxy in the dtype of the arithmetic
    labels: Tensor  # [N] 0..C-1
    weights: Tensor  # [N]
    image: Tensor  # [N] 0..B-1
    is_truth: Tensor  # [N] bool
    is_crowd: Tensor  # [N] bool
    valid: Tensor  # () bool: no row in use held an invalid value


class Level(NamedTuple):
    """One pyramid level of the head's outputs, and the cells of it that lie inside each box."""

    stride: int
    z: Tensor  # [B, C, H, W] class logits as the caller gave them
    u: Tensor  # [B, 1, H, W] objectness logits as the caller gave them
    flat_u: Tensor  # [B*H*W] in the dtype of the arithmetic
    flat_d: Tensor  # [4, B*H*W] in the dtype of the arithmetic
    rectangles: Tensor  # [4, N] as from `inside_rectangles`


class Pairs(NamedTuple):
    """A chunk of K pairs of a box and a point strictly inside it, in the order of the boxes; all [K] int64."""

    box: Tensor
    image: Tensor
    row: Tensor
    column: Tensor
    point: Tensor  # index of the point in the level, counted over all images


class PairTerms(NamedTuple):
    """The ingredients of the weights of K pairs, each [K], coordinates [4, K]."""

    z: Tensor
    u: Tensor
    t: Tensor
    prior: Tensor
    overlap: formulas.Overlap
    distances: Tensor
    sides: Tensor


def read_boxes(targets: PackedTargets, num_classes: int, dtype: torch.dtype) -> Boxes:
    """Return the packed targets as `Boxes`, without looking at values on the host."""
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
    """Return one level of the head's outputs as `Level`: z [B, C, H, W], d [B, 4, H, W], u [B, 1, H, W]."""
    dtype = boxes.corners.dtype
    flat_d = d.transpose(0, 1).reshape(4, -1).to(dtype)
    rectangles = inside_rectangles(boxes.corners, *z.shape[2:], stride)
    return Level(stride, z, u, u.reshape(-1).to(dtype), flat_d, rectangles)


def pairs_inside(level: Level, boxes: Boxes, selected: Tensor) -> Iterator[Pairs]:
    """Yield all pairs of the `selected` boxes ([N] bool) on a level, in chunks. A box may be split between chunks."""
    left, top, right, bottom = level.rectangles
    widths = right - left
    counts = widths * (bottom - top) * selected
    ends = counts.cumsum(0)
    begins = ends - counts
    total = int(counts.sum())
    height, width = level.z.shape[2:]
    for begin in range(0, total, PAIRS_PER_CHUNK):
        end = min(begin + PAIRS_PER_CHUNK, total)
        lengths = ends.clamp(begin, end) - begins.clamp(begin, end)
        box = torch.repeat_interleave(lengths, output_size=end - begin)
        cell = torch.arange(begin, end, device=box.device) - begins[box]  # within the box's rectangle, row by row
        row = cell.div(widths[box], rounding_mode="floor")
        column = cell - row * widths[box] + left[box]
        row = row + top[box]
        image = boxes.image[box]
        yield Pairs(box, image, row, column, (image * height + row) * width + column)


def pair_terms(level: Level, boxes: Boxes, pairs: Pairs, soft_prior: bool) -> PairTerms:
    """Compute what the weights of a chunk of pairs consist of."""
    corners = boxes.corners[:, pairs.box]
    points = (torch.stack((pairs.column, pairs.row)).to(corners.dtype) + 0.5) * level.stride  # [2, K]
    distances = level.flat_d[:, pairs.point]
    sides = formulas.box_sides(points, corners)
    overlap = formulas.overlap(distances, sides)
    z = memory(level.z)[memory_offsets(level.z, pairs, boxes)].to(corners.dtype)
    u = level.flat_u[pairs.point]
    t = formulas.alignment(z.sigmoid() * u.sigmoid(), overlap.reg_loss)
    prior = formulas.center_prior(points, corners, level.stride, soft_prior)
    return PairTerms(z, u, t, prior, overlap, distances, sides)


def memory(tensor: Tensor) -> Tensor:
    """Return a one-dimensional view of all memory from a tensor's first entry to its last."""
    span = 1 + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride()))
    return tensor.as_strided((span,), (1,))


def memory_offsets(tensor: Tensor, pairs: Pairs, boxes: Boxes) -> Tensor:
    """Return the index in `memory` of a [B, C, H, W] tensor of each pair's point at the class of its box, [K]."""
    image, channel, row, column = tensor.stride()
    return pairs.image * image + boxes.labels[pairs.box] * channel + pairs.row * row + pairs.column * column
