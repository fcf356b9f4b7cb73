"""The head's outputs and the ground truth as kernels take them: every level where it lies, all memory dense."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from operator import mul
from typing import NamedTuple

import torch
from torch import Tensor

from dwtriton.core.head_outputs import HeadOutputs
from dwtriton.core.targets import PackedTargets
from dwtriton.kernels.launch import Levels

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MAX_POINTS = 2**29  # of a batch on all levels: each has four distances


@dataclass(frozen=True)
class Pyramid:
    """Levels from the finest to the coarsest. Each kind has one dtype and one layout, channels_last or contiguous."""

    z: Levels  # class logits, [B, C, H, W]
    d: Levels  # distances, [B, 4, H, W]
    u: Levels  # objectness logits, [B, 1, H, W]
    heights: tuple[int, ...]
    widths: tuple[int, ...]
    strides: tuple[float, ...]
    z_last: bool  # z is channels_last
    d_last: bool

    @property
    def batch(self) -> int:
        return self.z[0].shape[0]

    @property
    def num_classes(self) -> int:
        return self.z[0].shape[1]

    @cached_property
    def sizes(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Heights and widths as floats: as integers in tuples they would compile the kernels anew."""
        return tuple(map(float, self.heights)), tuple(map(float, self.widths))

    @cached_property
    def arguments(self) -> tuple[Levels | tuple[float, ...], ...]:
        """The first arguments of most kernels: logits, distances, objectness logits, heights, widths and strides."""
        return self.z, self.d, self.u, *self.sizes, self.strides

    @cached_property
    def areas(self) -> list[int]:
        """Points of one image on each level."""
        return list(map(mul, self.heights, self.widths))

    @property
    def points(self) -> int:
        """Points of one image."""
        return sum(self.areas)

    def dense_programs(self, points: int) -> int:
        """Programs of `points` points each: of one level, and of one image unless channels lie last."""
        if self.z_last:
            return sum([-(-self.batch * area // points) for area in self.areas])
        return self.batch * sum([-(-area // points) for area in self.areas])


class Boxes(NamedTuple):
    """Packed targets; rows from `offsets[B]` on are padding."""

    corners: Tensor  # [N, 4] float32 xyxy
    labels: Tensor  # [N] int64
    iscrowd: Tensor  # [N] uint8
    weights: Tensor | None  # [N] float32
    offsets: Tensor  # [B + 1] int32


def read_pyramid(outputs: HeadOutputs, strides: Sequence[float]) -> Pyramid:
    """The levels without a copy where each kind is channels_last or contiguous and of one dtype, else dense copies.

    Raises ValueError for other dtypes than float32, float16 and bfloat16, and for more than the kernels can address.
    """
    for dtype in {level.dtype for level in outputs.levels}:
        if dtype not in DTYPES:
            raise ValueError(f'the kernels take float32, float16 and bfloat16; for {dtype} use backend="torch"')
    batch, num_classes = outputs.cls_logits[0].shape[:2]
    heights, widths = zip(*[level.shape[2:] for level in outputs.cls_logits])
    points = sum(map(mul, heights, widths))
    if points * max(num_classes, 4) >= 2**31 or points >= 2**24:
        raise ValueError(
            f"{points} points with {num_classes} classes in an image are more than the kernels can address"
        )
    if batch * points >= MAX_POINTS:
        raise ValueError(f"{batch} images of {points} points are more than the kernels can address")
    (z, z_last), (d, d_last), (u, _) = map(_dense, outputs)
    return Pyramid(z, d, u, heights, widths, tuple(map(float, strides)), z_last, d_last)


def read_boxes(targets: PackedTargets) -> Boxes:
    """The targets, with crowd flags whether or not they were given. Raises ValueError for 2^24 boxes or more."""
    if targets.labels.shape[0] >= 2**24:
        raise ValueError(f"{targets.labels.shape[0]} boxes in the batch; the kernels take less than 2^24")
    iscrowd = targets.iscrowd
    if iscrowd is None:
        iscrowd = torch.zeros_like(targets.labels, dtype=torch.bool)
    return Boxes(
        targets.boxes.float().contiguous(),
        targets.labels.contiguous(),
        iscrowd.contiguous().view(torch.uint8),
        None if targets.weights is None else targets.weights.float().contiguous(),
        targets.offsets.contiguous(),
    )


def _dense(levels: Sequence[Tensor]) -> tuple[Levels, bool]:
    """The levels of one kind, and whether they are channels_last."""
    dtypes = {level.dtype for level in levels}
    if len(dtypes) > 1:
        dtype = reduce(torch.promote_types, dtypes)
        levels = [level.to(dtype) for level in levels]
    if all([level.is_contiguous(memory_format=torch.channels_last) for level in levels]):
        return Levels(levels), True
    return Levels([level.contiguous() for level in levels]), False
