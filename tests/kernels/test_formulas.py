"""The kernels' formulas, number by number, against float64."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from dwtriton.kernels import formulas, negatives
from tests import oracle

pytestmark = pytest.mark.usefixtures("poisoned_memory")

UNDERFLOW = 1e-37
BLOCK = 1024
LEAST_LOGIT = negatives.LEAST_LOGIT.value
LOW_SCORE = negatives.LOW_SCORE.value
FAR_LOGIT = negatives.FAR_LOGIT.value


@triton.jit
def apply_kernel(a, b, c, out, length, FORMULA: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = place < length
    first = tl.load(a + place, mask=mask, other=0.5)
    second = tl.load(b + place, mask=mask, other=0.5)
    third = tl.load(c + place, mask=mask, other=0.5)
    tl.store(out + place, FORMULA(first, second, third), mask=mask)


def apply(formula, device, first, second=None, third=None) -> np.ndarray:
    """A formula of three arguments, of which it may ignore the last, on float32 values."""
    parts = [first if part is None else part for part in (first, second, third)]
    tensors = [torch.tensor(np.ascontiguousarray(part), dtype=torch.float32, device=device) for part in parts]
    out = torch.empty_like(tensors[0])
    grid = (triton.cdiv(len(out), BLOCK),)
    apply_kernel[grid](*tensors, out, len(out), FORMULA=formula, BLOCK=BLOCK, enable_fp_fusion=False)
    return out.double().cpu().numpy()


def float32(values) -> np.ndarray:
    return np.asarray(values, np.float32).astype(np.float64)


def assert_close(got, expected, rtol) -> None:
    allowed = rtol * np.abs(expected) + UNDERFLOW
    excess = np.abs(got - expected) - allowed
    assert (excess <= 0).all(), f"relative error of {(np.abs(got - expected) / np.abs(expected)).max()}"


def exp_error(x):
    """Relative error of exp(x), whose argument is rounded: on a GPU it is exp2 of a product."""
    return 1e-6 + 1.5e-7 * np.abs(x)


X = float32(np.concatenate((np.linspace(-110, 110, 20001), np.linspace(-2, 2, 4001), [0.0, -0.0, 1e-20, -1e-20, 1e-7])))


@triton.jit
def exp(x, y, z):
    return formulas.exp(x)


@triton.jit
def sigmoid(x, y, z):
    return formulas.sigmoids(x)[0]


@triton.jit
def opposite_sigmoid(x, y, z):
    return formulas.sigmoids(x)[1]


@triton.jit
def dense_sigmoid(x, y, z):
    return negatives.dense_sigmoids(x)[0]


@triton.jit
def opposite_dense_sigmoid(x, y, z):
    return negatives.dense_sigmoids(x)[1]


@triton.jit
def neg_log_sigmoid(x, y, z):
    return formulas.neg_log_sigmoid(x)


@triton.jit
def log1p(x, y, z):
    return formulas.log1p(x)


def test_exp(device):
    x = X[np.abs(X) < 80]
    assert_close(apply(exp, device, x), np.exp(x), exp_error(x))


@pytest.mark.parametrize(("formula", "sign"), [(sigmoid, 1), (opposite_sigmoid, -1)])
def test_sigmoids(device, formula, sign):
    assert_close(apply(formula, device, X), oracle.sigmoid(sign * X), exp_error(X))


@pytest.mark.parametrize(("formula", "sign"), [(dense_sigmoid, 1), (opposite_dense_sigmoid, -1)])
def test_dense_sigmoids_are_exact_down_to_their_least_logit(device, formula, sign):
    x = X[LEAST_LOGIT <= X]
    assert_close(apply(formula, device, x), oracle.sigmoid(sign * x), exp_error(x))
    lower = apply(formula, device, X[LEAST_LOGIT > X])
    assert (lower == lower[0]).all()


def test_neg_log_sigmoid(device):
    assert_close(apply(neg_log_sigmoid, device, X), -oracle.log_sigmoid(X), exp_error(np.maximum(X, 0)))


def test_log1p(device):
    """To the last bits also where a logarithm of 1 + x has none."""
    x = float32(np.concatenate((np.linspace(-0.5, 1, 30001), 10.0 ** -np.arange(1, 30), -(10.0 ** -np.arange(1, 30)))))
    assert_close(apply(log1p, device, x), np.log1p(x), 1e-6)


@triton.jit
def low_loss(score, y, z):
    return score * negatives.low_loss(score)


@triton.jit
def low_slope(score, y, z):
    return score * negatives.low_slope(score, 1.0)


def test_polynomials_of_low_scores(device):
    """Fits within 1.2e-6 and 8e-7, and rounding."""
    s = float32(np.concatenate((np.linspace(0, LOW_SCORE, 30001), 10.0 ** -np.arange(1, 38))))
    assert_close(apply(low_loss, device, s), -np.log1p(-s), 1.5e-6)
    assert_close(apply(low_slope, device, s), -2 * np.log1p(-s) + s / (1 - s), 1.2e-6)


def test_no_score_that_is_not_low_hides_in_a_sum(device):
    """Beyond the scores that they were made for, polynomials still rise."""
    s = float32(np.linspace(LOW_SCORE, 1, 10001))
    assert (s**2 * apply(low_loss, device, s) > negatives.LOSS_OF_LOW_SCORE.value).all()
    assert (s**2 * apply(low_slope, device, s) > negatives.SLOPE_OF_LOW_SCORE.value).all()


@triton.jit
def joint_score(z, u, _):
    return negatives.joint_score(z, negatives.lift(u)[0])


@triton.jit
def low_score(z, u, _):
    lift, _ = negatives.lift(u)
    return negatives.low_scores(z, lift, -tl.log2(lift))[0]


@triton.jit
def not_z_of_low_score(z, u, _):
    lift, _ = negatives.lift(u)
    return negatives.low_scores(z, lift, -tl.log2(lift))[1]


@triton.jit
def loss(z, u, _):
    lift, _ = negatives.lift(u)
    su, not_u = formulas.sigmoids(u)
    return negatives.loss(z, u, lift, su, not_u)


@triton.jit
def slope_z(z, u, _):
    su, not_u = formulas.sigmoids(u)
    return negatives.slopes(z, u, su, not_u)[0]


@triton.jit
def slope_u(z, u, _):
    su, not_u = formulas.sigmoids(u)
    return negatives.slopes(z, u, su, not_u)[1]


@triton.jit
def gradient_z(z, u, _):
    lift, not_u = negatives.lift(u)
    return negatives.gradients(z, u, lift, -tl.log2(lift), not_u, 1.0)[0]


@triton.jit
def gradient_u(z, u, _):
    lift, not_u = negatives.lift(u)
    return negatives.gradients(z, u, lift, -tl.log2(lift), not_u, 1.0)[1]


def logits() -> tuple[np.ndarray, np.ndarray]:
    """Pairs over all of -79 to 79, dense around scores of LOW_SCORE and one half and where both logits are far."""
    wide = np.linspace(-79, 79, 159)
    low = np.linspace(-3, 3, 121)
    far = FAR_LOGIT + np.concatenate((np.linspace(-1, 1, 41), np.linspace(-10, 39, 50)))
    pairs = [np.stack(np.meshgrid(part, part)).reshape(2, -1) for part in (wide, low, far)]
    low_z = np.repeat(low, 9)
    ends = np.repeat([[LOW_SCORE], [0.5]], 3, 1) * (1 + np.array([-1e-4, 0, 1e-4]))
    for score in ends.ravel():  # of exactly about this score: sigmoid(u) = score / sigmoid(z)
        su = score / oracle.sigmoid(low_z)
        use = su < 0.999
        pairs.append(np.stack((low_z[use], np.log(su[use] / (1 - su[use])))))
    return tuple(float32(np.concatenate(pairs, 1)))


def complement(z, u):
    """-ln(1 - s)."""
    log_score = oracle.log_sigmoid(z) + oracle.log_sigmoid(u)
    exact = -np.logaddexp(oracle.log_sigmoid(-z), oracle.log_sigmoid(z) + oracle.log_sigmoid(-u))
    return np.where(log_score < np.log(0.5), -np.log1p(-np.exp(np.minimum(log_score, np.log(0.5)))), exact)


def test_scores(device):
    z, u = logits()
    score = np.exp(oracle.log_sigmoid(z) + oracle.log_sigmoid(u))
    limit = exp_error(z) + exp_error(u)
    assert_close(apply(joint_score, device, z, u), score, limit)
    assert_close(apply(low_score, device, z, u), score, limit)
    assert_close(apply(not_z_of_low_score, device, z, u), oracle.sigmoid(-z), limit)


def test_negative_loss(device):
    z, u = logits()
    limit = 3 * (exp_error(np.minimum(z, 0)) + exp_error(np.minimum(u, 0)))  # s comes in as its cube
    square = np.exp(2 * (oracle.log_sigmoid(z) + oracle.log_sigmoid(u)))
    assert_close(apply(loss, device, z, u), square * np.minimum(complement(z, u), 100), limit)


GRADIENTS = [
    (slope_z, False),
    (slope_u, True),
    (gradient_z, False),
    (gradient_u, True),
]


@pytest.mark.parametrize(("formula", "swap"), GRADIENTS)
def test_slopes_and_gradients(device, formula, swap):
    """d(s^2 (-ln(1 - s))) / d(a logit)."""
    z, u = logits()
    own, other = (u, z) if swap else (z, u)
    score = np.exp(oracle.log_sigmoid(z) + oracle.log_sigmoid(u))
    slope = 2 * complement(z, u) * oracle.sigmoid(-own) + score * oracle.sigmoid(oracle.softplus(other) - own)
    assert_close(apply(formula, device, z, u), score**2 * slope, 3 * (exp_error(z) + exp_error(u)))


@triton.jit
def loss_of_dense_pass(z, u, _):
    score = negatives.joint_score(z, negatives.lift(u)[0])
    return negatives.cube(score) * negatives.low_loss(score)


@triton.jit
def gradient_z_of_dense_pass(z, u, _):
    lift, _ = negatives.lift(u)
    score, not_z = negatives.low_scores(z, lift, -tl.log2(lift))
    return negatives.cube(score) * negatives.low_slope(score, 1.0) * not_z


@pytest.mark.parametrize(
    ("any_score", "low_scores", "score_of"),
    [(loss, loss_of_dense_pass, joint_score), (gradient_z, gradient_z_of_dense_pass, low_score)],
)
def test_low_scores_among_high_ones_have_the_bits_of_the_dense_pass(device, any_score, low_scores, score_of):
    z, u = np.random.default_rng(0).permutation(np.stack(logits()), axis=1)  # high ones in every block
    low = apply(score_of, device, z, u) < LOW_SCORE
    assert all(0 < part.sum() < len(part) for part in np.array_split(low, len(low) // BLOCK))
    assert np.array_equal(apply(any_score, device, z, u)[low], apply(low_scores, device, z, u)[low])
