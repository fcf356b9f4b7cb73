"""The loss in plain PyTorch, for any device: the fallback, and the reference of the Triton kernels.

No [points x boxes] tensor exists: pairs of a box and a point inside it are enumerated in chunks, and classification
logits are read in place, a block of rows at a time.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dwtriton.core.head_outputs import HeadOutputs
from dwtriton.core.targets import PackedTargets
from dwtriton.reference import formulas
from dwtriton.reference.autograd import register_gradients
from dwtriton.reference.pairs import (
    Boxes,
    Level,
    memory,
    memory_offsets,
    pair_terms,
    pairs_inside,
    read_boxes,
    read_level,
)

UNCOUNTED = -1.0  # stands for N where a box of weight 0 decides, until N_neg is summed: the entry is ignored
ENTRIES_PER_BLOCK = 2**17  # class logits in one step of the dense pass: its temporary tensors stay in the cache


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

    The last is a 0-d factor, NaN if the targets are invalid, else 1; and, if `needs_grad`, the three maps of
    `_LevelWeights` for each level. The weights are constants for autograd: the backward pass only reads them.
    """
    dtype = outputs.arithmetic
    boxes = read_boxes(targets, num_classes=outputs.cls_logits[0].shape[1], dtype=dtype)
    levels = [read_level(*level, stride, boxes) for *level, stride in zip(*outputs, strides)]
    bags = _bag_statistics(levels, boxes, soft_prior)

    sums = torch.zeros(4, dtype=torch.float64, device=boxes.corners.device)  # of the three losses and of 1 - N
    maps = []
    for level in levels:
        weights = _level_weights(level, boxes, bags, soft_prior, needs_grad, sums)
        _dense_forward(level, weights.neg, _ignored_points(level, boxes), sums)
        maps += weights if needs_grad else ()
    nan_if_invalid = torch.where(boxes.valid, 1.0, torch.nan).to(dtype)
    weight = (boxes.weights * boxes.is_truth).sum(dtype=torch.float64)
    counts = torch.stack((weight, weight, sums[3])).to(dtype)
    return (sums[:3] * nan_if_invalid).to(dtype), counts, [nan_if_invalid, *maps]


def backward_pass(grad_sums: Tensor, outputs: HeadOutputs, saved: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradients of all levels: of class logits, then of distances, then of objectness logits.

    `grad_sums` is [3]; `saved` is the last result of `forward_pass`.
    """
    nan_if_invalid, *maps = saved
    grad_cls_pos, grad_loc, grad_cls_neg = grad_sums * nan_if_invalid
    grads = [[torch.empty_like(level) for level in kind] for kind in outputs]
    for i, (z, _, u) in enumerate(zip(*outputs)):
        weights = _LevelWeights(*maps[3 * i : 3 * i + 3])
        grad_z, grad_d, grad_u = (kind[i] for kind in grads)
        _dense_backward(z, u, weights, grad_cls_pos, grad_cls_neg, grad_z, grad_u)
        batch, _, height, width = grad_d.shape
        grad_d.copy_((weights.loc_slope * grad_loc).view(4, batch, height, width).transpose(0, 1))
    return [grad for kind in grads for grad in kind]


@torch.library.custom_op("dwtriton::dual_weight_reference", mutates_args=())
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
    maps = []
    for level in cls_logits if needs_grad else ():
        batch, _, height, width = level.shape
        per_class = [torch.empty_like(level, dtype=dtype) for _ in range(2)]
        maps += [*per_class, level.new_empty(4, batch * height * width, dtype=dtype)]
    sums, counts = (cls_logits[0].new_empty(3, dtype=dtype) for _ in range(2))
    return sums, counts, [sums.new_empty(()), *maps]


@torch.library.custom_op("dwtriton::dual_weight_reference_backward", mutates_args=())
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


class _Bags(NamedTuple):
    """Sums and extremes over all points inside each of the N boxes, each [N]."""

    denominator: Tensor  # of the positive weights
    deficit_min: Tensor
    deficit_max: Tensor  # at most 1


class _LevelWeights(NamedTuple):
    """A level's weights, all constants for autograd. The first two have the memory layout of the logits' gradient."""

    pos: Tensor  # [B, C, H, W] sum of w_pos over the boxes of a class
    neg: Tensor  # [B, C, H, W] N
    loc_slope: Tensor  # [4, B*H*W] d(sum of the localisation loss) / d(distances)


def _bag_statistics(levels: list[Level], boxes: Boxes, soft_prior: bool) -> _Bags:
    """Visit all pairs of each box once, to collect what its weights share."""
    mass = torch.zeros_like(boxes.corners[0], dtype=torch.float64)
    deficit_min = torch.full_like(boxes.corners[0], torch.inf)
    deficit_max = torch.full_like(boxes.corners[0], -torch.inf)
    for level in levels:
        for pairs in pairs_inside(level, boxes, boxes.is_truth):
            terms = pair_terms(level, boxes, pairs, soft_prior)
            mass.index_add_(0, pairs.box, formulas.positive_mass(terms.t, terms.prior).double())
            deficit = formulas.iou_deficit(terms.overlap)
            deficit_min.scatter_reduce_(0, pairs.box, deficit, "amin")
            deficit_max.scatter_reduce_(0, pairs.box, deficit, "amax")
    denominator = mass.clamp(min=formulas.MIN_POSITIVE_SUM).to(boxes.corners.dtype)
    return _Bags(denominator, deficit_min, deficit_max.clamp(max=1))


def _level_weights(
    level: Level, boxes: Boxes, bags: _Bags, soft_prior: bool, needs_grad: bool, sums: Tensor
) -> _LevelWeights:
    """Weigh the pairs of a level and add its positive losses to `sums`. Without gradients only `neg` is filled."""
    dtype = boxes.corners.dtype
    neg = torch.empty_like(level.z, dtype=dtype).fill_(1)
    pos = torch.zeros_like(level.z if needs_grad else level.z[:0], dtype=dtype)
    loc_slope = level.flat_d.new_zeros(level.flat_d.shape)
    owner = torch.full_like(memory(neg), -1, dtype=torch.int32)  # the last box of the class that holds the point
    for pairs in pairs_inside(level, boxes, boxes.is_truth):
        terms = pair_terms(level, boxes, pairs, soft_prior)
        offsets = memory_offsets(neg, pairs, boxes)

        weight = formulas.positive_weight(terms.t, terms.prior, bags.denominator[pairs.box]) * boxes.weights[pairs.box]
        cls_loss = formulas.neg_log_score(terms.z, terms.u).clamp_(max=formulas.MAX_LOG)
        sums[0] += formulas.POSITIVE_FACTOR * (weight * cls_loss).sum()
        sums[1] += formulas.POSITIVE_FACTOR * (weight * formulas.BETA * terms.overlap.reg_loss).sum()
        if needs_grad:
            memory(pos).index_add_(0, offsets, weight)
            factor = formulas.POSITIVE_FACTOR * formulas.BETA * weight
            slope = formulas.reg_loss_gradient(terms.distances, terms.sides) * factor
            loc_slope.scatter_add_(1, pairs.point.expand(4, -1), slope)

        box = pairs.box.to(torch.int32)
        owner.scatter_reduce_(0, offsets, box, "amax")
        is_owner = owner[offsets] == box  # so far: a later chunk may overwrite it
        p_neg = formulas.p_neg(terms.overlap, bags.deficit_min[pairs.box], bags.deficit_max[pairs.box])
        p_neg.masked_fill_(boxes.weights[pairs.box] == 0, UNCOUNTED)
        memory(neg)[offsets[is_owner]] = p_neg[is_owner]
    return _LevelWeights(pos, neg, loc_slope)


def _ignored_points(level: Level, boxes: Boxes) -> Tensor | None:
    """Return which points lie strictly inside a crowd region, [B, 1, H, W] bool; None if the batch has no region."""
    if not boxes.is_crowd.any():
        return None
    ignored = torch.zeros_like(level.flat_u, dtype=torch.bool)
    for pairs in pairs_inside(level, boxes, boxes.is_crowd):
        ignored[pairs.point] = True
    return ignored.view(level.u.shape)


def _blocks(z: Tensor) -> Iterator[tuple[slice, slice, slice]]:
    """Yield indices that cut [B, C, H, W] logits into blocks: several images, or some rows of one."""
    batch, classes, height, width = z.shape
    rows = min(height, max(1, ENTRIES_PER_BLOCK // (classes * width)))
    images = max(1, ENTRIES_PER_BLOCK // (classes * width * height))
    for begin in range(0, batch, images):
        for top in range(0, height, rows):
            yield slice(begin, begin + images), slice(None), slice(top, top + rows)


def _dense_forward(level: Level, neg: Tensor, ignored: Tensor | None, sums: Tensor) -> None:
    """Add a level's negative loss and its sum of 1 - N to `sums`; set N to 0 at ignored points and entries."""
    if ignored is not None:
        neg.masked_fill_(ignored, 1)  # they do not count in the normaliser
    for block in _blocks(level.z):
        weight = neg[block]
        z, u = level.z[block].to(neg.dtype), level.u[block].to(neg.dtype)
        sums[3] += (1 - weight.abs()).sum()
        weight.clamp_(min=0)
        if ignored is not None:
            weight.masked_fill_(ignored[block], 0)
        score = z.sigmoid().mul_(u.sigmoid())
        loss = formulas.neg_log_complement(score, z, u).clamp_(max=formulas.MAX_LOG)
        sums[2] += loss.mul_(score).mul_(score).mul_(weight).sum()


def _dense_backward(
    z: Tensor, u: Tensor, weights: _LevelWeights, grad_pos: Tensor, grad_neg: Tensor, grad_z: Tensor, grad_u: Tensor
) -> None:
    """Write a level's gradients of classification and objectness logits, given those of the two sums."""
    dtype = weights.neg.dtype
    for block in _blocks(z):
        z_block, u_block = z[block].to(dtype), u[block].to(dtype)
        neg, pos = weights.neg[block] * grad_neg, weights.pos[block] * (formulas.POSITIVE_FACTOR * grad_pos)
        grad_z[block], grad_u[block] = formulas.logit_gradients(z_block, u_block, neg, pos)
