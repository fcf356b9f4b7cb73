"""Backward, at the points of boxes: what the dense pass wrote as if there were no boxes is replaced.

A program takes some points of a square at a time, and the boxes that touch the square in blocks. It writes each
(point, class) that a box holds, and the gradients of each point. Nothing is read back that has been rounded: entries of
the logits' gradient are computed afresh, and the dense pass leaves float32 gradients of the objectness.
"""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from dwtriton.kernels import formulas, negatives
from dwtriton.kernels.boxes import DEFICIT_MAX, DEFICIT_MIN, FIELDS, MASS, WEIGHT
from dwtriton.kernels.correction import pair_launches
from dwtriton.kernels.inputs import Pyramid
from dwtriton.kernels.launch import Beside, launch
from dwtriton.kernels.levels import pick, pick_memory, place, points_before
from dwtriton.kernels.squares import Squares, bounds_of, open_square
from dwtriton.kernels.tiles import (
    any_of,
    bits_where,
    carried,
    carry_on,
    is_inside,
    later_of_class,
    load_block,
    load_points,
    load_tile,
    run_sums,
    sides_of,
    store_tile,
)
from dwtriton.kernels.touching import Touching
from dwtriton.kernels.walk import first_block, following_block, listed_square

SIZES = ["columns", "squares", "all_squares", "batch", "capacity", "num_classes"]
CANCELLED = tl.constexpr(1 / 128)  # of a sum in float32, below which its rounding shows
SINGLE_NUMBERS = ["poison", "norms", "grad_pos", "grad_loc", "grad_neg"]


@triton.jit(do_not_specialize=[*SIZES, *SINGLE_NUMBERS])
def pairs_backward_kernel(
    z_levels,
    d_levels,
    u_levels,
    heights,
    widths,
    strides,
    offsets,
    table,
    counts,
    near,
    around,
    lists,
    lengths,
    poison,
    norms,
    grad_pos,
    grad_loc,
    grad_neg,
    grad_u,
    grad_z_levels,
    grad_d_levels,
    grad_u_levels,
    side,
    columns,
    squares,
    all_squares,
    batch,
    capacity,
    num_classes,
    Z_LAST: tl.constexpr,
    D_LAST: tl.constexpr,
    SOFT: tl.constexpr,
    SPANS: tl.constexpr,
    LANES: tl.constexpr,
    GROUP: tl.constexpr,
    AROUND: tl.constexpr,
    ROWS: tl.constexpr,
    SLOTS: tl.constexpr,
    MANY: tl.constexpr,
):
    """Write the gradients at the points of boxes.

    Grid (programs,): program i owns parts i, i + programs ... of the squares of a list: the gradients of their points,
    and the entries (point, class) that a box holds. MANY: of the list with many boxes, which it has to find.

    z_levels, d_levels, u_levels: of each level logits [B, C, H, W], distances [B, 4, H, W] and objectness logits
    [B, 1, H, W]; channels_last where Z_LAST and D_LAST say so, else contiguous. heights, widths, strides: of levels.
    offsets: [B + 1] int32. table: [FIELDS * N], see `boxes_kernel`.
    counts, near, around, lists, lengths: see `Touching`.
    poison: [] 1 or NaN. norms: [3] by which the sums of the losses were divided. grad_pos, grad_loc, grad_neg: [] of
    the three losses. grad_u: [points of all levels and images] float32, from the dense pass.
    grad_z_levels, grad_d_levels, grad_u_levels: out, laid out as the inputs; what the dense pass wrote is replaced.
    side: of a square, in pixels. columns: squares side by side. squares: of an image, all_squares: of all images.
    batch: B. capacity: N. num_classes: C. SOFT: the centre prior is not thresholded. SPANS, LANES: see `Squares`.
    ROWS: points of a part. SLOTS: of a block.
    """
    PARTS: tl.constexpr = LANES // ROWS  # of a square
    CLASSES: tl.constexpr = 32 // ROWS if ROWS < 32 else 1  # taken at a time at points to ignore
    factor = tl.load(poison)
    pos_factor = formulas.POSITIVE_FACTOR * (tl.load(grad_pos).to(tl.float32) / tl.load(norms) * factor)
    neg_factor = tl.load(grad_neg).to(tl.float32) / tl.load(norms + 2) * factor
    turn = tl.program_id(0)
    while turn < tl.load(lengths + MANY) * PARTS:
        number = listed_square(lists, turn // PARTS, all_squares, MANY)
        image = number // squares
        square = number - image * squares
        lane = turn % PARTS * ROWS + tl.arange(0, ROWS)
        valid, level, point, x, y = open_square(square, lane, columns, side, heights, widths, strides, SPANS)
        if any_of(valid):
            area, before, distances, u = load_points(
                d_levels, u_levels, heights, widths, image, level, point, valid, D_LAST
            )
            stride = pick(strides, level)
            z_offset = before * num_classes + place(point, 0, area, num_classes, Z_LAST)
            z_points = pick_memory(z_levels, level) + z_offset
            grad_z_points = pick_memory(grad_z_levels, level) + z_offset
            su, not_u = formulas.sigmoids(u)
            lift, lifted_not_u = negatives.lift(u)
            lift, lifted_not_u = lift[:, None], lifted_not_u[:, None]
            log2_su = -tl.log2(lift)
            ignored = valid & (level < 0)
            changed = ignored
            change = tl.zeros((ROWS,), tl.float64)  # of the negative loss's gradient
            point_pos = tl.zeros((ROWS,), tl.float32)
            dl = tl.zeros((ROWS,), tl.float32)
            dt = tl.zeros((ROWS,), tl.float32)
            dr = tl.zeros((ROWS,), tl.float32)
            db = tl.zeros((ROWS,), tl.float32)
            open_label = number * 0 - 1
            open_neg = tl.full((ROWS,), 1.0, tl.float32)
            open_pos = tl.zeros((ROWS,), tl.float32)
            bounds = bounds_of(square, columns, side, heights, widths, strides)
            rows, filled, start, word = first_block(
                number, image, offsets, counts, near, around, table, capacity, bounds, GROUP, AROUND, SLOTS, MANY
            )
            go_on = True
            while go_on:
                label, details, corners = load_block(rows, filled, table, capacity, SLOTS)
                inside = is_inside(valid[:, None], x[:, None], y[:, None], corners)
                held_by = bits_where(inside, SLOTS)
                changed |= held_by != 0
                regions = bits_where(label < 0, SLOTS)
                in_region = (held_by & regions) != 0
                if any_of(in_region & (ignored == 0)):
                    for first_class in range(0, num_classes, CLASSES):
                        classes = first_class + tl.arange(0, CLASSES)[None, :]
                        z_places = place(0, classes, area[:, None], num_classes, Z_LAST)
                        zeros = tl.zeros((ROWS, CLASSES), tl.float32) + 0 * neg_factor
                        mask = in_region[:, None] & (classes < num_classes)
                        store_tile(grad_z_points[:, None] + z_places, zeros, mask)
                    tl.debug_barrier()  # some of them are written again below
                ignored |= in_region
                held_by &= ~regions
                held = inside & (label >= 0)[None, :]
                decides = held & ((held_by[:, None] & later_of_class(label, SLOTS)[None, :]) == 0)
                channel = tl.minimum(tl.maximum(label, 0), num_classes - 1)[None, :]
                z_places = place(0, channel, area[:, None], num_classes, Z_LAST)
                z = load_tile(z_points[:, None] + z_places, held)
                sides = sides_of(x[:, None], y[:, None], corners)
                iou, iou_loss, reg_loss = formulas.overlap(distances, sides)
                deficit_min, deficit_max = tl.load(details + DEFICIT_MIN), tl.load(details + DEFICIT_MAX)
                p_neg = formulas.p_neg(iou, iou_loss, deficit_min[None, :], deficit_max[None, :])
                reg_loss = tl.where(held, reg_loss, 0.0)  # elsewhere exp(-5 reg_loss) could overflow
                prior = formulas.center_prior(x[:, None], y[:, None], corners, stride[:, None], SOFT)
                sz, not_z = formulas.sigmoids(z)
                t = formulas.alignment(sz * su[:, None], reg_loss)
                weight = tl.load(details + WEIGHT)
                share = weight * formulas.reciprocal(tl.load(details + MASS))
                pos = tl.where(held, formulas.positive_share(t, prior) * share[None, :], 0.0)
                slope_l, slope_t, slope_r, slope_b = formulas.reg_loss_gradient(distances, sides)
                dl += tl.sum(tl.where(held, pos * slope_l, 0.0), 1)
                dt += tl.sum(tl.where(held, pos * slope_t, 0.0), 1)
                dr += tl.sum(tl.where(held, pos * slope_r, 0.0), 1)
                db += tl.sum(tl.where(held, pos * slope_b, 0.0), 1)

                neg = tl.where((weight == 0)[None, :], 0.0, p_neg)
                old_neg = carried(label, open_label, open_neg, 1.0)
                class_pos = run_sums(pos, label, SLOTS) + carried(label, open_label, open_pos, 0.0)
                neg_z, neg_u = negatives.gradients(z, u[:, None], lift, log2_su, lifted_not_u, neg_factor)
                counts_as = tl.where(ignored[:, None], 0.0, neg)
                dz = counts_as * neg_z - pos_factor * class_pos * not_z
                store_tile(grad_z_points[:, None] + z_places, dz, decides)
                counts_more = decides & (ignored == 0)[:, None]  # than in the dense pass, where N is 1
                more = (neg * neg_u).to(tl.float64) - (old_neg * neg_u).to(tl.float64)
                change += tl.sum(tl.where(counts_more, more, 0.0), 1)
                point_pos += tl.sum(pos, 1)
                go_on = (filled == SLOTS) & MANY
                if go_on:
                    label_of_last = tl.max(label)
                    of_last = label == label_of_last
                    some = (held_by & bits_where(of_last, SLOTS)) != 0
                    chosen, still_open = decides & of_last[None, :], label_of_last == open_label
                    open_neg = carry_on(chosen, some, neg, open_neg, still_open, 1.0)
                    open_pos = carry_on(chosen, some, class_pos, open_pos, still_open, 0.0)
                    open_label = label_of_last
                    rows, filled, start, word = following_block(
                        number, image, offsets, around, start, word, table, capacity, bounds, GROUP, AROUND, SLOTS
                    )
                    tl.debug_barrier()  # the next block may write an entry again
            of_levels = points_before(level, heights, widths, batch)
            dense = tl.load(grad_u + of_levels + before + point, mask=changed, other=0.0)
            of_neg = (dense.to(tl.float64) + change).to(tl.float32)
            of_pos = pos_factor * not_u * point_pos
            # Where little is left of the dense sum, its rounding shows: its terms are added up again
            cancelled = changed & (ignored == 0) & (tl.abs(of_neg - of_pos) < tl.abs(dense) * CANCELLED)
            if any_of(cancelled):
                for channel in range(num_classes):
                    z_place = place(0, channel, area, num_classes, Z_LAST)
                    z = tl.load(z_points + z_place, mask=cancelled, other=0.0).to(tl.float32)
                    _, neg_u = negatives.gradients(z[:, None], u[:, None], lift, log2_su, lifted_not_u, neg_factor)
                    change += tl.sum(neg_u, 1).to(tl.float64)
                of_neg = tl.where(cancelled, change.to(tl.float32), of_neg)
            du = tl.where(ignored, 0 * neg_factor, of_neg) - of_pos
            tl.store(pick_memory(grad_u_levels, level) + before + point, du, mask=changed)
            # Read here, not once: registers are few
            loc_factor = tl.load(grad_loc).to(tl.float32) / tl.load(norms + 1) * tl.load(poison)
            loc_factor *= formulas.POSITIVE_FACTOR * formulas.BETA
            grad_d_points = pick_memory(grad_d_levels, level) + before * 4 + place(point, 0, area, 4, D_LAST)
            step = place(0, 1, area, 4, D_LAST)
            tl.store(grad_d_points, loc_factor * dl, mask=changed)
            tl.store(grad_d_points + step, loc_factor * dt, mask=changed)
            tl.store(grad_d_points + 2 * step, loc_factor * dr, mask=changed)
            tl.store(grad_d_points + 3 * step, loc_factor * db, mask=changed)
        turn += tl.num_programs(0)


def pairs_backward(
    pyramid: Pyramid,
    offsets: Tensor,
    table: Tensor,
    squares: Squares,
    touching: Touching,
    poison: Tensor,
    norms: Tensor,
    grad_losses: Sequence[Tensor],
    dense_grad_u: Tensor,
    grads: list[tuple[Tensor, ...]],
    soft_prior: bool,
) -> None:
    """Put right, at the points of boxes, the gradients that the dense pass wrote.

    The squares with few boxes and those with many have no entry in common: they are done beside each other.
    """
    if not len(table):
        return

    def start(programs: int, options: dict[str, int]) -> None:
        launch(
            pairs_backward_kernel,
            (programs,),
            *pyramid.arguments,
            offsets,
            table,
            touching.counts,
            touching.near,
            touching.around,
            touching.lists,
            touching.lengths,
            poison,
            norms,
            *grad_losses,
            dense_grad_u,
            *grads,
            *squares.numbers,
            len(touching.counts),
            pyramid.batch,
            len(table) // FIELDS,
            pyramid.num_classes,
            SOFT=soft_prior,
            **options,
        )

    few, many = pair_launches(pyramid, squares, touching)
    with Beside(table) as other:
        with other.launches():
            start(*many)
        start(*few)
