"""The kernels equal what the released code computes."""

import pytest
import torch

from tests.support.golden_cases import (
    GOLDEN_NAMES,
    assert_assigner_equals_golden,
    assert_float32_loss_equals_golden,
    golden_case,
)
from tests.support.kernel_cases import on_kernels

pytestmark = pytest.mark.usefixtures("device", "poisoned_memory")


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_losses_and_gradients_are_within_the_numerics_rules_of_golden(name, memory_format):
    case, golden = golden_case(name)
    assert_float32_loss_equals_golden(on_kernels(case), golden, memory_format)


@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_assigner_equals_golden(name):
    case, golden = golden_case(name)
    assert_assigner_equals_golden(on_kernels(case), golden, torch.float32, 3e-5)
