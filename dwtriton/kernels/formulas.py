"""The formulas of `dwtriton/reference/formulas.py` as device functions; everything is float32.

Kernels are compiled without contraction of products and sums (`enable_fp_fusion=False`), so that a pair of a point and
a box has the same bits in each of them: m divides by the spread of a bag, which may be no more than rounding.
"""

import triton
import triton.language as tl

from dwtriton.reference import formulas

LOG2_E = tl.constexpr(1.4426950408889634)
PRIOR_SCALE = tl.constexpr(-0.5 / formulas.SIGMA**2)
BETA, MU, MU_SUM = tl.constexpr(formulas.BETA), tl.constexpr(formulas.MU), tl.constexpr(formulas.MU_SUM)
MIN_AREA = tl.constexpr(formulas.MIN_AREA)
MIN_IOU, SPREAD_EPSILON = tl.constexpr(formulas.MIN_IOU), tl.constexpr(formulas.SPREAD_EPSILON)
HARD_PRIOR_THRESHOLD = tl.constexpr(formulas.HARD_PRIOR_THRESHOLD)
MAX_LOG = tl.constexpr(formulas.MAX_LOG)
POSITIVE_FACTOR, DEFICIT_SCALE = tl.constexpr(formulas.POSITIVE_FACTOR), tl.constexpr(formulas.DEFICIT_SCALE)


@triton.jit
def exp(x):
    """e^x, without the extra instructions by which `tl.exp` keeps results below 1e-38."""
    return tl.exp2(x * LOG2_E)


@triton.jit
def reciprocal(x):
    """1 / x for x > 0 that is far from overflow; a division takes eight instructions more."""
    root = tl.math.rsqrt(x)
    return root * root


@triton.jit
def ratio(x, y, inverse):
    """x / y to the last digit, from the `reciprocal` of y; 1 where both are equal."""
    quotient = x * inverse
    return tl.fma(tl.fma(-quotient, y, x), inverse, quotient)


@triton.jit
def sigmoids(x):
    """sigmoid(x) and sigmoid(-x), both to full relative accuracy."""
    small = exp(-tl.abs(x))
    large = reciprocal(1 + small)
    small *= large
    return tl.where(x >= 0, large, small), tl.where(x >= 0, small, large)


@triton.jit
def log1p(x):
    """ln(1 + x) for x from -1/2 to 1, as 2 artanh(x / (2 + x)): a GPU's fast logarithm has no digits left near 1."""
    t = x * reciprocal(2 + x)
    q = t * t
    series = tl.fma(q, 1 / 15, 1 / 13)
    series = tl.fma(q, series, 1 / 11)
    series = tl.fma(q, series, 1 / 9)
    series = tl.fma(q, series, 1 / 7)
    series = tl.fma(q, series, 1 / 5)
    series = tl.fma(q, series, 1 / 3)
    return 2 * tl.fma(t * q, series, t)


@triton.jit
def neg_log_sigmoid(x):
    """-ln sigmoid(x), unclamped."""
    return tl.maximum(-x, 0) + log1p(exp(-tl.abs(x)))


@triton.jit
def center_prior(x, y, corners, stride, SOFT: tl.constexpr):
    """Gaussian of the distance from the box centre in strides; if not SOFT, 1 where that is > 0.3, else 0."""
    x1, y1, x2, y2 = corners
    scale = 1 / stride
    dx = (x - (x1 + x2) * 0.5) * scale
    dy = (y - (y1 + y2) * 0.5) * scale
    prior = exp((dx * dx + dy * dy) * PRIOR_SCALE)
    if not SOFT:
        prior = tl.where(prior > HARD_PRIOR_THRESHOLD, 1.0, 0.0)
    return prior


@triton.jit
def areas(distances, sides):
    """Areas of intersection, union and enclosing box, from left, top, right, bottom to predicted and to true sides."""
    left, top, right, bottom = distances
    side_l, side_t, side_r, side_b = sides
    inner = (tl.minimum(left, side_l) + tl.minimum(right, side_r)) * (
        tl.minimum(top, side_t) + tl.minimum(bottom, side_b)
    )
    outer = (tl.maximum(left, side_l) + tl.maximum(right, side_r)) * (
        tl.maximum(top, side_t) + tl.maximum(bottom, side_b)
    )
    union = (left + right) * (top + bottom) + (side_l + side_r) * (side_t + side_b) - inner
    return inner, union, outer


@triton.jit
def guard(area):
    """max(area, 1e-6); NaN stays NaN."""
    return tl.maximum(area, MIN_AREA, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def overlap(distances, sides):
    """IoU, and 1 - GIoU."""
    inner, union, outer = areas(distances, sides)
    union, outer = guard(union), guard(outer)
    per_union, per_outer = reciprocal(union), reciprocal(outer)
    return ratio(inner, union, per_union), (union - inner) * per_union + (outer - union) * per_outer


@triton.jit
def reg_loss_slope(distance, side, across, across_inner, across_outer, of_inner, of_union, of_outer):
    """d(1 - GIoU) / d(distance of one side), from the derivatives by the three areas.

    `across` are the lengths that the side sweeps over when it moves. Where the predicted side ties with the true one,
    the result is the mean of the slopes on both sides.
    """
    within = tl.where(distance < side, 1.0, tl.where(distance == side, 0.5, 0.0))
    inner = within * across_inner
    return inner * of_inner + (across - inner) * of_union + (1 - within) * across_outer * of_outer


@triton.jit
def reg_loss_gradient(distances, sides):
    """d(1 - GIoU) / d(left, top, right, bottom), by way of 1 - GIoU = 2 - inner / union - union / outer."""
    left, top, right, bottom = distances
    side_l, side_t, side_r, side_b = sides
    inner, union, outer = areas(distances, sides)
    per_union, per_outer = reciprocal(guard(union)), reciprocal(guard(outer))
    # inner / union^2 and union / outer^2 by way of the gaps, so that all terms cancel at a perfect prediction
    of_union = tl.where(union > MIN_AREA, per_union * (1 - (union - inner) * per_union) - per_outer, 0.0)
    of_outer = tl.where(outer > MIN_AREA, per_outer * (1 - (outer - union) * per_outer), 0.0)
    width, height = left + right, top + bottom
    inner_w = tl.minimum(left, side_l) + tl.minimum(right, side_r)
    inner_h = tl.minimum(top, side_t) + tl.minimum(bottom, side_b)
    outer_w = tl.maximum(left, side_l) + tl.maximum(right, side_r)
    outer_h = tl.maximum(top, side_t) + tl.maximum(bottom, side_b)
    return (
        reg_loss_slope(left, side_l, height, inner_h, outer_h, -per_union, of_union, of_outer),
        reg_loss_slope(top, side_t, width, inner_w, outer_w, -per_union, of_union, of_outer),
        reg_loss_slope(right, side_r, height, inner_h, outer_h, -per_union, of_union, of_outer),
        reg_loss_slope(bottom, side_b, width, inner_w, outer_w, -per_union, of_union, of_outer),
    )


@triton.jit
def alignment(score, reg_loss):
    """t: the joint score of the box's class times p_loc."""
    return score * exp(-BETA * reg_loss)


@triton.jit
def positive_mass(t, prior):
    """What a pair adds to the denominator of its box's positive weights."""
    return exp(MU_SUM * t) * t * prior


@triton.jit
def positive_share(t, prior):
    """w_pos times its denominator."""
    return exp(MU * t) * t * prior


@triton.jit
def iou_deficit(iou):
    """f(v) = (1 - v^2) / 0.75."""
    return (1 - iou) * (1 + iou) * (1 / DEFICIT_SCALE)


@triton.jit
def p_neg(iou, deficit_min, deficit_max):
    """m: the deficit stretched to 0..1 over the bag; 1 where the IoU is below one half."""
    above, spread = iou_deficit(iou) - deficit_min + SPREAD_EPSILON, deficit_max - deficit_min + SPREAD_EPSILON
    return tl.where(iou < MIN_IOU, 1.0, ratio(above, spread, reciprocal(spread)))
