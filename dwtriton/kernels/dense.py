"""The dense passes: the negative loss as if N were 1 everywhere, and its gradient; they know nothing of boxes.

A program owns TILES times POINTS points of one level and goes through their logits a block of classes at a time. What
is common is short: a score, a polynomial of it, a product. If a point's sum says that some score may not be low, the
tile is done again by the exact formulas. Each entry's value depends on its own logits alone, not on which of the two
ways its tile took. The pairs of points and boxes put right afterwards what N and the positive losses change.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dwtriton.kernels import negatives
from dwtriton.kernels.configs import DenseConfig, logits_together
from dwtriton.kernels.dense_tiles import any_not, begin_of, exact_gradients, exact_losses, load_logits, open_points
from dwtriton.kernels.inputs import Pyramid
from dwtriton.kernels.launch import INTERPRETED, launch
from dwtriton.kernels.levels import pick, place, points_before

HIGH_CLASSES = 4  # taken at a time where scores are high
MAX_REGISTERS = 64  # of a thread: memory's latency is hidden by 32 warps on a multiprocessor


@triton.jit(do_not_specialize=["batch"])
def dense_forward_kernel(
    z_levels,
    u_levels,
    heights,
    widths,
    sums,
    batch,
    NUM_CLASSES: tl.constexpr,
    Z_LAST: tl.constexpr,
    POINTS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    HIGH_C: tl.constexpr,
    BLOCKS: tl.constexpr,
    TILES: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Sum the negative loss with N = 1 over all points and classes.

    Grid (programs,): program i owns sums[i] and TILES * POINTS points of a level, of one image unless Z_LAST. Tiles
    without a high score are added up in float32, all others exactly.

    z_levels, u_levels: of each level logits [B, C, H, W], channels_last if Z_LAST, and objectness logits [B, 1, H, W].
    heights, widths: of each level. batch: B.
    sums: out, [programs, 2] float64: of all points, and of tiles that were added up in float32.
    BLOCK_C: classes of a block; BLOCKS of these are read without a loop. HIGH_C: of one where scores are high.
    """
    program = tl.program_id(0)
    level, image, first, area = open_points(program, heights, widths, batch, POINTS * TILES, Z_LAST)
    z_first, u_first = begin_of(z_levels, u_levels, level, image, first, area, NUM_CLASSES, Z_LAST)
    SPAN: tl.constexpr = (NUM_CLASSES + BLOCK_C * BLOCKS - 1) // (BLOCK_C * BLOCKS) * (BLOCK_C * BLOCKS)
    total = tl.full((), 0.0, tl.float64)
    rounded = tl.full((), 0.0, tl.float64)
    for tile in tl.static_range(TILES):
        point = tile * POINTS + tl.arange(0, POINTS)
        valid = first + point < area
        u = tl.load(u_first + point, mask=valid, other=0.0).to(tl.float32)
        lift = negatives.lift(u)[0]
        losses = tl.zeros((POINTS, BLOCK_C), tl.float32)
        for first_class in tl.range(0, SPAN, BLOCK_C * BLOCKS, num_stages=STAGES):
            for i in tl.static_range(BLOCKS):
                classes = first_class + i * BLOCK_C + tl.arange(0, BLOCK_C)
                z = load_logits(z_first, point, valid, classes, area, NUM_CLASSES, Z_LAST, SPAN)[0]
                score = negatives.joint_score(z, lift[:, None])
                losses = tl.fma(negatives.cube(score), negatives.low_loss(score), losses)
        loss = tl.where(valid, tl.sum(losses, 1), 0.0)
        if any_not(loss < negatives.LOSS_OF_LOW_SCORE):  # a high score, or NaN
            total += tl.sum(exact_losses(z_first, point, valid, u, lift, area, NUM_CLASSES, Z_LAST, HIGH_C))
        else:
            of_tile = tl.sum(loss.to(tl.float64))
            total += of_tile
            rounded += of_tile
    tl.store(sums + 2 * program, total)
    tl.store(sums + 2 * program + 1, rounded)


@triton.jit(do_not_specialize=["batch", "poison", "norms", "grad_loss"])
def dense_backward_kernel(
    z_levels,
    u_levels,
    heights,
    widths,
    poison,
    norms,
    grad_loss,
    grad_z_levels,
    grad_d_levels,
    grad_u_levels,
    grad_u,
    batch,
    NUM_CLASSES: tl.constexpr,
    Z_LAST: tl.constexpr,
    POINTS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    HIGH_C: tl.constexpr,
    BLOCKS: tl.constexpr,
    TILES: tl.constexpr,
    STAGES: tl.constexpr,
    TOGETHER: tl.constexpr,
):
    """Write all gradients as if there were no boxes; constants are those of the forward pass.

    Grid (programs,): program i owns the gradients of TILES * POINTS points, the last points first: the logits that the
    forward pass read last are those that the cache still holds.

    z_levels, u_levels, heights, widths: as forward. poison: [] 1 or NaN. norms: [3] by which the sums of the losses
    were divided. grad_loss: [] of the negative loss.
    grad_z_levels: out, laid out as z_levels. grad_d_levels: out, zeros. grad_u_levels: out.
    grad_u: out, the same as grad_u_levels, [points of all levels and images] float32, for the pairs to add to.
    """
    program = tl.num_programs(0) - 1 - tl.program_id(0)
    level, image, first, area = open_points(program, heights, widths, batch, POINTS * TILES, Z_LAST)
    before = image.to(tl.int64) * area
    z_offset = before * NUM_CLASSES + place(first.to(tl.int64), 0, area, NUM_CLASSES, Z_LAST)
    z_first, grad_z_first = pick(z_levels, level) + z_offset, pick(grad_z_levels, level) + z_offset
    u_first, grad_u_first = pick(u_levels, level) + before + first, pick(grad_u_levels, level) + before + first
    grad_d_first = pick(grad_d_levels, level) + (before + first) * 4
    scratch_first = grad_u + points_before(level, heights, widths, batch) + before + first
    SPAN: tl.constexpr = (NUM_CLASSES + BLOCK_C * BLOCKS - 1) // (BLOCK_C * BLOCKS) * (BLOCK_C * BLOCKS)
    factor = tl.load(grad_loss).to(tl.float32) / tl.load(norms + 2) * tl.load(poison)
    zero = factor * 0
    for tile in tl.static_range(TILES):
        point = tile * POINTS + tl.arange(0, POINTS)
        valid = first + point < area
        u = tl.load(u_first + point, mask=valid, other=0.0).to(tl.float32)
        lift, not_u = negatives.lift(u)
        log2_su = -tl.log2(lift)
        commons = tl.zeros((POINTS, BLOCK_C // TOGETHER), tl.float32)  # each the sum of a thread's
        for first_class in tl.range(0, SPAN, BLOCK_C * BLOCKS, num_stages=STAGES):
            for i in tl.static_range(BLOCKS):
                classes = first_class + i * BLOCK_C + tl.arange(0, BLOCK_C)
                z, places, mask = load_logits(z_first, point, valid, classes, area, NUM_CLASSES, Z_LAST, SPAN)
                score, not_z = negatives.low_scores(z, lift[:, None], log2_su[:, None])
                common = negatives.cube(score) * negatives.low_slope(score, factor)
                commons += tl.sum(common.reshape((POINTS, BLOCK_C // TOGETHER, TOGETHER)), 2)
                tl.store(grad_z_first + places, common * not_z, mask=mask, eviction_policy="evict_first")
        of_point = tl.where(valid, tl.sum(commons, 1), 0.0)
        grad = of_point * not_u
        high = (tl.abs(of_point) <= tl.abs(factor) * negatives.SLOPE_OF_LOW_SCORE) == 0  # a high score, or NaN
        if tl.max(high.to(tl.int32)) != 0:
            tl.debug_barrier()  # other threads wrote what is written again
            rows = (point, valid, u, lift, log2_su, not_u)
            exact = exact_gradients(z_first, grad_z_first, rows, factor, area, NUM_CLASSES, Z_LAST, HIGH_C)
            grad = tl.where(high, exact, grad)
        grad += zero  # NaN where targets are invalid
        tl.store(scratch_first + point, grad, mask=valid)
        tl.store(grad_u_first + point, grad, mask=valid)
        sides = tile * POINTS * 4 + tl.arange(0, POINTS * 4)
        tl.store(grad_d_first + sides, tl.zeros((POINTS * 4,), tl.float32) + zero, mask=first * 4 + sides < area * 4)


def dense_forward(pyramid: Pyramid, config: DenseConfig) -> Tensor:
    """Partial sums of the negative loss with N = 1, [programs, 2] float64: of all tiles, of those in float32."""
    programs = pyramid.dense_programs(config.points * config.tiles)
    sums = torch.empty(programs, 2, device=pyramid.z[0].device, dtype=torch.float64)
    inputs = (pyramid.z, pyramid.u, *pyramid.sizes)
    launch(dense_forward_kernel, (programs,), *inputs, sums, pyramid.batch, **dense_options(pyramid, config))
    return sums


def dense_backward(
    pyramid: Pyramid,
    poison: Tensor,
    norms: Tensor,
    grad_loss: Tensor,
    grads: list[tuple[Tensor, ...]],
    config: DenseConfig,
) -> Tensor:
    """Write gradients as if there were no boxes; returns those of objectness in float32, level by level."""
    grad_z, grad_d, grad_u = grads
    if INTERPRETED:
        together = 4  # any number serves, as long as dtype and layout do not change it
    elif pyramid.z_last:
        together = logits_together(pyramid.num_classes, pyramid.z[0].dtype, True)
    else:
        together = config.classes
    scratch = torch.empty(pyramid.batch * pyramid.points, device=poison.device)
    launch(
        dense_backward_kernel,
        (pyramid.dense_programs(config.points * config.tiles),),
        pyramid.z,
        pyramid.u,
        *pyramid.sizes,
        poison,
        norms,
        grad_loss,
        grad_z,
        grad_d,
        grad_u,
        scratch,
        pyramid.batch,
        **dense_options(pyramid, config),
        TOGETHER=min(config.classes, together),
    )
    return scratch


def dense_options(pyramid: Pyramid, config: DenseConfig) -> dict[str, int | bool]:
    """Constants and launch options."""
    blocks = config.blocks(pyramid.num_classes)
    constants = {"NUM_CLASSES": pyramid.num_classes, "Z_LAST": pyramid.z_last, "POINTS": config.points}
    constants |= {"BLOCK_C": config.classes, "BLOCKS": blocks, "TILES": config.tiles}
    constants |= {"HIGH_C": min(config.classes, HIGH_CLASSES), "STAGES": config.stages}
    return constants | {"num_warps": config.warps, "maxnreg": MAX_REGISTERS}
