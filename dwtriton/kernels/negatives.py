"""The negative loss s^2 (-ln(1 - s)) and its slopes as device functions, for N = 1; everything is float32.

Below LOW_SCORE a polynomial serves for the logarithm. What an entry comes to depends on its own logits alone, so that
the pairs of points and boxes can take back the very value that a dense pass added.
"""

from collections.abc import Callable

import numpy as np
import triton
import triton.language as tl
from numpy.polynomial import Chebyshev, Polynomial

from dwtriton.kernels.formulas import LOG2_E, MAX_LOG, exp, reciprocal, sigmoids

LOW_SCORE = tl.constexpr(0.5)  # below it polynomials serve for logarithms
LOSS_DEGREE, SLOPE_DEGREE = tl.constexpr(6), tl.constexpr(7)  # of these polynomials
LEAST_LOGIT = tl.constexpr(-80.0)  # exp(80) is not yet infinite
FULL_LOGIT = tl.constexpr(80.0)  # its sigmoid is 1 in float32, and exp of it is far from overflow
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
def dense_sigmoids(x):
    """sigmoid(x) and sigmoid(-x) in few instructions, exact above LEAST_LOGIT and taken there below it.

    The square of such a score is 0 in float32; positive weights, which are relative to those of a box, need `sigmoids`.
    """
    inverse = tl.exp2(tl.maximum(x, LEAST_LOGIT, propagate_nan=tl.PropagateNan.ALL) * -LOG2_E)
    sigmoid = reciprocal(1 + inverse)
    return sigmoid, inverse * sigmoid


@triton.jit
def lift(u):
    """1 / sigmoid(u), finite, and sigmoid(-u)."""
    raised = exp(-tl.maximum(u, LEAST_LOGIT, propagate_nan=tl.PropagateNan.ALL))
    return 1 + raised, raised / (1 + raised)


@triton.jit
def joint_score(z, lift):
    """s, from z and what `lift` makes of u; 0 where it would be below 1e-38."""
    return reciprocal(tl.fma(tl.exp2(z * -LOG2_E), lift, lift))


@triton.jit
def cube(x):
    return x * x * x


@triton.jit
def low_loss(score):
    """s^2 (-ln(1 - s)) / s^3 for s below LOW_SCORE: its product with the cube of s is the loss."""
    value = tl.full(score.shape, NEG_LOG_COMPLEMENT[0], tl.float32)
    for i in tl.static_range(1, LOSS_DEGREE + 1):
        value = tl.fma(value, score, NEG_LOG_COMPLEMENT[i])
    return value


@triton.jit
def neg_log_complement(score, not_score, z, u):
    """-ln(1 - s), unclamped, for any score; `not_score` is 1 - s, but may underflow where both logits are far."""
    nearer = tl.minimum(z, u)
    far = nearer > FAR_LOGIT
    rest = tl.where(far, 1 + exp(-tl.abs(z - u)), not_score)
    low = score * low_loss(score)
    return tl.where(score < LOW_SCORE, low, tl.where(far, nearer, 0.0) - tl.log(rest))


@triton.jit
def loss(z, u, lift, su, not_u):
    """s^2 (-ln(1 - s)), clamped, for any logits; the same bits as of `low_loss` wherever that is enough.

    `lift`, `su` and `not_u` are what `lift` and `sigmoids` make of u.
    """
    score = joint_score(z, lift)
    value = cube(score) * low_loss(score)
    low = score < LOW_SCORE
    if tl.min(low.to(tl.int32)) == 0:
        sz, not_z = dense_sigmoids(z)
        exact = tl.minimum(neg_log_complement(score, tl.fma(sz, not_u, not_z), z, u), MAX_LOG)
        value = tl.where(low, value, score * score * exact)
    return value


@triton.jit
def low_scores(z, lift, log2_su):
    """s and sigmoid(-z) in few instructions."""
    below = tl.minimum(z, FULL_LOGIT, propagate_nan=tl.PropagateNan.ALL)
    raised = tl.exp2(tl.fma(below, LOG2_E, log2_su))  # su e^z
    not_z = reciprocal(tl.fma(raised, lift, 1.0))
    return raised * not_z, not_z


@triton.jit
def low_slope(score, factor):
    """`factor` (2 (-ln(1 - s)) / s + 1 / (1 - s)) for s below LOW_SCORE.

    d(s^2 (-ln(1 - s))) / dz is its product with the cube of s and sigmoid(-z); by u it is sigmoid(-u) instead.
    """
    value = tl.full(score.shape, 1.0, tl.float32) * (factor * NEGATIVE_SLOPE[0])
    for i in tl.static_range(1, SLOPE_DEGREE + 1):
        value = tl.fma(value, score, factor * NEGATIVE_SLOPE[i])
    return value


@triton.jit
def slopes(z, u, su, not_u):
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
def gradients(z, u, lift, log2_su, not_u, factor):
    """`factor` d(s^2 (-ln(1 - s))) / d(z and u), for any logits; by `low_slope` wherever that is enough.

    `lift` and `not_u` are what `lift` makes of u, `log2_su` is the logarithm of one over the former.
    """
    score, not_z = low_scores(z, lift, log2_su)
    common = cube(score) * low_slope(score, factor)
    grad_z, grad_u = common * not_z, common * not_u
    low = score < LOW_SCORE
    if tl.min(low.to(tl.int32)) == 0:
        su, exact_not_u = sigmoids(u)
        slope_z, slope_u = slopes(z, u, su, exact_not_u)
        grad_z, grad_u = tl.where(low, grad_z, factor * slope_z), tl.where(low, grad_u, factor * slope_u)
    return grad_z, grad_u
