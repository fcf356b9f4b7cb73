"""How the work of the pairs of points and boxes grows: functions of the inputs, so that no GPU is needed."""

import pytest
import torch

from dwtriton.core.points import STRIDES
from dwtriton.kernels.counts import work_of_image

SIZE = (800, 1344)
LEVELS = [(-(-SIZE[0] // stride), -(-SIZE[1] // stride)) for stride in STRIDES]
CELLS = 2  # of a square on a GPU; the interpreter has larger ones


def boxes(count, least, most, size=SIZE):
    """Sides log-uniform."""
    generator = torch.Generator().manual_seed(0)
    height, width = size
    limit = torch.tensor([width, height], dtype=torch.float32)
    sides = (least * (most / least) ** torch.rand(count, 2, generator=generator)).minimum(limit)
    corners = torch.rand(count, 2, generator=generator) * (limit - sides)
    return torch.cat((corners, corners + sides), 1)


def piled(count):
    """All over the same points."""
    return torch.tensor([100.0, 100, 900, 700]) + torch.arange(count)[:, None] * 1e-2


CASES = {
    "1000 boxes on each other": piled(1000),
    "1000 large boxes": boxes(1000, 300, 600),
    "1000 boxes": boxes(1000, 10, 600),
    "5000 small boxes": boxes(5000, 8, 64),
    "one box over everything": torch.tensor([[-10.0, -10, SIZE[1] + 10, SIZE[0] + 10]]),
}


@pytest.mark.parametrize("name", CASES)
def test_pairs_that_are_evaluated_are_at_most_three_times_those_inside(name):
    work = work_of_image(LEVELS, STRIDES, CASES[name], CELLS)
    assert work.inside <= work.evaluated <= 3 * work.inside


@pytest.mark.parametrize("name", CASES)
def test_blocks_that_a_program_takes_one_after_another_are_few(name):
    """Boxes that touch the square over 32, and those of the image over 1024, rounded up."""
    work = work_of_image(LEVELS, STRIDES, CASES[name], CELLS)
    most = (work.touching / 32 + len(CASES[name]) / 1024).ceil()
    assert (work.blocks <= most).all()
    assert work.blocks.max() > 0


def test_figures_of_the_page():
    """docs/kernels.md has these.

    For one pair inside: pairs evaluated and slots of tiles; boxes that touch a square, blocks for a square, and
    comparisons of boxes with squares, in millions.
    """
    found = {}
    for name, boxes_of_image in CASES.items():
        work = work_of_image(LEVELS, STRIDES, boxes_of_image, CELLS)
        shares = round(work.evaluated / work.inside, 2), round(work.slots / work.inside, 2)
        found[name] = (*shares, int(work.touching.max()), int(work.blocks.max()), round(work.compared / 1e6, 1))
    assert found == {
        "1000 boxes on each other": (1.03, 1.06, 1000, 32, 13.5),
        "1000 large boxes": (1.04, 1.14, 492, 16, 16.9),
        "1000 boxes": (1.13, 1.93, 52, 2, 1.5),
        "5000 small boxes": (1.84, 7.29, 19, 1, 2.0),
        "one box over everything": (1.0, 6.04, 1, 1, 0.1),
    }


def test_most_comparisons_of_boxes_with_squares_are_left_out():
    work = work_of_image(LEVELS, STRIDES, CASES["5000 small boxes"], CELLS)
    assert work.compared < 0.3 * 5000 * len(work.touching)


def test_no_boxes():
    work = work_of_image(LEVELS, STRIDES, torch.zeros(0, 4), CELLS)
    assert (work.inside, work.evaluated, int(work.blocks.max())) == (0, 0, 0)
