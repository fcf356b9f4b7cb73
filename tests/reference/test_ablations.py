"""Ablations of Dual Weighting against the NumPy oracle, and unchanged against Dual Weighting itself."""

from dataclasses import asdict

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dwtriton import pack_targets
from dwtriton.losses import DualWeightAblationLoss
from tests.oracle_ablations import Ablation, losses_and_gradients
from tests.support.generated_cases import cases, examples, extreme_logits, no_iou_near_half
from tests.support.loss_cases import (
    LOSSES,
    all_without_weight,
    assert_gradients,
    crowded,
    join,
    last_without_weight,
    overlapping,
    random_case,
    run_loss,
    truth_gradients,
    weighted,
)

CHANGES = {
    "nothing": {},
    "complement": {"negative_weight": "complement"},
    "no IoU": {"negative_weight": "score"},
    "hard prior": {"soft_prior": False},
    "exponents of the positive weight": {"beta": 2.5, "mu": 3.0, "mu_sum": 4.5},
    "exponents of the negative weight": {"gamma_iou": 3.0, "gamma_score": 0.7},
}
EACH_CHANGE = pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)


def run(case, changes, dtype=torch.float64, inputs=None, targets=None):
    """Losses [3] and gradients of their sum, as [B, P, K] arrays."""
    inputs = case.tensors(dtype) if inputs is None else inputs
    losses = DualWeightAblationLoss(case.strides, **changes)(*inputs, targets or case.targets())
    grads = iter(torch.autograd.grad(sum(losses.values()), [level for kind in inputs for level in kind]))
    return np.array([losses[name].item() for name in LOSSES]), [join([next(grads) for _ in kind]) for kind in inputs]


def assert_equals_oracle(case, changes, dtype=torch.float64):
    """Within the rules of the method's own tests; where all IoUs of a bag are nearly equal m is rounding alone."""
    truth, expected, spread = losses_and_gradients(case.images(), Ablation(**changes), case.iscrowd)
    if spread < 1e-3:
        return
    losses, grads = run(case, changes, dtype)
    limit_loss, limit_grad = (1e-9, 1e-9) if dtype == torch.float64 else (1e-5, 1e-4)
    np.testing.assert_allclose(losses, truth, rtol=limit_loss, atol=1e-30)
    assert_gradients(grads, expected, limit_grad)


@examples(25)
@given(cases().filter(lambda case: no_iou_near_half(case, 1e-9)), st.sampled_from(sorted(CHANGES)))
def test_generated_cases(case, change):
    """No boxes, boxes without a point, copies, crowd regions, weights of boxes, logits of 100, one and five levels."""
    assert_equals_oracle(case, CHANGES[change])


@EACH_CHANGE
@pytest.mark.parametrize("make", [overlapping, crowded, weighted, all_without_weight, last_without_weight])
def test_boxes_over_each_other_crowds_and_weights(make, changes):
    assert_equals_oracle(make(), changes)


@EACH_CHANGE
def test_float32(changes):
    assert_equals_oracle(random_case(0, [6, 0, 9]), changes, torch.float32)


@EACH_CHANGE
@pytest.mark.parametrize(("value", "other"), [(-100.0, 100.0), (30.0, -30.0), (100.0, 100.0)])
def test_extreme_logits(value, other, changes):
    assert_equals_oracle(extreme_logits(value, other), changes)


@pytest.mark.parametrize("soft_prior", [True, False])
@pytest.mark.parametrize("make", [weighted, lambda: random_case(3, [9, 0, 4])])
def test_without_a_change_it_is_dual_weighting(make, soft_prior):
    case = make()
    case.soft_prior = soft_prior
    for dtype, limit in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        losses, grads = run(case, {"soft_prior": soft_prior}, dtype)
        expected, expected_grads = run_loss(case, case.tensors(dtype))
        np.testing.assert_allclose(losses, expected, rtol=limit)
        assert_gradients(grads, expected_grads, 10 * limit)
        assert_gradients(grads, truth_gradients(case.truth()), 1e-9 if dtype == torch.float64 else 1e-4)


@EACH_CHANGE
def test_packed_targets_half_precision_and_layouts(changes):
    case = random_case(3, [4, 0]).rounded(torch.bfloat16)
    plain, plain_grads = run(case, changes, torch.float32)
    inputs = case.tensors(torch.bfloat16, torch.channels_last)
    losses, grads = run(case, changes, inputs=inputs, targets=pack_targets(case.targets(), "cpu", capacity=9))
    np.testing.assert_allclose(losses, plain, rtol=1e-6)
    for got, expected in zip(grads, plain_grads):
        np.testing.assert_allclose(got, expected, rtol=1e-2, atol=1e-6 * np.abs(expected).max())


def test_heads_without_objectness():
    case = random_case(1, [3])
    z, d, _ = case.tensors()
    case.u[:] = 1000.0
    for changes in CHANGES.values():
        losses = DualWeightAblationLoss(case.strides, **changes)(z, d, None, case.targets())
        truth, _, _ = losses_and_gradients(case.images(), Ablation(**changes))
        np.testing.assert_allclose([losses[name].item() for name in LOSSES], truth, rtol=1e-5)


def test_an_invalid_label_on_the_device_makes_all_losses_nan(monkeypatch):
    monkeypatch.setattr("dwtriton.losses.inputs.check_values", lambda *_: None)  # as for tensors of a GPU
    case = random_case(1, [3])
    case.labels[0][1] = 99
    losses, _ = run(case, {})
    assert np.isnan(losses).all()


def test_settings_are_checked_at_once():
    with pytest.raises(ValueError, match=r"negative_weight is one of \('iou', 'score', 'complement'\), not 'x'"):
        DualWeightAblationLoss(negative_weight="x")
    for name in ("beta", "mu", "mu_sum", "gamma_iou", "gamma_score"):
        with pytest.raises(ValueError, match=f"{name} is an exponent and must be positive, not 0"):
            DualWeightAblationLoss(**{name: 0})
    assert DualWeightAblationLoss().ablation._asdict() == asdict(Ablation())
    assert "negative_weight='iou', soft_prior=True, beta=5" in repr(DualWeightAblationLoss())


@pytest.mark.slow
@EACH_CHANGE
def test_one_graph_for_all_numbers_of_boxes(changes):
    loss = DualWeightAblationLoss(**changes)
    compiled = torch.compile(loss, fullgraph=True, dynamic=False)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for seed, counts in enumerate(([3, 2], [0, 0], [40, 9])):
        case = random_case(seed, counts)
        inputs = case.tensors()
        losses = compiled(*inputs, pack_targets(case.targets(), "cpu"))
        grads = torch.autograd.grad(sum(losses.values()), [level for kind in inputs for level in kind])
        expected, expected_grads = run(case, changes, torch.float32)
        np.testing.assert_allclose([losses[name].item() for name in LOSSES], expected, rtol=1e-5)
        grads = iter(grads)
        for kind, truth in zip(inputs, expected_grads):
            got = join([next(grads) for _ in kind])
            np.testing.assert_allclose(got, truth, rtol=0, atol=1e-5 * np.abs(truth).max(initial=0))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
