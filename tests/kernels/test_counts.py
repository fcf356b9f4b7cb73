"""The work of the pairs as a function of the inputs: proportional to what is inside, and what the longest chain is."""

import pytest
import torch

from dwtriton.core.points import STRIDES
from dwtriton.kernels.counts import pairs_of_image
from dwtriton.kernels.tuning import default_configs

HEIGHT, WIDTH = 800, 1344
SIZES = [(-(-HEIGHT // stride), -(-WIDTH // stride)) for stride in STRIDES]
CELLS = default_configs(80).correction.cells


def boxes_of(count: int, least: float, most: float) -> torch.Tensor:
    """Sides log-uniform, within the image."""
    random = torch.Generator().manual_seed(0)
    limit = torch.tensor([WIDTH, HEIGHT])
    side = (least * (most / least) ** torch.rand(count, 2, generator=random)).minimum(limit)
    corner = torch.rand(count, 2, generator=random) * (limit - side)
    return torch.cat((corner, corner + side), 1)


def work(boxes: torch.Tensor):
    return pairs_of_image(SIZES, STRIDES, boxes, CELLS)


@pytest.mark.parametrize(
    ("count", "least", "most", "ratio", "chain"),
    [(7, 10, 600, 3, 7), (1000, 10, 600, 3, 80), (5000, 8, 64, 5, 40), (1000, 300, 600, 1.5, 600)],
    ids=["7", "1000", "5000 small", "1000 overlapping"],
)
def test_boxes_all_over_an_image(count, least, most, ratio, chain):
    """Walked pairs are few times those inside, and no program takes more boxes than touch its square."""
    got = work(boxes_of(count, least, most))
    print(got)
    assert got.walked <= ratio * got.inside
    assert got.chain <= chain


def test_one_box_that_covers_everything():
    got = work(torch.tensor([[-10.0, -10, 2000, 2000]]))
    points = sum(height * width for height, width in SIZES)
    assert (got.inside, got.walked, got.chain) == (points, points, 1)


def test_no_boxes():
    got = work(torch.zeros(1, 4))
    assert (got.inside, got.chain) == (0, 0)
