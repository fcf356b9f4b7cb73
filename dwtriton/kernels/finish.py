"""The last step forward: partial sums of all kernels become the losses, in a fixed order."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dwtriton.kernels.boxes import BOX_SUMS

ADDED_TOGETHER = 4096  # partial sums that the program reads at once


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


@triton.jit(do_not_specialize=["dense_programs", "pair_programs", "box_programs"])
def finish_kernel(
    dense_sums,  # [dense_programs] float64
    pair_sums,  # [pair_programs, 2] float64
    box_sums,  # [box_programs, BOX_SUMS] float64
    losses,  # out: [3] sums of the three losses
    counts,  # out: [3] sum of the boxes' weights, twice, and sum of 1 - N
    poison,  # out: [] 1, or NaN if a box, a label or a weight is invalid
    dense_programs,
    pair_programs,
    box_programs,
    BLOCK: tl.constexpr,
):
    """One program."""
    cls_neg = add_up(dense_sums, dense_programs, 1, BLOCK) + add_up(pair_sums, pair_programs, 2, BLOCK)
    missing = add_up(pair_sums + 1, pair_programs, 2, BLOCK)
    cls_pos = add_up(box_sums, box_programs, BOX_SUMS, BLOCK)
    loc = add_up(box_sums + 1, box_programs, BOX_SUMS, BLOCK)
    weight = add_up(box_sums + 2, box_programs, BOX_SUMS, BLOCK).to(tl.float32)
    wrong = add_up(box_sums + 3, box_programs, BOX_SUMS, BLOCK)
    factor = tl.where(wrong > 0, float("nan"), 1.0)
    tl.store(losses, cls_pos.to(tl.float32) * factor)
    tl.store(losses + 1, loc.to(tl.float32) * factor)
    tl.store(losses + 2, cls_neg.to(tl.float32) * factor)
    tl.store(counts, weight)
    tl.store(counts + 1, weight)
    tl.store(counts + 2, missing.to(tl.float32))
    tl.store(poison, factor)


def finish(dense_sums: Tensor, pair_sums: Tensor, box_sums: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sums of the three losses [3], what normalises each of them [3], and the poison [], all float32.

    The poison is 1, or NaN if a box, a label or a weight is invalid, and is a factor of the losses already.
    """
    losses, counts, poison = (torch.empty(shape, device=dense_sums.device) for shape in (3, 3, ()))
    finish_kernel[(1,)](
        dense_sums,
        pair_sums,
        box_sums,
        losses,
        counts,
        poison,
        len(dense_sums),
        len(pair_sums),
        len(box_sums),
        BLOCK=ADDED_TOGETHER,
        num_warps=16,
        enable_fp_fusion=False,
    )
    return losses, counts, poison
