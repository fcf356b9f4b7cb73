"""All pairs of a box and a point strictly inside it, enumerated: no [points x boxes] tensor exists.

The points inside a box are a rectangle of grid cells on each level. Pairs come in chunks, level by level, and on a
level box by box. Classification logits are read in place.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from dwtriton.core.head_outputs import HeadOutputs
from dwtriton.core.points import inside_rectangles
from dwtriton.core.targets import PackedTargets
from dwtriton.reference import devices, formulas

PAIRS_ON_CPU, PAIRS_ON_GPU = 2**16, 2**20  # in a chunk: about 10 and 160 MB of temporary tensors


class Boxes(NamedTuple):
    """The N rows of the packed targets; values that are invalid are replaced, so that indexing stays in bounds."""

    corners: Tensor  # [4, N] xyxy in the dtype of the arithmetic
    labels: Tensor  # [N] 0..C-1
    weights: Tensor  # [N]
    image: Tensor  # [N] 0..B-1
    is_truth: Tensor  # [N] bool
    is_crowd: Tensor  # [N] bool
    valid: Tensor  # () bool: no row in use held an invalid value


class Rectangles(NamedTuple):
    """The cells inside each of N boxes on each of L levels: S = L * N rectangles, level by level; all [S] int64.

    Points are counted level by level, on a level image by image and row by row. Entries are class logits, counted
    level by level, on a level in the order of memory (`level_views`). Both are counted up from cell (0, 0) of the
    image, entries at the class of the box.
    """

    left: Tensor  # column
    top: Tensor  # row
    width: Tensor
    first_point: Tensor
    points_a_row: Tensor
    first_entry: Tensor
    entries_a_row: Tensor
    entries_a_column: Tensor


class PairCounts(NamedTuple):
    """How many pairs there are."""

    inside: Tensor  # [L, N] in each rectangle
    totals: list[int]  # on each level


class Pyramid(NamedTuple):
    """The head's outputs, and where boxes meet them."""

    z: list[Tensor]  # class logits of each level [B, C, H, W], without gaps in memory
    u: Tensor  # [B*P] objectness logits of all levels in the dtype of the arithmetic
    d: Tensor  # [4, B*P] distances alike
    rectangles: Rectangles
    corners: Tensor  # [4, S] of the box of each rectangle
    stride: Tensor  # [S] in the dtype of the arithmetic
    truth: PairCounts  # 0 for boxes that are crowd or padding
    crowd: PairCounts


class Pairs(NamedTuple):
    """A chunk of K pairs; all [K] int64 but the last two."""

    rectangle: Tensor  # 0..S-1
    column: Tensor
    row: Tensor
    point: Tensor
    entry: Tensor  # at the class of the box
    lengths: Tensor  # [S] how many of the pairs each rectangle has
    levels: list[slice]  # which of the pairs each level has


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


def read_pyramid(outputs: HeadOutputs, strides: Sequence[float], boxes: Boxes) -> Pyramid:
    """Return the head's outputs and the cells of each level inside each box; the host waits for their numbers."""
    dtype, device = boxes.corners.dtype, boxes.corners.device
    z = [level if level.stride() == _packed(level) else level.clone() for level in outputs.cls_logits]
    begins = zip(_begins(outputs.objectness), _begins(z))
    levels = [(*level.shape[2:], *level.stride(), *begin) for level, begin in zip(z, begins)]
    table = torch.tensor(levels).to(device, non_blocking=True).T[:, :, None]  # [8, L, 1]
    height, width, image_step, class_step, row_step, column_step, first_point, first_entry = table
    stride = torch.tensor(strides, dtype=dtype).to(device, non_blocking=True)[:, None]  # [L, 1]

    left, top, right, bottom = inside_rectangles(boxes.corners, height, width, stride)  # [L, N]
    first_point = first_point + boxes.image * height * width
    first_entry = first_entry + boxes.image * image_step + boxes.labels * class_step
    parts = (left, top, right - left, first_point, width, first_entry, row_step, column_step)
    inside = (right - left) * (bottom - top)
    return Pyramid(
        z=z,
        u=torch.cat([level.flatten() for level in outputs.objectness]).to(dtype),
        d=torch.cat([level.transpose(0, 1).flatten(1) for level in outputs.box_distances], 1).to(dtype),
        rectangles=Rectangles(*(part.expand_as(left).flatten() for part in parts)),
        corners=boxes.corners.repeat(1, len(z)),
        stride=stride.expand_as(inside).flatten().to(dtype),
        **_read_counts(truth=inside * boxes.is_truth, crowd=inside * boxes.is_crowd),
    )


def _read_counts(**counts: Tensor) -> dict[str, PairCounts]:
    """Return `PairCounts` of numbers of pairs [L, N]. Only here the host waits for a GPU."""
    totals = torch.stack([inside.sum(1) for inside in counts.values()]).tolist()
    return {name: PairCounts(inside, total) for (name, inside), total in zip(counts.items(), totals)}


def pairs_inside(pyramid: Pyramid, counts: PairCounts) -> Iterator[Pairs]:
    """Yield all pairs of `pyramid.truth` or `pyramid.crowd` in chunks. A rectangle may be split between chunks."""
    inside = counts.inside.flatten()
    ends = inside.cumsum(0)
    begins = ends - inside
    borders = list(accumulate(counts.totals, initial=0))  # between levels
    chunk = PAIRS_ON_CPU if devices.on_cpu(ends) else PAIRS_ON_GPU
    for begin in range(0, borders[-1], chunk):
        end = min(begin + chunk, borders[-1])
        lengths = ends.clamp(begin, end) - begins.clamp(begin, end)
        levels = [slice(*part) for part in pairwise(min(max(border, begin), end) - begin for border in borders)]
        yield _chunk(pyramid.rectangles, begins - begin, lengths, levels)


def _chunk(rectangles: Rectangles, begins: Tensor, lengths: Tensor, levels: list[slice]) -> Pairs:
    """Return `Pairs`; `begins` [S]: the number of the first pair of each rectangle, negative if in an earlier chunk."""
    index = torch.repeat_interleave(lengths, output_size=levels[-1].stop)
    here = Rectangles(*(part.index_select(0, index) for part in rectangles))
    cell = torch.arange(len(index), device=index.device) - begins.index_select(0, index)  # row by row
    row = cell.div(here.width, rounding_mode="floor")
    column = cell - row * here.width + here.left
    row += here.top
    point = here.first_point + row * here.points_a_row + column
    entry = here.first_entry + row * here.entries_a_row + column * here.entries_a_column
    return Pairs(index, column, row, point, entry, lengths, levels)


def pair_terms(pyramid: Pyramid, pairs: Pairs, soft_prior: bool) -> PairTerms:
    """Compute what the weights of a chunk of pairs consist of."""
    dtype = pyramid.corners.dtype
    corners, stride = pyramid.corners.index_select(1, pairs.rectangle), pyramid.stride.index_select(0, pairs.rectangle)
    points = (torch.stack((pairs.column, pairs.row)).to(dtype) + 0.5) * stride  # [2, K]
    distances = pyramid.d.index_select(1, pairs.point)
    sides = formulas.box_sides(points, corners)
    overlap = formulas.overlap(distances, sides)
    entries = [pairs.entry[part] - begin for part, begin in zip(pairs.levels, _begins(pyramid.z))]
    levels = [level.as_strided((level.numel(),), (1,)) for level in pyramid.z]
    z = torch.cat([level.index_select(0, entry) for level, entry in zip(levels, entries)]).to(dtype)
    u = pyramid.u.index_select(0, pairs.point)
    t = formulas.alignment(z.sigmoid() * u.sigmoid(), overlap.reg_loss)
    prior = formulas.center_prior(points, corners, stride, soft_prior)
    return PairTerms(z, u, t, prior, overlap, distances, sides)


def level_views(entries: Tensor, levels: Sequence[Tensor]) -> list[Tensor]:
    """View a value for each entry [B*P*C] as a tensor for each level, with the shapes and layouts of the gradients."""
    parts = entries.split([level.numel() for level in levels])
    return [part.as_strided(level.shape, _packed(level)) for part, level in zip(parts, levels)]


def _packed(level: Tensor) -> tuple[int, ...]:
    """Return the strides of a tensor like `level`, which has no gaps in memory."""
    return torch.empty_like(level, device="meta").stride()


def _begins(levels: Sequence[Tensor]) -> Iterator[int]:
    """Yield how many elements come before each level."""
    return accumulate((level.numel() for level in levels), initial=0)
