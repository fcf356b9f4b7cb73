"""The dual weight loss in Triton, which this import needs; running it needs a GPU or Triton's interpreter."""

from collections.abc import Sequence

from torch import Tensor

from dwtriton.core.head_outputs import HeadOutputs
from dwtriton.core.targets import PackedTargets
from dwtriton.kernels.assign import dual_weights
from dwtriton.kernels.inputs import INTERPRETED
from dwtriton.kernels.ops import dual_weight

__all__ = ["INTERPRETED", "dual_weight_sums", "dual_weights"]


def dual_weight_sums(
    outputs: HeadOutputs, targets: PackedTargets, strides: Sequence[int], soft_prior: bool
) -> tuple[Tensor, Tensor]:
    """The same as `dwtriton.reference.dual_weight_sums`. Raises ValueError for float64."""
    strides = [float(stride) for stride in strides]
    losses, counts, *_ = dual_weight(*map(list, outputs), *targets, strides, soft_prior)
    return losses, counts
