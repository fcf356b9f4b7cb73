"""The dual weight loss in Triton. Importing this needs Triton; using it a GPU, or Triton's interpreter."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dwtriton.kernels.assign import dual_weights
from dwtriton.kernels.launch import INTERPRETED
from dwtriton.kernels.ops import DualWeightFunction, dual_weight
from dwtriton.targets import PackedTargets

__all__ = ["INTERPRETED", "dual_weight_losses", "dual_weight_sums", "dual_weights"]


def dual_weight_sums(
    cls_logits: Sequence[Tensor],
    box_distances: Sequence[Tensor],
    objectness: Sequence[Tensor],
    targets: PackedTargets,
    strides: Sequence[int],
    soft_prior: bool,
) -> tuple[Tensor, Tensor]:
    """The same as `dwtriton.reference.dual_weight_sums`. Raises ValueError for float64."""
    strides = [float(stride) for stride in strides]
    losses, counts, *_ = dual_weight(
        list(cls_logits), list(box_distances), list(objectness), *targets, strides, soft_prior
    )
    return losses, counts


def dual_weight_losses(
    cls_logits: Sequence[Tensor],
    box_distances: Sequence[Tensor],
    objectness: Sequence[Tensor],
    targets: PackedTargets,
    strides: Sequence[int],
    soft_prior: bool,
    normalise: Callable[[Tensor], Tensor] | None,
) -> tuple[Tensor, ...]:
    """The same as `dwtriton.reference.dual_weight_losses`. Raises ValueError for float64."""
    if torch.compiler.is_compiling():
        sums, counts = dual_weight_sums(cls_logits, box_distances, objectness, targets, strides, soft_prior)
        return (sums / (counts.clamp(min=1) if normalise is None else normalise(counts))).unbind()
    tensors = (*cls_logits, *box_distances, *objectness)
    return DualWeightFunction.apply(targets, strides, soft_prior, normalise, len(cls_logits), *tensors)[:3]
