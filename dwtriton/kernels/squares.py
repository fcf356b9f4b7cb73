"""The walk that pairs the points of a small square of the image with the boxes that touch it, as device functions.

A square holds the points of all levels whose centres lie in it, one for each lane: on a coarse level no point collects
more boxes than its surroundings. The boxes of an image are compared with a square many at a time; those that touch it
come one after another in their sorted order, class by class.
"""

import triton
import triton.language as tl

from dwtriton.kernels.boxes import LABEL, details_of
from dwtriton.kernels.inputs import Pyramid, Squares
from dwtriton.kernels.tuning import PairsConfig

MOST_PROGRAMS = 4224  # that take squares in turn: as many warps as an H100 holds at once
IGNORED_CLASSES = tl.constexpr(4)  # taken at a time where points are to be ignored
NO_LABEL = tl.constexpr(2**30)  # above all classes
BITS = tl.constexpr(32)  # boxes that a lane notes at once
NO_BOX = tl.constexpr(2**30)


@triton.jit
def first_centre(edge, inverse, count):
    """First of `count` cells in a row whose centre is at `edge` or beyond; `inverse` is one over their stride.

    But for rounding, which is the same for the square that ends at the edge and the one that begins there.
    """
    cell = tl.ceil(edge * inverse - 0.5)
    return tl.minimum(tl.maximum(cell, 0.0), count).to(tl.int32)


@triton.jit
def open_square(square, columns, side, heights, widths, strides, SPANS: tl.constexpr, LANES: tl.constexpr):
    """The points of a square, one for each lane; `columns` squares stand side by side, SPANS cells of a level in one.

    Returns what each lane has: whether a point, level, number among the level's points, x and y.
    """
    lane = tl.arange(0, LANES)
    across, down = square % columns, square // columns
    level = lane * 0
    point = lane * 0
    valid = lane < 0
    x = lane * 0.0
    y = lane * 0.0
    for i in tl.static_range(len(SPANS)):
        span = SPANS[i]
        begin = lanes_before(SPANS, i)
        width, height, stride = widths[i], heights[i], strides[i]
        inverse = 1 / stride
        left, right = first_centre(across * side, inverse, width), first_centre((across + 1) * side, inverse, width)
        top, bottom = first_centre(down * side, inverse, height), first_centre((down + 1) * side, inverse, height)
        column, row = left + (lane - begin) % span, top + (lane - begin) // span
        here = (lane >= begin) & (lane < begin + span * span)
        level = tl.where(here, i, level)
        valid = tl.where(here, (column < right) & (row < bottom), valid)
        point = tl.where(here, row * tl.cast(width, tl.int32) + column, point)
        x = tl.where(here, (column + 0.5) * stride, x)
        y = tl.where(here, (row + 0.5) * stride, y)
    return valid, level, point, x, y


@triton.constexpr_function
def lanes_before(spans, level):
    """Lanes of the levels before one."""
    return sum(int(span) ** 2 for span in spans[: int(level)])


@triton.jit
def bounds_of(square, columns, side):
    """Least and greatest x and y of a square."""
    across, down = square % columns, square // columns
    return across * side, down * side, (across + 1) * side, (down + 1) * side


@triton.jit
def note_boxes(start, last, table, capacity, bounds, LANES: tl.constexpr):
    """Which of BITS * LANES boxes from `start` on may hold points: bit j of lane i is that of box j * LANES + i."""
    low_x, low_y, high_x, high_y = bounds
    lane = tl.arange(0, LANES)
    notes = lane * 0
    bit = start * 0
    while (bit < BITS) & (start + bit * LANES < last):
        rows = start + bit * LANES + lane
        mask = rows < last
        x1 = tl.load(table + rows, mask=mask, other=float("inf"))
        y1 = tl.load(table + capacity + rows, mask=mask, other=float("inf"))
        x2 = tl.load(table + 2 * capacity + rows, mask=mask, other=0.0)
        y2 = tl.load(table + 3 * capacity + rows, mask=mask, other=0.0)
        touches = (x1 < high_x) & (y1 < high_y) & (x2 > low_x) & (y2 > low_y)
        notes |= touches.to(tl.int32) << bit
        bit += 1
    return notes


@triton.jit
def noted_box(notes, LANES: tl.constexpr):
    """The first box of each lane's notes, NO_BOX if there is none."""
    lowest = (notes & (0 - notes)).to(tl.uint32, bitcast=True).to(tl.float32)  # a power of two: its exponent is the bit
    bit = (lowest.to(tl.int32, bitcast=True) >> 23) - 127
    return tl.where(notes != 0, bit * LANES + tl.arange(0, LANES), NO_BOX)


@triton.jit
def next_box(notes, start, last, table, capacity, bounds, LANES: tl.constexpr):
    """The next box that touches a square: its row in the table and its label, NO_LABEL if there is none.

    Returns `notes` without it, and the first row that they are about; the first call is given that of the image less
    BITS * LANES, and no notes.
    """
    mine = noted_box(notes, LANES)
    found = tl.min(mine)
    while (found == NO_BOX) & (start + BITS * LANES < last):
        start += BITS * LANES
        notes = note_boxes(start, last, table, capacity, bounds, LANES)
        mine = noted_box(notes, LANES)
        found = tl.min(mine)
    notes = tl.where((mine == found) & (found < NO_BOX), notes & (notes - 1), notes)
    row = tl.where(found < NO_BOX, start + found, 0)
    label = tl.load(details_of(table, row, capacity) + LABEL, mask=found < NO_BOX, other=NO_LABEL).to(tl.int32)
    return row, label, notes, start


@triton.jit
def is_inside(valid, x, y, corners):
    x1, y1, x2, y2 = corners
    return valid & (x > x1) & (y > y1) & (x < x2) & (y < y2)


def pair_options(pyramid: Pyramid, squares: Squares, config: PairsConfig) -> dict[str, object]:
    """Constants and launch options."""
    constants = {"NUM_CLASSES": pyramid.num_classes, "Z_LAST": pyramid.z_last, "D_LAST": pyramid.d_last}
    constants |= {"SPANS": squares.spans, "LANES": squares.lanes}
    return constants | {"num_warps": config.warps}
