"""Which boxes touch which squares, and the squares in two lists: those that few boxes touch, and those that many do.

Few are NEAR at most. Their rows are written down, so that nobody has to look for them again. Where there are more,
whoever needs them looks through the boxes of the image, many at a time, and takes those that touch in full blocks.
Lists are in the order of the squares, whatever the order in which programs run.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dwtriton.kernels.boxes import FIELDS, load_corners
from dwtriton.kernels.inputs import Pyramid
from dwtriton.kernels.launch import launch
from dwtriton.kernels.levels import image_rows
from dwtriton.kernels.squares import GROUP, Squares, bounds_of
from dwtriton.kernels.walk import BITS, next_boxes

NEAR = 4  # boxes that are written down for a square
AROUND = 128  # and for a group of squares
SLOTS = 16  # boxes that are compared with GROUP squares at once
LISTED = 32  # groups of squares whose squares a program lists


class Touching(NamedTuple):
    """Squares are counted over all images: image b has those from b * squares.count on."""

    counts: Tensor  # [squares] int8, boxes that touch each, or NEAR + 1 where there are more
    near: Tensor  # [squares, NEAR] int32, their rows in the table, as many as there are
    around: Tensor  # [groups, 1 + AROUND] int32: how many boxes touch a group of squares, and their rows likewise
    lists: Tensor  # [squares] int32: from the beginning squares with 1 to NEAR boxes, from the end those with more
    lengths: Tensor  # [2] int32, of the lists


@triton.jit(do_not_specialize=["columns", "squares", "capacity"])
def touching_kernel(
    heights,
    widths,
    strides,
    offsets,
    table,
    counts,
    near,
    around,
    totals,
    side,
    columns,
    squares,
    capacity,
    GROUP: tl.constexpr,
    NEAR: tl.constexpr,
    AROUND: tl.constexpr,
    SLOTS: tl.constexpr,
):
    """Count the boxes that touch each square, and write down the first NEAR of them.

    Grid (groups,): program i owns GROUP squares of an image, in counts and near, around[i] and totals[i]. It finds the
    boxes that touch any of its squares, and compares them with each, SLOTS at a time.

    heights, widths, strides: of each level. offsets: [B + 1] int32. table: [FIELDS * N], see `boxes_kernel`.
    counts: out, [squares * B] int8, see `Touching`.
    near: out, [squares * B, NEAR] int32, rows of the table; the rest is left.
    around: out, [groups, 1 + AROUND] int32, boxes that touch the group and the first AROUND of their rows.
    totals: out, [groups, 2] int32, squares that go into the lists of few and of many boxes.
    side: of a square, in pixels. columns: squares side by side. squares: of an image. capacity: N.
    """
    numbers = tl.program_id(0) * GROUP + tl.arange(0, GROUP)
    image = tl.program_id(0) * GROUP // squares
    low_x, low_y, high_x, high_y = bounds_of(numbers - image * squares, columns, side, heights, widths, strides)
    bounds = (tl.min(low_x), tl.min(low_y), tl.max(high_x), tl.max(high_y))
    first, last = image_rows(offsets, image, capacity)
    start = first - BITS
    word = first * 0
    listed = first < 0  # there is no list yet
    mine = around + tl.program_id(0).to(tl.int64) * (1 + AROUND)
    found = first * 0
    count = tl.zeros((GROUP,), tl.int32)
    go_on = True
    while go_on:
        rows, filled, start, word = next_boxes(start, word, last, mine, listed, table, capacity, bounds, SLOTS)
        go_on = filled == SLOTS
        slot = found + tl.arange(0, SLOTS)
        found += filled
        tl.store(mine + 1 + slot, rows, mask=(slot < found) & (slot < AROUND))
        x1, y1, x2, y2 = load_corners(table, rows, capacity)
        touches = (x1[:, None] < high_x[None, :]) & (y1[:, None] < high_y[None, :])
        touches = touches & (x2[:, None] > low_x[None, :]) & (y2[:, None] > low_y[None, :])
        touches = touches & (tl.arange(0, SLOTS) < filled)[:, None]
        added = touches.to(tl.int32)
        place = count[None, :] + tl.cumsum(added, 0) - added
        out = near + numbers.to(tl.int64)[None, :] * NEAR + place
        tl.store(out, tl.broadcast_to(rows[:, None], (SLOTS, GROUP)), mask=touches & (place < NEAR))
        count += tl.sum(added, 0)
    tl.store(mine, found)
    tl.store(counts + numbers, tl.minimum(count, NEAR + 1).to(tl.int8))
    tl.store(totals + 2 * tl.program_id(0), tl.sum(((count > 0) & (count <= NEAR)).to(tl.int32)))
    tl.store(totals + 2 * tl.program_id(0) + 1, tl.sum((count > NEAR).to(tl.int32)))


@triton.jit
def places_in_list(chosen, before):
    """Where chosen squares stand in a list, `before` of which are there already; and how many there are then."""
    one = chosen.to(tl.int32)
    return before + tl.cumsum(one, 0) - one, before + tl.sum(one)


@triton.jit(do_not_specialize=["all_squares"])
def listing_kernel(
    counts,
    totals,
    lists,
    lengths,
    all_squares,
    GROUP: tl.constexpr,
    LISTED: tl.constexpr,
    NEAR: tl.constexpr,
):
    """List the squares that boxes touch.

    Grid (programs,): program i lists the squares of LISTED groups, behind those of all groups before.

    counts: [squares * B] int8 and totals: [groups, 2] int32, see `touching_kernel`.
    lists: out, [squares * B] int32, see `Touching`. lengths: out, [2] int32.
    all_squares: squares * B.
    """
    SQUARES: tl.constexpr = LISTED * GROUP
    few = tl.zeros((SQUARES,), tl.int32)
    many = tl.zeros((SQUARES,), tl.int32)
    end = tl.program_id(0) * LISTED
    start = end * 0
    while start < end:
        group = start + tl.arange(0, SQUARES)
        few += tl.load(totals + 2 * group, mask=group < end, other=0)
        many += tl.load(totals + 2 * group + 1, mask=group < end, other=0)
        start += SQUARES
    numbers = tl.program_id(0) * SQUARES + tl.arange(0, SQUARES)
    count = tl.load(counts + numbers, mask=numbers < all_squares, other=0).to(tl.int32)
    has_few, has_many = (count > 0) & (count <= NEAR), count > NEAR
    place, few_listed = places_in_list(has_few, tl.sum(few))
    tl.store(lists + place, numbers, mask=has_few)
    place, many_listed = places_in_list(has_many, tl.sum(many))
    tl.store(lists + all_squares - 1 - place, numbers, mask=has_many)
    if tl.program_id(0) == tl.num_programs(0) - 1:
        tl.store(lengths, few_listed)
        tl.store(lengths + 1, many_listed)


def empty_touching(pyramid: Pyramid, squares: Squares, device: torch.device) -> tuple[Touching, Tensor]:
    """Memory for `find_touching`: its result, and the totals of groups that it needs on the way."""
    count = squares.count * pyramid.batch
    groups = count // GROUP
    shapes = ((count, NEAR), (groups, 1 + AROUND), (count,), (2,), (groups, 2))
    *touching, totals = (torch.empty(shape, device=device, dtype=torch.int32) for shape in shapes)
    return Touching(torch.empty(count, device=device, dtype=torch.int8), *touching), totals


def find_touching(
    pyramid: Pyramid, offsets: Tensor, table: Tensor, squares: Squares, touching: Touching, totals: Tensor
) -> None:
    """Fill `touching`, if there are boxes at all."""
    if not len(table):
        return
    launch(
        touching_kernel,
        (len(totals),),
        *pyramid.sizes,
        pyramid.strides,
        offsets,
        table,
        touching.counts,
        touching.near,
        touching.around,
        totals,
        *squares.numbers,
        len(table) // FIELDS,
        GROUP=GROUP,
        NEAR=NEAR,
        AROUND=AROUND,
        SLOTS=SLOTS,
        num_warps=4,
    )
    launch(
        listing_kernel,
        (-(-len(totals) // LISTED),),
        touching.counts,
        totals,
        touching.lists,
        touching.lengths,
        len(touching.counts),
        GROUP=GROUP,
        LISTED=LISTED,
        NEAR=NEAR,
        num_warps=4,
    )
