"""The outputs of a dense detection head, which losses, assigners and post-processing take."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class HeadOutputs(NamedTuple):
    """One tensor per pyramid level in each field, finest level first; any floating dtype and memory format."""

    cls_logits: Sequence[Tensor]  # [B, C, H, W]
    box_distances: Sequence[
        Tensor
    ]  # [B, 4, H, W] left, top, right, bottom, >= 0, from the point to the predicted sides
    objectness: Sequence[Tensor]  # [B, 1, H, W] logits

    @property
    def levels(self) -> list[Tensor]:
        """All tensors in one list: class logits of all levels, then distances, then objectness logits."""
        return [level for kind in self for level in kind]

    @property
    def arithmetic(self) -> torch.dtype:
        """Dtype to compute in: float64 if any tensor is float64, else float32."""
        return torch.float64 if any(level.dtype == torch.float64 for level in self.levels) else torch.float32
