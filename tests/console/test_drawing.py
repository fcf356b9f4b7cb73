"""Boxes and names drawn into images."""

import pytest
import torch
from PIL import ImageColor

from dwtriton.console.drawing import COLOURS, draw_boxes

SIZE = (700, 900)


def grey():
    return torch.full((3, *SIZE), 128, dtype=torch.uint8)


def is_colour(image, number):
    """Where the image has one of the colours, [H, W]."""
    return (image == torch.tensor(ImageColor.getrgb(COLOURS[number]), dtype=torch.uint8)[:, None, None]).all(0)


def test_lines_lie_on_the_sides_and_the_original_stays():
    image = grey()
    drawn = draw_boxes(image, torch.tensor([[100.0, 200.4, 300.0, 399.6]]), [0], ["x"])
    assert torch.equal(image, grey())
    rows, columns = is_colour(drawn, 0)[200:].nonzero().T
    assert (columns.min(), columns.max(), rows.max() + 200) == (100, 300, 400)
    assert not is_colour(drawn, 0)[240:360, 110:290].any()  # nothing inside


@pytest.mark.parametrize("box", [[850, 300, 899, 340], [880, 2, 899, 30], [0, 0, 30, 20], [5, 690, 40, 699]])
def test_a_text_is_never_cut_off(box):
    """Its ground is as large at a border of the image as in the middle."""
    text = "a long class name 0.87"

    def ground(x1, y1, x2, y2):
        drawn = draw_boxes(grey(), torch.tensor([[x1, y1, x2, y2]]), [3], [text])
        _, columns = (drawn != 128).any(0).nonzero().T
        return columns.max() - columns.min() + 1

    assert ground(*box) == pytest.approx(ground(300, 300, 320, 320), abs=1)


def test_a_text_leaves_its_object_to_be_seen():
    drawn = draw_boxes(grey(), torch.tensor([[300, 300, 340, 330]]), [1], ["a long class name"])
    assert (drawn[:, 306:326, 306:336] == 128).all()


def test_the_first_box_and_every_text_are_on_top():
    boxes = torch.tensor([[100, 100, 300, 300], [100, 100, 300, 300], [110, 60, 130, 400]])
    drawn = draw_boxes(grey(), boxes, [0, 1, 2], ["x" * 9, "y", ""])
    assert is_colour(drawn, 0)[150, 100]
    assert not is_colour(drawn, 1)[150:].any()
    text = slice(90, 96)  # rows of the first text, which the third box crosses
    assert not is_colour(drawn, 2)[text, 110:130].any()


def test_small_images_are_enlarged_with_their_boxes():
    drawn = draw_boxes(torch.full((3, 64, 96), 128, dtype=torch.uint8), torch.tensor([[10, 20, 60, 50]]), [0], [""])
    assert drawn.shape == (3, 640, 960)
    rows, columns = is_colour(drawn, 0)[210:].nonzero().T
    assert (columns.min(), columns.max(), rows.max() + 210) == (100, 600, 500)
    assert draw_boxes(grey(), torch.zeros(0, 4), [], []).shape == (3, *SIZE)
    strip = torch.full((3, 10, 1000), 128, dtype=torch.uint8)
    assert draw_boxes(strip, torch.zeros(0, 4), [], []).shape == (3, 20, 2000)  # not 640 x 64000


def test_a_name_of_several_lines_is_drawn_in_one():
    box = torch.tensor([[100, 100, 300, 300]])
    assert torch.equal(*(draw_boxes(grey(), box, [0], [text]) for text in ("traffic\n light 0.5", "traffic light 0.5")))


def test_colours_repeat():
    boxes = torch.tensor([[10, 100, 60, 150], [200, 100, 260, 150]])
    drawn = draw_boxes(grey(), boxes, [1, 1 + len(COLOURS)], ["", ""])
    assert is_colour(drawn, 1)[150, [30, 230]].all()


def test_other_colours():
    drawn = draw_boxes(grey(), torch.tensor([[10, 100, 60, 150]]), [0], colours=COLOURS[2:])
    assert is_colour(drawn, 2)[150, 30]
    assert not is_colour(drawn, 0).any()
