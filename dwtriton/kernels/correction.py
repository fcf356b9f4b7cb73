"""Forward, at the points of boxes: what N, where it is not 1, changes of the negative loss.

A program owns the points of squares, one after another, and takes the boxes that touch a square in blocks.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dwtriton.kernels import formulas, negatives
from dwtriton.kernels.boxes import DEFICIT_MAX, DEFICIT_MIN, FIELDS, WEIGHT
from dwtriton.kernels.inputs import Pyramid
from dwtriton.kernels.launch import launch
from dwtriton.kernels.levels import image_rows, load_distances, pick, pick_memory, place
from dwtriton.kernels.runs import any_box, any_of, carried, carry_on, deciding, load_block, load_tile, sides_of
from dwtriton.kernels.squares import Squares, bounds_of_lanes, open_square
from dwtriton.kernels.touching import LOOK, NEAR, WORDS, Touching, next_boxes

BLOCK = 32  # boxes taken at once where there are many
MOST_PROGRAMS = 4224  # that take squares in turn: as many warps as an H100 holds at once
MOST_WARPS = 16  # of a program


@triton.jit(do_not_specialize=["columns", "squares", "capacity"])
def correction_kernel(
    z_levels,  # pointers to logits, one for each level; d_levels and u_levels alike
    d_levels,
    u_levels,
    heights,
    widths,
    strides,
    offsets,  # [B + 1]
    table,  # [FIELDS * N], see `boxes_kernel`
    counts,  # [squares * B], see `Touching`; near alike
    near,  # [squares * B, NEAR]
    list_of_squares,  # [squares * B]
    lengths,  # [2] of the two lists
    sums,  # out: [programs, 2] float64: what the negative loss changes by, and the sum of 1 - N
    side,  # of a square, in pixels
    columns,  # squares side by side
    squares,  # of an image
    capacity,  # N
    NUM_CLASSES: tl.constexpr,
    Z_LAST: tl.constexpr,
    D_LAST: tl.constexpr,
    SPANS: tl.constexpr,
    LANES: tl.constexpr,
    SLOTS: tl.constexpr,
    MANY: tl.constexpr,
):
    """Program i owns sums[i], and squares i, i + programs ... of the list; MANY: squares whose boxes it has to find."""
    change = tl.zeros((LANES,), tl.float64)
    missing = tl.zeros((LANES,), tl.float64)
    turn = tl.program_id(0)
    end = tl.load(lengths + MANY)
    while turn < end:
        number = tl.load(list_of_squares + turn)
        image = number // squares
        square = number - image * squares
        valid, level, point, x, y = open_square(square, columns, side, heights, widths, strides, SPANS, LANES)
        area = tl.cast(pick(heights, level), tl.int32) * tl.cast(pick(widths, level), tl.int32)
        before = image.to(tl.int64) * area
        z_points = pick_memory(z_levels, level) + before * NUM_CLASSES + place(point, 0, area, NUM_CLASSES, Z_LAST)
        d_points = pick_memory(d_levels, level) + before * 4 + place(point, 0, area, 4, D_LAST)
        left, top, right, bottom = load_distances(d_points, place(0, 1, area, 4, D_LAST), valid)
        distances = (left[:, None], top[:, None], right[:, None], bottom[:, None])
        u = tl.load(pick_memory(u_levels, level) + before + point, mask=valid, other=0.0).to(tl.float32)
        lift = negatives.lift(u)[0]
        su, not_u = formulas.sigmoids(u)

        if MANY:
            first, last = image_rows(offsets, image, capacity)
            bounds = bounds_of_lanes(valid, x, y)
            words = tl.zeros((WORDS,), tl.int32)
            start = first - LOOK
            taken = first * 0
        ignored = valid & (x != x)
        open_label = number * 0 - 1
        open_neg = tl.full((LANES,), 1.0, tl.float32)  # N, and 1 where boxes of no weight are to be ignored
        open_counted = open_neg
        go_on = True
        while go_on:
            if MANY:
                rows, filled, start, words, taken = next_boxes(
                    start, words, taken, last, table, capacity, bounds, SLOTS
                )
                go_on = filled == SLOTS
            else:
                rows = tl.load(near + number.to(tl.int64) * SLOTS + tl.arange(0, SLOTS))
                filled = tl.load(counts + number)
                go_on = False
            label, details, corners, inside = load_block(rows, filled, table, capacity, valid, x, y, SLOTS)
            used = tl.arange(0, SLOTS) < filled
            ignored |= any_box(inside & (label < 0)[None, :])
            held = inside & (label >= 0)[None, :]
            decides = deciding(held, label, SLOTS)
            iou = formulas.overlap(distances, sides_of(x[:, None], y[:, None], corners))[0]
            deficit_min = tl.load(details + DEFICIT_MIN, mask=used, other=0.0)[None, :]
            deficit_max = tl.load(details + DEFICIT_MAX, mask=used, other=1.0)[None, :]
            no_weight = (tl.load(details + WEIGHT, mask=used, other=1.0) == 0)[None, :]
            p_neg = formulas.p_neg(iou, deficit_min, deficit_max)
            neg, counted = tl.where(no_weight, 0.0, p_neg), tl.where(no_weight, 1.0, p_neg)
            old_neg, old_counted = (
                carried(label, open_label, open_neg, 1.0),
                carried(label, open_label, open_counted, 1.0),
            )
            changed = decides & (ignored == 0)[:, None] & ((neg != old_neg) | (counted != old_counted))
            if any_of(changed):
                of_box = tl.minimum(tl.maximum(label, 0), NUM_CLASSES - 1)[None, :]
                z_places = place(0, of_box, area[:, None], NUM_CLASSES, Z_LAST)
                z = load_tile(z_points[:, None] + z_places, changed)
                loss = negatives.loss(z, u[:, None], lift[:, None], su[:, None], not_u[:, None]).to(tl.float64)
                more, less = neg.to(tl.float64) - old_neg, old_counted.to(tl.float64) - counted
                change += tl.sum(tl.where(changed, more * loss, 0.0), 1)
                missing += tl.sum(tl.where(changed, less, 0.0), 1)
            if MANY:
                label_of_last = tl.max(tl.where(used, label, -1))
                chosen = decides & (label == label_of_last)[None, :]
                open_neg = carry_on(chosen, neg, open_neg, label_of_last == open_label, 1.0)
                open_counted = carry_on(chosen, counted, open_counted, label_of_last == open_label, 1.0)
                open_label = label_of_last
        if any_of(ignored):
            for channel in range(NUM_CLASSES):
                z_places = z_points + place(0, channel, area, NUM_CLASSES, Z_LAST)
                z = tl.load(z_places, mask=ignored, other=float("-inf")).to(tl.float32)
                change -= negatives.loss(z, u, lift, su, not_u).to(tl.float64)
        turn += tl.num_programs(0)
    tl.store(sums + 2 * tl.program_id(0), tl.sum(change))
    tl.store(sums + 2 * tl.program_id(0) + 1, tl.sum(missing))


def pair_launches(pyramid: Pyramid, squares: Squares, touching: Touching) -> list[tuple[int, dict[str, int]]]:
    """For squares with few boxes and for those with many: number of programs, constants and launch options.

    A thread has one pair of a tile.
    """
    programs = min(MOST_PROGRAMS, len(touching.counts))
    constants = {"NUM_CLASSES": pyramid.num_classes, "Z_LAST": pyramid.z_last, "D_LAST": pyramid.d_last}
    constants |= {"SPANS": squares.spans, "LANES": squares.lanes}
    warps = {slots: min(max(squares.lanes * slots // 32, 1), MOST_WARPS) for slots in (NEAR, BLOCK)}
    few, many = ({"SLOTS": slots, "MANY": slots == BLOCK, "num_warps": warps[slots]} for slots in (NEAR, BLOCK))
    return [(programs, constants | few), (programs, constants | many)]


def correct(pyramid: Pyramid, offsets: Tensor, table: Tensor, squares: Squares, touching: Touching) -> Tensor:
    """Partial sums, [programs, 2] float64, of what boxes change of the negative loss with N = 1, and of 1 - N."""
    launches = pair_launches(pyramid, squares, touching) if len(table) else []
    sums = torch.empty(sum(programs for programs, _ in launches), 2, device=table.device, dtype=torch.float64)
    first = 0
    for i, (programs, options) in enumerate(launches):
        launch(
            correction_kernel,
            (programs,),
            *pyramid.arguments,
            offsets,
            table,
            touching.counts,
            touching.near,
            touching.lists[i],
            touching.lengths,
            sums[first:],
            *squares.numbers,
            len(table) // FIELDS,
            **options,
        )
        first += programs
    return sums
