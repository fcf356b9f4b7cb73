"""The last step forward: partial sums of all kernels become the losses, in a fixed order."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dwtriton.kernels.boxes import BOX_SUMS
from dwtriton.kernels.dense import HIGH_CLASSES
from dwtriton.kernels.dense_tiles import exact_sum
from dwtriton.kernels.inputs import Pyramid
from dwtriton.kernels.launch import launch

ADDED_TOGETHER = 4096  # partial sums that the program reads at once
POINTS = 512  # taken at once where the negative loss has to be added up again
CANCELLED = tl.constexpr(1 / 32)  # if less is left of what was added up in float32, its rounding shows
NOTHING_LEFT = tl.constexpr(1e-14)  # of a sum in float64 but its rounding, where all of it is taken back


@triton.jit
def add_up(sums, count, stride, BLOCK: tl.constexpr):
    """Sum of every `stride`-th of float64 partial sums."""
    total = tl.zeros((BLOCK,), tl.float64)
    start = count * 0
    while start < count:
        number = start + tl.arange(0, BLOCK)
        total += tl.load(sums + number.to(tl.int64) * stride, mask=number < count, other=0.0)
        start += BLOCK
    return tl.sum(total)


@triton.jit
def store_loss(sums, counts, norms, loss, total, count):
    """What `finish_kernel` writes of one loss."""
    norm = tl.maximum(count, 1.0, propagate_nan=tl.PropagateNan.ALL)
    tl.store(sums, total)
    tl.store(counts, count)
    tl.store(norms, norm)
    tl.store(loss, total / norm)


COUNTS = ["dense_programs", "pair_programs", "box_programs", "batch", "exact_programs"]
SINGLE_NUMBERS = ["loss_pos", "loss_loc", "loss_neg", "poison"]


@triton.jit(do_not_specialize=[*COUNTS, *SINGLE_NUMBERS])
def finish_kernel(
    z_levels,
    u_levels,
    heights,
    widths,
    dense_sums,
    pair_sums,
    box_sums,
    sums,
    counts,
    norms,
    loss_pos,
    loss_loc,
    loss_neg,
    poison,
    dense_programs,
    pair_programs,
    box_programs,
    batch,
    exact_programs,
    NUM_CLASSES: tl.constexpr,
    Z_LAST: tl.constexpr,
    POINTS: tl.constexpr,
    HIGH_C: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add up all partial sums, in a fixed order, and divide the losses by their normalisers.

    Grid (1,). Where boxes take back more than 31/32 of what the dense pass added up in float32, the program adds up all
    of it again, exactly, by itself: that is slow, and rare, as nearly all low scores then lie in boxes or are ignored.

    z_levels, u_levels, heights, widths, batch: as in the dense pass.
    exact_programs: that the dense pass would have with POINTS points each.
    dense_sums: [dense_programs, 2], pair_sums: [pair_programs, 2], box_sums: [box_programs, BOX_SUMS], all float64.
    sums: out, [3] of the three losses.
    counts: out, [3] what normalises each: the sum of the boxes' weights, the same again, the sum of 1 - N.
    norms: out, [3] the same, but at least 1. loss_pos, loss_loc, loss_neg: out, [] the sums over these.
    poison: out, [] 1, or NaN if a box, a label, a weight or an offset is invalid.
    HIGH_C: classes taken at once, and BLOCK: partial sums read at once.
    """
    dense = add_up(dense_sums, dense_programs, 2, BLOCK)
    rounded = add_up(dense_sums + 1, dense_programs, 2, BLOCK)
    of_pairs = add_up(pair_sums, pair_programs, 2, BLOCK)
    if dense + of_pairs < rounded * CANCELLED:
        dense = exact_sum(
            z_levels, u_levels, heights, widths, batch, exact_programs, NUM_CLASSES, Z_LAST, POINTS, HIGH_C
        )
    cls_neg = dense + of_pairs
    cls_neg = tl.where(cls_neg < dense * NOTHING_LEFT, 0.0, cls_neg)
    missing = add_up(pair_sums + 1, pair_programs, 2, BLOCK)
    cls_pos = add_up(box_sums, box_programs, BOX_SUMS, BLOCK)
    loc = add_up(box_sums + 1, box_programs, BOX_SUMS, BLOCK)
    weight = add_up(box_sums + 2, box_programs, BOX_SUMS, BLOCK).to(tl.float32)
    wrong = add_up(box_sums + 3, box_programs, BOX_SUMS, BLOCK)
    factor = tl.where(wrong > 0, float("nan"), 1.0)
    store_loss(sums, counts, norms, loss_pos, cls_pos.to(tl.float32) * factor, weight)
    store_loss(sums + 1, counts + 1, norms + 1, loss_loc, loc.to(tl.float32) * factor, weight)
    store_loss(sums + 2, counts + 2, norms + 2, loss_neg, cls_neg.to(tl.float32) * factor, missing.to(tl.float32))
    tl.store(poison, factor)


def finish(
    pyramid: Pyramid, dense_sums: Tensor, pair_sums: Tensor, box_sums: Tensor
) -> tuple[Tensor, Tensor, tuple[Tensor, ...], Tensor]:
    """Sums of the three losses [3], what normalises each [3], normalisers [3] with the losses [], poison []; float32.

    The poison is 1, or NaN if a box, a label, a weight or an offset is invalid, and is a factor of the losses already.
    """
    outputs = [torch.empty(shape, device=dense_sums.device) for shape in (3, 3, 3, (), (), (), ())]
    launch(
        finish_kernel,
        (1,),
        pyramid.z,
        pyramid.u,
        *pyramid.sizes,
        dense_sums,
        pair_sums,
        box_sums,
        *outputs,
        len(dense_sums),
        len(pair_sums),
        len(box_sums),
        pyramid.batch,
        pyramid.dense_programs(POINTS),
        NUM_CLASSES=pyramid.num_classes,
        Z_LAST=pyramid.z_last,
        POINTS=POINTS,
        HIGH_C=HIGH_CLASSES,
        BLOCK=ADDED_TOGETHER,
        num_warps=16,
        maxnreg=128,
    )
    sums, counts, *normalised, poison = outputs
    return sums, counts, tuple(normalised), poison
