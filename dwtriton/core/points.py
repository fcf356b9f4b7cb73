"""The point grid of a feature pyramid, and the rectangles of grid cells inside boxes."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

STRIDES = (8, 16, 32, 64, 128)  # pyramid levels P3 to P7


def pyramid_strides(finest: int) -> tuple[int, ...]:
    """Return the strides of a pyramid from `finest`, 8 or 4, to 128: each twice as large as the one before."""
    return STRIDES if finest == STRIDES[0] else (finest, *pyramid_strides(2 * finest))


def level_points(
    height: int, width: int, stride: int, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return the centres of a level's cells, (height * width, 2) x and y in pixels, row by row.

    The point of row i and column j has index `i * width + j` and lies at `((j + 0.5) * stride, (i + 0.5) * stride)`.
    """
    x = (torch.arange(width, device=device, dtype=dtype) + 0.5) * stride
    y = (torch.arange(height, device=device, dtype=dtype) + 0.5) * stride
    return torch.stack((x.repeat(height), y.repeat_interleave(width)), dim=1)


def pyramid_points(
    level_sizes: Sequence[tuple[int, int]],
    strides: Sequence[int] = STRIDES,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return the points of all levels, (P, 2) x and y in pixels, finest level first, each row by row.

    `level_sizes[l]` is (height, width) of level l in cells. Raises ValueError unless there is one for each stride.
    """
    if len(level_sizes) != len(strides):
        raise ValueError(f"{len(level_sizes)} level sizes for {len(strides)} strides {tuple(strides)}")
    levels = [level_points(h, w, stride, device, dtype) for (h, w), stride in zip(level_sizes, strides)]
    return torch.cat(levels)


def inside_rectangles(boxes: Tensor, height: int | Tensor, width: int | Tensor, stride: float | Tensor) -> Tensor:
    """Return the cells of a level whose centre lies strictly inside each box (docs/method.md#candidate-bag).

    `boxes` is (4, N) finite xyxy in pixels. The result is (4, N) int64: begin column, begin row, end column, end row;
    ends are exclusive. A box without a point has an empty range in at least one direction. Height and width in cells
    and stride may be (L, 1), for all levels at once; the result is then (4, L, N).
    """
    x1, y1, x2, y2 = boxes
    columns = _first(torch.le, x1, width, stride), _first(torch.lt, x2, width, stride)
    rows = _first(torch.le, y1, height, stride), _first(torch.lt, y2, height, stride)
    return torch.stack((columns[0], rows[0], torch.maximum(*columns), torch.maximum(*rows)))


def points_in_rectangles(rectangles: Tensor, image: Tensor, batch: int, height: int, width: int) -> Tensor:
    """Return which cells of a level lie in any rectangle of their image, [B, H, W] bool.

    `rectangles` is (4, N) as from `inside_rectangles`, `image` (N,) int64; those of image B or above count nowhere.
    """
    left, top, right, bottom = rectangles
    counts = image.new_zeros(batch + 1, height + 1, width + 1)  # differences first, then their sums along both axes
    image = image.clamp(max=batch)
    for row, column, sign in ((top, left, 1), (top, right, -1), (bottom, left, -1), (bottom, right, 1)):
        counts.index_put_((image, row, column), counts.new_full((), sign), accumulate=True)
    return counts.cumsum(1).cumsum(2)[:batch, :height, :width] > 0


def _first(
    before: Callable[[Tensor, Tensor], Tensor], edge: Tensor, count: int | Tensor, stride: float | Tensor
) -> Tensor:
    """Return the first of `count` cells in a line whose centre is not `before` the edge (`count` if none), int64."""
    cell = (edge / stride - 0.5).floor().clamp(min=-2)
    for _ in range(2):  # by division it is at most two too low; only the comparison itself decides
        cell = cell + before((cell + 0.5) * stride, edge)
    cell = cell.clamp(min=0)
    return torch.where(cell < count, cell, count).long()
