"""The loss, the assigner and the baseline of the benchmarks equal what the released code computes."""

import numpy as np
import pytest
import torch
from loss_cases import GOLDEN_NAMES, LOSSES, assert_gradients, golden_case, golden_neg, join, run_loss
from released import released_loss

GRADIENTS = ("grad_cls_logits", "grad_box_dist", "grad_obj_logits")


def golden_losses(golden):
    return np.array([golden[key] for key in LOSSES])


def golden_gradients(golden):
    z, d, u = (golden[key] for key in GRADIENTS)
    return [z, d, u[..., None]]


@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_float64_loss_equals_golden(name):
    case, golden = golden_case(name)
    losses, grads = run_loss(case, case.tensors(torch.float64))
    np.testing.assert_allclose(losses, golden_losses(golden), rtol=1e-9, atol=0)
    assert_gradients(grads, golden_gradients(golden), 1e-9)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_float32_loss_is_within_the_numerics_rules_of_golden(name, memory_format):
    case, golden = golden_case(name)
    truth = golden_losses(golden)
    losses, grads = run_loss(case, case.tensors(torch.float32, memory_format))
    released_error = np.abs(np.array([golden[f"{key}_f32"] for key in LOSSES]) - truth)
    assert (np.abs(losses - truth) <= np.maximum(1e-5 * np.abs(truth), 2 * released_error)).all()
    released_error = golden["grad_f32_maxabs_diff"] / np.maximum(golden["grad_maxabs"], 1e-300)
    assert_gradients(grads, golden_gradients(golden), tuple(np.maximum(1e-4, 2 * released_error)))


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-10), (torch.float32, 3e-5)], ids=["f64", "f32"])
@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_assigner_equals_golden(name, dtype, limit):
    case, golden = golden_case(name)
    neg = golden_neg(golden)
    weights = case.weights(dtype)
    assert len(weights) == len(case.boxes)
    for image, weight in enumerate(weights):
        count = len(case.labels[image])
        np.testing.assert_array_equal(weight.points.numpy(), golden["points"])
        np.testing.assert_array_equal(weight.inside.numpy(), golden["inside_mask"][image][:, :count])
        for key, got in (("center_prior", weight.prior), ("ious", weight.iou), ("p_pos_weight", weight.pos)):
            np.testing.assert_allclose(got.double().numpy(), golden[key][image][:, :count], atol=limit, err_msg=key)
        np.testing.assert_allclose(weight.neg.double().numpy(), neg[image], atol=limit)
        score = 1 / (1 + np.exp(-golden["cls_logits"][image].astype(float)))
        score = score / (1 + np.exp(-golden["obj_logits"][image].astype(float)))[:, None]
        np.testing.assert_allclose(weight.score.double().numpy(), score, atol=limit)


@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_released_baseline_of_the_benchmarks_equals_golden(name):
    case, golden = golden_case(name)
    inputs = case.tensors(torch.float64)
    losses = released_loss(*inputs, case.targets(), case.strides, case.soft_prior)
    np.testing.assert_allclose([losses[key].item() for key in LOSSES], golden_losses(golden), rtol=1e-9, atol=0)
    flat = [level for kind in inputs for level in kind]
    grads = iter(torch.autograd.grad(sum(losses.values()), flat, allow_unused=True, materialize_grads=True))
    assert_gradients([join([next(grads) for _ in kind]) for kind in inputs], golden_gradients(golden), 1e-9)
