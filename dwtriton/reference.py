"""The loss in plain PyTorch, for any device: the fallback, and what the Triton kernels are compared with.

No [points x boxes] tensor exists: pairs of a box and a point inside it are enumerated in chunks, and classification
logits are read where they lie, a block of rows at a time.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dwtriton import formulas
from dwtriton.dense_weights import dual_weights
from dwtriton.pairs import Boxes, Level, memory, pair_terms, pairs_inside, places_in, read_boxes, read_level
from dwtriton.targets import PackedTargets

__all__ = ["dual_weight_losses", "dual_weight_sums", "dual_weights"]  # what a backend provides

UNCOUNTED = -1.0  # N, for the time being, of entries to ignore: 0 in the loss, 1 in the normaliser
ENTRIES_PER_BLOCK = 2**17  # class logits in a step of the dense pass, whose temporary tensors stay in the cache


def dual_weight_sums(
    cls_logits: Sequence[Tensor],
    box_distances: Sequence[Tensor],
    objectness: Sequence[Tensor],
    targets: PackedTargets,
    strides: Sequence[int],
    soft_prior: bool,
) -> tuple[Tensor, Tensor]:
    """Sums over a batch of the three losses [3], and what normalises each of them [3]: N_pos, N_pos, N_neg, unclamped.

    Shapes are those of `DualWeightLoss`; arithmetic is float32, or float64 if any input is float64. An invalid box or
    label makes the three losses and all gradients NaN. Gradients come back in the dtype and layout of their input.
    """
    kinds = list(cls_logits), list(box_distances), list(objectness)
    needs_grad = torch.is_grad_enabled() and any(level.requires_grad for kind in kinds for level in kind)
    sums, counts, *_ = _operator(*kinds, *targets, [float(stride) for stride in strides], soft_prior, needs_grad)
    return sums, counts


def dual_weight_losses(
    cls_logits: Sequence[Tensor],
    box_distances: Sequence[Tensor],
    objectness: Sequence[Tensor],
    targets: PackedTargets,
    strides: Sequence[int],
    soft_prior: bool,
    normalise: Callable[[Tensor], Tensor] | None,
) -> tuple[Tensor, ...]:
    """The three losses, each []: the sums over what `normalise` makes of the counts, None: at least 1."""
    sums, counts = dual_weight_sums(cls_logits, box_distances, objectness, targets, strides, soft_prior)
    return (sums / (counts.clamp(min=1) if normalise is None else normalise(counts))).unbind()


def forward_pass(
    cls_logits: Sequence[Tensor],
    box_distances: Sequence[Tensor],
    objectness: Sequence[Tensor],
    targets: PackedTargets,
    strides: Sequence[float],
    soft_prior: bool,
    needs_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """The sums, their normalisers, and for `backward_pass` poison [] and, if it `needs_grad`, three maps of each level.

    The weights are constants for autograd: backward only reads them.
    """
    dtype = _arithmetic(cls_logits, box_distances, objectness)
    boxes = read_boxes(targets, num_classes=cls_logits[0].shape[1], dtype=dtype)
    levels = [
        read_level(z, d, u, stride, boxes) for z, d, u, stride in zip(cls_logits, box_distances, objectness, strides)
    ]
    bags = _bag_statistics(levels, boxes, soft_prior)

    sums = torch.zeros(4, dtype=torch.float64, device=cls_logits[0].device)  # of the losses and 1 - N
    maps = []
    for level in levels:
        weights = _level_weights(level, boxes, bags, soft_prior, needs_grad, sums)
        _dense_forward(level, weights.neg, _ignored_points(level, boxes), sums)
        maps += weights if needs_grad else ()
    poison = torch.where(boxes.valid, 1.0, torch.nan).to(dtype)
    weight = (boxes.weights * boxes.is_truth).sum(dtype=torch.float64)
    counts = torch.stack((weight, weight, sums[3])).to(dtype)
    return (sums[:3] * poison).to(dtype), counts, poison, maps


def backward_pass(
    grad_sums: Tensor,  # [3]
    cls_logits: Sequence[Tensor],
    box_distances: Sequence[Tensor],
    objectness: Sequence[Tensor],
    poison: Tensor,
    maps: Sequence[Tensor],
) -> list[Tensor]:
    """Gradients of all levels: of class logits, then of distances, then of objectness logits."""
    grad_cls_pos, grad_loc, grad_cls_neg = grad_sums * poison
    grads = [[torch.empty_like(level) for level in kind] for kind in (cls_logits, box_distances, objectness)]
    for i, (z, u) in enumerate(zip(cls_logits, objectness)):
        weights = _LevelWeights(*maps[3 * i : 3 * i + 3])
        grad_z, grad_d, grad_u = (kind[i] for kind in grads)
        _dense_backward(z, u, weights, grad_cls_pos, grad_cls_neg, grad_z, grad_u)
        batch, _, height, width = grad_d.shape
        grad_d.copy_((weights.loc_slope * grad_loc).view(4, batch, height, width).transpose(0, 1))
    return [grad for kind in grads for grad in kind]


@torch.library.custom_op("dwtriton::dual_weight_reference", mutates_args=())
def _operator(
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
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """`forward_pass` as an operator, which `torch.compile` keeps whole: it reads numbers of pairs on the host."""
    targets = PackedTargets(boxes, labels, offsets, iscrowd, weights)
    return forward_pass(cls_logits, box_distances, objectness, targets, strides, soft_prior, needs_grad)


@_operator.register_fake
def _(cls_logits, box_distances, objectness, boxes, labels, offsets, iscrowd, weights, strides, soft_prior, needs_grad):
    dtype = _arithmetic(cls_logits, box_distances, objectness)
    maps = []
    for level in cls_logits if needs_grad else ():
        batch, _, height, width = level.shape
        per_class = [torch.empty_like(level, dtype=dtype) for _ in range(2)]
        maps += [*per_class, level.new_empty(4, batch * height * width, dtype=dtype)]
    sums, counts = (cls_logits[0].new_empty(3, dtype=dtype) for _ in range(2))
    return sums, counts, sums.new_empty(()), maps


@torch.library.custom_op("dwtriton::dual_weight_reference_backward", mutates_args=())
def _backward_operator(
    grad_sums: Tensor,
    cls_logits: Sequence[Tensor],
    box_distances: Sequence[Tensor],
    objectness: Sequence[Tensor],
    poison: Tensor,
    maps: Sequence[Tensor],
) -> list[Tensor]:
    return backward_pass(grad_sums, cls_logits, box_distances, objectness, poison, maps)


@_backward_operator.register_fake
def _(grad_sums, cls_logits, box_distances, objectness, poison, maps):
    return [torch.empty_like(level) for level in (*cls_logits, *box_distances, *objectness)]


def _save(ctx, inputs, output) -> None:
    cls_logits, box_distances, objectness, *_ = inputs
    _, counts, poison, maps = output
    ctx.levels = len(cls_logits)
    ctx.save_for_backward(poison, *cls_logits, *box_distances, *objectness, *maps)
    ctx.mark_non_differentiable(counts, poison, *maps)
    ctx.set_materialize_grads(False)  # or else zeros as large as the maps come in for them


def _backward(ctx, grad_sums, *_):
    if grad_sums is None:
        return *([None] * ctx.levels for _ in range(3)), *[None] * 8
    if torch.is_grad_enabled():
        raise RuntimeError("the dual weight loss has no second derivative; call backward without create_graph=True")
    poison, *saved = ctx.saved_tensors
    count = ctx.levels
    kinds = [saved[i * count : (i + 1) * count] for i in range(3)]
    grads = _backward_operator(grad_sums, *kinds, poison, saved[3 * count :])
    return *(grads[i * count : (i + 1) * count] for i in range(3)), *[None] * 8


_operator.register_autograd(_backward, setup_context=_save)


def _arithmetic(*kinds: Sequence[Tensor]) -> torch.dtype:
    double = any(level.dtype == torch.float64 for kind in kinds for level in kind)
    return torch.float64 if double else torch.float32


class _Bags(NamedTuple):
    """What each box's weights need to know about all points inside it, each [N]."""

    denominator: Tensor
    deficit_min: Tensor
    deficit_max: Tensor


class _LevelWeights(NamedTuple):
    """A level's weights, all constants for autograd. The first two lie in memory as the logits' gradient does."""

    pos: Tensor  # [B, C, H, W] sum of w_pos over the boxes of a class
    neg: Tensor  # [B, C, H, W] N
    loc_slope: Tensor  # [4, B*H*W] d(sum of the localisation loss) / d(distances)


def _bag_statistics(levels: list[Level], boxes: Boxes, soft_prior: bool) -> _Bags:
    mass = torch.zeros_like(boxes.corners[0], dtype=torch.float64)
    deficit_min = torch.full_like(boxes.corners[0], torch.inf)
    deficit_max = torch.full_like(boxes.corners[0], -torch.inf)
    for level in levels:
        for pairs in pairs_inside(level, boxes, boxes.is_truth):
            terms = pair_terms(level, boxes, pairs, soft_prior)
            mass.index_add_(0, pairs.box, formulas.positive_mass(terms.t, terms.prior).double())
            deficit = formulas.iou_deficit(terms.overlap.iou)
            deficit_min.scatter_reduce_(0, pairs.box, deficit, "amin")
            deficit_max.scatter_reduce_(0, pairs.box, deficit, "amax")
    return _Bags(mass.clamp(min=1e-12).to(boxes.corners.dtype), deficit_min, deficit_max.clamp(max=1))


def _level_weights(
    level: Level, boxes: Boxes, bags: _Bags, soft_prior: bool, needs_grad: bool, sums: Tensor
) -> _LevelWeights:
    """Weights of a level; adds its two positive losses to `sums`. Without gradients only the negative map is filled."""
    dtype = boxes.corners.dtype
    neg = torch.empty_like(level.z, dtype=dtype).fill_(1)
    pos = torch.zeros_like(level.z if needs_grad else level.z[:0], dtype=dtype)
    loc_slope = level.flat_d.new_zeros(level.flat_d.shape)
    owner = torch.full_like(memory(neg), -1, dtype=torch.int32)  # the last box of the class that holds the point
    for pairs in pairs_inside(level, boxes, boxes.is_truth):
        terms = pair_terms(level, boxes, pairs, soft_prior)
        places = places_in(neg, pairs, boxes)

        weight = formulas.positive_weight(terms.t, terms.prior, bags.denominator[pairs.box]) * boxes.weights[pairs.box]
        cls_loss = formulas.neg_log_score(terms.z, terms.u).clamp_(max=formulas.MAX_LOG)
        sums[0] += 0.25 * (weight * cls_loss).sum()
        sums[1] += 0.25 * (weight * 5 * terms.overlap.reg_loss).sum()
        if needs_grad:
            memory(pos).index_add_(0, places, weight)
            slope = formulas.reg_loss_gradient(terms.distances, terms.sides) * (0.25 * 5 * weight)
            loc_slope.scatter_add_(1, pairs.point.expand(4, -1), slope)

        box = pairs.box.to(torch.int32)
        owner.scatter_reduce_(0, places, box, "amax")
        last = owner[places] == box  # so far: a later chunk writes over it
        stretched = formulas.negative_weight(
            terms.overlap.iou, bags.deficit_min[pairs.box], bags.deficit_max[pairs.box]
        )
        stretched.masked_fill_(boxes.weights[pairs.box] == 0, UNCOUNTED)
        memory(neg)[places[last]] = stretched[last]
    return _LevelWeights(pos, neg, loc_slope)


def _ignored_points(level: Level, boxes: Boxes) -> Tensor | None:
    """Points strictly inside a crowd region, [B, 1, H, W] bool; None if the batch has no such region."""
    if not boxes.is_crowd.any():
        return None
    ignored = torch.zeros_like(level.flat_u, dtype=torch.bool)
    for pairs in pairs_inside(level, boxes, boxes.is_crowd):
        ignored[pairs.point] = True
    return ignored.view(level.u.shape)


def _blocks(z: Tensor) -> Iterator[tuple[slice, slice, slice]]:
    """Indices that cut [B, C, H, W] logits into blocks: several images, or some rows of one."""
    batch, classes, height, width = z.shape
    rows = min(height, max(1, ENTRIES_PER_BLOCK // (classes * width)))
    images = max(1, ENTRIES_PER_BLOCK // (classes * width * height))
    for first in range(0, batch, images):
        for top in range(0, height, rows):
            yield slice(first, first + images), slice(None), slice(top, top + rows)


def _dense_forward(level: Level, neg: Tensor, ignored: Tensor | None, sums: Tensor) -> None:
    """Add a level's negative loss and its sum of 1 - N to `sums`; afterwards N is 0 at ignored points and entries."""
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
        neg, pos = weights.neg[block] * grad_neg, weights.pos[block] * (0.25 * grad_pos)
        grad_z[block], grad_u[block] = formulas.logit_gradients(z_block, u_block, neg, pos)
