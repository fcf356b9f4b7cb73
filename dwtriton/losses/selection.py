"""Choosing points for boxes and boxes for points, with the same result on every device.

Equal values are decided by the lowest index. Values come in float64; `rounded` to the precision of float32 they are
equal where only the last bits of a logarithm or an exponential differ, as they do within a vectorised array.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

PAIRS_PER_CHUNK = 2**18  # of a box and a point: 2 MB in float64
ROUNDING = 2**29 + 1  # splits a float64 at the 24 bits of a float32


def rounded(values: Tensor) -> Tensor:
    """Return float64 `values` with the precision of float32 and the range of float64."""
    scaled = values * ROUNDING
    return scaled - (scaled - values)


def largest(values: Tensor, count: int) -> Tensor:
    """Return the indices of the `count` largest values of each row of [N, P], largest first, [N, count].

    Of equal values the lowest index comes first. Rows of fewer values give that many.
    """
    values, found = values.clone(), []
    for _ in range(min(count, values.shape[1])):
        found.append(values.max(1, keepdim=True).indices)  # the first of equal ones; `topk` does not promise which
        values.scatter_(1, found[-1], -torch.inf)
    return torch.cat(found, 1)


def chunks(boxes: Tensor, points: int) -> Sequence[Tensor]:
    """Split the indices of boxes so that a [boxes, points] tensor of one part stays small."""
    return boxes.split(max(1, PAIRS_PER_CHUNK // points))


def best_boxes(image: Tensor, point: Tensor, value: Tensor, valid: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return the box of each point of a batch of `shape` (B, P), int64: of its candidates the one of the largest value.

    The candidates of box n are the points `point[n]` of image `image[n]`, as far as they are `valid`, with their
    values, [N, K] each; boxes of image B or above have none. Of equal values the lowest box wins; a point without
    candidate has -1.
    """
    batch, points = shape
    valid = valid & (image < batch)[:, None]
    point = (image[:, None] * points + point).where(valid, 0).flatten()  # over the whole batch
    row = torch.arange(len(image), device=image.device)[:, None].expand_as(value).flatten()
    value = value.where(valid, -torch.inf).flatten()
    best = value.new_full((batch * points,), -torch.inf).scatter_reduce_(0, point, value, "amax")
    wins = (value == best[point]) & valid.flatten()
    rows = row.new_full(best.shape, len(image)).scatter_reduce_(0, point, row.where(wins, len(image)), "amin")
    return rows.where(rows < len(image), -1).view(shape)
