"""Generated batches, hostile cases included, and what every backend must make of them.

The method is discontinuous where a bag's IoUs hardly differ: m = (f - f_min) / spread amplifies rounding. So N may
differ from the truth by 8 eps / spread, and losses and gradients are compared with the truth at the N that was used;
where all spreads are at least 1e-2, also with the truth outright.
"""

import os
from dataclasses import replace

import numpy as np
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from tests import oracle
from tests.support.loss_cases import UNDERFLOW, Case, assert_gradients, random_case, run_loss, truth_gradients
from tests.support.released import released_loss

THOROUGH = os.environ.get("DWTRITON_TEST_ALL") == "1"  # thousands of examples, and other ones each time
LIMITS = {torch.float64: (1e-9, 1e-9), torch.float32: (1e-5, 1e-4)}  # of losses and gradients
BOX_WEIGHTS = (0, 2.0**-10, 0.5, 1, 30)
PYRAMIDS = (
    (((12, 16), (6, 8), (3, 4), (2, 2), (1, 1)), (8, 16, 32, 64, 128)),
    (((13, 9), (7, 5)), (7, 14)),
    (((5, 11),), (10,)),
    (((3, 2), (1, 1), (1, 1)), (8, 16, 100)),
)


def examples(count: int) -> settings:
    """Settings of a property: the same `count` examples each time, or 3000 new ones."""
    return settings(
        max_examples=3000 if THOROUGH else count,
        derandomize=not THOROUGH,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
    )


@st.composite
def cases(
    draw,
    pyramids=PYRAMIDS,
    counts=(0, 1, 2, 3, 5, 9, 40),
    max_images: int = 3,
    classes=(1, 2, 3, 20),
    soft_prior=(True, False),
) -> Case:
    sizes, strides = draw(st.sampled_from(pyramids))
    case = random_case(
        seed=draw(st.integers(0, 2**32 - 1)),
        boxes=draw(st.lists(st.sampled_from(counts), min_size=1, max_size=max_images)),
        classes=draw(st.sampled_from(classes)),
        sizes=sizes,
        strides=strides,
        logit_scale=draw(st.sampled_from([0.0, 1.0, 3.0, 30.0, 100.0])),
        closeness=draw(st.sampled_from([0.0, 0.5, 1.0])),
        soft_prior=draw(st.sampled_from(soft_prior)),
    )
    points, _ = case.points()
    for boxes, labels in zip(case.boxes, case.labels):
        for index in range(len(boxes)):
            hostility = draw(st.sampled_from(["none", "none", "on points", "no width", "whole image", "twice"]))
            if hostility == "on points":  # edges exactly on points: these are not inside
                ends = points[draw(st.lists(st.integers(0, len(points) - 1), min_size=2, max_size=2))]
                boxes[index] = np.concatenate((ends.min(0), ends.max(0)))
            elif hostility == "no width":
                boxes[index, 2] = boxes[index, 0]
            elif hostility == "whole image":
                boxes[index] = (-1000, -1000, 1000, 1000)
            elif hostility == "twice" and index:
                boxes[index], labels[index] = boxes[index - 1], labels[index - 1]
    if draw(st.booleans()):
        case.iscrowd = [np.array([draw(st.integers(0, 3)) == 0 for _ in labels], bool) for labels in case.labels]
    if draw(st.integers(0, 2)) == 0:
        values = st.sampled_from(BOX_WEIGHTS)
        case.box_weights = [np.array([draw(values) for _ in labels], np.float64) for labels in case.labels]
    return case


def no_iou_near_half(case: Case, gap: float) -> bool:
    """m jumps to 1 below an IoU of 0.5."""
    return all((np.abs(weights.iou[weights.inside] - 0.5) > gap).all() for weights in case.oracle_weights())


def at_used_weights(case: Case, dtype: torch.dtype):
    """Check every weight against the oracle; returns the oracle's with the N that was used, and the least spread."""
    eps = torch.finfo(dtype).eps
    weights = case.oracle_weights()
    least = np.inf
    for truth, got in zip(weights, case.weights(dtype)):
        np.testing.assert_array_equal(got.inside.numpy(), truth.inside)
        np.testing.assert_allclose(got.iou.double().numpy(), truth.iou, atol=16 * eps)
        np.testing.assert_allclose(got.prior.double().numpy(), truth.prior, atol=16 * eps)
        pos = got.pos.double().numpy()
        floor = max(512 * eps * truth.pos.max(initial=0), case.weight_underflow, 1e-30)
        np.testing.assert_allclose(pos, truth.pos, rtol=512 * eps, atol=floor)
        assert pos.shape == truth.pos.shape
        spread = truth.spread.min(initial=np.inf)
        neg = got.neg.double().numpy()
        np.testing.assert_allclose(neg, truth.neg, rtol=0, atol=min(1, 8 * eps / min(spread + 1e-12, 1)))
        truth.neg = neg
        least = min(least, spread)
    return weights, least


def released_errors(case: Case, truth) -> np.ndarray:
    """Errors of the released algorithm in float32, 0 where it fails or knows no such targets."""
    if case.iscrowd is not None or case.box_weights is not None:
        return np.zeros(3)
    losses = released_loss(*replace(case, device="cpu").tensors(), case.targets(), case.strides, case.soft_prior)
    return np.nan_to_num(np.abs([loss.item() for loss in losses.values()] - truth), nan=0, posinf=0)


def assert_losses(case: Case, losses, truth, limit: float) -> None:
    """Within the limit, or twice the released float32 code's own error where that is larger."""
    allowed = limit * np.abs(truth) + (case.weight_underflow, case.weight_underflow, UNDERFLOW)
    if (np.abs(losses - truth) > allowed).any():
        allowed = np.maximum(allowed, 2 * released_errors(case, truth))
    assert (np.abs(losses - truth) <= allowed).all(), (losses, truth)


def assert_equals_truth(case: Case, dtype: torch.dtype) -> None:
    plain = case.oracle_weights()
    weights, spread = at_used_weights(case, dtype)
    losses, grads = run_loss(case, case.tensors(dtype))
    limit_loss, limit_grad = LIMITS[dtype]
    for truth in [case.truth(weights)] + ([case.truth(plain)] if spread >= 1e-2 else []):
        assert_losses(case, losses, truth.losses, limit_loss)
        assert_gradients(grads, truth_gradients(truth), limit_grad, underflow=case.weight_underflow)


def nearly_equal_ious(offset: float) -> Case:
    """All predictions of a bag alike: its spread is rounding alone, or little more."""
    case = random_case(3, [1], sizes=((6, 6),), strides=(8,))
    case.boxes[0][:] = (2, 2, 45, 45)
    points, _ = case.points()
    sides = np.concatenate((points - 2, 45 - points), 1)
    case.d[0] = sides * (1.1 + offset * np.random.default_rng(0).random((len(points), 1)))
    return case


def tied_sides() -> Case:
    """Predicted sides exactly on the box's."""
    case = random_case(5, [1], sizes=((4, 4),), strides=(8,))
    case.boxes[0][:] = (3, 5, 29, 31)
    points, _ = case.points()
    case.d[0] = np.concatenate((points - (3, 5), (29, 31) - points), 1).clip(0)
    case.d[0, ::2, 0] += 1  # ties on three sides only
    return case


def on_thresholds(seed: int, count: int, **options) -> Case:
    """Priors of 0.3, IoUs of one half and predicted sides equal to the box's, all but for rounding."""
    case = random_case(seed, [count], soft_prior=False, **options)
    random = np.random.default_rng(seed)
    points, strides = case.points()
    radius = np.sqrt(2 * oracle.SIGMA**2 * np.log(1 / 0.3))  # strides, where the prior is 0.3
    chosen, angle = random.integers(0, len(points), count), random.uniform(0, 2 * np.pi, count)
    center = points[chosen] + (radius * strides[chosen] * (np.cos(angle), np.sin(angle))).T
    half = random.uniform(10, 60, (count, 2))
    case.boxes[0] = np.concatenate((center - half, center + half), 1).astype(np.float32).astype(np.float64)
    sides = oracle.box_sides(points.astype(np.float32), case.boxes[0].astype(np.float32))
    nearest = sides[np.arange(len(points)), random.integers(0, count, len(points))]
    halved = nearest * random.choice([1.0, 0.5], (len(points), 1)) ** [1, 0, 1, 0]
    case.d[0] = np.where(nearest.min(1, keepdims=True) > 0, halved, case.d[0])
    return case.rounded(torch.float32)


def assert_equals_truth_at_used_choices(case: Case) -> None:
    """On thresholds the method jumps: the truth is taken at the prior, N and ties that float32 arithmetic came to."""
    (image,), (truth,), (got,) = case.images(), case.oracle_weights(), case.weights()
    truth.prior = got.prior.double().numpy()
    score = np.exp(oracle.log_sigmoid(image.z) + oracle.log_sigmoid(image.u)[:, None])
    truth.pos = oracle.positive_weights(score[:, image.labels], truth.reg_loss, truth.prior)
    truth.neg = got.neg.double().numpy()
    sides = oracle.box_sides(image.points.astype(np.float32), image.boxes.astype(np.float32))
    expected = case.truth([truth], loc_gradients=[oracle.iou_and_reg_loss(image.d, sides)[2]])
    losses, grads = run_loss(case, case.tensors())
    # Predictions here are perfect but for rounding, so 1 - GIoU is known to about 2 eps, however small the loss.
    rounding = 0.25 * 5 * truth.pos.sum() * 2 * np.finfo(np.float32).eps / expected.pos_norm
    allowed = 1e-5 * np.abs(expected.losses) + [0, rounding, 0]
    assert (np.abs(losses - expected.losses) <= allowed).all(), (losses, expected.losses)
    assert_gradients(grads, truth_gradients(expected), 1e-4)


def extreme_logits(value: float, other: float, **options) -> Case:
    """Class logits of `value` and its negative, objectness logits of `other`."""
    case = random_case(11, [2, 0], logit_scale=0.0, **options)
    case.z[:], case.u[:] = value, other
    case.z[:, ::3] = -value
    return case


def assert_finite_and_exact(case: Case) -> None:
    losses, grads = run_loss(case, case.tensors())
    truth = case.truth(at_used_weights(case, torch.float32)[0])
    floor = max(case.weight_underflow, 1e-30)
    assert np.isfinite(losses).all()
    np.testing.assert_allclose(losses, truth.losses, rtol=1e-5, atol=floor)
    for got, expected in zip(grads, truth_gradients(truth)):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=max(1e-4 * np.abs(expected).max(), floor))
