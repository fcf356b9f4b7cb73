import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dwtriton.config.schema import Config, DataConfig
from dwtriton.data.batch import collate
from dwtriton.data.coco import CocoDataset, Sample, SampleRequest
from dwtriton.data.images import change_colours, draw_augmentation, flip, resize, resized_size
from dwtriton.model.pixels import PixelDetector

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = sorted(GOLDEN.glob("pipeline_*.npz"))
sides = st.integers(1, 400)


@pytest.fixture(params=CASES, ids=lambda path: path.stem)
def golden(request):
    with np.load(request.param, allow_pickle=False) as arrays:
        return dict(arrays)


def tensors(golden):
    return torch.from_numpy(golden["image_rgb"]).permute(2, 0, 1).contiguous(), torch.from_numpy(golden["boxes_in"])


def transform(image, boxes, short_side, long_side, flipped=False):
    """Resize, then flip, as the data set does."""
    image, boxes, scale_factor = resize(image, boxes, short_side, long_side)
    return (*flip(image, boxes), scale_factor) if flipped else (image, boxes, scale_factor)


def test_golden_files_are_there():
    assert len(CASES) == 2


def test_resize_equals_golden(golden):
    long_side, short_side = golden["scale"].tolist()
    image, boxes, scale_factor = resize(*tensors(golden), short_side, long_side)
    assert image.dtype == torch.uint8
    assert tuple(image.shape[1:]) == tuple(golden["img_shape"])
    levels = image.permute(1, 2, 0).int() - torch.from_numpy(golden["resized_rgb"]).int()
    assert levels.abs().max() <= 1
    np.testing.assert_array_equal(np.float32([*scale_factor, *scale_factor]), golden["scale_factor"])
    torch.testing.assert_close(boxes, torch.from_numpy(golden["boxes_resized"]), rtol=2e-7, atol=0)


def test_whole_pipeline_equals_golden(golden):
    long_side, short_side = golden["scale"].tolist()
    cfg = DataConfig(mean=golden["mean"].tolist(), std=golden["std"].tolist())
    image, boxes, scale_factor = transform(*tensors(golden), short_side, long_side, flipped=bool(golden["flip"]))
    target = {"boxes": boxes, "labels": torch.zeros(len(boxes), dtype=torch.int64)}
    batch = collate([Sample(image, target, 1, "a.jpg", scale_factor)], num_classes=1, size_divisor=32)

    images = PixelDetector(torch.nn.Identity(), cfg).normalise(batch.images, batch.image_sizes)
    assert (batch.images.dtype, images.dtype) == (torch.uint8, torch.float32)
    assert tuple(images.shape[2:]) == tuple(golden["pad_shape"])
    assert batch.image_sizes == [tuple(golden["img_shape"])]
    # x -> width - x rounds at the width's own unit in the last place
    rounding = np.spacing(np.float32(golden["img_shape"].max()))
    torch.testing.assert_close(boxes, torch.from_numpy(golden["boxes_out"]), rtol=0, atol=float(rounding))
    one_level = torch.tensor(1 / golden["std"]).float().view(3, 1, 1) * 1.0001
    expected = torch.from_numpy(golden["tensor"])
    assert ((images[0] - expected).abs() <= one_level).all()
    assert (images[0, :, golden["img_shape"][0] :] == 0).all()
    assert (images[0, :, :, golden["img_shape"][1] :] == 0).all()


def test_defaults_are_the_recipes_pipeline():
    stages = {
        stage["type"]: stage for stage in json.loads((GOLDEN / "recipe.json").read_text())["r50_1x"]["train_pipeline"]
    }
    cfg, inference = Config().data, Config().inference
    assert [cfg.long_side, cfg.short_side[0]] == list(np.ravel(stages["Resize"]["img_scale"]))
    assert (inference.long_side, inference.short_side) == (cfg.long_side, cfg.short_side[0])
    assert cfg.flip == stages["RandomFlip"]["flip_ratio"]
    assert list(cfg.mean) == stages["Normalize"]["mean"]
    assert list(cfg.std) == stages["Normalize"]["std"]
    assert cfg.size_divisor == stages["Pad"]["size_divisor"]


@pytest.mark.parametrize(
    ("size", "limits", "expected"),
    [
        ((480, 640), (800, 1333), (800, 1067)),  # a COCO image, short side limits
        ((640, 480), (800, 1333), (1067, 800)),
        ((300, 640), (800, 1333), (625, 1333)),  # long side limits
        ((1, 1000), (100, 100), (1, 100)),  # rounds to 0, kept at 1
    ],
)
def test_resized_size_of_hand_computed_cases(size, limits, expected):
    assert resized_size(*size, *limits) == expected


@given(sides, sides, st.integers(1, 300), st.integers(1, 500))
def test_resized_size_obeys_both_limits_and_keeps_the_aspect(height, width, short_side, long_side):
    new_height, new_width = resized_size(height, width, short_side, long_side)
    scale = min(short_side / min(height, width), long_side / max(height, width))
    assert max(new_height, new_width) <= long_side
    assert min(new_height, new_width) <= short_side
    for old, new in ((height, new_height), (width, new_width)):
        assert abs(new - old * scale) <= 0.5 + 1e-9 or (new == 1 and old * scale < 0.5)


@st.composite
def images_with_boxes(draw):
    """A small image and boxes, some of them partly outside."""
    height, width = draw(st.integers(1, 60)), draw(st.integers(1, 60))
    corners = st.lists(st.floats(-20, 80, width=32), min_size=2, max_size=2).map(sorted)
    pairs = draw(st.lists(st.tuples(corners, corners), max_size=5))
    boxes = torch.tensor([[x[0], y[0], x[1], y[1]] for x, y in pairs], dtype=torch.float32).reshape(-1, 4)
    return torch.zeros(3, height, width, dtype=torch.uint8), boxes


@settings(max_examples=60, deadline=None)
@given(images_with_boxes(), st.integers(2, 90), st.integers(2, 120), st.booleans())  # torch cannot resize to 1 x 1
def test_boxes_stay_ordered_inside_and_scaled(sample, short_side, long_side, flipped):
    image, boxes = sample
    out, moved, (sx, sy) = transform(image, boxes, short_side, long_side, flipped)
    height, width = out.shape[-2:]
    assert (sx, sy) == (width / image.shape[2], height / image.shape[1])
    assert moved.shape == boxes.shape
    assert (moved >= 0).all()
    assert (moved[:, 0::2] <= width).all()
    assert (moved[:, 1::2] <= height).all()
    assert (moved[:, :2] <= moved[:, 2:]).all()
    scaled = (boxes.double() * torch.tensor([sx, sy, sx, sy], dtype=torch.float64)).clamp(min=0)
    scaled = scaled.minimum(torch.tensor([width, height, width, height], dtype=torch.float64))
    if flipped:
        scaled = torch.stack([width - scaled[:, 2], scaled[:, 1], width - scaled[:, 0], scaled[:, 3]], -1)
    torch.testing.assert_close(moved.double(), scaled, rtol=0, atol=2e-5)


@settings(max_examples=60, deadline=None)
@given(images_with_boxes(), st.randoms())
def test_flipping_twice_is_the_identity(sample, random):
    image, boxes = sample
    image = torch.randint(
        0, 256, image.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(random.getrandbits(32))
    )
    height, width = image.shape[1:]
    limits = torch.tensor([width, height, width, height])
    boxes = boxes.round().clamp(min=0).minimum(limits)  # whole numbers are exact in float32
    for side in (-1, -2):
        once, once_boxes = flip(image, boxes, side)
        assert torch.equal(once.select(side, 0), image.select(side, -1))
        for (x1, y1, x2, y2), (u1, v1, u2, v2) in zip(boxes.int().tolist(), once_boxes.int().tolist()):
            assert torch.equal(once[:, v1:v2, u1:u2].flip(side), image[:, y1:y2, x1:x2])
        twice, twice_boxes = flip(once, once_boxes, side)
        assert torch.equal(twice, image)
        assert torch.equal(twice_boxes, boxes)


def test_augmentation_draws_every_short_side_and_both_flips_from_the_seed_alone():
    cfg = DataConfig(short_side=(480, 484))
    drawn = [draw_augmentation(cfg, seed) for seed in range(400)]
    assert drawn == [draw_augmentation(cfg, seed) for seed in range(400)]
    counts = np.unique([short for short, _ in drawn], return_counts=True)
    assert counts[0].tolist() == [480, 481, 482, 483, 484]
    assert counts[1].min() > 50  # 80 expected of each
    assert 150 < sum(flipped == (-1,) for _, flipped in drawn) < 250
    assert {flipped for _, flipped in drawn} == {(), (-1,)}
    assert not any(flipped for _, flipped in (draw_augmentation(DataConfig(flip=0.0), seed) for seed in range(50)))
    aerial = [draw_augmentation(cfg.model_copy(update={"vertical_flip": 0.5}), seed) for seed in range(400)]
    assert {flipped for _, flipped in aerial} == {(), (-1,), (-2,), (-1, -2)}
    assert [(short, -1 in flipped) for short, flipped in aerial] == [(short, -1 in flipped) for short, flipped in drawn]


def test_colours_change_by_the_seed_alone_and_no_more_than_their_strength():
    image = torch.randint(40, 160, (3, 8, 9), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    assert (
        change_colours(image, 0.0, 5).int() - image.int()
    ).abs().max() <= 1  # rounding of the hue's way there and back
    weak, strong = ([change_colours(image, strength, seed) for seed in range(40)] for strength in (0.1, 0.5))
    assert all(torch.equal(changed, change_colours(image, 0.5, seed)) for seed, changed in enumerate(strong))
    grey = image.float().mean()
    ratios = {name: [float(c.float().mean() / grey) for c in of] for name, of in (("weak", weak), ("strong", strong))}
    assert 0.88 < min(ratios["weak"]) < 0.95 < 1.05 < max(ratios["weak"]) < 1.12
    assert 0.45 < min(ratios["strong"]) < 0.7 < 1.3 < max(ratios["strong"]) < 1.55
    one_colour = image[:, :1, :1].expand(-1, 8, 9)
    assert all(len(change_colours(one_colour, 0.5, seed).flatten(1).unique(dim=1).T) == 1 for seed in range(5))
    turned = change_colours(image, 0.5, 3).float().flatten(1)
    scaled = turned / turned.mean() * grey
    assert (scaled - image.flatten(1)).abs().max() > 10  # more than brightness


def test_training_images_alone_are_recoloured(tiny):
    cfg = tiny.write()
    coloured = cfg.model_copy(update={"colour": 0.5})
    before, changed = (CocoDataset(config, "train")[SampleRequest(0, seed=1)] for config in (cfg, coloured))
    assert changed.image.shape == before.image.shape
    assert not torch.equal(changed.image, before.image)
    assert torch.equal(changed.target["boxes"], before.target["boxes"])
    before, changed = (CocoDataset(config, "val", tiny.inference)[0] for config in (cfg, coloured))
    assert torch.equal(changed.image, before.image)


def test_boxes_that_vanish_when_resized_are_legal():
    image, boxes = torch.zeros(3, 10, 2000, dtype=torch.uint8), torch.tensor([[1500.0, 2.0, 1500.00006, 2.0]])
    _, boxes, scale_factor = transform(image, boxes, 10, 100)
    assert (boxes[:, :2] == boxes[:, 2:]).any()
    target = {"boxes": boxes, "labels": torch.zeros(1, dtype=torch.int64)}
    assert len(collate([Sample(torch.zeros(3, 1, 100), target, 1, "a", scale_factor)], 1, 32)) == 1
