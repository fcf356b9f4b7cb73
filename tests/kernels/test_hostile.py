"""Hostile batches and single hard situations through the kernels."""

from dataclasses import replace

import pytest
import torch

from dwtriton.kernels import INTERPRETED
from tests.support.edge_cases import CASES, SHAPES, SMALL_BOXES, batch_of_shape, small_boxes_under_large_predictions
from tests.support.exactness import Batch, assert_exact
from tests.support.generated_cases import THOROUGH
from tests.support.hostile_cases import hostile
from tests.support.kernel_cases import on_kernels

pytestmark = [
    pytest.mark.usefixtures("device", "poisoned_memory"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # NumPy's, in the interpreter
]

BATCHES = 10_000 if THOROUGH else 12 if INTERPRETED else 5  # on a GPU nearly each compiles kernels of its own
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def assert_exact_on_kernels(batch: Batch) -> None:
    assert_exact(replace(batch, case=on_kernels(batch.case)))


@pytest.mark.parametrize("seed", range(BATCHES))
def test_hostile_batches(seed):
    assert_exact_on_kernels(hostile(seed, small=True))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(200))
def test_hostile_batches_of_many_boxes(seed):
    assert_exact_on_kernels(hostile(seed))


@pytest.mark.parametrize("name", CASES)
def test_hard_situations(name):
    assert_exact_on_kernels(Batch(CASES[name]()))


@pytest.mark.parametrize("pixels", SMALL_BOXES)
@pytest.mark.parametrize("seed", range(4 if THOROUGH else 1))
def test_small_boxes_under_large_predictions(pixels, seed):
    assert_exact_on_kernels(Batch(small_boxes_under_large_predictions(seed, *SMALL_BOXES[pixels])))


@pytest.mark.parametrize("number", range(len(SHAPES)))
def test_numbers_of_classes_and_levels(number):
    layout = "channels last" if number % 2 else "contiguous"
    assert_exact_on_kernels(batch_of_shape(*list(SHAPES.values())[number], layout, DTYPES[number % 3]))
