"""The formulas of `dwtriton/reference/formulas.py` as device functions; everything is float32.

Kernels are compiled without contraction of products and sums (`enable_fp_fusion=False`), so that a pair of a point and
a box has the same bits in each of them: m divides by the spread of a bag, which may be no more than rounding.
"""

import triton
import triton.language as tl
from triton.language import target_info

from dwtriton.kernels.launch import INTERPRETED
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


@triton.constexpr_function
def on_nvidia():
    """Whether a kernel is being compiled for a GPU of NVIDIA's."""
    return not INTERPRETED and target_info.is_cuda()


@triton.jit
def reciprocal(x):
    """1 / x for x > 0 that is far from overflow, in one instruction; a division takes eight."""
    if on_nvidia():
        return tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1)
    else:
        return 1 / x


@triton.jit
def ratio(x, y, inverse):
    """x / y to the last digit, from the `reciprocal` of y; 1 where both are equal, also where fma rounds twice."""
    quotient = x * inverse
    return tl.where(x == y, 1.0, tl.fma(tl.fma(-quotient, y, x), inverse, quotient))


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
def beyond(one, other):
    """By how much one side lies beyond another."""
    return tl.maximum(one - other, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def sizes(distances, sides):
    """Widths, then heights, of the predicted box, the true one, what both share, and what each has beyond the other."""
    left, top, right, bottom = distances
    side_l, side_t, side_r, side_b = sides
    width = (
        left + right,
        side_l + side_r,
        tl.minimum(left, side_l) + tl.minimum(right, side_r),
        beyond(left, side_l) + beyond(right, side_r),
        beyond(side_l, left) + beyond(side_r, right),
    )
    height = (
        top + bottom,
        side_t + side_b,
        tl.minimum(top, side_t) + tl.minimum(bottom, side_b),
        beyond(top, side_t) + beyond(bottom, side_b),
        beyond(side_t, top) + beyond(side_b, bottom),
    )
    return width, height


@triton.jit
def areas(width, height):
    """Intersection, union without it, and enclosing box without the union: sums of products that are not negative."""
    _, _, inner_w, more_w, less_w = width
    predicted_h, true_h, inner_h, more_h, less_h = height
    beside = (more_w * predicted_h + inner_w * more_h) + (less_w * true_h + inner_w * less_h)
    return inner_w * inner_h, beside, more_w * less_h + less_w * more_h


@triton.jit
def guard(area):
    """max(area, 1e-6); NaN stays NaN."""
    return tl.maximum(area, MIN_AREA, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def overlap(distances, sides):
    """IoU, 1 - IoU, and 1 - GIoU, from left, top, right, bottom to predicted and to true sides."""
    width, height = sizes(distances, sides)
    inner, beside, gap = areas(width, height)
    raw_union = inner + beside
    union, outer = guard(raw_union), guard(raw_union + gap)
    added, added_outer = union - raw_union, outer - (raw_union + gap)  # 0 but for boxes of nearly no area
    per_union = reciprocal(union)
    iou_loss = ratio(beside + added, union, per_union)
    reg_loss = iou_loss + (gap + added_outer - added) * reciprocal(outer)
    return ratio(inner, union, per_union), iou_loss, reg_loss


@triton.jit
def slopes_of_sides(size, across, union, outer, per_union, per_outer, over_union):
    """d(1 - GIoU) / d(a distance), of a side inside the true box and of one beyond it.

    `size` and `across` are the results of `sizes` in the direction in which the side moves, and across it.
    """
    _, true, _, _, less = size
    predicted_across, _, inner_across, more_across, less_across = across
    grows = union > MIN_AREA
    swept = tl.where(grows, more_across, 0.0)
    inside = (swept * over_union - inner_across) * per_union - swept * per_outer
    gap = tl.where(grows, less_across * true - more_across * less, guard(union))
    gap = tl.where(outer > MIN_AREA, gap * per_outer, 0.0) * (per_outer * (inner_across + more_across + less_across))
    return inside, tl.where(grows, predicted_across * over_union * per_union, 0.0) + gap


@triton.jit
def slope_of_side(distance, side, inside, outside):
    """The slope of a side: that inside or that beyond the true box; where both boxes tie, the mean."""
    return tl.where(distance < side, inside, tl.where(distance == side, 0.5 * (inside + outside), outside))


@triton.jit
def reg_loss_gradient(distances, sides):
    """d(1 - GIoU) / d(left, top, right, bottom)."""
    left, top, right, bottom = distances
    side_l, side_t, side_r, side_b = sides
    width, height = sizes(distances, sides)
    inner, beside, gap = areas(width, height)
    union, outer = inner + beside, inner + beside + gap
    per_union, per_outer = reciprocal(guard(union)), reciprocal(guard(outer))
    over_union = ratio(inner, guard(union), per_union)
    inside_w, beyond_w = slopes_of_sides(width, height, union, outer, per_union, per_outer, over_union)
    inside_h, beyond_h = slopes_of_sides(height, width, union, outer, per_union, per_outer, over_union)
    return (
        slope_of_side(left, side_l, inside_w, beyond_w),
        slope_of_side(top, side_t, inside_h, beyond_h),
        slope_of_side(right, side_r, inside_w, beyond_w),
        slope_of_side(bottom, side_b, inside_h, beyond_h),
    )


@triton.jit
def alignment(score, reg_loss):
    """t: the joint score of the box's class times p_loc."""
    return score * exp(reg_loss * -BETA)


@triton.jit
def positive_mass(t, prior):
    """What a pair adds to the denominator of its box's positive weights."""
    return exp(t * MU_SUM) * t * prior


@triton.jit
def positive_share(t, prior):
    """w_pos times its denominator."""
    return exp(t * MU) * t * prior


@triton.jit
def iou_deficit(iou, iou_loss):
    """f(v) = (1 - v^2) / 0.75."""
    return iou_loss * (1 + iou) * (1 / DEFICIT_SCALE)


@triton.jit
def p_neg(iou, iou_loss, deficit_min, deficit_max):
    """m: the deficit stretched to 0..1 over the bag; 1 where the IoU is below one half."""
    spread = tl.maximum(deficit_max - deficit_min, 0.0, propagate_nan=tl.PropagateNan.ALL) + SPREAD_EPSILON
    above = iou_deficit(iou, iou_loss) - deficit_min + SPREAD_EPSILON
    stretched = tl.minimum(ratio(above, spread, reciprocal(spread)), 1.0, propagate_nan=tl.PropagateNan.ALL)
    return tl.where(iou < MIN_IOU, 1.0, stretched)
