"""Dual Weighting with parts of it changed, in plain PyTorch, to measure what each part is worth.

Weights are constants, computed from all pairs of a box and a point inside it, in one operator; the losses of them are
written for autograd. Everything is in float64.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from dwtriton.core.head_outputs import HeadOutputs
from dwtriton.core.targets import PackedTargets
from dwtriton.reference import formulas
from dwtriton.reference.devices import add_at
from dwtriton.reference.pairs import Pyramid, level_views, pair_terms, pairs_inside, read_boxes, read_pyramid

NEGATIVE_WEIGHTS = ("iou", "score", "complement")


class Ablation(NamedTuple):
    """What is changed; the defaults are Dual Weighting (docs/method.md#constants)."""

    negative_weight: str = "iou"  # "iou": m s^2; "score": s^2, without the term of the IoU; "complement": 1 - w_pos
    soft_prior: bool = True  # False: the centre prior thresholded at 0.3
    beta: float = formulas.BETA  # exponent of p_loc
    mu: float = formulas.MU  # exponent of t in the numerator of w_pos
    mu_sum: float = formulas.MU_SUM  # and in its denominator
    gamma_iou: float = 2.0  # exponent of the IoU in m
    gamma_score: float = 2.0  # exponent of s in the negative weight


class Weights(NamedTuple):
    """The weights of a batch: lists over the levels, and sums; float64."""

    pos: list[Tensor]  # [B, C, H, W] sum of w_pos over the boxes of a class, times their weights
    neg: list[Tensor]  # [B, C, H, W] factor of the negative loss; 0 where ignored
    power: list[Tensor]  # [B, C, H, W] exponent of s in the negative weight
    slope: list[Tensor]  # [B, 4, H, W] d(sum of the localisation loss) / d(distances)
    loc: Tensor  # () sum of the localisation loss; NaN if a target is invalid
    counts: Tensor  # [3] N_pos, N_pos and N_neg before the clamp


def ablation_sums(
    outputs: HeadOutputs, targets: PackedTargets, strides: Sequence[int], ablation: Ablation
) -> tuple[Tensor, Tensor]:
    """Sum each of the three losses over a batch; results are those of `reference.dual_weight_sums`."""
    detached = ([level.detach() for level in kind] for kind in outputs)
    weights = Weights(*weights_operator(*detached, *targets, [float(stride) for stride in strides], *ablation))
    cls_pos, loc, cls_neg = [], [weights.loc], []
    for z, d, u, pos, neg, power, slope in zip(*outputs, *weights[:4]):
        z, u = z.double(), u.double()
        log_score = logsigmoid(z) + logsigmoid(u)
        log_complement = torch.logaddexp(logsigmoid(-z), logsigmoid(z) + logsigmoid(-u))  # ln(1 - s)
        cls_pos.append(formulas.POSITIVE_FACTOR * (pos * _clamped(-log_score)).sum())
        loc.append((slope * (d - d.detach())).sum())  # 0, with the slopes of the loss
        cls_neg.append((neg * (power * log_score).exp() * _clamped(-log_complement)).sum())
    nan_if_invalid = weights.loc * 0 + 1
    sums = torch.stack([torch.stack(parts).sum() for parts in (cls_pos, loc, cls_neg)]) * nan_if_invalid
    return sums.to(outputs.arithmetic), weights.counts.to(outputs.arithmetic)


def _clamped(value: Tensor) -> Tensor:
    """Clamp a -ln term, but not its gradient."""
    return value - (value.detach() - formulas.MAX_LOG).clamp(min=0)


@torch.library.custom_op("dwtriton::dual_weight_ablation_weights", mutates_args=())
def weights_operator(
    cls_logits: Sequence[Tensor],
    box_distances: Sequence[Tensor],
    objectness: Sequence[Tensor],
    boxes: Tensor,
    labels: Tensor,
    offsets: Tensor,
    iscrowd: Tensor | None,
    weights: Tensor | None,
    strides: Sequence[float],
    negative_weight: str,
    soft_prior: bool,
    beta: float,
    mu: float,
    mu_sum: float,
    gamma_iou: float,
    gamma_score: float,
) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor], Tensor, Tensor]:
    """Return the fields of `Weights`. An operator, which `torch.compile` keeps whole: it reads numbers of pairs."""
    outputs = HeadOutputs(cls_logits, box_distances, objectness)
    targets = PackedTargets(boxes, labels, offsets, iscrowd, weights)
    ablation = Ablation(negative_weight, soft_prior, beta, mu, mu_sum, gamma_iou, gamma_score)
    return tuple(_weigh(outputs, targets, strides, ablation))


@weights_operator.register_fake
def _(cls_logits, box_distances, objectness, *others):
    pos, neg, power = ([torch.empty_like(level, dtype=torch.float64) for level in cls_logits] for _ in range(3))
    slope = [level.new_empty(level.shape, dtype=torch.float64) for level in box_distances]
    return pos, neg, power, slope, slope[0].new_empty(()), slope[0].new_empty(3)


class _Pairs(NamedTuple):
    """All K pairs of a box and a point strictly inside it, each [K], coordinates [4, K]."""

    box: Tensor  # row of the packed targets
    point: Tensor  # as in `pairs.Pairs`
    entry: Tensor
    score: Tensor  # s of the box's class
    prior: Tensor
    distances: Tensor
    sides: Tensor


def _weigh(outputs: HeadOutputs, targets: PackedTargets, strides: Sequence[float], ablation: Ablation) -> Weights:
    boxes = read_boxes(targets, outputs.cls_logits[0].shape[1], torch.float64)
    pyramid = read_pyramid(outputs, strides, boxes)
    pairs = _all_pairs(pyramid, ablation.soft_prior)
    overlap = formulas.overlap(pairs.distances, pairs.sides)
    w_pos = _positive_weight(pairs, overlap, ablation, len(boxes.image))
    m = _p_neg(pairs, overlap, ablation, len(boxes.image))
    box_weight, ignored = boxes.weights[pairs.box], _ignored_points(pyramid)

    neg = w_pos.new_ones(sum(level.numel() for level in pyramid.z))
    pos, power = torch.zeros_like(neg), torch.full_like(neg, ablation.gamma_score)
    last = pairs.box.new_full(neg.shape, -1).scatter_reduce_(0, pairs.entry, pairs.box, "amax")
    decides = last[pairs.entry] == pairs.box  # of several boxes of a class the last one
    if ablation.negative_weight == "iou":
        neg[pairs.entry[decides]] = m[decides]
    elif ablation.negative_weight == "complement":
        add_at(neg, pairs.entry, -w_pos)
        neg.clamp_(min=0)
        power[pairs.entry] = 0
    neg[pairs.entry[decides & (box_weight == 0)]] = 0
    neg = level_views(neg, pyramid.z)
    for level, points in zip(neg, _levels_of(ignored[None], outputs)):
        level.masked_fill_(points, 0)

    add_at(pos, pairs.entry, w_pos * box_weight)
    loc_weight = formulas.POSITIVE_FACTOR * ablation.beta * w_pos * box_weight
    slope = torch.zeros_like(pyramid.d)
    add_at(slope, pairs.point, formulas.reg_loss_gradient(pairs.distances, pairs.sides) * loc_weight)
    loc = (loc_weight * overlap.reg_loss).sum() * torch.where(boxes.valid, 1.0, torch.nan)
    n_pos = (boxes.weights * boxes.is_truth).sum()
    n_neg = ((1 - m) * (decides & (box_weight > 0) & ~ignored[pairs.point])).sum()
    levels = level_views(pos, pyramid.z), neg, level_views(power, pyramid.z), _levels_of(slope, outputs)
    copies = ([level.clone() for level in kind] for kind in levels)  # an operator's results share no memory
    return Weights(*copies, loc, torch.stack((n_pos, n_pos, n_neg)))


def _all_pairs(pyramid: Pyramid, soft_prior: bool) -> _Pairs:
    count = pyramid.truth.inside.shape[1]
    indices, values = [pyramid.truth.inside.new_zeros(3, 0)], [pyramid.d.new_zeros(10, 0)]  # there may be no chunk
    for pairs in pairs_inside(pyramid, pyramid.truth):
        terms = pair_terms(pyramid, pairs, soft_prior)
        score = (logsigmoid(terms.z) + logsigmoid(terms.u)).exp()
        indices.append(torch.stack((pairs.rectangle % count, pairs.point, pairs.entry)))
        values.append(torch.cat((torch.stack((score, terms.prior)), terms.distances, terms.sides)))
    score, prior, distances, sides = torch.cat(values, 1).split((1, 1, 4, 4))
    return _Pairs(*torch.cat(indices, 1), score[0], prior[0], distances, sides)


def _positive_weight(pairs: _Pairs, overlap: formulas.Overlap, ablation: Ablation, boxes: int) -> Tensor:
    """Return w_pos of each pair (docs/method.md#positive-weight)."""
    t = pairs.score * (-ablation.beta * overlap.reg_loss).exp()
    total = t.new_zeros(boxes)
    add_at(total, pairs.box, (ablation.mu_sum * t).exp() * t * pairs.prior)
    return (ablation.mu * t).exp() * t * pairs.prior / total.clamp(min=formulas.MIN_POSITIVE_SUM)[pairs.box]


def _p_neg(pairs: _Pairs, overlap: formulas.Overlap, ablation: Ablation, boxes: int) -> Tensor:
    """Return m of each pair (docs/method.md#negative-weight)."""
    deficit = -torch.expm1(ablation.gamma_iou * torch.log1p(-overlap.iou_loss))  # 1 - IoU^gamma
    deficit = deficit / (1 - formulas.MIN_IOU**ablation.gamma_iou)
    none = deficit.new_full((boxes,), torch.inf)
    least = none.scatter_reduce(0, pairs.box, deficit, "amin")[pairs.box]
    most = (-none).scatter_reduce(0, pairs.box, deficit, "amax")[pairs.box].clamp(max=1)
    stretched = (deficit - least + formulas.SPREAD_EPSILON) / ((most - least).clamp(min=0) + formulas.SPREAD_EPSILON)
    return stretched.clamp(max=1).masked_fill(overlap.iou < formulas.MIN_IOU, 1)


def _ignored_points(pyramid: Pyramid) -> Tensor:
    """Return which points lie strictly inside a crowd region, [B*P] bool."""
    ignored = torch.zeros_like(pyramid.u, dtype=torch.bool)
    for pairs in pairs_inside(pyramid, pyramid.crowd):
        ignored[pairs.point] = True
    return ignored


def _levels_of(points: Tensor, outputs: HeadOutputs) -> list[Tensor]:
    """Return values of points [K, B*P] as a [B, K, H, W] tensor for each level."""
    parts = points.split([level.numel() for level in outputs.objectness], 1)
    shapes = [(level.shape[0], *level.shape[2:]) for level in outputs.objectness]
    return [part.unflatten(1, shape).transpose(0, 1).contiguous() for part, shape in zip(parts, shapes)]
