"""Where the kernels' tests run, and batches small enough for Triton's interpreter."""

from dataclasses import replace
from unittest.mock import patch

import torch
from hypothesis import strategies as st

from dwtriton.kernels import INTERPRETED
from dwtriton.kernels.configs import KernelConfigs
from tests.support.generated_cases import THOROUGH, cases, no_iou_near_half
from tests.support.loss_cases import Case

# Without a GPU and without TRITON_INTERPRET=1 there is none, and the tests are skipped.
DEVICE = "cpu" if INTERPRETED else "cuda" if torch.cuda.is_available() else None

EXAMPLES = 120 if INTERPRETED else 50  # of a property: on a GPU most of them compile kernels of their own
PAIRS_OF_RUNS = EXAMPLES // 2  # of a property that compares two runs

# Rounding that the compiler may do in another order for another dtype, layout or config; the interpreter has one order.
REORDERED = 0.0 if INTERPRETED else 1e-6

SMALL_PYRAMIDS = (
    (((5, 7),), (8,)),
    (((4, 5), (2, 3)), (8, 16)),
    (((3, 2), (1, 1), (1, 1)), (8, 16, 100)),
    (((9, 11),), (10,)),
)
LARGE_PYRAMIDS = (
    (((13, 17), (7, 9), (4, 5)), (8, 16, 32)),
    (((3, 50),), (7,)),
    (((19, 21),), (12,)),
)


def on_kernels(case: Case) -> Case:
    return replace(case, backend="triton", device=DEVICE)


def kernel_cases(pyramids=SMALL_PYRAMIDS, counts=(0, 1, 1, 2, 3), max_images=2, **options) -> st.SearchStrategy[Case]:
    """Up to 100 points and 6 boxes; in a thorough run up to 400 points and 20 boxes."""
    if THOROUGH:
        pyramids, counts = (*pyramids, *LARGE_PYRAMIDS), (*counts, 10)
    batches = cases(pyramids=pyramids, counts=counts, max_images=max_images, **options)
    return batches.filter(lambda case: no_iou_near_half(case, 1e-5)).map(on_kernels)


def using(configs: KernelConfigs):
    """A context in which the kernels are launched with these configs."""
    return patch("dwtriton.kernels.ops.lookup", lambda device, key: configs)
