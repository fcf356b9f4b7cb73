"""Tiles of points and boxes, [ROWS, SLOTS], as device functions: a row is a point of a square, a slot is a box.

Boxes come sorted by class, in blocks of SLOTS, so that a block holds runs of boxes of one class. The last box of a run
that holds a point decides its N. The run at a block's end may go on in the next block: it is open. What boxes hold a
point is told by the bits of a number.
"""

import triton
import triton.language as tl

from dwtriton.kernels.boxes import LABEL, details_of, load_corners
from dwtriton.kernels.levels import load_distances, pick, pick_memory, place

NO_LABEL = tl.constexpr(2**30)  # of slots without a box: above all classes


@triton.jit
def load_points(d_levels, u_levels, heights, widths, image, level, point, valid, D_LAST: tl.constexpr):
    """Of points of an image: area of their level, points before the image's in it, distances [ROWS, 1] and u [ROWS]."""
    area = pick(heights, level).to(tl.int32) * pick(widths, level).to(tl.int32)
    before = image.to(tl.int64) * area
    d_points = pick_memory(d_levels, level) + before * 4 + place(point, 0, area, 4, D_LAST)
    left, top, right, bottom = load_distances(d_points, place(0, 1, area, 4, D_LAST), valid)
    u = tl.load(pick_memory(u_levels, level) + before + point, mask=valid, other=0.0).to(tl.float32)
    return area, before, (left[:, None], top[:, None], right[:, None], bottom[:, None]), u


@triton.jit
def load_block(rows, filled, table, capacity, SLOTS: tl.constexpr):
    """Boxes in the first `filled` slots, with these rows in the table: labels and details [SLOTS], corners [1, SLOTS].

    Details are pointers. Corners of other slots hold no point.
    """
    used = tl.arange(0, SLOTS) < filled
    rows = tl.where(used, rows, 0)
    details = details_of(table, rows, capacity)
    label = tl.load(details + LABEL, mask=used, other=NO_LABEL).to(tl.int32)
    x1, y1, x2, y2 = load_corners(table, rows, capacity)
    x1 = tl.where(used, x1, float("inf"))
    return label, details, (x1[None, :], y1[None, :], x2[None, :], y2[None, :])


@triton.jit
def is_inside(valid, x, y, corners):
    """Whether points are strictly inside boxes."""
    x1, y1, x2, y2 = corners
    return valid & (x > x1) & (y > y1) & (x < x2) & (y < y2)


@triton.jit
def sides_of(x, y, corners):
    """Distances from points to the left, top, right and bottom of boxes; all are positive inside."""
    x1, y1, x2, y2 = corners
    return x - x1, y - y1, x2 - x, y2 - y


@triton.jit
def any_of(condition):
    """Whether it holds anywhere."""
    return tl.max(condition.to(tl.int32)) != 0


@triton.jit
def bits_where(condition, SLOTS: tl.constexpr):
    """A number whose bits tell for which boxes a condition holds: of [..., SLOTS], [...] int32."""
    slot = tl.arange(0, SLOTS)
    bit = (slot * 0 + 1) << slot
    if len(condition.shape) == 2:
        bit = bit[None, :]
    return tl.sum(tl.where(condition, bit, 0), len(condition.shape) - 1)


@triton.jit
def later_of_class(label, SLOTS: tl.constexpr):
    """Bits of the boxes of the same class behind each box, [SLOTS]."""
    slot = tl.arange(0, SLOTS)
    return bits_where(label[:, None] == label[None, :], SLOTS) & (0 - ((slot * 0 + 2) << slot))


@triton.jit
def run_sums(values, label, SLOTS: tl.constexpr):
    """Sums over the boxes of a class from the first to each, in a fixed order; [ROWS, SLOTS], like `values`."""
    begin = tl.sum((label[None, :] < label[:, None]).to(tl.int32), 1)  # first slot of a box's class
    slot = tl.arange(0, SLOTS)[None, :] + tl.zeros(values.shape, tl.int32)
    for i in tl.static_range(5):
        if 2**i < SLOTS:
            earlier = tl.gather(values, tl.maximum(slot - 2**i, 0), 1)
            values += tl.where(slot - 2**i >= begin[None, :], earlier, 0.0)
    return values


@triton.jit
def carried(label, open_label, of_open, otherwise):
    """What holds before a block, [ROWS, SLOTS]: `of_open` [ROWS] for the class that is open, else `otherwise`."""
    return tl.where((label == open_label)[None, :], of_open[:, None], otherwise)


@triton.jit
def carry_on(chosen, some, values, of_open, still_open, otherwise):
    """`of_open` [ROWS] after a block: the value of the pair that is chosen at a point, or else what it was before.

    What it was before counts if the class is still the same, else it is `otherwise`. `some`: a pair is chosen, [ROWS].
    """
    return tl.where(some, tl.sum(tl.where(chosen, values, 0.0), 1), tl.where(still_open, of_open, otherwise))


@triton.jit
def load_tile(pointers, mask):
    """What a tile of pointers points to, as float32; 0 where masked.

    Flat, here and in `store_tile`: given a tile, the compiler would turn it and all that follows about.
    """
    return tl.load(tl.ravel(pointers), mask=tl.ravel(mask), other=0.0).to(tl.float32).reshape(mask.shape)


@triton.jit
def store_tile(pointers, values, mask):
    """Write a tile."""
    tl.store(tl.ravel(pointers), tl.ravel(values), mask=tl.ravel(mask))
