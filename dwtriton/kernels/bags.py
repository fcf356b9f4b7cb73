"""Sums over the bag of each box, the points strictly inside it: all that does not ask which box owns a point.

One visit to each pair gives the denominator of the positive weights, both positive losses times that denominator, and
the extremes of the IoU deficit. The points inside a box are a rectangle of cells on each level; the cells of all levels
are numbered on, so that no lane is idle on a coarse level. PARTS programs share a box: part i sums every PARTS-th block
from block i on. Parts are added up in groups, and groups to boxes, in order: how many of either a program takes changes
no bit, so that a box's sums do not depend on how many boxes there are.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dwtriton.kernels import formulas
from dwtriton.kernels.configs import BagsConfig
from dwtriton.kernels.inputs import Boxes, Pyramid
from dwtriton.kernels.launch import launch
from dwtriton.kernels.levels import first_cell, load_distances, pick, pick_memory, place

PARTS = tl.constexpr(16)  # of a box
GROUP = tl.constexpr(4)  # parts that are added up first
SPLITS = (PARTS.value, PARTS.value // GROUP.value, 1)  # programs that may share a box
MAX_REGISTERS = 144  # of a thread with two points; without a limit ptxas takes 80 on sm_75, and spills
SUMS = tl.constexpr(3)  # of a part: denominator, and classification and localisation loss times it
IMAGES_PER_LOOK = tl.constexpr(64)
ABOVE_DEFICITS = tl.constexpr(2.0)  # where a part of a box has no point: deficits lie from 0 to 4/3
BELOW_DEFICITS = tl.constexpr(-1.0)


@triton.jit
def image_of_rows(rows, offsets, batch):
    """The image of rows of the packed targets, [R]; `batch` for padding."""
    image = rows * 0
    for start in range(0, batch, IMAGES_PER_LOOK):
        images = start + tl.arange(0, IMAGES_PER_LOOK)
        ends = tl.load(offsets + 1 + images, mask=images < batch, other=2147483647)
        image += tl.sum((ends[None, :] <= rows[:, None]).to(tl.int32), 1)
    return image


@triton.jit
def load_class(labels, iscrowd, rows, mask, num_classes):
    """-1 for regions to ignore, num_classes for a label out of range, else the label."""
    label = tl.load(labels + rows, mask=mask, other=0)
    label = tl.where((label >= 0) & (label < num_classes), label, num_classes).to(tl.int32)
    return tl.where(tl.load(iscrowd + rows, mask=mask, other=0) != 0, -1, label)


@triton.jit
def divide(cell, width):
    """Quotient and remainder of numbers below 2^24, in fewer instructions than whole division takes."""
    quotient = (cell.to(tl.float32) / tl.maximum(width, 1).to(tl.float32)).to(tl.int32)  # at most one too high or low
    rest = cell - quotient * width
    less, more = (rest < 0).to(tl.int32), (rest >= width).to(tl.int32)
    return quotient - less + more, rest + (less - more) * width


@triton.jit(do_not_specialize=["batch", "capacity", "num_classes"])
def bags_kernel(
    z_levels,
    d_levels,
    u_levels,
    heights,
    widths,
    strides,
    boxes,
    labels,
    iscrowd,
    offsets,
    bags,
    extremes,
    batch,
    capacity,
    num_classes,
    Z_LAST: tl.constexpr,
    D_LAST: tl.constexpr,
    SOFT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sum over the points of each box what its weights and losses need, and find the extremes of its IoU deficit.

    Grid (N, S): program (row, i) owns bags[row, i] and extremes[row, i], PARTS / S parts of a box added up in order.

    z_levels, d_levels, u_levels: of each level logits [B, C, H, W], distances [B, 4, H, W] and objectness logits
    [B, 1, H, W]; channels_last where Z_LAST and D_LAST say so, else contiguous. heights, widths, strides: of levels.
    boxes: [N, 4] float32. labels: [N] int64. iscrowd: [N] uint8. offsets: [B + 1] int32.
    bags: out, [N, S, SUMS] float64, denominator of the positive weights, and both positive losses times it.
    extremes: out, [N, S, 2] float32, least and greatest deficit. Rows that are no ground truth are left, in both.
    batch: B. capacity: N. num_classes: C. BLOCK: points taken at a time.
    """
    row = tl.program_id(0)
    only = tl.arange(0, 1)
    image = tl.sum(image_of_rows(row + only, offsets, batch))
    label = load_class(labels, iscrowd, row, row < capacity, num_classes)
    if (image < batch) & (label >= 0) & (label < num_classes):
        box = boxes + 4 * row.to(tl.int64)
        x1, y1, x2, y2 = tl.load(box), tl.load(box + 1), tl.load(box + 2), tl.load(box + 3)
        lefts, tops, widths_of, ends = (), (), (), ()
        count = row * 0
        for i in tl.static_range(len(heights)):  # the box's rectangle on each level; cells up to that level
            left, right = first_cell(x1, strides[i], widths[i], False), first_cell(x2, strides[i], widths[i], True)
            top, bottom = first_cell(y1, strides[i], heights[i], False), first_cell(y2, strides[i], heights[i], True)
            across = tl.maximum(right - left, 0)
            count += across * tl.maximum(bottom - top, 0)
            lefts, tops = lefts + (left,), tops + (top,)  # noqa: RUF005 (Triton cannot unpack)
            widths_of, ends = widths_of + (across,), ends + (count,)  # noqa: RUF005

        parts_each = PARTS // tl.num_programs(1)
        part = tl.program_id(1) * parts_each
        end = tl.minimum(part + parts_each, tl.cdiv(count, BLOCK))
        mass = tl.full((), 0.0, tl.float64)
        cls_loss = tl.full((), 0.0, tl.float64)
        loc_loss = tl.full((), 0.0, tl.float64)
        mass_of_group = tl.full((), 0.0, tl.float64)
        cls_of_group = tl.full((), 0.0, tl.float64)
        loc_of_group = tl.full((), 0.0, tl.float64)
        deficit_min = tl.full((), ABOVE_DEFICITS, tl.float32)
        deficit_max = tl.full((), BELOW_DEFICITS, tl.float32)
        while part < end:
            mass_sum = tl.zeros((BLOCK,), tl.float32)
            cls_sum = tl.zeros((BLOCK,), tl.float32)
            loc_sum = tl.zeros((BLOCK,), tl.float32)
            lows = tl.full((BLOCK,), ABOVE_DEFICITS, tl.float32)
            highs = tl.full((BLOCK,), BELOW_DEFICITS, tl.float32)
            start = part * BLOCK
            while start < count:
                number = start + tl.arange(0, BLOCK)
                inside = number < count
                level = number * 0
                begin = number * 0
                for i in tl.static_range(len(heights) - 1):
                    beyond = number >= ends[i]
                    level = tl.where(beyond, i + 1, level)
                    begin = tl.where(beyond, ends[i], begin)
                down, along = divide(number - begin, pick(widths_of, level))
                column, cell_row = pick(lefts, level) + along, pick(tops, level) + down
                stride = pick(strides, level)
                width = tl.cast(pick(widths, level), tl.int32)
                area = tl.cast(pick(heights, level), tl.int32) * width
                point = cell_row * width + column
                before = image.to(tl.int64) * area
                z_points = pick_memory(z_levels, level) + before * num_classes
                d_points = pick_memory(d_levels, level) + before * 4 + place(point, 0, area, 4, D_LAST)
                z = tl.load(z_points + place(point, label, area, num_classes, Z_LAST), mask=inside, other=0.0)
                u = tl.load(pick_memory(u_levels, level) + before + point, mask=inside, other=0.0)
                distances = load_distances(d_points, place(0, 1, area, 4, D_LAST), inside)
                x, y = (column + 0.5) * stride, (cell_row + 0.5) * stride
                iou, iou_loss, reg_loss = formulas.overlap(distances, (x - x1, y - y1, x2 - x, y2 - y))
                reg_loss = tl.where(inside, reg_loss, 0.0)  # elsewhere exp(-5 reg_loss) could overflow
                prior = formulas.center_prior(x, y, (x1, y1, x2, y2), stride, SOFT)
                z, u = z.to(tl.float32), u.to(tl.float32)
                t = formulas.alignment(formulas.sigmoids(z)[0] * formulas.sigmoids(u)[0], reg_loss)
                share = tl.where(inside, formulas.positive_share(t, prior), 0.0)
                score_loss = tl.minimum(formulas.neg_log_sigmoid(z) + formulas.neg_log_sigmoid(u), formulas.MAX_LOG)
                deficit = formulas.iou_deficit(iou, iou_loss)
                mass_sum += tl.where(inside, formulas.positive_mass(t, prior), 0.0)
                cls_sum += share * score_loss
                loc_sum += share * (formulas.BETA * reg_loss)
                lows = tl.where(inside, tl.minimum(lows, deficit), lows)
                highs = tl.where(inside, tl.maximum(highs, deficit), highs)
                start += PARTS * BLOCK
            mass_of_group += tl.sum(mass_sum).to(tl.float64)
            cls_of_group += tl.sum(cls_sum).to(tl.float64)
            loc_of_group += tl.sum(loc_sum).to(tl.float64)
            if part % GROUP == GROUP - 1:
                mass += mass_of_group
                cls_loss += cls_of_group
                loc_loss += loc_of_group
                mass_of_group *= 0
                cls_of_group *= 0
                loc_of_group *= 0
            deficit_min = tl.minimum(deficit_min, tl.min(lows))
            deficit_max = tl.maximum(deficit_max, tl.max(highs))
            part += 1
        mine = row.to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
        out = bags + mine * SUMS
        tl.store(out, mass + mass_of_group)
        tl.store(out + 1, cls_loss + cls_of_group)
        tl.store(out + 2, loc_loss + loc_of_group)
        tl.store(extremes + 2 * mine, deficit_min)
        tl.store(extremes + 2 * mine + 1, deficit_max)


def box_bags(pyramid: Pyramid, boxes: Boxes, soft_prior: bool, config: BagsConfig) -> tuple[Tensor, Tensor]:
    """Sums [N, S, SUMS] float64 and extremes [N, S, 2] float32 over the points of each box, see `bags_kernel`."""
    rows = boxes.labels.shape[0]
    splits = next((splits for splits in SPLITS if rows * splits <= config.programs), 1)
    bags = torch.empty(rows, splits, SUMS.value, device=boxes.corners.device, dtype=torch.float64)
    extremes = torch.empty(rows, splits, 2, device=boxes.corners.device)
    if rows:
        launch(
            bags_kernel,
            (rows, splits),
            *pyramid.arguments,
            boxes.corners,
            boxes.labels,
            boxes.iscrowd,
            boxes.offsets,
            bags,
            extremes,
            pyramid.batch,
            rows,
            pyramid.num_classes,
            Z_LAST=pyramid.z_last,
            D_LAST=pyramid.d_last,
            SOFT=soft_prior,
            BLOCK=config.points,
            num_warps=config.warps,
            maxnreg=MAX_REGISTERS if config.points <= 64 * config.warps else 255,
        )
    return bags, extremes
