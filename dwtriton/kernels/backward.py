"""The dense backward pass: gradients of the three sums, recomputed from the same inputs.

The incoming gradients are read from device memory and multiplied in before anything is rounded to half precision, so
the gradients are right under any loss scale and for any weighting of the three. Tiles and walk are those of the forward
pass; a program owns its points and writes each of their gradients once.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dwtriton.kernels import formulas, walk
from dwtriton.kernels.inputs import INTERPRETED, Boxes, Pyramid, dense_options
from dwtriton.kernels.statistics import BoxStatistics
from dwtriton.kernels.tuning import DenseConfig


@triton.jit(do_not_specialize=["capacity"])
def backward_kernel(
    z_levels,  # pointers to logits, one for each level; d_levels and u_levels alike
    d_levels,
    u_levels,
    heights,
    widths,
    strides,
    offsets,  # [B + 1]
    ranked,  # [6, N] and
    parts,  # [N, 3, SPLITS], see `BoxStatistics`
    poison,  # [] 1 or NaN
    grad_losses,  # [3]
    grad_z_levels,  # out, laid out as z_levels; the others alike
    grad_d_levels,
    grad_u_levels,
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

    z_place, d_place, u_place = image * area * NUM_CLASSES, image * area * 4, image * area
    z_image, d_image = walk.pick(z_levels, level) + z_place, walk.pick(d_levels, level) + d_place
    u = tl.load(walk.pick(u_levels, level) + u_place + point, mask=valid, other=0.0).to(tl.float32)
    su, not_u = formulas.sigmoids(u)
    factor = tl.load(poison)
    grad_pos = 0.25 * tl.load(grad_losses)
    grad_loc = 1.25 * tl.load(grad_losses + 1)
    grad_neg = (tl.where(ignored, 0.0, tl.load(grad_losses + 2)) * factor)[:, None]  # [P, 1]

    grad_u = tl.zeros_like(u) * factor  # 0, or NaN from the beginning
    grad_l = grad_u
    grad_t = grad_l
    grad_r = grad_l
    grad_b = grad_l
    classes = tl.arange(0, BLOCK_C)
    upcoming = walk.load_logits(z_image, point, valid, classes, area, NUM_CLASSES, BLOCK_C, Z_LAST)  # [P, BLOCK_C]
    for first_class in range(0, NUM_CLASSES, BLOCK_C):
        classes = first_class + tl.arange(0, BLOCK_C)
        end_class = tl.minimum(first_class + BLOCK_C, NUM_CLASSES)
        z = upcoming.to(tl.float32)
        more = valid & (end_class < NUM_CLASSES)  # read while this block is worked on
        upcoming = walk.load_logits(z_image, point, more, classes + BLOCK_C, area, NUM_CLASSES, BLOCK_C, Z_LAST)
        neg = tl.full(z.shape, 1.0, tl.float32)
        class_pos = tl.zeros_like(z)
        if label < end_class:
            neg = tl.where(z == z, neg, float("nan"))  # no constants now: they lie in the threads of z
            class_pos = tl.where(z == z, class_pos, float("nan"))
            while label < end_class:
                own = classes == label  # [BLOCK_C]
                score_own = formulas.sigmoids(walk.of_class(own, z))[0] * su  # [P]
                inside, distances, sides, _, _, _, pos, stretched = walk.weigh_box(
                    row, (ranked, parts), capacity, cells, area, stride, d_image, score_own, D_LAST, SOFT, SPLITS
                )
                slope_l, slope_t, slope_r, slope_b = formulas.reg_loss_gradient(distances, sides)
                scaled_pos = grad_loc * pos
                grad_l += tl.where(inside, scaled_pos * slope_l, 0.0)
                grad_t += tl.where(inside, scaled_pos * slope_t, 0.0)
                grad_r += tl.where(inside, scaled_pos * slope_r, 0.0)
                grad_b += tl.where(inside, scaled_pos * slope_b, 0.0)
                pair = inside[:, None] & own[None, :]
                neg = tl.where(pair, stretched[:, None], neg)
                class_pos += tl.where(pair, (grad_pos * pos)[:, None], 0.0)
                row, label = walk.next_box(row + 1, last, ranked, capacity, bounds)

        sz, not_z = formulas.dense_sigmoids(z)  # [P, BLOCK_C]
        score = sz * su[:, None]
        weight = grad_neg * neg * (score * score)
        if formulas.all_low(score):
            common = weight * formulas.low_negative_slope(score) - class_pos
            grad_z = common * not_z
            grad_u += tl.sum(common, 1) * not_u
        else:
            not_score = tl.fma(sz, not_u[:, None], not_z)
            slope_z, slope_u = formulas.negative_slopes(score, not_score, z, u[:, None], not_z, not_u[:, None])
            grad_z = weight * slope_z - class_pos * not_z
            grad_u += tl.sum(weight * slope_u - class_pos * not_u[:, None], 1)
        walk.store_logits(
            walk.pick(grad_z_levels, level) + z_place, grad_z, point, valid, classes, area, NUM_CLASSES, BLOCK_C, Z_LAST
        )

    tl.store(walk.pick(grad_u_levels, level) + u_place + point, grad_u, mask=valid)
    grad_d = walk.pick(grad_d_levels, level) + d_place
    tl.store(grad_d + walk.place(point, 0, area, 4, D_LAST), grad_l, mask=valid)
    tl.store(grad_d + walk.place(point, 1, area, 4, D_LAST), grad_t, mask=valid)
    tl.store(grad_d + walk.place(point, 2, area, 4, D_LAST), grad_r, mask=valid)
    tl.store(grad_d + walk.place(point, 3, area, 4, D_LAST), grad_b, mask=valid)


def dense_backward(
    pyramid: Pyramid,
    boxes: Boxes,
    statistics: BoxStatistics,
    poison: Tensor,
    grad_losses: Tensor,
    soft_prior: bool,
    config: DenseConfig,
) -> list[Tensor]:
    """Gradients of class logits, distances and objectness logits, one after the other, given those [3] of the sums.

    Each has dtype and memory of its level in `pyramid`; from the interpreter, which would cut off bits where a GPU
    rounds, all are float32.
    """
    dtype = torch.float32 if INTERPRETED else None
    grads = [[torch.empty_like(level, dtype=dtype) for level in kind] for kind in (pyramid.z, pyramid.d, pyramid.u)]
    tiles = pyramid.tiles(config.tile_height, config.tile_width)
    backward_kernel[tiles, pyramid.batch](
        *pyramid.arguments,
        boxes.offsets,
        *statistics,
        poison,
        grad_losses.contiguous(),
        *(tuple(kind) for kind in grads),
        boxes.labels.shape[0],
        **dense_options(pyramid, soft_prior, config),
    )
    return [level for kind in grads for level in kind]
