"""The loss, the assigner and the baseline of the benchmarks equal what the released code computes."""

import numpy as np
import pytest
import torch

from tests.support.golden_cases import (
    GOLDEN_NAMES,
    assert_assigner_equals_golden,
    assert_float32_loss_equals_golden,
    golden_case,
    golden_gradients,
    golden_losses,
)
from tests.support.loss_cases import LOSSES, assert_gradients, join, run_loss
from tests.support.released import released_loss


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
    assert_float32_loss_equals_golden(case, golden, memory_format)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-10), (torch.float32, 3e-5)], ids=["f64", "f32"])
@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_assigner_equals_golden(name, dtype, limit):
    case, golden = golden_case(name)
    assert_assigner_equals_golden(case, golden, dtype, limit)


@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_released_baseline_of_the_benchmarks_equals_golden(name):
    case, golden = golden_case(name)
    inputs = case.tensors(torch.float64)
    losses = released_loss(*inputs, case.targets(), case.strides, case.soft_prior)
    np.testing.assert_allclose([losses[key].item() for key in LOSSES], golden_losses(golden), rtol=1e-9, atol=0)
    flat = [level for kind in inputs for level in kind]
    grads = iter(torch.autograd.grad(sum(losses.values()), flat, allow_unused=True, materialize_grads=True))
    assert_gradients([join([next(grads) for _ in kind]) for kind in inputs], golden_gradients(golden), 1e-9)
