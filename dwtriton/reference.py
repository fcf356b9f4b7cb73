"""The loss in plain PyTorch, for any device: the fallback, and what the Triton kernels are compared with.

No [points x boxes] tensor exists. The points inside a box are a rectangle of cells on each level, so pairs of a box and
an inside point are enumerated in chunks; classification logits are read where they lie, a block of rows at a time.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dwtriton import formulas
from dwtriton.dense_weights import dual_weights
from dwtriton.points import inside_rectangles
from dwtriton.targets import PackedTargets

__all__ = ["dual_weight_sums", "dual_weights"]  # what a backend provides

PAIRS_PER_CHUNK = 2**16  # about 10 MB of temporary tensors
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
    inputs = (*cls_logits, *box_distances, *objectness)
    needs_grad = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)
    return _DualWeightSums.apply(targets, tuple(strides), soft_prior, needs_grad, *inputs)


class _DualWeightSums(torch.autograd.Function):
    """The weights are constants: forward keeps them in three maps a level, backward reads them."""

    @staticmethod
    def forward(ctx, targets, strides, soft_prior, needs_grad, *inputs):
        count = len(strides)
        dtype = torch.float64 if any(tensor.dtype == torch.float64 for tensor in inputs) else torch.float32
        boxes = _read_boxes(targets, num_classes=inputs[0].shape[1], dtype=dtype)
        levels = [_read_level(*inputs[i::count], stride, boxes) for i, stride in enumerate(strides)]
        bags = _bag_statistics(levels, boxes, soft_prior)

        sums = torch.zeros(4, dtype=torch.float64, device=inputs[0].device)  # of the losses and 1 - N
        maps = []
        for level in levels:
            weights = _level_weights(level, boxes, bags, soft_prior, needs_grad, sums)
            _dense_forward(level, weights.neg, _ignored_points(level, boxes), sums)
            maps += weights if needs_grad else ()
        poison = torch.where(boxes.valid, 1.0, torch.nan)
        ctx.save_for_backward(poison, *inputs, *maps)
        ctx.num_levels = count
        sums[:3] *= poison
        num_boxes = boxes.is_truth.sum()
        counts = torch.stack((num_boxes, num_boxes, sums[3])).to(dtype)
        ctx.mark_non_differentiable(counts)
        return sums[:3].to(dtype), counts

    @staticmethod
    def backward(ctx, grad_losses, _):
        if torch.is_grad_enabled():
            raise RuntimeError("the dual weight loss has no second derivative; call backward without create_graph=True")
        count = ctx.num_levels
        poison, *saved = ctx.saved_tensors
        inputs, maps = saved[: 3 * count], saved[3 * count :]
        grad_cls_pos, grad_loc, grad_cls_neg = grad_losses * poison
        grads = [torch.empty_like(tensor) for tensor in inputs]
        for i in range(count):
            weights = _LevelWeights(*maps[3 * i : 3 * i + 3])
            z, d, u = inputs[i::count]
            grad_z, grad_d, grad_u = grads[i::count]
            _dense_backward(z, u, weights, grad_cls_pos, grad_cls_neg, grad_z, grad_u)
            batch, _, height, width = d.shape
            grad_d.copy_((weights.loc_slope * grad_loc).view(4, batch, height, width).transpose(0, 1))
        return None, None, None, None, *grads


class _Boxes(NamedTuple):
    """The rows of the packed targets, with what is invalid made harmless."""

    corners: Tensor  # [4, N] xyxy
    labels: Tensor  # [N] 0..C-1
    image: Tensor  # [N] 0..B-1
    is_truth: Tensor  # [N] bool
    is_crowd: Tensor  # [N] bool
    valid: Tensor  # () bool: no row that is in use had to be changed


class _Level(NamedTuple):
    stride: int
    z: Tensor  # [B, C, H, W] as the caller gave it
    u: Tensor  # [B, 1, H, W] the same
    flat_u: Tensor  # [B*H*W] in the dtype of the arithmetic
    flat_d: Tensor  # [4, B*H*W]
    rectangles: Tensor  # [4, N] cells inside each box


class _Pairs(NamedTuple):
    """A chunk of pairs of a box and a point strictly inside it, all [K] int64, in the order of the boxes."""

    box: Tensor
    image: Tensor
    row: Tensor
    column: Tensor
    point: Tensor  # number of the point among those of all images of the level


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


def _read_boxes(targets: PackedTargets, num_classes: int, dtype: torch.dtype) -> _Boxes:
    boxes, labels = targets.boxes, targets.labels
    valid = boxes.isfinite().all(1) & (boxes[:, :2] <= boxes[:, 2:]).all(1) & (labels >= 0) & (labels < num_classes)
    is_truth, is_crowd = targets.box_mask(), targets.crowd_mask()
    return _Boxes(
        corners=boxes.to(dtype).nan_to_num().T.contiguous(),
        labels=labels.clamp(0, num_classes - 1),
        image=targets.image_index().clamp(max=max(targets.batch_size - 1, 0)),
        is_truth=is_truth,
        is_crowd=is_crowd,
        valid=(valid | ~(is_truth | is_crowd)).all(),
    )


def _read_level(z: Tensor, d: Tensor, u: Tensor, stride: int, boxes: _Boxes) -> _Level:
    dtype = boxes.corners.dtype
    flat_d = d.transpose(0, 1).reshape(4, -1).to(dtype)
    rectangles = inside_rectangles(boxes.corners, *z.shape[2:], stride)
    return _Level(stride, z, u, u.reshape(-1).to(dtype), flat_d, rectangles)


def _pairs(level: _Level, boxes: _Boxes, selected: Tensor) -> Iterator[_Pairs]:
    """All pairs of the selected boxes on a level, box by box, in chunks. A box may be split between chunks."""
    left, top, right, bottom = level.rectangles
    widths = right - left
    counts = widths * (bottom - top) * selected
    ends = counts.cumsum(0)
    begins = ends - counts
    total = int(counts.sum())
    height, width = level.z.shape[2:]
    for start in range(0, total, PAIRS_PER_CHUNK):
        stop = min(start + PAIRS_PER_CHUNK, total)
        lengths = ends.clamp(start, stop) - begins.clamp(start, stop)
        box = torch.repeat_interleave(lengths, output_size=stop - start)
        within = torch.arange(start, stop, device=box.device) - begins[box]
        row = within.div(widths[box], rounding_mode="floor")
        column = within - row * widths[box] + left[box]
        row = row + top[box]
        image = boxes.image[box]
        yield _Pairs(box, image, row, column, (image * height + row) * width + column)


class _PairTerms(NamedTuple):
    """What the weights of a chunk of pairs are made of, each [K]; coordinates [4, K]."""

    z: Tensor
    u: Tensor
    t: Tensor
    prior: Tensor
    overlap: formulas.Overlap
    distances: Tensor
    sides: Tensor


def _pair_terms(level: _Level, boxes: _Boxes, pairs: _Pairs, soft_prior: bool) -> _PairTerms:
    corners = boxes.corners[:, pairs.box]
    points = (torch.stack((pairs.column, pairs.row)).to(corners.dtype) + 0.5) * level.stride
    distances = level.flat_d[:, pairs.point]
    sides = formulas.box_sides(points, corners)
    overlap = formulas.overlap(distances, sides)
    z = _memory(level.z)[_places(level.z, pairs, boxes)].to(corners.dtype)
    u = level.flat_u[pairs.point]
    t = formulas.alignment(z.sigmoid() * u.sigmoid(), overlap.reg_loss)
    prior = formulas.center_prior(points, corners, level.stride, soft_prior)
    return _PairTerms(z, u, t, prior, overlap, distances, sides)


def _memory(tensor: Tensor) -> Tensor:
    """All memory from a tensor's first entry to its last, as one dimension."""
    span = 1 + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride()))
    return tensor.as_strided((span,), (1,))


def _places(tensor: Tensor, pairs: _Pairs, boxes: _Boxes) -> Tensor:
    """Where in `_memory` of a [B, C, H, W] tensor each pair's point has the class of its box, [K]."""
    image, channel, row, column = tensor.stride()
    return pairs.image * image + boxes.labels[pairs.box] * channel + pairs.row * row + pairs.column * column


def _bag_statistics(levels: list[_Level], boxes: _Boxes, soft_prior: bool) -> _Bags:
    mass = torch.zeros_like(boxes.corners[0], dtype=torch.float64)
    deficit_min = torch.full_like(boxes.corners[0], torch.inf)
    deficit_max = torch.full_like(boxes.corners[0], -torch.inf)
    for level in levels:
        for pairs in _pairs(level, boxes, boxes.is_truth):
            terms = _pair_terms(level, boxes, pairs, soft_prior)
            mass.index_add_(0, pairs.box, formulas.positive_mass(terms.t, terms.prior).double())
            deficit = formulas.iou_deficit(terms.overlap.iou)
            deficit_min.scatter_reduce_(0, pairs.box, deficit, "amin")
            deficit_max.scatter_reduce_(0, pairs.box, deficit, "amax")
    return _Bags(mass.clamp(min=1e-12).to(boxes.corners.dtype), deficit_min, deficit_max.clamp(max=1))


def _level_weights(
    level: _Level, boxes: _Boxes, bags: _Bags, soft_prior: bool, needs_grad: bool, sums: Tensor
) -> _LevelWeights:
    """Weights of a level; adds its two positive losses to `sums`. Without gradients only the negative map is filled."""
    dtype = boxes.corners.dtype
    neg = torch.empty_like(level.z, dtype=dtype).fill_(1)
    pos = torch.zeros_like(level.z if needs_grad else level.z[:0], dtype=dtype)
    loc_slope = torch.zeros_like(level.flat_d)
    owner = torch.full_like(_memory(neg), -1, dtype=torch.int32)  # the last box of the class that holds the point
    for pairs in _pairs(level, boxes, boxes.is_truth):
        terms = _pair_terms(level, boxes, pairs, soft_prior)
        places = _places(neg, pairs, boxes)

        weight = formulas.positive_weight(terms.t, terms.prior, bags.denominator[pairs.box])
        cls_loss = formulas.neg_log_score(terms.z, terms.u).clamp_(max=formulas.MAX_LOG)
        sums[0] += 0.25 * (weight * cls_loss).sum()
        sums[1] += 0.25 * (weight * 5 * terms.overlap.reg_loss).sum()
        if needs_grad:
            _memory(pos).index_add_(0, places, weight)
            slope = formulas.reg_loss_gradient(terms.distances, terms.sides) * (0.25 * 5 * weight)
            loc_slope.scatter_add_(1, pairs.point.expand(4, -1), slope)

        box = pairs.box.to(torch.int32)
        owner.scatter_reduce_(0, places, box, "amax")
        last = owner[places] == box  # so far: a later chunk writes over it
        stretched = formulas.negative_weight(
            terms.overlap.iou, bags.deficit_min[pairs.box], bags.deficit_max[pairs.box]
        )
        _memory(neg)[places[last]] = stretched[last]
    return _LevelWeights(pos, neg, loc_slope)


def _ignored_points(level: _Level, boxes: _Boxes) -> Tensor | None:
    """Points strictly inside a crowd region, [B, 1, H, W] bool; None if the batch has no such region."""
    if not boxes.is_crowd.any():
        return None
    ignored = torch.zeros_like(level.flat_u, dtype=torch.bool)
    for pairs in _pairs(level, boxes, boxes.is_crowd):
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


def _dense_forward(level: _Level, neg: Tensor, ignored: Tensor | None, sums: Tensor) -> None:
    """Add a level's negative loss and its sum of 1 - N to `sums`; afterwards N is 0 at ignored points."""
    if ignored is not None:
        neg.masked_fill_(ignored, 1)  # they do not count in the normaliser
    for block in _blocks(level.z):
        weight = neg[block]
        z, u = level.z[block].to(neg.dtype), level.u[block].to(neg.dtype)
        sums[3] += (1 - weight).sum()
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
