"""The loss in plain PyTorch, for any device: the fallback, and the reference of the Triton kernels.

All pairs of a box and a point inside it are visited twice, in chunks: to collect what the weights of a box share, and
to weigh them. Then dense passes read the class logits in place, a block at a time (dense.py).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from dwtriton.core.head_outputs import HeadOutputs
from dwtriton.core.targets import PackedTargets
from dwtriton.reference import dense, devices, formulas
from dwtriton.reference.autograd import register_gradients
from dwtriton.reference.pairs import Boxes, Pyramid, level_views, pair_terms, pairs_inside, read_boxes, read_pyramid

FIRST_OWNER = 2  # above any N: owners are counted from here, exactly in float32 up to 2^24


def dual_weight_sums(
    outputs: HeadOutputs, targets: PackedTargets, strides: Sequence[int], soft_prior: bool
) -> tuple[Tensor, Tensor]:
    """Sum each of the three losses over a batch (docs/method.md).

    Returns the sums [3] of loss_cls_pos, loss_loc and loss_cls_neg, and their normalisers [3] before the clamp: N_pos,
    N_pos and N_neg; float32, or float64 if any input is float64. An invalid box or label makes the three losses and
    all gradients NaN. Gradients come back in the dtype and layout of their input.
    """
    needs_grad = torch.is_grad_enabled() and any(level.requires_grad for level in outputs.levels)
    kinds = (list(kind) for kind in outputs)
    sums, counts, _ = sums_operator(*kinds, *targets, [float(stride) for stride in strides], soft_prior, needs_grad)
    return sums, counts


def dual_weight_losses(
    outputs: HeadOutputs,
    targets: PackedTargets,
    strides: Sequence[int],
    soft_prior: bool,
    normalisers: Callable[[Tensor], Tensor] | None,
) -> tuple[Tensor, ...]:
    """Return loss_cls_pos, loss_loc and loss_cls_neg, each 0-d (docs/method.md#normalisers).

    `normalisers(counts)` makes N_pos, N_pos and N_neg [3] of this rank's counts [3]; None: this rank is the only one.
    """
    sums, counts = dual_weight_sums(outputs, targets, strides, soft_prior)
    losses = sums / (counts.clamp(min=1) if normalisers is None else normalisers(counts))
    return losses[0], losses[1], losses[2]


def forward_pass(
    outputs: HeadOutputs, targets: PackedTargets, strides: Sequence[float], soft_prior: bool, needs_grad: bool
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return the sums [3], their normalisers [3], and what `backward_pass` needs.

    The last is a 0-d factor, NaN if the targets are invalid, else 1; and, if `needs_grad`, the fields of `_Weights`,
    which are constants for autograd: the backward pass only reads them.
    """
    dtype = outputs.arithmetic
    boxes = read_boxes(targets, num_classes=outputs.cls_logits[0].shape[1], dtype=dtype)
    pyramid = read_pyramid(outputs, strides, boxes)
    ignored = _ignored_points(pyramid)
    bags, owner = _collect(pyramid, soft_prior)
    weights, (cls_pos, loc, n_neg) = _weigh(pyramid, boxes, bags, owner, ignored, soft_prior, needs_grad)
    neg = level_views(weights.neg, pyramid.z)
    if ignored is not None:
        for level, points in zip(neg, _point_levels(ignored, outputs.objectness)):
            level.masked_fill_(points, 0)
    cls_neg = dense.negative_loss(pyramid.z, outputs.objectness, neg)

    nan_if_invalid = torch.where(boxes.valid, 1.0, torch.nan).to(dtype)
    n_pos = (boxes.weights * boxes.is_truth).sum(dtype=torch.float64)
    sums = torch.stack((cls_pos, loc, cls_neg)) * nan_if_invalid
    saved = [nan_if_invalid, *weights] if needs_grad else [nan_if_invalid]
    return sums.to(dtype), torch.stack((n_pos, n_pos, n_neg)).to(dtype), saved


def backward_pass(grad_sums: Tensor, outputs: HeadOutputs, saved: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradients of all levels: of class logits, then of distances, then of objectness logits.

    `grad_sums` is [3]; `saved` is the last result of `forward_pass`.
    """
    nan_if_invalid, *fields = saved
    weights = _Weights(*fields)
    grad_cls_pos, grad_loc, grad_cls_neg = grad_sums * nan_if_invalid
    pos, neg = (level_views(entries, outputs.cls_logits) for entries in (weights.pos, weights.neg))
    factors = formulas.POSITIVE_FACTOR * grad_cls_pos, grad_cls_neg
    grad_z, grad_u = dense.logit_gradients(outputs.cls_logits, outputs.objectness, pos, neg, *factors)
    slopes = zip(*(_point_levels(slope, outputs.objectness) for slope in weights.loc_slope * grad_loc))
    grad_d = [torch.empty_like(level).copy_(torch.cat(slope, 1)) for level, slope in zip(outputs.box_distances, slopes)]
    return [*grad_z, *grad_d, *grad_u]


# A new name wherever shapes of results change: compiled code that torch.compile has on disk knows operators by name.
@torch.library.custom_op("dwtriton::dual_weight_reference_sums", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,))
def sums_operator(
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
    needs_grad: bool,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """`forward_pass` as an operator, which `torch.compile` keeps whole: it reads numbers of pairs on the host."""
    outputs = HeadOutputs(cls_logits, box_distances, objectness)
    targets = PackedTargets(boxes, labels, offsets, iscrowd, weights)
    return forward_pass(outputs, targets, strides, soft_prior, needs_grad)


@sums_operator.register_fake
def _(cls_logits, box_distances, objectness, boxes, labels, offsets, iscrowd, weights, strides, soft_prior, needs_grad):
    dtype = HeadOutputs(cls_logits, box_distances, objectness).arithmetic
    sums, counts = (cls_logits[0].new_empty(3, dtype=dtype) for _ in range(2))
    entries, points = (sum(level.numel() for level in kind) for kind in (cls_logits, objectness))
    shapes = ((entries,), (entries,), (4, points)) if needs_grad else ()
    return sums, counts, [sums.new_empty(shape) for shape in ((), *shapes)]


@torch.library.custom_op("dwtriton::dual_weight_reference_gradients", mutates_args=())
def gradients_operator(
    grad_sums: Tensor,
    cls_logits: Sequence[Tensor],
    box_distances: Sequence[Tensor],
    objectness: Sequence[Tensor],
    saved: Sequence[Tensor],
) -> list[Tensor]:
    """`backward_pass` as an operator."""
    return backward_pass(grad_sums, HeadOutputs(cls_logits, box_distances, objectness), saved)


@gradients_operator.register_fake
def _(grad_sums, cls_logits, box_distances, objectness, saved):
    return [torch.empty_like(level) for level in (*cls_logits, *box_distances, *objectness)]


register_gradients(sums_operator, gradients_operator, lambda inputs, results: (results[2], ()))


class _Weights(NamedTuple):
    """The weights of a batch, constants for autograd."""

    pos: Tensor  # [B*P*C] sum of w_pos over the boxes of a class; empty if no gradient is wanted
    neg: Tensor  # [B*P*C] N
    loc_slope: Tensor  # [4, B*P] d(sum of the localisation loss) / d(distances); empty if no gradient is wanted


class _Bags(NamedTuple):
    """Sums and extremes over all points inside the box of each of S rectangles, each [S]."""

    denominator: Tensor  # of the positive weights
    deficit_min: Tensor
    deficit_max: Tensor  # at most 1


def _ignored_points(pyramid: Pyramid) -> Tensor | None:
    """Return which points lie strictly inside a crowd region, [B*P] bool; None if no point does."""
    if not sum(pyramid.crowd.totals):
        return None
    ignored = torch.zeros_like(pyramid.u, dtype=torch.bool)
    for pairs in pairs_inside(pyramid, pyramid.crowd):
        ignored[pairs.point] = True
    return ignored


def _point_levels(points: Tensor, objectness: Sequence[Tensor]) -> list[Tensor]:
    """View a value for each point [B*P] as a tensor for each level, [B, 1, H, W]."""
    parts = points.split([level.numel() for level in objectness])
    return [part.view(level.shape) for part, level in zip(parts, objectness)]


def _collect(pyramid: Pyramid, soft_prior: bool) -> tuple[_Bags, Tensor]:
    """Visit all pairs once, to collect what their weights share.

    Also returns for each entry [B*P*C] the rectangle of the last box of the class that holds the point, counted from
    FIRST_OWNER, and 1 if no box does. It is N as soon as owners are replaced by theirs; so no other map is needed.
    """
    inside = pyramid.truth.inside
    mass = torch.zeros(inside.numel(), dtype=torch.float64, device=inside.device)
    deficit_min = torch.full_like(pyramid.stride, torch.inf)
    deficit_max = torch.full_like(pyramid.stride, -torch.inf)
    owner = pyramid.stride.new_ones(sum(level.numel() for level in pyramid.z))
    for pairs in pairs_inside(pyramid, pyramid.truth):
        terms = pair_terms(pyramid, pairs, soft_prior)
        reduce = partial(torch.segment_reduce, lengths=pairs.lengths, unsafe=True)  # safe: the host waits for a check
        mass += reduce(formulas.positive_mass(terms.t, terms.prior).double(), "sum")
        deficit = formulas.iou_deficit(terms.overlap)
        deficit_min = torch.minimum(deficit_min, reduce(deficit, "min"))
        deficit_max = torch.maximum(deficit_max, reduce(deficit, "max"))
        owner.scatter_reduce_(0, pairs.entry, (pairs.rectangle + FIRST_OWNER).to(owner.dtype), "amax")
    bags = (
        mass.view_as(inside).sum(0).clamp(min=formulas.MIN_POSITIVE_SUM).to(pyramid.stride.dtype),
        deficit_min.view_as(inside).amin(0),
        deficit_max.view_as(inside).amax(0).clamp(max=1),
    )
    return _Bags(*(values.repeat(len(inside)) for values in bags)), owner


def _weigh(
    pyramid: Pyramid,
    boxes: Boxes,
    bags: _Bags,
    owner: Tensor,
    ignored: Tensor | None,
    soft_prior: bool,
    needs_grad: bool,
) -> tuple[_Weights, Tensor]:
    """Visit all pairs again, to weigh them.

    Returns the weights, where N does not know of ignored points yet and takes the place of `owner`; and the sums of
    both positive losses, and N_neg, [3] float64.
    """
    neg = owner
    pos = torch.zeros_like(neg if needs_grad else neg[:0])
    loc_slope = torch.zeros_like(pyramid.d if needs_grad else pyramid.d[:0])
    box_weights = boxes.weights.repeat(len(pyramid.z))
    sums = torch.zeros(3, dtype=torch.float64, device=neg.device)
    for pairs in pairs_inside(pyramid, pyramid.truth):
        terms = pair_terms(pyramid, pairs, soft_prior)
        denominator, deficit_min, deficit_max, box_weight = (
            values.index_select(0, pairs.rectangle) for values in (*bags, box_weights)
        )
        weight = formulas.positive_weight(terms.t, terms.prior, denominator) * box_weight
        loc_weight = formulas.BETA * weight
        if needs_grad:
            slope = formulas.reg_loss_gradient(terms.distances, terms.sides) * (formulas.POSITIVE_FACTOR * loc_weight)
            devices.add_at(pos, pairs.entry, weight)
            devices.add_at(loc_slope, pairs.point, slope)

        has_weight = box_weight > 0
        p_neg = formulas.p_neg(terms.overlap, deficit_min, deficit_max)
        decides = neg.index_select(0, pairs.entry) == pairs.rectangle + FIRST_OWNER
        neg.scatter_reduce_(0, pairs.entry, torch.where(decides, p_neg * has_weight, torch.inf), "amin")

        cls_loss = formulas.neg_log_score(terms.z, terms.u).clamp_(max=formulas.MAX_LOG)
        counts = decides & has_weight if ignored is None else decides & has_weight & ~ignored[pairs.point]
        parts = weight * cls_loss, loc_weight * terms.overlap.reg_loss, (1 - p_neg) * counts
        sums += torch.stack([part.sum(dtype=torch.float64) for part in parts])
    sums[:2] *= formulas.POSITIVE_FACTOR
    return _Weights(pos, neg, loc_slope), sums
