"""The dual weight loss in Triton. Importing this needs Triton; using it a GPU, or Triton's interpreter."""

from collections.abc import Sequence

from torch import Tensor

from dwtriton.core.targets import PackedTargets
from dwtriton.kernels.assign import dual_weights
from dwtriton.kernels.inputs import INTERPRETED
from dwtriton.kernels.ops import dual_weight

__all__ = ["INTERPRETED", "dual_weight_sums", "dual_weights"]


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
