"""Forward, at the points of boxes: what N, where it is not 1, changes of the negative loss.

A program takes tiles in turn: some points of a square by a block of the boxes that touch it, and the following blocks.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dwtriton.kernels import formulas, negatives
from dwtriton.kernels.boxes import DEFICIT_MAX, DEFICIT_MIN, FIELDS, WEIGHT
from dwtriton.kernels.inputs import Pyramid
from dwtriton.kernels.launch import INTERPRETED, launch
from dwtriton.kernels.levels import pick_memory, place
from dwtriton.kernels.squares import GROUP, Squares, bounds_of, open_square
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
    sides_of,
)
from dwtriton.kernels.touching import AROUND, NEAR, Touching
from dwtriton.kernels.walk import first_block, following_block, listed_square

BLOCK = 32  # boxes taken at once where there are many
# Programs that take squares in turn: as many as an H100 holds at once, by their registers; the interpreter likes one
MOST_PROGRAMS = 1 if INTERPRETED else 132 * 16
MAX_REGISTERS = 128  # of a thread: 16 warps on a multiprocessor at least; nothing spills, at 1 to 7 levels


@triton.jit(do_not_specialize=["columns", "squares", "all_squares", "capacity", "num_classes"])
def correction_kernel(
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
    sums,
    side,
    columns,
    squares,
    all_squares,
    capacity,
    num_classes,
    Z_LAST: tl.constexpr,
    D_LAST: tl.constexpr,
    SPANS: tl.constexpr,
    LANES: tl.constexpr,
    GROUP: tl.constexpr,
    AROUND: tl.constexpr,
    ROWS: tl.constexpr,
    SLOTS: tl.constexpr,
    MANY: tl.constexpr,
):
    """Add up what N, where it is not 1, changes of the negative loss.

    Grid (programs,): program i owns sums[i], and takes the points of parts i, i + programs ... of the squares of a
    list. MANY: of that with many boxes, which it has to find.

    z_levels, d_levels, u_levels: of each level logits [B, C, H, W], distances [B, 4, H, W] and objectness logits
    [B, 1, H, W]; channels_last where Z_LAST and D_LAST say so, else contiguous. heights, widths, strides: of levels.
    offsets: [B + 1] int32. table: [FIELDS * N], see `boxes_kernel`.
    counts, near, around, lists, lengths: see `Touching`.
    sums: out, [programs, 2] float64, what the negative loss changes by, and the sum of 1 - N.
    side: of a square, in pixels. columns: squares side by side. squares: of an image, all_squares: of all images.
    capacity: N. num_classes: C. SPANS, LANES: see `Squares`. ROWS: points of a part. SLOTS: of a block.
    """
    PARTS: tl.constexpr = LANES // ROWS  # of a square
    CLASSES: tl.constexpr = 32 // ROWS if ROWS < 32 else 1  # taken at a time at points to ignore
    change = tl.zeros((ROWS,), tl.float64)
    missing = tl.zeros((ROWS,), tl.float64)
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
            z_offset = before * num_classes + place(point, 0, area, num_classes, Z_LAST)
            z_points = pick_memory(z_levels, level) + z_offset
            lift = negatives.lift(u)[0]
            su, not_u = formulas.sigmoids(u)
            ignored = valid & (level < 0)
            open_label = number * 0 - 1
            open_neg = tl.full((ROWS,), 1.0, tl.float32)  # N, and 1 where boxes of no weight are to be ignored
            open_counted = open_neg
            bounds = bounds_of(square, columns, side, heights, widths, strides)
            rows, filled, start, word = first_block(
                number, image, offsets, counts, near, around, table, capacity, bounds, GROUP, AROUND, SLOTS, MANY
            )
            go_on = True
            while go_on:
                label, details, corners = load_block(rows, filled, table, capacity, SLOTS)
                inside = is_inside(valid[:, None], x[:, None], y[:, None], corners)
                held_by = bits_where(inside, SLOTS)
                regions = bits_where(label < 0, SLOTS)
                ignored |= (held_by & regions) != 0
                held_by &= ~regions
                decides = (inside & (label >= 0)[None, :]) & (
                    (held_by[:, None] & later_of_class(label, SLOTS)[None, :]) == 0
                )
                iou, iou_loss, _ = formulas.overlap(distances, sides_of(x[:, None], y[:, None], corners))
                deficit_min, deficit_max = tl.load(details + DEFICIT_MIN), tl.load(details + DEFICIT_MAX)
                p_neg = formulas.p_neg(iou, iou_loss, deficit_min[None, :], deficit_max[None, :])
                no_weight = (tl.load(details + WEIGHT) == 0)[None, :]
                neg, counted = tl.where(no_weight, 0.0, p_neg), tl.where(no_weight, 1.0, p_neg)
                old_neg = carried(label, open_label, open_neg, 1.0)
                old_counted = carried(label, open_label, open_counted, 1.0)
                changed = decides & (ignored == 0)[:, None] & ((neg != old_neg) | (counted != old_counted))
                if any_of(changed):
                    channel = tl.minimum(tl.maximum(label, 0), num_classes - 1)[None, :]
                    z_places = place(0, channel, area[:, None], num_classes, Z_LAST)
                    z = load_tile(z_points[:, None] + z_places, changed)
                    loss = negatives.loss(z, u[:, None], lift[:, None], su[:, None], not_u[:, None])
                    more, less = neg.to(tl.float64) - old_neg, old_counted.to(tl.float64) - counted
                    change += tl.sum(tl.where(changed, more * loss, 0.0), 1)
                    missing += tl.sum(tl.where(changed, less, 0.0), 1)
                go_on = (filled == SLOTS) & MANY
                if go_on:
                    label_of_last = tl.max(label)
                    of_last = label == label_of_last
                    some = (held_by & bits_where(of_last, SLOTS)) != 0
                    chosen, still_open = decides & of_last[None, :], label_of_last == open_label
                    open_neg = carry_on(chosen, some, neg, open_neg, still_open, 1.0)
                    open_counted = carry_on(chosen, some, counted, open_counted, still_open, 1.0)
                    open_label = label_of_last
                    rows, filled, start, word = following_block(
                        number, image, offsets, around, start, word, table, capacity, bounds, GROUP, AROUND, SLOTS
                    )
            if any_of(ignored):
                for first_class in range(0, num_classes, CLASSES):
                    classes = first_class + tl.arange(0, CLASSES)[None, :]
                    z_places = place(0, classes, area[:, None], num_classes, Z_LAST)
                    mask = ignored[:, None] & (classes < num_classes)
                    z = load_tile(z_points[:, None] + z_places, mask)
                    loss = negatives.loss(z, u[:, None], lift[:, None], su[:, None], not_u[:, None])
                    change -= tl.sum(tl.where(mask, loss, 0.0).to(tl.float64), 1)
        turn += tl.num_programs(0)
    tl.store(sums + 2 * tl.program_id(0), tl.sum(change))
    tl.store(sums + 2 * tl.program_id(0) + 1, tl.sum(missing))


def pair_launches(pyramid: Pyramid, squares: Squares, touching: Touching) -> list[tuple[int, dict[str, int]]]:
    """For squares with few boxes and for those with many: number of programs, constants and launch options.

    A program is a warp, and a thread has one pair of a tile.
    """
    constants = {"Z_LAST": pyramid.z_last, "D_LAST": pyramid.d_last, "SPANS": squares.spans}
    constants |= {"LANES": squares.lanes, "GROUP": GROUP, "AROUND": AROUND}
    launches = []
    for slots in (NEAR, BLOCK):
        rows = squares.lanes if INTERPRETED else min(32 // slots, squares.lanes)
        options = {"ROWS": rows, "SLOTS": slots, "MANY": slots == BLOCK}
        options |= {"num_warps": 1, "maxnreg": MAX_REGISTERS}
        launches.append((min(MOST_PROGRAMS, len(touching.counts)), constants | options))
    return launches


def correct(pyramid: Pyramid, offsets: Tensor, table: Tensor, squares: Squares, touching: Touching) -> Tensor:
    """Partial sums, [programs, 2] float64, of what boxes change of the negative loss with N = 1, and of 1 - N."""
    launches = pair_launches(pyramid, squares, touching) if len(table) else []
    sums = torch.empty(sum(programs for programs, _ in launches), 2, device=table.device, dtype=torch.float64)
    first = 0
    for programs, options in launches:
        launch(
            correction_kernel,
            (programs,),
            *pyramid.arguments,
            offsets,
            table,
            touching.counts,
            touching.near,
            touching.around,
            touching.lists,
            touching.lengths,
            sums[first:],
            *squares.numbers,
            len(touching.counts),
            len(table) // FIELDS,
            pyramid.num_classes,
            **options,
        )
        first += programs
    return sums
