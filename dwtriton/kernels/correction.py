"""Forward, at the points of boxes: what N, where it is not 1, changes of the negative loss.

A program owns the points of squares, one after another, and goes through the boxes that touch each class by class.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dwtriton.kernels import formulas
from dwtriton.kernels.boxes import DEFICIT_MAX, DEFICIT_MIN, WEIGHT, details_of, load_corners
from dwtriton.kernels.inputs import Boxes, Pyramid, cut
from dwtriton.kernels.launch import launch
from dwtriton.kernels.levels import image_rows, load_distances, pick, pick_memory, place
from dwtriton.kernels.squares import (
    BITS,
    IGNORED_CLASSES,
    MOST_PROGRAMS,
    NO_LABEL,
    bounds_of,
    is_inside,
    next_box,
    open_square,
    pair_options,
)
from dwtriton.kernels.tuning import PairsConfig


@triton.jit(do_not_specialize=["columns", "squares", "batch", "capacity"])
def correction_kernel(
    z_levels,  # pointers to logits, one for each level; d_levels and u_levels alike
    d_levels,
    u_levels,
    heights,
    widths,
    strides,
    offsets,  # [B + 1]
    table,  # [FIELDS * N], see `boxes_kernel`
    sums,  # out: [programs, 2] float64: what the negative loss changes by, and the sum of 1 - N
    side,  # of a square, in pixels
    columns,  # squares side by side
    squares,  # of an image
    batch,
    capacity,  # N
    NUM_CLASSES: tl.constexpr,
    Z_LAST: tl.constexpr,
    D_LAST: tl.constexpr,
    SPANS: tl.constexpr,
    LANES: tl.constexpr,
):
    program = tl.program_id(0)
    change = tl.zeros((LANES,), tl.float64)
    missing = tl.zeros((LANES,), tl.float64)
    number = program
    while number < squares * batch:
        image = number // squares
        square = number - image * squares
        bounds = bounds_of(square, columns, side)
        first, last = image_rows(offsets, image, capacity)
        start = first - BITS * LANES
        notes = tl.zeros((LANES,), tl.int32)
        row, label, notes, start = next_box(notes, start, last, table, capacity, bounds, LANES)
        if label < NO_LABEL:
            valid, level, point, x, y = open_square(square, columns, side, heights, widths, strides, SPANS, LANES)
            area = tl.cast(pick(heights, level), tl.int32) * tl.cast(pick(widths, level), tl.int32)
            before = image.to(tl.int64) * area
            z_points = pick_memory(z_levels, level) + before * NUM_CLASSES + place(point, 0, area, NUM_CLASSES, Z_LAST)
            d_points = pick_memory(d_levels, level) + before * 4 + place(point, 0, area, 4, D_LAST)
            distances = load_distances(d_points, place(0, 1, area, 4, D_LAST), valid)
            u = tl.load(pick_memory(u_levels, level) + before + point, mask=valid, other=0.0).to(tl.float32)
            lift, _ = formulas.lift(u)
            su, not_u = formulas.sigmoids(u)
            ignored = valid & (x != x)
            while label < 0:
                ignored |= is_inside(valid, x, y, load_corners(table, row, capacity))
                row, label, notes, start = next_box(notes, start, last, table, capacity, bounds, LANES)
            while label < NO_LABEL:
                run = label
                neg = tl.full((LANES,), 1.0, tl.float32)  # N, and 1 where boxes of no weight are to be ignored
                counted = tl.full((LANES,), 1.0, tl.float32)
                while label == run:
                    x1, y1, x2, y2 = load_corners(table, row, capacity)
                    inside = is_inside(valid, x, y, (x1, y1, x2, y2))
                    iou, _ = formulas.overlap(distances, (x - x1, y - y1, x2 - x, y2 - y))
                    details = details_of(table, row, capacity)
                    deficit_min, deficit_max = tl.load(details + DEFICIT_MIN), tl.load(details + DEFICIT_MAX)
                    stretched = formulas.negative_weight(iou, deficit_min, deficit_max)
                    without = tl.load(details + WEIGHT) == 0
                    neg = tl.where(inside, tl.where(without, 0.0, stretched), neg)
                    counted = tl.where(inside, tl.where(without, 1.0, stretched), counted)
                    row, label, notes, start = next_box(notes, start, last, table, capacity, bounds, LANES)
                changed = valid & (ignored == 0) & (neg != 1)
                if tl.max(changed.to(tl.int32)) != 0:
                    z_places = place(0, tl.minimum(run, NUM_CLASSES - 1), area, NUM_CLASSES, Z_LAST)
                    z = tl.load(z_points + z_places, mask=changed, other=0.0).to(tl.float32)
                    loss = formulas.negative_loss(z, u, lift, su, not_u).to(tl.float64)
                    change += tl.where(changed, (neg.to(tl.float64) - 1) * loss, 0.0)
                    missing += tl.where(changed, 1 - counted.to(tl.float64), 0.0)
            if tl.max(ignored.to(tl.int32)) != 0:
                for first_class in range(0, NUM_CLASSES, IGNORED_CLASSES):
                    classes = first_class + tl.arange(0, IGNORED_CLASSES)
                    z_places = place(0, classes[None, :], area[:, None], NUM_CLASSES, Z_LAST)
                    mask = ignored[:, None] & (classes < NUM_CLASSES)[None, :]
                    z = tl.load(z_points[:, None] + z_places, mask=mask, other=float("-inf")).to(tl.float32)
                    loss = formulas.negative_loss(z, u[:, None], lift[:, None], su[:, None], not_u[:, None])
                    change -= tl.sum(loss.to(tl.float64), 1)
        number += tl.num_programs(0)
    tl.store(sums + 2 * program, tl.sum(change))
    tl.store(sums + 2 * program + 1, tl.sum(missing))


def correct(pyramid: Pyramid, boxes: Boxes, table: Tensor, config: PairsConfig) -> Tensor:
    """Partial sums, [programs, 2] float64, of what boxes change of the negative loss with N = 1, and of 1 - N."""
    squares = cut(pyramid.heights, pyramid.widths, pyramid.strides, config.cells)
    programs = min(MOST_PROGRAMS, squares.count * pyramid.batch) if len(table) else 0
    sums = torch.empty(programs, 2, device=table.device, dtype=torch.float64)
    if programs:
        launch(
            correction_kernel,
            (programs,),
            *pyramid.arguments,
            boxes.offsets,
            table,
            sums,
            *squares[:3],
            pyramid.batch,
            len(boxes.labels),
            **pair_options(pyramid, squares, config),
        )
    return sums
