"""The kernels as PyTorch operators, which `torch.compile` keeps whole: one for the sums, one for their gradients."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dwtriton.core.targets import PackedTargets
from dwtriton.kernels.backward import dense_backward
from dwtriton.kernels.forward import dense_forward
from dwtriton.kernels.inputs import SPLITS, Pyramid, read_boxes, read_pyramid
from dwtriton.kernels.statistics import BoxStatistics, box_statistics
from dwtriton.kernels.tuning import KernelConfigs, Key, lookup
from dwtriton.reference.autograd import register_gradients


def configs_for(pyramid: Pyramid) -> KernelConfigs:
    """Block sizes: they depend on the shape of one image, never on what else is in the batch."""
    level = pyramid.z[0]
    layout = "channels_last" if pyramid.z_last else "contiguous"
    return lookup(level.device, Key(level.dtype, layout, pyramid.num_classes, pyramid.points))


@torch.library.custom_op("dwtriton::dual_weight", mutates_args=())
def dual_weight(
    cls_logits: Sequence[Tensor],
    box_distances: Sequence[Tensor],
    objectness: Sequence[Tensor],
    boxes: Tensor,
    labels: Tensor,
    offsets: Tensor,
    iscrowd: Tensor | None,
    strides: Sequence[float],
    soft_prior: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Sums of the three losses [3], what normalises each [3], poison [], and what `box_statistics` returns."""
    pyramid = read_pyramid(cls_logits, box_distances, objectness, strides)
    rows = read_boxes(PackedTargets(boxes, labels, offsets, iscrowd))
    configs = configs_for(pyramid)
    with torch.cuda.device_of(boxes):  # Triton launches on the current device
        statistics = box_statistics(pyramid, rows, soft_prior, configs.statistics)
        return *dense_forward(pyramid, rows, statistics, soft_prior, configs.forward), *statistics


@dual_weight.register_fake
def _(cls_logits, box_distances, objectness, boxes, labels, offsets, iscrowd, strides, soft_prior):
    def empty(*shape: int) -> Tensor:
        return boxes.new_empty(shape, dtype=torch.float32)

    return empty(3), empty(3), empty(), empty(6, labels.shape[0]), empty(labels.shape[0], 3, SPLITS)


@torch.library.custom_op("dwtriton::dual_weight_backward", mutates_args=())
def dual_weight_backward(
    grad_losses: Tensor,
    cls_logits: Sequence[Tensor],
    box_distances: Sequence[Tensor],
    objectness: Sequence[Tensor],
    saved: Sequence[Tensor | None],
    strides: Sequence[float],
    soft_prior: bool,
) -> list[Tensor]:
    """Gradients of all levels: of class logits, then of distances, then of objectness logits.

    `saved`: the fields of the targets, then the last three results of `dual_weight`.
    """
    *targets, poison, ranked, parts = saved
    pyramid = read_pyramid(cls_logits, box_distances, objectness, strides)
    rows, statistics = read_boxes(PackedTargets(*targets)), BoxStatistics(ranked, parts)
    config = configs_for(pyramid).backward
    with torch.cuda.device_of(parts):
        grads = dense_backward(pyramid, rows, statistics, poison, grad_losses, soft_prior, config)
    return [_as_level(*pair) for pair in zip(grads, (*cls_logits, *box_distances, *objectness))]


def _as_level(grad: Tensor, level: Tensor) -> Tensor:
    """The gradient in dtype and memory format of its level; copied only where the kernels could not read the level."""
    if grad.dtype == level.dtype and grad.stride() == level.stride():
        return grad
    return torch.empty_like(level).copy_(grad)


@dual_weight_backward.register_fake
def _(grad_losses, cls_logits, box_distances, objectness, *_):
    return [torch.empty_like(level) for level in (*cls_logits, *box_distances, *objectness)]


register_gradients(
    dual_weight, dual_weight_backward, lambda inputs, results: ((*inputs[3:7], *results[2:]), inputs[7:])
)
