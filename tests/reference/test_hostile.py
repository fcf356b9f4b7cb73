"""Hostile batches through the plain PyTorch form."""

from dataclasses import replace

import pytest
import torch

from tests.support.exactness import assert_exact
from tests.support.generated_cases import THOROUGH
from tests.support.hostile_cases import hostile

BATCHES = 10_000 if THOROUGH else 150


@pytest.mark.parametrize("seed", range(BATCHES))
def test_float32_equals_the_oracle_at_the_choices_it_came_to(seed):
    assert_exact(hostile(seed))


@pytest.mark.parametrize("seed", range(BATCHES))
def test_float64_equals_the_oracle_at_the_choices_it_came_to(seed):
    assert_exact(replace(hostile(seed), dtypes=(torch.float64,) * 3))
