"""What the model's tests share: golden files, and an independent bilinear sampling."""

import math

import numpy as np
import pytest

from tests.support.golden_cases import GOLDEN


@pytest.fixture(scope="session")
def golden():
    """golden(name): the arrays of a golden .npz file."""
    return lambda name: np.load(GOLDEN / f"{name}.npz", allow_pickle=False)


@pytest.fixture(scope="session")
def sampled():
    """sampled(map [H, W], row, column): its bilinear value at a fractional cell, zero outside."""

    def value(image: np.ndarray, row: float, column: float) -> float:
        total = 0.0
        for i in (math.floor(row), math.floor(row) + 1):
            for j in (math.floor(column), math.floor(column) + 1):
                if 0 <= i < image.shape[0] and 0 <= j < image.shape[1]:
                    total += image[i, j] * (1 - abs(row - i)) * (1 - abs(column - j))
        return total

    return value
