"""The dual weight loss in Triton, which this import needs; running it needs a GPU or Triton's interpreter."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dwtriton.core.head_outputs import HeadOutputs
from dwtriton.core.targets import PackedTargets
from dwtriton.kernels.assign import dual_weights
from dwtriton.kernels.launch import INTERPRETED
from dwtriton.kernels.ops import DualWeightFunction, dual_weight

__all__ = ["INTERPRETED", "dual_weight_losses", "dual_weight_sums", "dual_weights"]


def dual_weight_sums(
    outputs: HeadOutputs, targets: PackedTargets, strides: Sequence[int], soft_prior: bool
) -> tuple[Tensor, Tensor]:
    """The same as `dwtriton.reference.dual_weight_sums`. Raises ValueError for float64."""
    strides = [float(stride) for stride in strides]
    sums, counts, *_ = dual_weight(*map(list, outputs), *targets, strides, soft_prior)
    return sums, counts


def dual_weight_losses(
    outputs: HeadOutputs,
    targets: PackedTargets,
    strides: Sequence[int],
    soft_prior: bool,
    normalisers: Callable[[Tensor], Tensor] | None,
) -> tuple[Tensor, ...]:
    """The same as `dwtriton.reference.dual_weight_losses`. Raises ValueError for float64."""
    if torch.compiler.is_compiling():
        sums, counts = dual_weight_sums(outputs, targets, strides, soft_prior)
        losses = sums / (counts.clamp(min=1) if normalisers is None else normalisers(counts))
        return losses[0], losses[1], losses[2]
    levels = len(outputs.cls_logits)
    return DualWeightFunction.apply(targets, strides, soft_prior, normalisers, levels, *outputs.levels)[:3]
