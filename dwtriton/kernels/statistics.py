"""What the dense passes need to know of each box: its rank, and sums over all points inside it.

Boxes are ranked image by image: regions to ignore, then ground truth by class, in their order within a class, so that a
dense pass that goes through the classes goes through the boxes once.

The points inside a box are a rectangle of cells on each level. `SPLITS` programs share a box, each taking every
`SPLITS`-th block of its points and writing one part; readers combine the parts in order. Which point belongs to which
part depends on the box alone, so its weights never depend on what else is in the batch.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dwtriton.kernels import formulas, walk
from dwtriton.kernels.inputs import SPLITS, Boxes, Pyramid, launch_options
from dwtriton.kernels.tuning import StatisticsConfig

IMAGES_PER_LOOK = tl.constexpr(64)
RANKED_TOGETHER = tl.constexpr(128)
ABOVE_DEFICITS = tl.constexpr(2.0)  # where a part of a box has no point: deficits lie from 0 to 4/3
BELOW_DEFICITS = tl.constexpr(-1.0)


@triton.jit
def image_of_row(row, offsets, batch):
    """The image of a row of the packed targets; `batch` if it is padding."""
    image = row * 0
    start = row * 0
    while start < batch:
        images = start + tl.arange(0, IMAGES_PER_LOOK)
        ends = tl.load(offsets + 1 + images, mask=images < batch, other=2147483647)
        image += tl.sum((ends <= row).to(tl.int32))
        start += IMAGES_PER_LOOK
    return image


@triton.jit
def load_class(labels, iscrowd, row, mask, NUM_CLASSES: tl.constexpr):
    """-1 for regions to ignore, NUM_CLASSES for a label out of range, else the label."""
    label = tl.load(labels + row, mask=mask, other=0)
    label = tl.where((label >= 0) & (label < NUM_CLASSES), label, NUM_CLASSES).to(tl.int32)
    return tl.where(tl.load(iscrowd + row, mask=mask, other=0) != 0, -1, label)


@triton.jit
def rank_box(row, label, labels, iscrowd, first, last, NUM_CLASSES: tl.constexpr):
    """How many boxes of the image, whose rows are `first` to `last - 1`, come before a box."""
    rank = row * 0
    start = first
    while start < last:
        rows = start + tl.arange(0, RANKED_TOGETHER)
        mask = rows < last
        others = load_class(labels, iscrowd, rows, mask, NUM_CLASSES)
        before = mask & ((others < label) | ((others == label) & (rows < row)))
        rank += tl.sum(before.to(tl.int32))
        start += RANKED_TOGETHER
    return rank


@triton.jit
def cells_between(low, high, stride, count):
    """A range of cells along one direction that has all centres strictly between two edges, and at most two more."""
    first = tl.minimum(tl.maximum(tl.floor(low / stride - 0.5), 0.0), count)
    end = tl.minimum(tl.maximum(tl.floor(high / stride - 0.5) + 2, 0.0), count)
    first = first.to(tl.int32)
    return first, tl.maximum(end.to(tl.int32), first)


@triton.jit(do_not_specialize=["batch", "capacity"])
def statistics_kernel(
    z_levels,  # pointers to logits, one for each level; d_levels and u_levels alike
    d_levels,
    u_levels,
    heights,
    widths,
    strides,
    boxes,  # [N, 4]
    labels,  # [N]
    iscrowd,  # [N] uint8
    offsets,  # [B + 1]
    ranked,  # out: [6, N] and
    parts,  # [N, 3, SPLITS], see `BoxStatistics`
    batch,
    capacity,  # N
    NUM_CLASSES: tl.constexpr,
    Z_LAST: tl.constexpr,
    D_LAST: tl.constexpr,
    SOFT: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0)
    split = tl.program_id(1)
    image = image_of_row(row, offsets, batch)
    box = boxes + 4 * row
    x1, y1, x2, y2 = tl.load(box), tl.load(box + 1), tl.load(box + 2), tl.load(box + 3)
    label = load_class(labels, iscrowd, row, row < capacity, NUM_CLASSES)
    used = (image < batch) & (label >= 0) & (label < NUM_CLASSES)
    first, last = walk.image_rows(offsets, tl.minimum(image, batch - 1), capacity)
    if (split == 0) & (row >= first) & (row < last):
        out = ranked + first + rank_box(row, label, labels, iscrowd, first, last, NUM_CLASSES)
        tl.store(out, x1)
        tl.store(out + capacity, y1)
        tl.store(out + 2 * capacity, x2)
        tl.store(out + 3 * capacity, y2)
        tl.store(out + 4 * capacity, label.to(tl.float32))
        tl.store(out + 5 * capacity, row.to(tl.float32))

    mass = tl.zeros((BLOCK,), tl.float32)
    deficit_min = tl.full((BLOCK,), ABOVE_DEFICITS, tl.float32)
    deficit_max = tl.full((BLOCK,), BELOW_DEFICITS, tl.float32)
    for level in range(0, len(heights)):
        height, width = tl.cast(walk.pick(heights, level), tl.int32), tl.cast(walk.pick(widths, level), tl.int32)
        stride = walk.pick(strides, level)
        left_cell, right_cell = cells_between(x1, x2, stride, width)
        top_cell, bottom_cell = cells_between(y1, y2, stride, height)
        in_row = right_cell - left_cell
        count = tl.where(used, in_row * (bottom_cell - top_cell), 0)
        start = (split + level) % SPLITS * BLOCK  # the first blocks of the levels fall to different parts
        while start < count:
            cell = start + tl.arange(0, BLOCK)
            rows = top_cell + cell // in_row
            columns = left_cell + cell % in_row
            x, y = (columns + 0.5) * stride, (rows + 0.5) * stride
            inside = (cell < count) & (x > x1) & (y > y1) & (x < x2) & (y < y2)
            point = rows * width + columns
            area = height * width
            z_image = walk.pick(z_levels, level) + image.to(tl.int64) * area * NUM_CLASSES
            d_image = walk.pick(d_levels, level) + image.to(tl.int64) * area * 4
            u_image = walk.pick(u_levels, level) + image.to(tl.int64) * area
            z = tl.load(z_image + walk.place(point, label, area, NUM_CLASSES, Z_LAST), mask=inside, other=0.0)
            u = tl.load(u_image + point, mask=inside, other=0.0)
            score = formulas.sigmoids(z.to(tl.float32))[0] * formulas.sigmoids(u.to(tl.float32))[0]
            distances = walk.load_distances(d_image, point, area, inside, D_LAST)
            iou, reg_loss = formulas.overlap(distances, (x - x1, y - y1, x2 - x, y2 - y))
            reg_loss = tl.where(inside, reg_loss, 0.0)  # elsewhere exp(-5 reg_loss) could overflow
            prior = formulas.center_prior(x, y, x1, y1, x2, y2, stride, SOFT)
            t = formulas.alignment(score, reg_loss)
            deficit = formulas.iou_deficit(iou)
            mass += tl.where(inside, formulas.positive_mass(t, prior), 0.0)
            deficit_min = tl.where(inside, tl.minimum(deficit_min, deficit), deficit_min)
            deficit_max = tl.where(inside, tl.maximum(deficit_max, deficit), deficit_max)
            start += SPLITS * BLOCK
    part = parts + row * (3 * SPLITS) + split
    tl.store(part, tl.sum(mass))
    tl.store(part + SPLITS, tl.min(deficit_min))
    tl.store(part + 2 * SPLITS, tl.max(deficit_max))


class BoxStatistics(NamedTuple):
    """What the dense passes need to know of N boxes; both float32."""

    ranked: Tensor  # [6, N] x1, y1, x2, y2, class (-1: region to ignore, C: out of range) and row, image by image
    parts: Tensor  # [N, 3, SPLITS] by row: sum of masses, least and greatest deficit; 0, 2, -1 if a part has no point


def box_statistics(pyramid: Pyramid, boxes: Boxes, soft_prior: bool, config: StatisticsConfig) -> BoxStatistics:
    """Rank the boxes of each image; sum over the points inside each (docs/method.md#positive-weight)."""
    rows = boxes.labels.shape[0]
    device = boxes.corners.device
    ranked, parts = torch.empty(6, rows, device=device), torch.empty(rows, 3, SPLITS, device=device)
    if rows:
        statistics_kernel[rows, SPLITS](
            *pyramid.arguments,
            *boxes,
            ranked,
            parts,
            pyramid.batch,
            rows,
            BLOCK=config.points,
            **launch_options(pyramid, soft_prior, config.warps),
        )
    return BoxStatistics(ranked, parts)
