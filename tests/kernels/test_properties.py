"""Generated batches through the kernels: everything against the oracle, and what must not change anything."""

import pytest
import torch
from generated_cases import assert_equals_truth, examples
from hypothesis import given
from kernel_cases import kernel_cases

pytestmark = pytest.mark.usefixtures("device", "poisoned_memory")


@examples(200)
@given(kernel_cases())
def test_float32_is_within_the_numerics_rules_of_the_oracle(case):
    assert_equals_truth(case, torch.float32)
