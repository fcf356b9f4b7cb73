"""Small squares of an image, which own its points: those of every level whose centres lie in a square.

A square is bounded in pixels, so that a point of a coarse level meets no more boxes than its surroundings do.
"""

import math
from functools import cache
from typing import NamedTuple

import triton
import triton.language as tl

from dwtriton.kernels.inputs import Pyramid
from dwtriton.kernels.launch import INTERPRETED
from dwtriton.kernels.levels import pick

CELLS = 8 if INTERPRETED else 2  # of the finest level, along a side of a square; the interpreter likes large programs
ACROSS, DOWN = tl.constexpr(8), tl.constexpr(4)  # squares of a group, whose boxes are looked for together
GROUP = ACROSS.value * DOWN.value
CELL_MARGIN = 1e-3  # a stride that does not divide a square's side may have one more centre in it, but for rounding


class Squares(NamedTuple):
    """How squares cut an image."""

    side: float  # pixels
    columns: int  # squares side by side
    count: int  # of an image, group by group; those beyond the image have no points
    spans: tuple[int, ...]  # most cells of each level along a side
    lanes: int  # a power of two, at least the points of all levels in a square

    @property
    def numbers(self) -> tuple[float, int, int]:
        """Side, columns and count, as kernels take them."""
        return self.side, self.columns, self.count


@cache
def cut(heights: tuple[int, ...], widths: tuple[int, ...], strides: tuple[float, ...], cells: int) -> Squares:
    """Cut an image into squares of `cells` times `cells` points of the finest level."""
    side = cells * min(strides)
    spans = tuple(math.ceil(side / stride + (0 if (side / stride).is_integer() else CELL_MARGIN)) for stride in strides)
    columns, rows = (
        max(math.ceil(count * stride / side) for count, stride in zip(counts, strides)) for counts in (widths, heights)
    )
    lanes = 1 << (sum(span * span for span in spans) - 1).bit_length()
    columns, rows = (-(-number // each) * each for number, each in ((columns, ACROSS.value), (rows, DOWN.value)))
    return Squares(side, columns, columns * rows, spans, lanes)


def squares_of(pyramid: Pyramid) -> Squares:
    """Cut the images of a batch. Raises ValueError if there are too many squares for 32 bits."""
    squares = cut(pyramid.heights, pyramid.widths, pyramid.strides, CELLS)
    if squares.count * squares.lanes * pyramid.batch >= 2**31:
        raise ValueError(f"{pyramid.batch} images of such levels are more than the kernels can address")
    return squares


@triton.jit
def first_centre(edge, inverse, count):
    """First of `count` cells in a row whose centre is at `edge` or beyond; `inverse` is one over their stride.

    But for rounding, which is the same for the square that ends at the edge and the one that begins there.
    """
    cell = tl.ceil(edge * inverse - 0.5)
    return tl.minimum(tl.maximum(cell, 0.0), count).to(tl.int32)


@triton.constexpr_function
def lanes_before(spans, level):
    """Lanes of the levels before one."""
    return sum(int(span) ** 2 for span in spans[: int(level)])


@triton.jit
def place_of(square, columns):
    """How many squares lie left of one, and above it."""
    group, number = square // (ACROSS * DOWN), square % (ACROSS * DOWN)
    groups_across = columns // ACROSS
    across, below = group % groups_across, group // groups_across
    return across * ACROSS + number % ACROSS, below * DOWN + number // ACROSS


@triton.jit
def open_square(square, lane, columns, side, heights, widths, strides, SPANS: tl.constexpr):
    """The points of some lanes of a square: whether there is one, level, number in the level, x and y; like `lane`."""
    level = lane * 0
    along = lane * 0  # cells from the square's first
    down = lane * 0
    for i in tl.static_range(len(SPANS)):
        begin = lanes_before(SPANS, i)
        here = lane >= begin
        level = tl.where(here, i, level)
        along = tl.where(here, (lane - begin) % SPANS[i], along)
        down = tl.where(here, (lane - begin) // SPANS[i], down)
    width, height, stride = pick(widths, level), pick(heights, level), pick(strides, level)
    inverse = 1 / stride
    across, below = place_of(square, columns)
    column = first_centre(across * side, inverse, width) + along
    row = first_centre(below * side, inverse, height) + down
    valid = (lane < lanes_before(SPANS, len(SPANS))) & (column < first_centre((across + 1) * side, inverse, width))
    valid = valid & (row < first_centre((below + 1) * side, inverse, height))
    point = row * width.to(tl.int32) + column
    return valid, level, tl.where(valid, point, 0), (column + 0.5) * stride, (row + 0.5) * stride


@triton.jit
def bounds_of(square, columns, side, heights, widths, strides):
    """Least x and y, greatest x and y of the points in each of some squares; inf and -inf where there is none."""
    across, below = place_of(square, columns)
    low_x = square * 0.0 + float("inf")
    low_y = low_x
    high_x = -low_x
    high_y = -low_x
    for i in tl.static_range(len(strides)):
        stride = strides[i]
        inverse = 1 / stride
        left, right = (
            first_centre(across * side, inverse, widths[i]),
            first_centre((across + 1) * side, inverse, widths[i]),
        )
        top, bottom = (
            first_centre(below * side, inverse, heights[i]),
            first_centre((below + 1) * side, inverse, heights[i]),
        )
        some = (left < right) & (top < bottom)
        low_x = tl.where(some, tl.minimum(low_x, (left + 0.5) * stride), low_x)
        low_y = tl.where(some, tl.minimum(low_y, (top + 0.5) * stride), low_y)
        high_x = tl.where(some, tl.maximum(high_x, (right - 0.5) * stride), high_x)
        high_y = tl.where(some, tl.maximum(high_y, (bottom - 0.5) * stride), high_y)
    return low_x, low_y, high_x, high_y
