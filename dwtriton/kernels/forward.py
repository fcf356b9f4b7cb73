"""The dense forward pass: sums of the three losses and of 1 - N, without gradients.

A program owns a tile of points of one level of one image. It reads its logits once, a block of classes at a time, and
walks the boxes that touch the tile in their order, so that the last of a class decides N. Each program writes its own
partial sums, which one more program adds up in a fixed order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dwtriton.kernels import formulas, walk
from dwtriton.kernels.inputs import Boxes, Pyramid, dense_options
from dwtriton.kernels.statistics import BoxStatistics
from dwtriton.kernels.tuning import DenseConfig

ADDED_TOGETHER = 4096  # partial sums, or boxes, that `finish_kernel` reads at once: mostly all of them


@triton.jit(do_not_specialize=["capacity"])
def forward_kernel(
    z_levels,  # pointers to logits, one for each level; d_levels and u_levels alike
    d_levels,
    u_levels,
    heights,
    widths,
    strides,
    offsets,  # [B + 1]
    ranked,  # [6, N] and
    parts,  # [N, 3, SPLITS], see `BoxStatistics`
    partials,  # out: [4, programs] sums of the three losses and of 1 - N
    capacity,  # N
    NUM_CLASSES: tl.constexpr,
    Z_LAST: tl.constexpr,
    D_LAST: tl.constexpr,
    SOFT: tl.constexpr,
    SPLITS: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    image, level, area, stride, cells, bounds = walk.open_tile(heights, widths, strides, TILE_H, TILE_W)
    point, valid, _, _ = cells  # [P]
    first, last = walk.image_rows(offsets, image, capacity)
    row, label = walk.next_box(first, last, ranked, capacity, bounds)
    ignored, row, label = walk.inside_crowd(cells, row, label, last, ranked, capacity, bounds)

    z_image = walk.pick(z_levels, level) + image * area * NUM_CLASSES
    d_image = walk.pick(d_levels, level) + image * area * 4
    u = tl.load(walk.pick(u_levels, level) + image * area + point, mask=valid, other=0.0).to(tl.float32)
    su, not_u = formulas.sigmoids(u)

    cls_pos = tl.zeros_like(u)
    loc = tl.zeros_like(u)
    cls_neg = tl.zeros_like(u)
    neg_count = tl.zeros_like(u)
    classes = tl.arange(0, BLOCK_C)
    upcoming = walk.load_logits(z_image, point, valid, classes, area, NUM_CLASSES, BLOCK_C, Z_LAST)  # [P, BLOCK_C]
    for first_class in range(0, NUM_CLASSES, BLOCK_C):
        classes = first_class + tl.arange(0, BLOCK_C)
        end_class = tl.minimum(first_class + BLOCK_C, NUM_CLASSES)
        z = upcoming.to(tl.float32)
        more = valid & (end_class < NUM_CLASSES)  # read while this block is worked on
        upcoming = walk.load_logits(z_image, point, more, classes + BLOCK_C, area, NUM_CLASSES, BLOCK_C, Z_LAST)
        neg = tl.full(z.shape, 1.0, tl.float32)
        if label < end_class:
            neg = tl.where(z == z, neg, float("nan"))  # no constant now: it lies in the threads of z
            while label < end_class:
                own = classes == label  # [BLOCK_C]
                z_own = walk.of_class(own, z)  # [P]
                score_own = formulas.sigmoids(z_own)[0] * su
                inside, _, _, _, reg_loss, _, pos, stretched = walk.weigh_box(
                    row, (ranked, parts), capacity, cells, area, stride, d_image, score_own, D_LAST, SOFT, SPLITS
                )
                score_loss = formulas.neg_log_sigmoid(z_own) + formulas.neg_log_sigmoid(u)
                cls_pos += tl.where(inside, pos * tl.minimum(score_loss, formulas.MAX_LOG), 0.0)
                loc += tl.where(inside, pos * (5 * reg_loss), 0.0)
                neg = tl.where(inside[:, None] & own[None, :], stretched[:, None], neg)
                row, label = walk.next_box(row + 1, last, ranked, capacity, bounds)
            neg_count += tl.sum(1 - neg, 1)

        sz, not_z = formulas.dense_sigmoids(z)
        score = sz * su[:, None]
        if formulas.all_low(score):
            loss = formulas.low_negative_loss(score)
        else:
            loss = formulas.negative_loss(score, tl.fma(sz, not_u[:, None], not_z), z, u[:, None])
        cls_neg += tl.sum(neg * (score * score) * loss, 1)

    programs = (tl.num_programs(0) * tl.num_programs(1)).to(tl.int64)
    part = partials + tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    tl.store(part, 0.25 * tl.sum(cls_pos))
    tl.store(part + programs, 0.25 * tl.sum(loc))
    tl.store(part + 2 * programs, tl.sum(tl.where(ignored, 0.0, cls_neg)))
    tl.store(part + 3 * programs, tl.sum(tl.where(ignored, 0.0, neg_count)))


@triton.jit(do_not_specialize=["programs", "batch", "capacity"])
def finish_kernel(
    partials,  # [4, programs]
    boxes,  # [N, 4]
    labels,  # [N]
    iscrowd,  # [N] uint8
    offsets,  # [B + 1]
    losses,  # out: [3]
    counts,  # out: [3] number of boxes, twice, and sum of 1 - N
    poison,  # out: [] 1, or NaN if a box or a label is invalid
    programs,
    batch,
    capacity,  # N
    NUM_CLASSES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    cls_pos = tl.zeros((BLOCK,), tl.float32)
    loc = tl.zeros((BLOCK,), tl.float32)
    cls_neg = tl.zeros((BLOCK,), tl.float32)
    neg_count = tl.zeros((BLOCK,), tl.float32)
    start = programs * 0
    while start < programs:
        number = start + tl.arange(0, BLOCK)
        part = partials + number.to(tl.int64)
        mask = number < programs
        cls_pos += tl.load(part, mask=mask, other=0.0)
        loc += tl.load(part + programs, mask=mask, other=0.0)
        cls_neg += tl.load(part + 2 * programs.to(tl.int64), mask=mask, other=0.0)
        neg_count += tl.load(part + 3 * programs.to(tl.int64), mask=mask, other=0.0)
        start += BLOCK

    count = tl.zeros((BLOCK,), tl.int32)
    wrong = tl.zeros((BLOCK,), tl.int32)
    used = tl.minimum(tl.load(offsets + batch), capacity)
    start = used * 0
    while start < used:
        rows = start + tl.arange(0, BLOCK)
        mask = rows < used
        x1 = tl.load(boxes + 4 * rows, mask=mask, other=0.0)
        y1 = tl.load(boxes + 4 * rows + 1, mask=mask, other=0.0)
        x2 = tl.load(boxes + 4 * rows + 2, mask=mask, other=0.0)
        y2 = tl.load(boxes + 4 * rows + 3, mask=mask, other=0.0)
        label = tl.load(labels + rows, mask=mask, other=0)
        right = (x1 <= x2) & (y1 <= y2) & (x1 > float("-inf")) & (y1 > float("-inf"))
        right = right & (x2 < float("inf")) & (y2 < float("inf")) & (label >= 0) & (label < NUM_CLASSES)
        wrong += tl.where(mask & (right == 0), 1, 0)
        count += tl.where(mask & (tl.load(iscrowd + rows, mask=mask, other=1) == 0), 1, 0)
        start += BLOCK

    factor = tl.where(tl.sum(wrong) > 0, float("nan"), 1.0)
    num_boxes = tl.sum(count).to(tl.float32)
    tl.store(losses, tl.sum(cls_pos) * factor)
    tl.store(losses + 1, tl.sum(loc) * factor)
    tl.store(losses + 2, tl.sum(cls_neg) * factor)
    tl.store(counts, num_boxes)
    tl.store(counts + 1, num_boxes)
    tl.store(counts + 2, tl.sum(neg_count))
    tl.store(poison, factor)


def dense_forward(
    pyramid: Pyramid, boxes: Boxes, statistics: BoxStatistics, soft_prior: bool, config: DenseConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums over a batch, all float32: the three losses [3]; what normalises each of them [3]; and the poison [].

    The poison is 1, or NaN if a box or label is invalid, and is a factor of the losses already.
    """
    tiles = pyramid.tiles(config.tile_height, config.tile_width)
    programs = pyramid.batch * tiles
    capacity = boxes.labels.shape[0]
    partials = torch.empty(4, programs, device=boxes.corners.device)
    losses, counts, poison = (torch.empty(shape, device=boxes.corners.device) for shape in (3, 3, ()))
    forward_kernel[tiles, pyramid.batch](
        *pyramid.arguments, boxes.offsets, *statistics, partials, capacity, **dense_options(pyramid, soft_prior, config)
    )
    finish_kernel[(1,)](
        partials,
        *boxes,
        losses,
        counts,
        poison,
        programs,
        pyramid.batch,
        capacity,
        NUM_CLASSES=pyramid.num_classes,
        BLOCK=ADDED_TOGETHER,
        num_warps=8,
        enable_fp_fusion=False,
    )
    return losses, counts, poison
