"""The point grid, and that rectangles hold exactly the points strictly inside."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dwtriton.core.points import STRIDES, inside_rectangles, level_points, pyramid_points


def test_points_run_row_by_row_from_half_a_stride():
    points = level_points(2, 3, 8)
    assert points.tolist() == [[4, 4], [12, 4], [20, 4], [4, 12], [12, 12], [20, 12]]
    assert points.dtype == torch.float32


def test_levels_follow_each_other():
    points = pyramid_points([(2, 3), (1, 2)], (8, 16), dtype=torch.float64)
    assert points.dtype == torch.float64
    assert torch.equal(points[:6], level_points(2, 3, 8, dtype=torch.float64))
    assert points[6:].tolist() == [[8, 8], [24, 8]]


def test_as_many_sizes_as_strides_are_asked_for():
    with pytest.raises(ValueError, match=r"2 level sizes for 5 strides"):
        pyramid_points([(2, 3), (1, 2)], STRIDES)


def assert_rectangles_are_exact(boxes, height, width, stride):
    points = level_points(height, width, stride, dtype=boxes.dtype)
    expected = ((points > boxes[:, None, :2]) & (points < boxes[:, None, 2:])).all(-1).view(-1, height, width)
    left, top, right, bottom = inside_rectangles(boxes.T, height, width, stride)
    row, column = torch.arange(height)[:, None], torch.arange(width)
    bounds = (edge[:, None, None] for edge in (left, top, right, bottom))
    left, top, right, bottom = bounds
    got = (column >= left) & (column < right) & (row >= top) & (row < bottom)
    assert torch.equal(got, expected)


def neighbours(edges):
    """The edges, and the next numbers below and above."""
    return torch.cat((edges, edges.nextafter(edges - 1), edges.nextafter(edges + 1)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("stride", [3, 7, 8, 10, 100, 128])
def test_edges_on_points_and_next_to_them_are_strict(stride, dtype):
    """A point on the edge is outside, one step of the number format further in it is inside."""
    centres = (torch.arange(-3, 40, dtype=dtype) + 0.5) * stride
    low, high = torch.meshgrid(neighbours(centres), neighbours(centres), indexing="ij")
    keep = low <= high
    low, high = low[keep], high[keep]
    assert_rectangles_are_exact(torch.stack((low, low, high, high), 1), 5, 33, stride)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(1, 30), st.integers(1, 130))
def test_any_boxes(seed, height, width, stride):
    generator = torch.Generator().manual_seed(seed)
    corner = (torch.rand(50, 2, generator=generator) * 1.5 - 0.3) * torch.tensor([width, height]) * stride
    side = torch.rand(50, 2, generator=generator) ** 3 * torch.tensor([width, height]) * stride
    assert_rectangles_are_exact(torch.cat((corner, corner + side), 1), height, width, stride)


def test_huge_coordinates_do_not_overflow():
    limit = torch.finfo(torch.float32).max
    boxes = torch.tensor([[-limit, -limit, limit, limit], [1e30, 0, 1e31, 9], [-1e31, 0, -1e30, 9]])
    assert_rectangles_are_exact(boxes, 4, 5, 8)
