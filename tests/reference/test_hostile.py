"""Hostile batches and single hard situations through the plain PyTorch form."""

from dataclasses import replace

import pytest
import torch

from tests.support.edge_cases import CASES, SHAPES, SMALL_BOXES, batch_of_shape, small_boxes_under_large_predictions
from tests.support.exactness import Batch, assert_exact
from tests.support.generated_cases import THOROUGH
from tests.support.hostile_cases import hostile

BATCHES = 10_000 if THOROUGH else 100
DOUBLE = (torch.float64,) * 3


@pytest.mark.parametrize("seed", range(BATCHES))
def test_hostile_batches_in_float32(seed):
    assert_exact(hostile(seed))


@pytest.mark.parametrize("seed", range(BATCHES))
def test_hostile_batches_in_float64(seed):
    assert_exact(replace(hostile(seed), dtypes=DOUBLE))


@pytest.mark.parametrize("name", CASES)
def test_hard_situations(name):
    batch = Batch(CASES[name]())
    assert_exact(batch)
    assert_exact(replace(batch, dtypes=DOUBLE))


@pytest.mark.parametrize("pixels", SMALL_BOXES)
@pytest.mark.parametrize("seed", range(100 if THOROUGH else 2))
def test_small_boxes_under_large_predictions(pixels, seed):
    assert_exact(Batch(small_boxes_under_large_predictions(seed, *SMALL_BOXES[pixels])))


@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_numbers_of_classes_and_levels(shape, dtype, layout):
    assert_exact(batch_of_shape(*SHAPES[shape], layout, dtype))
