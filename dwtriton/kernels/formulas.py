"""The formulas of `dwtriton/reference/formulas.py` as device functions; everything is float32.

Kernels are compiled without contraction of products and sums (`enable_fp_fusion=False`), so that a pair of a point and
a box has the same bits in each of them: m divides by the spread of a bag, which may be no more than rounding.
"""

from collections.abc import Callable

import numpy as np
import triton
import triton.language as tl
from numpy.polynomial import Chebyshev, Polynomial

from dwtriton.reference import formulas

LOG2_E = tl.constexpr(1.4426950408889634)
PRIOR_SCALE = tl.constexpr(-0.5 / formulas.SIGMA**2)
MAX_LOG = tl.constexpr(formulas.MAX_LOG)
LOW_SCORE = tl.constexpr(0.5)  # below it polynomials serve for logarithms
LOSS_DEGREE, SLOPE_DEGREE = tl.constexpr(6), tl.constexpr(7)  # of these polynomials
LEAST_LOGIT = tl.constexpr(-80.0)  # exp(80) is not yet infinite
FAR_LOGIT = tl.constexpr(40.0)  # if both logits are above it, 1 - s = exp(-z) + exp(-u) to float32


def _polynomial(function: Callable[[np.ndarray], np.ndarray], degree: int) -> tl.constexpr:
    """Coefficients, highest first, of a fit on scores from 0 to LOW_SCORE."""
    fit = Chebyshev.interpolate(function, degree, domain=[0, LOW_SCORE.value])
    return tl.constexpr(tuple(fit.convert(kind=Polynomial).coef[::-1].tolist()))


NEG_LOG_COMPLEMENT = _polynomial(lambda s: -np.log1p(-s) / s, LOSS_DEGREE.value)  # within 1.2e-6
NEGATIVE_SLOPE = _polynomial(lambda s: -2 * np.log1p(-s) / s + 1 / (1 - s), SLOPE_DEGREE.value)  # within 8e-7
# What one entry of LOW_SCORE adds to the sums that tell whether a point has any. All terms are positive, and the
# polynomials rise beyond LOW_SCORE, too: a lower sum cannot hide such an entry.
LOSS_OF_LOW_SCORE = tl.constexpr(0.999 * LOW_SCORE.value**2 * np.log(2))
SLOPE_OF_LOW_SCORE = tl.constexpr(0.999 * LOW_SCORE.value**3 * (4 * np.log(2) + 2))


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
def sigmoids(x):
    """sigmoid(x) and sigmoid(-x), both to full relative accuracy."""
    small = exp(-tl.abs(x))
    large = 1 / (1 + small)
    small *= large
    return tl.where(x >= 0, large, small), tl.where(x >= 0, small, large)


@triton.jit
def dense_sigmoids(x):
    """sigmoid(x) and sigmoid(-x) in few instructions, exact above LEAST_LOGIT and taken there below it.

    The square of such a score is 0 in float32; positive weights, which are relative to those of a box, need `sigmoids`.
    """
    inverse = tl.exp2(tl.maximum(x, LEAST_LOGIT, propagate_nan=tl.PropagateNan.ALL) * -LOG2_E)
    sigmoid = reciprocal(1 + inverse)
    return sigmoid, inverse * sigmoid


@triton.jit
def log1p(x):
    """ln(1 + x) for x from -1/2 to 1, as 2 artanh(x / (2 + x)): a GPU's fast logarithm has no digits left near 1."""
    t = x / (2 + x)
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
def lift(u):
    """1 / sigmoid(u), finite, and sigmoid(-u)."""
    raised = exp(-tl.maximum(u, LEAST_LOGIT, propagate_nan=tl.PropagateNan.ALL))
    return 1 + raised, raised / (1 + raised)


@triton.jit
def joint_score(z, lift):
    """s, from z and what `lift` makes of u; 0 where it would be below 1e-38."""
    root = tl.math.rsqrt(tl.fma(tl.exp2(z * -LOG2_E), lift, lift))
    return root * root


@triton.jit
def cube(x):
    return x * x * x


@triton.jit
def neg_log_complement(score, not_score, z, u):
    """-ln(1 - s), unclamped, for any score; `not_score` is 1 - s, but may underflow where both logits are far."""
    nearer = tl.minimum(z, u)
    far = nearer > FAR_LOGIT
    rest = tl.where(far, 1 + exp(-tl.abs(z - u)), not_score)
    low = score * low_negative_loss(score)
    return tl.where(score < LOW_SCORE, low, tl.where(far, nearer, 0.0) - tl.log(rest))


@triton.jit
def low_negative_loss(score):
    """s^2 (-ln(1 - s)) / s^3 for s below LOW_SCORE: its product with the cube of s is the loss."""
    value = tl.full(score.shape, NEG_LOG_COMPLEMENT[0], tl.float32)
    for i in tl.static_range(1, LOSS_DEGREE + 1):
        value = tl.fma(value, score, NEG_LOG_COMPLEMENT[i])
    return value


@triton.jit
def negative_loss(z, u, lift, su, not_u):
    """s^2 (-ln(1 - s)), clamped, for any logits; the same bits as of `low_negative_loss` wherever that is enough.

    `lift`, `su` and `not_u` are what `lift` and `sigmoids` make of u.
    """
    score = joint_score(z, lift)
    sz, not_z = dense_sigmoids(z)
    exact = tl.minimum(neg_log_complement(score, tl.fma(sz, not_u, not_z), z, u), MAX_LOG)
    return tl.where(score < LOW_SCORE, cube(score) * low_negative_loss(score), score * score * exact)


@triton.jit
def low_scores(z, lift, log2_su):
    """s and sigmoid(-z) in few instructions; s is NaN for logits beyond 88, where `lift` times e^z is infinite."""
    raised = tl.exp2(tl.fma(z, LOG2_E, log2_su))  # su e^z
    root = tl.math.rsqrt(tl.fma(raised, lift, 1.0))
    not_z = root * root
    return raised * not_z, not_z


@triton.jit
def low_negative_slope(score, factor):
    """`factor` (2 (-ln(1 - s)) / s + 1 / (1 - s)) for s below LOW_SCORE.

    d(s^2 (-ln(1 - s))) / dz is its product with the cube of s and sigmoid(-z); by u it is sigmoid(-u) instead.
    """
    value = tl.full(score.shape, 1.0, tl.float32) * (factor * NEGATIVE_SLOPE[0])
    for i in tl.static_range(1, SLOPE_DEGREE + 1):
        value = tl.fma(value, score, factor * NEGATIVE_SLOPE[i])
    return value


@triton.jit
def negative_slopes(z, u, su, not_u):
    """d(s^2 (-ln(1 - s))) / d(z and u), for any logits; `su` and `not_u` are sigmoid(u) and sigmoid(-u)."""
    sz, not_z = dense_sigmoids(z)
    score = sz * su
    not_score = tl.fma(sz, not_u, not_z)
    far = tl.minimum(z, u) > FAR_LOGIT
    toward_u, toward_z = dense_sigmoids(u - z)
    inverse = reciprocal(tl.where(far, 1.0, not_score))
    ratio_z = tl.where(far, toward_u, not_z * inverse)  # sigmoid(softplus(u) - z)
    ratio_u = tl.where(far, toward_z, not_u * inverse)  # sigmoid(softplus(z) - u)
    twice = 2 * neg_log_complement(score, not_score, z, u)
    square = score * score
    return square * (twice * not_z + score * ratio_z), square * (twice * not_u + score * ratio_u)


@triton.jit
def negative_gradients(z, u, lift, log2_su, not_u, factor):
    """`factor` d(s^2 (-ln(1 - s))) / d(z and u), for any logits; by `low_negative_slope` wherever that is enough.

    `lift` and `not_u` are what `lift` makes of u, `log2_su` is the logarithm of one over the former.
    """
    score, not_z = low_scores(z, lift, log2_su)
    common = cube(score) * low_negative_slope(score, factor)
    su, exact_not_u = sigmoids(u)
    slope_z, slope_u = negative_slopes(z, u, su, exact_not_u)
    low = score < LOW_SCORE
    return tl.where(low, common * not_z, factor * slope_z), tl.where(low, common * not_u, factor * slope_u)


@triton.jit
def center_prior(x, y, x1, y1, x2, y2, stride, SOFT: tl.constexpr):
    """Gaussian of the distance from the box centre in strides; if not SOFT, 1 where that is > 0.3, else 0."""
    scale = 1 / stride
    dx = (x - (x1 + x2) * 0.5) * scale
    dy = (y - (y1 + y2) * 0.5) * scale
    prior = exp((dx * dx + dy * dy) * PRIOR_SCALE)
    if not SOFT:
        prior = tl.where(prior > 0.3, 1.0, 0.0)
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
    return tl.maximum(area, 1e-6, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def overlap(distances, sides):
    """IoU, and 1 - GIoU."""
    inner, union, outer = areas(distances, sides)
    union, outer = guard(union), guard(outer)
    return inner / union, (union - inner) / union + (outer - union) / outer


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
    per_union, per_outer = 1 / guard(union), 1 / guard(outer)
    # inner / union^2 and union / outer^2 by way of the gaps, so that all terms cancel at a perfect prediction
    of_union = tl.where(union > 1e-6, per_union * (1 - (union - inner) * per_union) - per_outer, 0.0)
    of_outer = tl.where(outer > 1e-6, per_outer * (1 - (outer - union) * per_outer), 0.0)
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
    return score * exp(-5 * reg_loss)


@triton.jit
def positive_mass(t, prior):
    """What a pair adds to the denominator of its box's positive weights."""
    return exp(3 * t) * t * prior


@triton.jit
def positive_share(t, prior):
    """w_pos times its denominator."""
    return exp(5 * t) * t * prior


@triton.jit
def positive_weight(t, prior, denominator):
    """w_pos."""
    return positive_share(t, prior) / denominator


@triton.jit
def iou_deficit(iou):
    """f(v) = (1 - v^2) / 0.75."""
    return (1 - iou) * (1 + iou) * (4 / 3)


@triton.jit
def negative_weight(iou, deficit_min, deficit_max):
    """m: the deficit stretched to 0..1 over the bag; 1 where the IoU is below one half."""
    stretched = (iou_deficit(iou) - deficit_min + 1e-12) / (deficit_max - deficit_min + 1e-12)
    return tl.where(iou < 0.5, 1.0, stretched)
