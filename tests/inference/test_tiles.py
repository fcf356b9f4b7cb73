"""Large images in tiles: every object once, wherever the seams are."""

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from dwtriton.core.errors import UserError
from dwtriton.data.coco import Sample
from dwtriton.inference import tiles
from dwtriton.inference.tiles import Tiling, detect_in_tiles, merge


class Perfect:
    """A detector that finds what is visible of every object with more than a fifth of its area in the tile.

    It is told where the tile lies by the pixels, which hold their own place.
    """

    class config:
        class inference:
            nms_iou = 0.6

    def __init__(self, boxes: torch.Tensor, labels: torch.Tensor) -> None:
        self.boxes, self.labels, self.sizes = boxes, labels, []

    def detect(self, samples, batch_size):
        for sample in samples:
            y, x = sample.image[:2, 0, 0].tolist()
            height, width = sample.image.shape[1:]
            self.sizes.append((height, width))
            tile = torch.tensor([x, y, x + width, y + height])
            low, high = torch.maximum(self.boxes[:, :2], tile[:2]), torch.minimum(self.boxes[:, 2:], tile[2:])
            visible = (high - low).clamp(min=0).prod(1) / (self.boxes[:, 2:] - self.boxes[:, :2]).prod(1)
            seen = visible > 0.2
            boxes = torch.cat([low, high], 1)[seen] - tile[:2].repeat(2)
            yield sample, {"boxes": boxes, "scores": 0.5 + visible[seen] / 4, "labels": self.labels[seen]}


@pytest.fixture
def place(monkeypatch):
    """Images whose pixels hold their own row and column; samples are not resized."""

    def sample(pixels, _cfg, image_id, path):
        return Sample(pixels, {}, image_id, path, (1.0, 1.0))

    monkeypatch.setattr(tiles, "unlabelled_sample", sample)

    def image(height, width):
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        return torch.stack([rows, columns, rows]).float()

    return image


@pytest.mark.parametrize("seed", range(30))
def test_every_object_is_found_once(seed, place):
    """Those that fit into the overlap are whole in some tile, longer ones in the whole image."""
    random = np.random.default_rng(seed)
    height, width = random.integers(60, 400, 2).tolist()
    tiling = Tiling(int(random.integers(50, 160)), float(random.choice([0.0, 0.2, 0.5])))
    boxes = torch.zeros(0, 4)
    for _ in range(40):  # apart from each other, so that nothing but seams can join them
        corner = random.uniform(0, [width - 9, height - 9])
        longest = min(width, height) / random.choice([1.2, 8])
        far = np.minimum(corner + random.uniform(8, max(9, longest), 2), [width, height])
        box = torch.tensor([[*corner, *far]], dtype=torch.float32)
        if not (box_iou(box, boxes) > 0).any():
            boxes = torch.cat([boxes, box])
    labels = torch.from_numpy(random.integers(0, 3, len(boxes)))
    found = detect_in_tiles(Perfect(boxes, labels), place(height, width), tiling)
    whole = box_iou(found["boxes"], boxes) > 0.999
    if tiling.overlap:
        assert (whole.sum(0) == 1).all()  # each object
        assert (whole.sum(1) == 1).all()  # and nothing else
        assert torch.equal(found["labels"], labels[whole.int().argmax(1)])
    assert (found["scores"].diff() <= 0).all()


def test_a_small_image_is_one_tile(place):
    detector = Perfect(torch.tensor([[5.0, 5, 20, 20]]), torch.tensor([1]))
    found = detect_in_tiles(detector, place(60, 90), Tiling(100))
    assert detector.sizes == [(60, 90)]
    assert found["boxes"].tolist() == [[5, 5, 20, 20]]


def test_tiles_cover_the_image_and_share_their_sides():
    rectangles = Tiling(100, 0.2).rectangles(250, 130)
    assert rectangles.tolist() == [
        [x, y, x + 100, y + 100] for y in (0, 75, 150) for x in (0, 30)
    ]  # evenly spaced  # fmt: skip


def test_nothing_found_is_no_box(place):
    found = detect_in_tiles(Perfect(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)), place(300, 300), Tiling(100))
    assert [tuple(found[name].shape) for name in ("boxes", "scores", "labels")] == [(0, 4), (0,), (0,)]


def merged(boxes, scores, labels, cut):
    return merge(torch.tensor(boxes), torch.tensor(scores), torch.tensor(labels), torch.tensor(cut), 0.6).tolist()


def test_a_part_gives_way_to_the_whole_whatever_its_score():
    whole, part = [0.0, 0, 40, 40], [20.0, 0, 40, 40]
    assert merged([whole, part], [0.3, 0.9], [0, 0], [False, True]) == [0]
    assert merged([whole, part], [0.3, 0.9], [0, 1], [False, True]) == [1, 0]  # another class
    assert merged([whole, part], [0.3, 0.9], [0, 0], [False, False]) == [1, 0]  # an object of its own


def test_parts_without_a_whole_stay_and_of_two_the_better_one():
    left, right, again = [0.0, 0, 30, 40], [29.0, 0, 60, 40], [1.0, 0, 30, 40]
    assert merged([left, right, again], [0.5, 0.6, 0.4], [0, 0, 0], [True, True, True]) == [1, 0]


def test_whole_boxes_pass_nms():
    assert merged([[0.0, 0, 10, 10], [0.0, 0, 10, 11]], [0.5, 0.6], [0, 0], [False, False]) == [1]


@pytest.mark.parametrize(
    ("tiling", "message"),
    [(Tiling(31), "--tile is at least 32 pixels, not 31"), (Tiling(64, 1.0), "--overlap is a share .* not 1")],
)
def test_sizes_that_make_no_sense_are_an_error(tiling, message):
    with pytest.raises(UserError, match=message):
        tiling.check()
