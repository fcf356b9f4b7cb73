"""The walk through the boxes that touch a square, as device functions: full blocks of them, in their order.

Many are compared with the square at once. They come from the list of the boxes around the square's group where it has
all of them, else from all boxes of the image.
"""

import triton
import triton.language as tl

from dwtriton.kernels.levels import image_rows

BITS = tl.constexpr(32)  # boxes that are compared with bounds at once


@triton.jit
def popcount(x):
    """Bits that are set, [...] int32."""
    x = x - ((x >> 1) & 0x55555555)
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F
    return (x & 0xFF) + ((x >> 8) & 0xFF) + ((x >> 16) & 0xFF) + (x >> 24)


@triton.jit
def go_past(counts, bits, n, place, WIDTH: tl.constexpr):
    """Go past WIDTH bits from `place` on if no more than n of them are set; `counts` has how many, in `bits` bits."""
    below = (counts >> place) & bits
    past = below <= n
    return tl.where(past, n - below, n), tl.where(past, place + WIDTH, place)


@triton.jit
def nth_bit(x, n):
    """Place of the n-th bit that is set, n from 0 on and less than `popcount(x)`; [...] int32 like n."""
    pairs = x - ((x >> 1) & 0x55555555)  # how many are set of each two bits, in these two
    fours = (pairs & 0x33333333) + ((pairs >> 2) & 0x33333333)
    eights = (fours + (fours >> 4)) & 0x0F0F0F0F
    sixteens = (eights + (eights >> 8)) & 0x00FF00FF
    n, place = go_past(sixteens, 0xFF, n, n * 0, 16)
    n, place = go_past(eights, 0xFF, n, place, 8)
    n, place = go_past(fours, 0xF, n, place, 4)
    n, place = go_past(pairs, 0x3, n, place, 2)
    return go_past(x, 0x1, n, place, 1)[1]


@triton.jit
def row_of(number, mask, around, listed):
    """Row in the table of the boxes with these numbers: in the list of a group where it has all, else in the table."""
    return tl.where(listed, tl.load(around + 1 + number, mask=mask & listed, other=0), number)


@triton.jit
def look_at(start, last, around, listed, table, capacity, bounds):
    """Which of BITS boxes from `start` on may hold points within bounds: a number's bits."""
    low_x, low_y, high_x, high_y = bounds
    bit = tl.arange(0, BITS)
    mask = start + bit < last
    rows = row_of(start + bit, mask, around, listed)
    x1 = tl.load(table + rows, mask=mask, other=float("inf"))
    y1 = tl.load(table + capacity + rows, mask=mask, other=float("inf"))
    x2 = tl.load(table + 2 * capacity + rows, mask=mask, other=float("-inf"))
    y2 = tl.load(table + 3 * capacity + rows, mask=mask, other=float("-inf"))
    touches = (x1 < high_x) & (y1 < high_y) & (x2 > low_x) & (y2 > low_y)
    return tl.sum(touches.to(tl.int32) << bit)


@triton.jit
def next_boxes(start, word, last, around, listed, table, capacity, bounds, SLOTS: tl.constexpr):
    """The next boxes, SLOTS if there are so many, that touch bounds: their rows, [SLOTS], and how many they are.

    Also what to go on with: the bits of `word` are those of BITS boxes from `start` on that touch and are not taken
    yet. The first call is given BITS before the first box, and 0.
    """
    slot = tl.arange(0, SLOTS)
    numbers = slot * 0
    filled = start * 0
    while (filled < SLOTS) & ((word != 0) | (start + BITS < last)):
        if word == 0:
            start += BITS
            word = look_at(start, last, around, listed, table, capacity, bounds)
        if word != 0:
            found = popcount(word)
            more = tl.minimum(SLOTS - filled, found)
            rank = slot - filled  # of the box for a slot among those found
            taken = (rank >= 0) & (rank < more)
            numbers = tl.where(taken, start + nth_bit(word, rank), numbers)
            word &= -2 << nth_bit(word, more - 1)  # drops those taken
            filled += more
    return row_of(numbers, slot < filled, around, listed), filled, start, word


@triton.jit
def range_of_walk(offsets, image, capacity, around, AROUND: tl.constexpr):
    """Numbers of the boxes to look at, the first and the one after the last, and whether a group's list has all.

    Then they are numbers in that list, else rows of the table: those of the image.
    """
    first, last = image_rows(offsets, image, capacity)
    count = tl.load(around)
    listed = count <= AROUND
    return tl.where(listed, 0, first), tl.where(listed, count, last), listed


@triton.jit
def first_block(
    number,
    image,
    offsets,
    counts,
    near,
    around,
    table,
    capacity,
    bounds,
    GROUP: tl.constexpr,
    AROUND: tl.constexpr,
    SLOTS: tl.constexpr,
    MANY: tl.constexpr,
):
    """The first boxes of a square as from `next_boxes` where MANY touch it, or else all of them as written down."""
    start = number * 0
    word = number * 0
    if MANY:
        around += number.to(tl.int64) // GROUP * (1 + AROUND)
        begin, last, listed = range_of_walk(offsets, image, capacity, around, AROUND)
        rows, filled, start, word = next_boxes(begin - BITS, word, last, around, listed, table, capacity, bounds, SLOTS)
    else:
        rows = tl.load(near + number.to(tl.int64) * SLOTS + tl.arange(0, SLOTS))
        filled = tl.load(counts + number).to(tl.int32)
    return rows, filled, start, word


@triton.jit
def following_block(
    number, image, offsets, around, start, word, table, capacity, bounds, GROUP, AROUND, SLOTS: tl.constexpr
):
    """The next boxes of a square that many touch."""
    around += number.to(tl.int64) // GROUP * (1 + AROUND)
    _, last, listed = range_of_walk(offsets, image, capacity, around, AROUND)
    return next_boxes(start, word, last, around, listed, table, capacity, bounds, SLOTS)


@triton.jit
def listed_square(touching_lists, turn, all_squares, MANY: tl.constexpr):
    """The number of a square of a list: many boxes touch those from the end on, few those from the beginning on."""
    return tl.load(touching_lists + (all_squares - 1 - turn if MANY else turn))
