"""What each box's weights need to know about all points inside it: a pass over the grid rectangles of its bag.

The points inside a box are a rectangle of cells on each level. `SPLITS` programs share a box, each taking every
`SPLITS`-th block of its points and writing one part; readers combine the parts in order. Which point belongs to which
part depends on the box alone, so its weights never depend on what else is in the batch.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dwtriton.kernels import formulas
from dwtriton.kernels.inputs import Boxes, Pyramid, launch_options
from dwtriton.kernels.tuning import StatisticsConfig
from dwtriton.kernels.walk import load_box, load_distances, pick, place

SPLITS = 4  # parts of a box
IMAGES_PER_LOOK = tl.constexpr(64)
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
def cells_between(low, high, stride, count):
    """A range of cells along one direction that has all centres strictly between two edges, and at most two more."""
    first = tl.minimum(tl.maximum(tl.floor(low / stride - 0.5), 0.0), count)
    end = tl.minimum(tl.maximum(tl.floor(high / stride - 0.5) + 2, 0.0), count)
    first = first.to(tl.int32)
    return first, tl.maximum(end.to(tl.int32), first)


@triton.jit(do_not_specialize=["heights", "widths", "batch"])
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
    statistics,  # out: [N, 3, SPLITS] sum of masses, least and greatest deficit
    batch,
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
    x1, y1, x2, y2 = load_box(boxes, row)
    label = tl.load(labels + row).to(tl.int32)
    used = (image < batch) & (tl.load(iscrowd + row) == 0) & (label >= 0) & (label < NUM_CLASSES)

    mass = tl.zeros((BLOCK,), tl.float32)
    deficit_min = tl.full((BLOCK,), ABOVE_DEFICITS, tl.float32)
    deficit_max = tl.full((BLOCK,), BELOW_DEFICITS, tl.float32)
    for level in range(0, len(heights)):
        height, width, stride = pick(heights, level), pick(widths, level), pick(strides, level)
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
            z_image = pick(z_levels, level) + image.to(tl.int64) * area * NUM_CLASSES
            d_image = pick(d_levels, level) + image.to(tl.int64) * area * 4
            u_image = pick(u_levels, level) + image.to(tl.int64) * area
            z = tl.load(z_image + place(point, label, area, NUM_CLASSES, Z_LAST), mask=inside, other=0.0)
            u = tl.load(u_image + point, mask=inside, other=0.0)
            score = formulas.sigmoids(z.to(tl.float32))[0] * formulas.sigmoids(u.to(tl.float32))[0]
            distances = load_distances(d_image, point, area, inside, D_LAST)
            iou, reg_loss = formulas.overlap(distances, (x - x1, y - y1, x2 - x, y2 - y))
            reg_loss = tl.where(inside, reg_loss, 0.0)  # elsewhere exp(-5 reg_loss) could overflow
            prior = formulas.center_prior(x, y, x1, y1, x2, y2, stride, SOFT)
            t = formulas.alignment(score, reg_loss)
            deficit = formulas.iou_deficit(iou)
            mass += tl.where(inside, formulas.positive_mass(t, prior), 0.0)
            deficit_min = tl.where(inside, tl.minimum(deficit_min, deficit), deficit_min)
            deficit_max = tl.where(inside, tl.maximum(deficit_max, deficit), deficit_max)
            start += SPLITS * BLOCK
    part = statistics + row * (3 * SPLITS) + split
    tl.store(part, tl.sum(mass))
    tl.store(part + SPLITS, tl.min(deficit_min))
    tl.store(part + 2 * SPLITS, tl.max(deficit_max))


def box_statistics(pyramid: Pyramid, boxes: Boxes, soft_prior: bool, config: StatisticsConfig) -> Tensor:
    """Parts of each box's statistics, [N, 3, SPLITS] float32: sum of masses, least and greatest deficit of the IoU.

    Rows that are padding, crowd or of an invalid label get 0, 2 and -1. Spec, sections Positive and Negative weight.
    """
    rows = boxes.labels.shape[0]
    statistics = torch.empty(rows, 3, SPLITS, device=boxes.corners.device, dtype=torch.float32)
    if rows:
        statistics_kernel[rows, SPLITS](
            pyramid.z,
            pyramid.d,
            pyramid.u,
            pyramid.heights,
            pyramid.widths,
            pyramid.strides,
            *boxes,
            statistics,
            pyramid.batch,
            NUM_CLASSES=pyramid.num_classes,
            Z_LAST=pyramid.z_last,
            D_LAST=pyramid.d_last,
            SOFT=soft_prior,
            SPLITS=SPLITS,
            BLOCK=config.points,
            **launch_options(pyramid, config.warps),
        )
    return statistics
