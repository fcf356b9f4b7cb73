"""The kernels for autograd: operators, which `torch.compile` keeps whole, and a function for everything else."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dwtriton.core.head_outputs import HeadOutputs
from dwtriton.core.targets import PackedTargets
from dwtriton.kernels.bags import box_bags
from dwtriton.kernels.boxes import FIELDS, box_table
from dwtriton.kernels.configs import KernelConfigs, Key
from dwtriton.kernels.correction import correct
from dwtriton.kernels.dense import dense_backward, dense_forward
from dwtriton.kernels.finish import finish
from dwtriton.kernels.inputs import Boxes, Pyramid, read_boxes, read_pyramid
from dwtriton.kernels.launch import INTERPRETED, Beside, Levels
from dwtriton.kernels.pairs import pairs_backward
from dwtriton.kernels.squares import squares_of
from dwtriton.kernels.touching import Touching, empty_touching, find_touching
from dwtriton.kernels.tuning import lookup
from dwtriton.reference.autograd import SECOND_DERIVATIVE, register_gradients


def configs_for(pyramid: Pyramid) -> KernelConfigs:
    """Block sizes: they depend on the shape of one image, never on what else is in the batch."""
    level = pyramid.z[0]
    layout = "channels_last" if pyramid.z_last else "contiguous"
    return lookup(level.device, Key(level.dtype, layout, pyramid.num_classes, pyramid.points))


def forward_pass(
    pyramid: Pyramid, boxes: Boxes, soft_prior: bool, configs: KernelConfigs
) -> tuple[Tensor, Tensor, tuple[Tensor, ...], Tensor, Tensor, Touching]:
    """What `finish` returns, the table of boxes, and which boxes touch which squares.

    The pairs do not wait for the dense pass: on a GPU they run beside it, in a stream of their own.
    """
    squares = squares_of(pyramid)
    touching, totals = empty_touching(pyramid, squares, boxes.corners.device)
    with Beside(boxes.labels) as other:
        with other.launches():
            bags = box_bags(pyramid, boxes, soft_prior, configs.bags)  # kept to the end, as are the others
            table, box_sums = box_table(pyramid, boxes, *bags)
            find_touching(pyramid, boxes.offsets, table, squares, touching, totals)
            pair_sums = correct(pyramid, boxes.offsets, table, squares, touching)
        dense_sums = dense_forward(pyramid, configs.dense_forward)
    return *finish(pyramid, dense_sums, pair_sums, box_sums), table, touching


def backward_pass(
    pyramid: Pyramid,
    offsets: Tensor,  # [B + 1]
    table: Tensor,
    touching: Touching,
    poison: Tensor,
    norms: Tensor,  # [3]
    grad_losses: Sequence[Tensor],  # three, []
    soft_prior: bool,
    configs: KernelConfigs,
) -> list[Tensor]:
    """Gradients of class logits, distances and objectness logits, one after the other, given those of the losses.

    The losses are the sums over `norms`. Each gradient has dtype and memory of its level in `pyramid`; from the
    interpreter, which would cut off bits where a GPU rounds, all are float32.
    """
    dtype = torch.float32 if INTERPRETED else None
    kinds = (pyramid.z, pyramid.d, pyramid.u)
    grads = [Levels([torch.empty_like(level, dtype=dtype) for level in kind]) for kind in kinds]
    dense_grad_u = dense_backward(pyramid, poison, norms, grad_losses[2], grads, configs.dense_backward)
    inputs = (pyramid, offsets, table, squares_of(pyramid), touching, poison, norms, grad_losses, dense_grad_u, grads)
    pairs_backward(*inputs, soft_prior)
    return [level for kind in grads for level in kind]


class DualWeightFunction(torch.autograd.Function):
    """The losses outside of compiled code, where an operator would cost more than the kernels do."""

    @staticmethod
    def forward(ctx, targets: PackedTargets, strides, soft_prior, normalisers, levels, *tensors):
        """`normalisers`: see `dual_weight_losses`; `tensors`: logits of all levels, then distances, then objectness."""
        outputs = HeadOutputs(*(tensors[i * levels : (i + 1) * levels] for i in range(3)))
        pyramid, boxes = read_pyramid(outputs, strides), read_boxes(targets)
        with torch.cuda.device_of(boxes.corners):  # Triton launches on the current device
            results = forward_pass(pyramid, boxes, soft_prior, configs_for(pyramid))
        sums, counts, normalised, poison, table, touching = results
        norms, *losses = normalised
        if normalisers is not None:
            norms = normalisers(counts)
            losses = [total / norm for total, norm in zip(sums, norms)]
        ctx.save_for_backward(boxes.offsets, poison, norms, table, *touching, *tensors)
        ctx.strides, ctx.soft_prior, ctx.levels = strides, soft_prior, levels
        ctx.mark_non_differentiable(counts)
        ctx.set_materialize_grads(False)
        return *losses, counts

    @staticmethod
    def backward(ctx, *grads):
        if all(grad is None for grad in grads[:3]):
            return (None,) * (5 + 3 * ctx.levels)
        if torch.is_grad_enabled():
            raise RuntimeError(SECOND_DERIVATIVE)
        offsets, poison, norms, table, *tensors = ctx.saved_tensors
        touching, tensors = Touching(*tensors[: -3 * ctx.levels]), tensors[-3 * ctx.levels :]
        grads = [poison.new_zeros(()) if grad is None else grad for grad in grads[:3]]
        outputs = HeadOutputs(*(tensors[i * ctx.levels : (i + 1) * ctx.levels] for i in range(3)))
        pyramid = read_pyramid(outputs, ctx.strides)
        with torch.cuda.device_of(table):
            inputs = (pyramid, offsets, table, touching, poison, norms, grads, ctx.soft_prior)
            results = backward_pass(*inputs, configs_for(pyramid))
        return *(None,) * 5, *(_as_level(*pair) for pair in zip(results, tensors))


@torch.library.custom_op("dwtriton::dual_weight", mutates_args=())
def dual_weight(
    cls_logits: Sequence[Tensor],
    box_distances: Sequence[Tensor],
    objectness: Sequence[Tensor],
    boxes: Tensor,
    labels: Tensor,
    offsets: Tensor,
    iscrowd: Tensor | None,
    weights: Tensor | None,
    strides: Sequence[float],
    soft_prior: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sums of the three losses [3], what normalises each [3], poison [] and the table of boxes."""
    pyramid = read_pyramid(HeadOutputs(cls_logits, box_distances, objectness), strides)
    rows = read_boxes(PackedTargets(boxes, labels, offsets, iscrowd, weights))
    with torch.cuda.device_of(boxes):  # Triton launches on the current device
        sums, counts, _, poison, table, _ = forward_pass(pyramid, rows, soft_prior, configs_for(pyramid))
    return sums, counts, poison, table


@dual_weight.register_fake
def _(cls_logits, box_distances, objectness, boxes, labels, offsets, iscrowd, weights, strides, soft_prior):
    def empty(*shape: int) -> Tensor:
        return boxes.new_empty(shape, dtype=torch.float32)

    return empty(3), empty(3), empty(), empty(FIELDS * labels.shape[0])


@torch.library.custom_op("dwtriton::dual_weight_backward", mutates_args=())
def dual_weight_backward(
    grad_losses: Tensor,
    cls_logits: Sequence[Tensor],
    box_distances: Sequence[Tensor],
    objectness: Sequence[Tensor],
    saved: Sequence[Tensor],
    strides: Sequence[float],
    soft_prior: bool,
) -> list[Tensor]:
    """Gradients of all levels: of class logits, then of distances, then of objectness logits.

    `saved`: the offsets of the targets, then the last two results of `dual_weight`.
    """
    offsets, poison, table = saved
    pyramid = read_pyramid(HeadOutputs(cls_logits, box_distances, objectness), strides)
    norms, grads = torch.ones_like(grad_losses), grad_losses.contiguous().unbind()
    offsets, squares = offsets.contiguous(), squares_of(pyramid)
    with torch.cuda.device_of(table):
        touching, totals = empty_touching(pyramid, squares, table.device)
        find_touching(pyramid, offsets, table, squares, touching, totals)  # again: compilers want sizes beforehand
        inputs = (pyramid, offsets, table, touching, poison, norms, grads, soft_prior)
        results = backward_pass(*inputs, configs_for(pyramid))
    return [_as_level(*pair) for pair in zip(results, (*cls_logits, *box_distances, *objectness))]


def _as_level(grad: Tensor, level: Tensor) -> Tensor:
    """The gradient in dtype and memory format of its level; copied only where the kernels could not read the level."""
    if grad.dtype == level.dtype and grad.stride() == level.stride():
        return grad
    return torch.empty_like(level).copy_(grad)


@dual_weight_backward.register_fake
def _(grad_losses, cls_logits, box_distances, objectness, *_):
    return [torch.empty_like(level) for level in (*cls_logits, *box_distances, *objectness)]


register_gradients(dual_weight, dual_weight_backward, lambda inputs, results: ((inputs[5], *results[2:]), inputs[8:]))
