"""The outputs of a dense detection head, which losses, assigners and post-processing take."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dwtriton.core.tensors import describe, is_dense

Levels = Sequence[Tensor]  # one tensor per pyramid level, finest first


class HeadOutputs(NamedTuple):
    """One tensor per pyramid level in each field, finest level first; any floating dtype and memory format."""

    cls_logits: Levels  # [B, C, H, W]
    box_distances: Levels  # [B, 4, H, W] left, top, right, bottom, >= 0, from the point to predicted sides
    objectness: Levels  # [B, 1, H, W] logits

    @property
    def levels(self) -> list[Tensor]:
        """All tensors in one list: class logits of all levels, then distances, then objectness logits."""
        return [level for kind in self for level in kind]

    @property
    def arithmetic(self) -> torch.dtype:
        """Dtype to compute in: float64 if any tensor is float64, else float32."""
        return torch.float64 if any(level.dtype == torch.float64 for level in self.levels) else torch.float32


def check_strides(strides: Sequence[int]) -> tuple[int, ...]:
    """Return the strides as a tuple. Raises ValueError unless there is one and all are positive."""
    numbers = isinstance(strides, list | tuple) and all(isinstance(s, int | float) for s in strides)
    if not numbers or not strides or not all(0 < stride < math.inf for stride in strides):
        raise ValueError(f"strides must be positive pixels, one for each level, not {strides!r}")
    return tuple(strides)


def check_levels(
    strides: Sequence[int],
    cls_logits: Levels,
    box_distances: Levels,
    objectness: Levels | None,
    some_images: bool = True,
) -> None:
    """Raise ValueError unless each field has one floating tensor per stride, of fitting shapes, all on one device.

    Without `some_images` there may be none.
    """
    named = {"cls_logits": cls_logits, "box_distances": box_distances}
    if objectness is not None:
        named["objectness"] = objectness
    for name, levels in named.items():
        if not isinstance(levels, list | tuple) or not all(isinstance(level, Tensor) for level in levels):
            raise ValueError(f"{name} must be a list of tensors, one for each level")
        if not levels or len(levels) != len(strides):
            raise ValueError(f"{name} has {len(levels)} levels, but the strides are {strides}: one level for each")
    first = cls_logits[0]
    if first.ndim != 4 or 0 in first.shape[0 if some_images else 1 :]:
        raise ValueError(f"cls_logits[0] must be (B, C, H, W) and not empty, not {tuple(first.shape)}")
    batch, num_classes = first.shape[:2]  # not len(), which torch.export takes for a constant
    for i, logits in enumerate(cls_logits):
        size = tuple(logits.shape[2:])
        for (name, levels), channels in zip(named.items(), (num_classes, 4, 1)):
            level = levels[i]
            if level.shape != (batch, channels, *size) or len(size) != 2 or 0 in size:
                expected = f"({batch}, {channels}, H, W)" if name == "cls_logits" else (batch, channels, *size)
                raise ValueError(f"{name}[{i}] must be {expected} and not empty, not {tuple(level.shape)}")
            if not level.is_floating_point():
                raise ValueError(f"{name}[{i}] must be a floating tensor, not {level.dtype}")
            if level.device != first.device:
                raise ValueError(f"{name}[{i}] lies on {level.device}, cls_logits[0] on {first.device}")
            if not is_dense(level):
                raise ValueError(f"{name}[{i}] must be a dense tensor, not {describe(level)}")
