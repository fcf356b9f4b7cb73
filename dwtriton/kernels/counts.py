"""How much work the pairs of points and boxes of an image are, as functions of the inputs: for tests and for docs."""

from typing import NamedTuple

import torch
from torch import Tensor

from dwtriton.core.points import inside_rectangles
from dwtriton.kernels.correction import BLOCK
from dwtriton.kernels.squares import ACROSS, DOWN, GROUP, Squares, cut
from dwtriton.kernels.touching import AROUND, NEAR, SLOTS

ROWS_OF_FEW = BLOCK // NEAR  # points of a tile where few boxes touch


class Work(NamedTuple):
    """Of the pairs of one image's points and boxes."""

    inside: int  # pairs of a box and a point strictly inside it: what the sums over bags visit
    evaluated: int  # pairs that the walk over squares evaluates: all points of a square with each box that touches it
    slots: int  # of tiles, in which these pairs are; the others have no point or no box
    touching: Tensor  # [squares] boxes that touch each
    blocks: Tensor  # [squares] blocks of boxes that a program takes one after another for a part of a square
    compared: int  # comparisons of boxes with groups of squares and with squares, many at a time, for one walk
    sorted: int  # comparisons of boxes with boxes, to sort them


def centre_range(number: Tensor, count: int, stride: float, side: float) -> tuple[Tensor, Tensor]:
    """First cell in a row whose centre lies in the squares with these numbers, and the one after the last."""
    edges = [((begin * side / stride - 0.5).ceil()).clamp(0, count) for begin in (number, number + 1)]
    return edges[0], edges[1]


def bounds_of_squares(squares: Squares, sizes: list[tuple[int, int]], strides: tuple[float, ...]) -> tuple[Tensor, ...]:
    """Points of each square, and their least x and y, greatest x and y; all [squares], in float64."""
    group, within = torch.arange(squares.count) // GROUP, torch.arange(squares.count) % GROUP
    across, down, groups_across = ACROSS.value, DOWN.value, squares.columns // ACROSS.value
    column = group % groups_across * across + within % across
    row = group // groups_across * down + within // across
    points = torch.zeros(squares.count, dtype=torch.float64)
    low = [torch.full_like(points, torch.inf) for _ in range(2)]
    high = [torch.full_like(points, -torch.inf) for _ in range(2)]
    for size, stride in zip(sizes, strides):
        rows = centre_range(row.double(), size[0], stride, squares.side)
        columns = centre_range(column.double(), size[1], stride, squares.side)
        cells = (rows[1] - rows[0]) * (columns[1] - columns[0])
        points += cells
        for i, (first, end) in enumerate((columns, rows)):
            low[i] = torch.where(cells > 0, low[i].minimum((first + 0.5) * stride), low[i])
            high[i] = torch.where(cells > 0, high[i].maximum((end - 0.5) * stride), high[i])
    return points, *low, *high


def touch(boxes: Tensor, low_x: Tensor, low_y: Tensor, high_x: Tensor, high_y: Tensor) -> Tensor:
    """Which boxes [G, 4] may hold points within bounds [S]; [G, S] bool."""
    x1, y1, x2, y2 = (corner[:, None] for corner in boxes.T.double())
    return (x1 < high_x) & (y1 < high_y) & (x2 > low_x) & (y2 > low_y)


def work_of_image(sizes: list[tuple[int, int]], strides: tuple[float, ...], boxes: Tensor, cells: int) -> Work:
    """The work of an image with levels of these sizes and boxes [G, 4], in squares of `cells` finest cells a side."""
    squares = cut(*zip(*sizes), strides, cells)
    inside = 0
    for (height, width), stride in zip(sizes, strides):
        left, top, right, bottom = inside_rectangles(boxes.T.double(), height, width, stride)
        inside += int(((right - left) * (bottom - top)).sum())
    points, *bounds = bounds_of_squares(squares, sizes, strides)
    touches = touch(boxes, *bounds)
    touching = touches.sum(0)
    blocks = torch.where(touching <= NEAR, (touching > 0).long(), touching // BLOCK + 1)
    low, high = (torch.stack(pair).unflatten(1, (-1, GROUP)) for pair in (bounds[:2], bounds[2:]))
    near_group = touch(boxes, *low.amin(2), *high.amax(2)).sum(0)  # [groups]
    group_slots = (near_group // SLOTS + 1) * SLOTS * GROUP
    tiles = torch.where(touching <= NEAR, -(-squares.lanes // ROWS_OF_FEW) * (touching > 0), points * blocks)
    walks = points * (touching > NEAR)  # through the boxes around
    around = torch.where(near_group <= AROUND, near_group, len(boxes)).repeat_interleave(GROUP)
    compared = len(boxes) * len(near_group) + int(group_slots.sum()) + int((walks * around).sum())
    evaluated, slots = int((touches * points).sum()), int(tiles.sum()) * BLOCK
    return Work(inside, evaluated, slots, touching, blocks, compared, len(boxes) ** 2)
