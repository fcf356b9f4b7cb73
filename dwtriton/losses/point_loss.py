"""What losses have in common that assign one box, or none, to each point: subclass `PointLoss` for another one."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dwtriton.core import ranks
from dwtriton.core.head_outputs import HeadOutputs, Levels, check_strides
from dwtriton.core.points import STRIDES, inside_rectangles, points_in_rectangles, pyramid_points
from dwtriton.core.targets import PackedTargets
from dwtriton.losses.inputs import Targets, check_inputs
from dwtriton.reference.formulas import box_sides
from dwtriton.reference.pairs import Boxes, read_boxes

BACKGROUND, IGNORED = -1, -2


class Assignment(NamedTuple):
    """The boxes of one image's P points, finest level first, each level row by row."""

    box: Tensor  # (P,) int64 index into the boxes of the image's targets; -1 background, -2 ignored
    weight: Tensor  # (P,) how good the point is for its box, in the terms of the method; 0 without a box


class Grid(NamedTuple):
    """The P points of all levels."""

    sizes: list[tuple[int, int]]  # height and width of each level in cells
    strides: tuple[int, ...]
    points: Tensor  # [2, P] float64 x and y

    def split(self, values: Tensor) -> list[Tensor]:
        """Return [B, P] values as one [B, 1, H, W] tensor for each level."""
        parts = values.split([height * width for height, width in self.sizes], 1)
        return [part.unflatten(1, size)[:, None] for part, size in zip(parts, self.sizes)]

    def inside(self, boxes: Tensor, image: Tensor, batch: int) -> Tensor:
        """Return which points lie strictly inside any of the boxes [4, N] of their image, [B, P] bool."""
        levels = []
        for (height, width), stride in zip(self.sizes, self.strides):
            rectangles = inside_rectangles(boxes, height, width, stride)
            levels.append(points_in_rectangles(rectangles, image, batch, height, width).flatten(1))
        return torch.cat(levels, 1)


class Choice(NamedTuple):
    """The box that each point is given."""

    row: Tensor  # [B, P] int64 row of the packed targets, -1: none
    quality: Tensor  # [B, P] float64, `Assignment.weight`


class PointTargets(NamedTuple):
    """What each point is to learn. Values of points that are not positive are harmless, and nothing but that."""

    positive: Tensor  # [B, P] bool: has a box, of a weight above 0
    ignored: Tensor  # [B, P] bool: has no negative losses: inside a crowd region, or its box has weight 0
    label: Tensor  # [B, P] int64 class of the box; 0 if not positive
    weight: Tensor  # [B, P] float64 weight of the box; 0 if not positive
    sides: Tensor  # [4, B, P] float64 distances from the point to the sides of the box; 1 if not positive
    quality: Tensor  # [B, P] float64 of the choice; 0 if not positive


class PointLoss(nn.Module):
    """A loss that gives each point one box or none.

    A subclass has `choose`, which gives boxes to points, and `losses`, which compares the points with them.
    `strides`: of the pyramid levels in pixels, finest first. Raises ValueError for settings out of range.
    """

    def __init__(self, strides: Sequence[int] = STRIDES) -> None:
        super().__init__()
        self.strides = check_strides(strides)

    def choose(self, outputs: HeadOutputs, targets: PackedTargets, boxes: Boxes, grid: Grid) -> Choice:
        """Give each point a box or none, without gradients; `boxes` are the targets in float64, made valid.

        `outputs.objectness` is empty if the head has no such branch. Boxes of weight 0 count as any other.
        """
        raise NotImplementedError

    def losses(self, outputs: HeadOutputs, targets: PointTargets, grid: Grid) -> dict[str, Tensor]:
        """Return the 0-d losses by name."""
        raise NotImplementedError

    def forward(
        self, cls_logits: Levels, box_distances: Levels, objectness: Levels | None, targets: Targets
    ) -> dict[str, Tensor]:
        """Return the losses of a batch by name, each 0-d; train on their sum.

        Arguments, dtypes and errors are those of `DualWeightLoss`; assignments and the losses of single points are
        computed in float64. Positive terms are multiplied by the weights of boxes. Normalisers are means over all ranks
        if torch.distributed is initialised: call the loss on every rank.
        """
        outputs, packed = self._prepare(cls_logits, box_distances, objectness, targets)
        with torch.autocast(cls_logits[0].device.type, enabled=False):
            boxes, grid, choice = self._choose(outputs, packed)
            losses = self.losses(outputs, point_targets(choice, boxes, grid), grid)
            nan_if_invalid = torch.where(boxes.valid, 1.0, torch.nan)
            return {name: (loss * nan_if_invalid).to(outputs.arithmetic) for name, loss in losses.items()}

    @torch.no_grad()
    def assign(
        self, cls_logits: Levels, box_distances: Levels, objectness: Levels | None, targets: Targets
    ) -> list[Assignment]:
        """Return the assignment of each image; the arguments are those of `forward`.

        Points are ignored inside crowd regions, if they have no box, and where their box has weight 0.
        """
        outputs, packed = self._prepare(cls_logits, box_distances, objectness, targets)
        boxes, grid, choice = self._choose(outputs, packed)
        found = point_targets(choice, boxes, grid)
        begin = packed.offsets[:-1, None]
        row = (choice.row - begin).where(found.positive, torch.where(found.ignored, IGNORED, BACKGROUND))
        return [Assignment(*image) for image in zip(row, found.quality.to(outputs.arithmetic))]

    def _prepare(
        self, cls_logits: Levels, box_distances: Levels, objectness: Levels | None, targets: Targets
    ) -> tuple[HeadOutputs, PackedTargets]:
        packed = check_inputs(self.strides, cls_logits, box_distances, objectness, targets)
        return HeadOutputs(cls_logits, box_distances, () if objectness is None else objectness), packed

    @torch.no_grad()
    def _choose(self, outputs: HeadOutputs, packed: PackedTargets) -> tuple[Boxes, Grid, Choice]:
        boxes = read_boxes(packed, outputs.cls_logits[0].shape[1], torch.float64)
        sizes = [(level.shape[2], level.shape[3]) for level in outputs.cls_logits]
        grid = Grid(sizes, self.strides, pyramid_points(sizes, self.strides, packed.boxes.device, torch.float64).T)
        detached = HeadOutputs(*([level.detach() for level in kind] for kind in outputs))
        return boxes, grid, self.choose(detached, packed, boxes, grid)


@torch.no_grad()
def point_targets(choice: Choice, boxes: Boxes, grid: Grid) -> PointTargets:
    """Return what the points learn from the boxes they were given."""
    row, batch = choice.row, len(choice.row)
    corners, labels, weights = (  # the last entry is for points without a box, whose row is -1
        torch.cat((values, values.new_zeros(*values.shape[:-1], 1)), -1)[..., row]
        for values in (boxes.corners, boxes.labels, boxes.weights)
    )
    positive = weights > 0
    in_crowd = grid.inside(boxes.corners, boxes.image.where(boxes.is_crowd, batch), batch)
    ignored = in_crowd | ((row >= 0) & ~positive)
    return PointTargets(
        positive,
        ignored,
        labels.where(positive, 0),
        weights,
        box_sides(grid.points[:, None], corners).where(positive, 1),
        choice.quality.where(positive, 0),
    )


def mean_over_ranks(*values: Tensor) -> tuple[Tensor, ...]:
    """Return 0-d values as their means over all ranks, in one exchange."""
    return ranks.all_reduce_mean(torch.stack(values)).unbind()
