"""Tiles of the dense passes, [P, BLOCK_C], as device functions: points of a level and their logits.

Where a tile has a high score it is done by exact formulas, a few classes at a time.
"""

import triton
import triton.language as tl

from dwtriton.kernels import formulas, negatives
from dwtriton.kernels.levels import pick, place

NO_SCORE = tl.constexpr(float("-inf"))  # logit of entries that a tile does not have: their score and loss are 0


@triton.jit
def open_points(program, heights, widths, batch, POINTS: tl.constexpr, Z_LAST: tl.constexpr):
    """The points that a program owns: level, image, number of its first point, and how many there are to count from.

    Where logits are channels_last, the points of all images of a level are one row of points, of "image" 0.
    """
    level = program * 0
    first = program * 0
    begin = program * 0
    for i in tl.static_range(len(heights)):
        here = program >= begin
        level = tl.where(here, i, level)
        first = tl.where(here, begin, first)
        area = tl.cast(heights[i], tl.int32) * tl.cast(widths[i], tl.int32)
        if Z_LAST:
            begin += tl.cdiv(batch * area, POINTS)
        else:
            begin += batch * tl.cdiv(area, POINTS)
    area = tl.cast(pick(heights, level), tl.int32) * tl.cast(pick(widths, level), tl.int32)
    number = program - first
    if Z_LAST:
        image = number * 0
        area *= batch
    else:
        per_image = tl.cdiv(area, POINTS)
        image = number // per_image
        number -= image * per_image
    return level, image, number * POINTS, area


@triton.jit
def entries(point, valid, classes, area, NUM_CLASSES: tl.constexpr, Z_LAST: tl.constexpr, MASKED: tl.constexpr):
    """Where logits of a block of classes lie and which exist, both [P, BLOCK_C]."""
    mask = valid[:, None]
    if MASKED:
        mask = mask & (classes < NUM_CLASSES)[None, :]
    return place(point[:, None], classes[None, :], area, NUM_CLASSES, Z_LAST), mask


@triton.jit
def load_logits(
    z_points, point, valid, classes, area, NUM_CLASSES: tl.constexpr, Z_LAST: tl.constexpr, SPAN: tl.constexpr
):
    """Logits of a block of classes, where they lie, and which exist; those of points that do not exist are anything."""
    places, mask = entries(point, valid, classes, area, NUM_CLASSES, Z_LAST, SPAN != NUM_CLASSES)
    if SPAN != NUM_CLASSES:
        z = tl.load(z_points + places, mask=mask, other=NO_SCORE)
    else:
        z = tl.load(z_points + places, mask=mask)
    return z.to(tl.float32), places, mask


@triton.jit
def any_not(condition):
    """Whether a condition does not hold somewhere."""
    return tl.max((condition == 0).to(tl.int32)) != 0


@triton.jit
def exact_losses(
    z_points, point, valid, u, lift, area, NUM_CLASSES: tl.constexpr, Z_LAST: tl.constexpr, HIGH_C: tl.constexpr
):
    """Negative losses of any scores added up over the classes, [P] float64."""
    su, not_u = formulas.sigmoids(u)
    total = tl.zeros(point.shape, tl.float64)
    for first_class in range(0, NUM_CLASSES, HIGH_C):
        classes = first_class + tl.arange(0, HIGH_C)
        places, mask = entries(point, valid, classes, area, NUM_CLASSES, Z_LAST, NUM_CLASSES % HIGH_C != 0)
        z = tl.load(z_points + places, mask=mask, other=NO_SCORE).to(tl.float32)
        losses = negatives.loss(z, u[:, None], lift[:, None], su[:, None], not_u[:, None])
        total += tl.sum(losses.to(tl.float64), 1)
    return total


@triton.jit
def exact_gradients(
    z_points, grad_z_points, rows, factor, area, NUM_CLASSES: tl.constexpr, Z_LAST: tl.constexpr, HIGH_C: tl.constexpr
):
    """Write gradients of logits whose scores are not low; returns those of the objectness from all classes, [P].

    `rows` are point, valid, u and what `negatives.lift` makes of it, as in the kernel.
    """
    point, valid, u, lift, log2_su, not_u = rows
    su, exact_not_u = formulas.sigmoids(u)
    total = tl.zeros(point.shape, tl.float32)
    for first_class in range(0, NUM_CLASSES, HIGH_C):
        classes = first_class + tl.arange(0, HIGH_C)
        places, mask = entries(point, valid, classes, area, NUM_CLASSES, Z_LAST, NUM_CLASSES % HIGH_C != 0)
        z = tl.load(z_points + places, mask=mask, other=NO_SCORE).to(tl.float32)
        score, _ = negatives.low_scores(z, lift[:, None], log2_su[:, None])
        low = score < negatives.LOW_SCORE
        grad_u = negatives.cube(score) * negatives.low_slope(score, factor) * not_u[:, None]
        if any_not(low):
            slope_z, slope_u = negatives.slopes(z, u[:, None], su[:, None], exact_not_u[:, None])
            grad_u = tl.where(low, grad_u, factor * slope_u)
            tl.store(grad_z_points + places, factor * slope_z, mask=mask & (low == 0))
        total += tl.sum(grad_u, 1)
    return total


@triton.jit
def begin_of(z_levels, u_levels, level, image, first, area, NUM_CLASSES: tl.constexpr, Z_LAST: tl.constexpr):
    """Where the logits, and where the objectness of some points begin, from what `open_points` tells of them."""
    before = image.to(tl.int64) * area
    z_offset = before * NUM_CLASSES + place(first.to(tl.int64), 0, area, NUM_CLASSES, Z_LAST)
    return pick(z_levels, level) + z_offset, pick(u_levels, level) + before + first


@triton.jit
def exact_sum(
    z_levels,
    u_levels,
    heights,
    widths,
    batch,
    programs,
    NUM_CLASSES: tl.constexpr,
    Z_LAST: tl.constexpr,
    POINTS: tl.constexpr,
    HIGH_C: tl.constexpr,
):
    """What `dense_forward_kernel` adds up, to the last digit, by one program in the place of many; float64."""
    total = tl.zeros((POINTS,), tl.float64)
    program = batch * 0
    while program < programs:
        level, image, first, area = open_points(program, heights, widths, batch, POINTS, Z_LAST)
        z_first, u_first = begin_of(z_levels, u_levels, level, image, first, area, NUM_CLASSES, Z_LAST)
        point = tl.arange(0, POINTS)
        valid = first + point < area
        u = tl.load(u_first + point, mask=valid, other=0.0).to(tl.float32)
        lift = negatives.lift(u)[0]
        total += exact_losses(z_first, point, valid, u, lift, area, NUM_CLASSES, Z_LAST, HIGH_C)
        program += 1
    return tl.sum(total)
