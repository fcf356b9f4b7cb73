"""How much work the pairs of points and boxes of an image are, as functions of the inputs: for tests and for docs."""

from typing import NamedTuple

import torch
from torch import Tensor

from dwtriton.core.points import inside_rectangles
from dwtriton.kernels.inputs import cut


class Work(NamedTuple):
    """Of the pairs of one image's points and boxes."""

    inside: int  # pairs of a box and a point strictly inside it: what the sums over bags visit
    walked: int  # pairs that the walk over squares looks at: all points of a square with each box that touches it
    chain: int  # most boxes that one program takes one after another
    compared: int  # boxes compared with squares, many at a time


def pairs_of_image(
    sizes: list[tuple[int, int]],
    strides: tuple[float, ...],
    boxes: Tensor,  # [G, 4] xyxy
    cells: int,
) -> Work:
    """The work of an image with levels of these sizes, in squares of `cells` times `cells` points of the finest."""
    squares = cut(*zip(*sizes), strides, cells)
    corners = boxes.T.double()
    inside = 0
    for (height, width), stride in zip(sizes, strides):
        left, top, right, bottom = inside_rectangles(corners, height, width, stride)
        inside += int(((right - left) * (bottom - top)).sum())
    number = torch.arange(squares.count)
    low_x, low_y = number % squares.columns * squares.side, number // squares.columns * squares.side
    x1, y1, x2, y2 = (corner[:, None] for corner in corners)
    touches = (x1 < low_x + squares.side) & (y1 < low_y + squares.side) & (x2 > low_x) & (y2 > low_y)  # [G, squares]
    points = torch.zeros(squares.count)
    for (height, width), stride in zip(sizes, strides):
        rows, columns = (((torch.arange(count) + 0.5) * stride // squares.side).long() for count in (height, width))
        points += torch.bincount((rows[:, None] * squares.columns + columns).flatten(), minlength=squares.count)
    touching = touches.sum(0)
    return Work(inside, int((touching * points).sum()), int(touching.max()), touches.numel())
