"""Backward, at the points of boxes: the last box of a class that holds a point decides N.

A program owns the points of a square, in turn of several. It goes through the boxes that touch the square class by
class and writes each (point, class) that a box holds, and the gradients of each point, once. Nothing is read back that
has been rounded: entries of the logits' gradient are computed afresh, and the dense pass leaves float32 gradients of
the objectness.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from dwtriton.kernels import formulas
from dwtriton.kernels.boxes import DEFICIT_MAX, DEFICIT_MIN, FIELDS, MASS, WEIGHT, details_of, load_corners
from dwtriton.kernels.inputs import Pyramid, cut
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
    note_boxes,
    open_square,
    pair_options,
)
from dwtriton.kernels.tuning import PairsConfig

LOOKING_LANES = 32  # of a program that only looks which boxes there are
MAX_REGISTERS = 144  # of a thread: some GPUs need so many


@triton.jit(do_not_specialize=["columns", "squares", "batch", "capacity"])
def touched_kernel(
    offsets,  # [B + 1]
    table,  # [FIELDS * N], see `boxes_kernel`
    touched,  # out: [1 + squares * batch] int32, zero at first: how many squares boxes touch, then which, in any order
    side,  # of a square, in pixels
    columns,  # squares side by side
    squares,  # of an image
    batch,
    capacity,  # N
    LANES: tl.constexpr,
):
    """A program looks at one square. It runs beside the dense pass, so that the next kernel need not look at all."""
    number = tl.program_id(0)
    image = number // squares
    bounds = bounds_of(number - image * squares, columns, side)
    start, last = image_rows(offsets, image, capacity)
    notes = tl.zeros((LANES,), tl.int32)
    while (start < last) & (tl.max((notes != 0).to(tl.int32)) == 0):
        notes = note_boxes(start, last, table, capacity, bounds, LANES)
        start += BITS * LANES
    if tl.max((notes != 0).to(tl.int32)) != 0:
        tl.store(touched + 1 + tl.atomic_add(touched, 1), number)


@triton.jit(do_not_specialize=["columns", "squares", "batch", "capacity"])
def pairs_backward_kernel(
    z_levels,  # pointers to logits, one for each level; d_levels and u_levels alike
    d_levels,
    u_levels,
    heights,
    widths,
    strides,
    offsets,  # [B + 1]
    table,  # [FIELDS * N], see `boxes_kernel`
    poison,  # [] 1 or NaN
    norms,  # [3] by which the sums of the losses were divided
    grad_pos,  # [] of loss_cls_pos; the others alike
    grad_loc,
    grad_neg,
    touched,  # [1 + squares * batch], see `touched_kernel`
    grad_u,  # [points of all levels and images] float32: that of the dense pass
    grad_z_levels,  # out, laid out as z_levels; the others alike: what the dense pass wrote is replaced
    grad_d_levels,
    grad_u_levels,
    side,  # of a square, in pixels
    columns,  # squares side by side
    squares,  # of an image
    batch,
    capacity,  # N
    NUM_CLASSES: tl.constexpr,
    Z_LAST: tl.constexpr,
    D_LAST: tl.constexpr,
    SOFT: tl.constexpr,
    SPANS: tl.constexpr,
    LANES: tl.constexpr,
):
    turn = tl.program_id(0)
    end = tl.load(touched)
    while turn < end:
        number = tl.load(touched + 1 + turn)
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
            stride = pick(strides, level)
            of_levels = level * 0
            for i in tl.static_range(len(SPANS) - 1):
                level_points = tl.cast(heights[i], tl.int32) * tl.cast(widths[i], tl.int32) * batch
                of_levels += tl.where(level > i, level_points, 0)
            before = image.to(tl.int64) * area
            z_offset = before * NUM_CLASSES + place(point, 0, area, NUM_CLASSES, Z_LAST)
            z_points, grad_z_points = (
                pick_memory(z_levels, level) + z_offset,
                pick_memory(grad_z_levels, level) + z_offset,
            )
            d_points = pick_memory(d_levels, level) + before * 4 + place(point, 0, area, 4, D_LAST)
            distances = load_distances(d_points, place(0, 1, area, 4, D_LAST), valid)
            u = tl.load(pick_memory(u_levels, level) + before + point, mask=valid, other=0.0).to(tl.float32)
            su, not_u = formulas.sigmoids(u)
            factor = tl.load(poison)
            pos_factor = 0.25 * (tl.load(grad_pos).to(tl.float32) / tl.load(norms) * factor)
            loc_factor = 1.25 * (tl.load(grad_loc).to(tl.float32) / tl.load(norms + 1) * factor)
            neg_factor = tl.load(grad_neg).to(tl.float32) / tl.load(norms + 2) * factor

            ignored = valid & (x != x)
            while label < 0:
                ignored |= is_inside(valid, x, y, load_corners(table, row, capacity))
                row, label, notes, start = next_box(notes, start, last, table, capacity, bounds, LANES)
            if tl.max(ignored.to(tl.int32)) != 0:
                for first_class in range(0, NUM_CLASSES, IGNORED_CLASSES):
                    classes = first_class + tl.arange(0, IGNORED_CLASSES)
                    z_places = place(0, classes[None, :], area[:, None], NUM_CLASSES, Z_LAST)
                    mask = ignored[:, None] & (classes < NUM_CLASSES)[None, :]
                    zeros = tl.zeros((LANES, IGNORED_CLASSES), tl.float32) + 0 * neg_factor
                    tl.store(grad_z_points[:, None] + z_places, zeros, mask=mask)
                tl.debug_barrier()  # some of them are written again below

            changed = ignored
            du = tl.zeros((LANES,), tl.float32)
            dl = tl.zeros((LANES,), tl.float32) + 0 * loc_factor  # NaN from the beginning where targets are invalid
            dt = dl
            dr = dl
            db = dl
            while label < NO_LABEL:
                run = label
                z_places = place(0, tl.minimum(run, NUM_CLASSES - 1), area, NUM_CLASSES, Z_LAST)
                held = valid & (x != x)
                neg = tl.full((LANES,), 1.0, tl.float32)
                class_pos = tl.zeros((LANES,), tl.float32)
                z = tl.zeros((LANES,), tl.float32)
                while label == run:
                    x1, y1, x2, y2 = load_corners(table, row, capacity)
                    inside = is_inside(valid, x, y, (x1, y1, x2, y2))
                    z = tl.where(inside, tl.load(z_points + z_places, mask=inside, other=0.0).to(tl.float32), z)
                    sides = (x - x1, y - y1, x2 - x, y2 - y)
                    iou, reg_loss = formulas.overlap(distances, sides)
                    reg_loss = tl.where(inside, reg_loss, 0.0)  # elsewhere exp(-5 reg_loss) could overflow
                    prior = formulas.center_prior(x, y, x1, y1, x2, y2, stride, SOFT)
                    t = formulas.alignment(formulas.sigmoids(z)[0] * su, reg_loss)
                    details = details_of(table, row, capacity)
                    weight = tl.load(details + WEIGHT)
                    share = weight / tl.load(details + MASS)
                    pos = tl.where(inside, formulas.positive_share(t, prior) * share, 0.0)
                    slope_l, slope_t, slope_r, slope_b = formulas.reg_loss_gradient(distances, sides)
                    scaled = loc_factor * pos
                    dl += tl.where(inside, scaled * slope_l, 0.0)
                    dt += tl.where(inside, scaled * slope_t, 0.0)
                    dr += tl.where(inside, scaled * slope_r, 0.0)
                    db += tl.where(inside, scaled * slope_b, 0.0)
                    deficit_min, deficit_max = tl.load(details + DEFICIT_MIN), tl.load(details + DEFICIT_MAX)
                    stretched = formulas.negative_weight(iou, deficit_min, deficit_max)
                    neg = tl.where(inside, tl.where(weight == 0, 0.0, stretched), neg)
                    class_pos += pos
                    held |= inside
                    row, label, notes, start = next_box(notes, start, last, table, capacity, bounds, LANES)
                lift, lifted_not_u = formulas.lift(u)
                neg_z, neg_u = formulas.negative_gradients(z, u, lift, -tl.log2(lift), lifted_not_u, neg_factor)
                of_pos = pos_factor * class_pos
                dz = tl.where(ignored, 0.0, neg) * neg_z - of_pos * formulas.sigmoids(z)[1]
                tl.store(grad_z_points + z_places, dz, mask=held)
                less = tl.where(ignored, 0.0, neg - 1)  # of what the dense pass added
                du += tl.where(held, less * neg_u - of_pos * not_u, 0.0)
                changed |= held
            dense = tl.load(grad_u + of_levels.to(tl.int64) + before + point, mask=changed, other=0.0)
            du += tl.where(ignored, 0 * neg_factor, dense)
            tl.store(pick_memory(grad_u_levels, level) + before + point, du, mask=changed)
            grad_d_points = pick_memory(grad_d_levels, level) + before * 4 + place(point, 0, area, 4, D_LAST)
            step = place(0, 1, area, 4, D_LAST)
            tl.store(grad_d_points, dl, mask=changed)
            tl.store(grad_d_points + step, dt, mask=changed)
            tl.store(grad_d_points + 2 * step, dr, mask=changed)
            tl.store(grad_d_points + 3 * step, db, mask=changed)
        turn += tl.num_programs(0)


def no_squares(pyramid: Pyramid, table: Tensor, config: PairsConfig) -> Tensor:
    """For `find_touched` to fill."""
    squares = cut(pyramid.heights, pyramid.widths, pyramid.strides, config.cells)
    return torch.zeros(1 + squares.count * pyramid.batch, device=table.device, dtype=torch.int32)


def find_touched(pyramid: Pyramid, offsets: Tensor, table: Tensor, touched: Tensor, config: PairsConfig) -> None:
    """Write how many squares boxes touch, and which, see `touched_kernel`."""
    squares = cut(pyramid.heights, pyramid.widths, pyramid.strides, config.cells)
    if len(table):
        launch(
            touched_kernel,
            (squares.count * pyramid.batch,),
            offsets,
            table,
            touched,
            *squares[:3],
            pyramid.batch,
            len(table) // FIELDS,
            LANES=LOOKING_LANES,
            num_warps=1,
        )


def pairs_backward(
    pyramid: Pyramid,
    offsets: Tensor,
    table: Tensor,
    poison: Tensor,
    norms: Tensor,
    grad_losses: Sequence[Tensor],
    touched: Tensor,
    dense_grad_u: Tensor,
    grads: list[tuple[Tensor, ...]],
    soft_prior: bool,
    config: PairsConfig,
) -> None:
    """Put right, at the points of boxes, the gradients that the dense pass wrote."""
    squares = cut(pyramid.heights, pyramid.widths, pyramid.strides, config.cells)
    if len(table):
        launch(
            pairs_backward_kernel,
            (min(MOST_PROGRAMS, squares.count * pyramid.batch),),
            *pyramid.arguments,
            offsets,
            table,
            poison,
            norms,
            *grad_losses,
            touched,
            dense_grad_u,
            *grads,
            *squares[:3],
            pyramid.batch,
            len(table) // FIELDS,
            SOFT=soft_prior,
            maxnreg=MAX_REGISTERS,
            **pair_options(pyramid, squares, config),
        )
