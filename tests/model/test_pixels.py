"""The detector with its preprocessing: normalised pixels, nothing in the state dict, what the detector alone gives."""

import numpy as np
import pytest
import torch
from torch import nn

from dwtriton import build_detector, pack_targets
from dwtriton.config.schema import DataConfig
from dwtriton.model.pixels import PixelDetector
from tests.support.golden_cases import GOLDEN

CASES = sorted(GOLDEN.glob("pipeline_*.npz"))


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.stem)
def test_normalise_equals_golden_on_its_own_resized_image(case):
    golden = np.load(case)
    resized = torch.from_numpy(golden["resized_rgb"]).permute(2, 0, 1)
    height, width = golden["img_shape"]
    expected = torch.from_numpy(golden["tensor"])[:, :height, :width]
    image = resized.flip(-1) if golden["flip"] else resized
    (image,) = PixelDetector(nn.Identity(), DataConfig()).normalise(image[None], [(height, width)])
    torch.testing.assert_close(image, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("layout", ["rows of pixels", "planes"])
def test_normalise_rounds_twice_and_no_more_in_either_layout(layout):
    levels = torch.arange(256, dtype=torch.uint8).view(16, 16)
    image = torch.stack([levels, levels.flip(0), levels.t()])  # [3, 16, 16]
    if layout == "rows of pixels":
        image = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    cfg = DataConfig()
    mean, std = (np.float32(values).astype(np.float64)[:, None, None] for values in (cfg.mean, cfg.std))
    expected = (image.numpy() - mean) / std
    (normalised,) = PixelDetector(nn.Identity(), cfg).normalise(image[None], [(16, 16)])
    np.testing.assert_allclose(normalised.numpy(), expected, rtol=2**-23, atol=0)


@pytest.fixture
def network(small_config):
    torch.manual_seed(0)
    return PixelDetector(build_detector(small_config(inference={"score_threshold": 0.001})), DataConfig())


def batch():
    """uint8 images [2, 3, 64, 96] that hold something in their padding too, and their sizes."""
    images = torch.randint(256, (2, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return images, [(60, 96), (64, 33)]


def test_padding_is_zero_whatever_it_holds_and_the_input_stays_as_it_was(network):
    images, sizes = batch()
    before = images.clone()
    normalised = network.normalise(images, sizes)
    assert (normalised[0, :, 60:] == 0).all()
    assert (normalised[1, :, :, 33:] == 0).all()
    assert torch.equal(normalised[1, :, :, :33], network.normalise(images)[1, :, :, :33])
    assert torch.equal(normalised, network.normalise(images, torch.tensor(sizes)))
    floats = images.float()
    assert torch.equal(network.normalise(floats), network.normalise(images))
    assert torch.equal(floats, before.float())
    assert torch.equal(images, before)


def test_the_layout_is_kept(network):
    images, sizes = batch()
    assert network.normalise(images, sizes).is_contiguous()
    last = images.contiguous(memory_format=torch.channels_last)
    assert network.normalise(last, sizes).is_contiguous(memory_format=torch.channels_last)


def test_it_gives_what_the_detector_gives_for_normalised_images(network):
    images, sizes = batch()
    normalised = network.normalise(images, sizes)
    targets = pack_targets(2 * [{"boxes": torch.tensor([[3.0, 4, 30, 50]]), "labels": torch.tensor([1])}], "cpu")
    expected = network.detector(normalised, targets)
    assert all(torch.equal(loss, expected[name]) for name, loss in network(images, sizes, targets).items())
    for own, other in zip(network.head_outputs(images, sizes), network.detector.head_outputs(normalised), strict=True):
        assert all(map(torch.equal, own, other))
    assert all(map(torch.equal, network.candidates(images, sizes), network.detector.candidates(normalised)))
    for limits in ({}, {"score_threshold": 0.01, "max_detections": 7}):
        found, others = (n.predict(i, sizes, **limits) for n, i in ((network, images), (network.detector, normalised)))
        assert all(torch.equal(own[key], other[key]) for own, other in zip(found, others, strict=True) for key in own)
    assert [len(image["scores"]) for image in found] == [7, 7]
    assert network.detector.training


def test_mean_and_std_are_no_part_of_a_checkpoint(network):
    assert list(network.state_dict()) == [f"detector.{name}" for name in network.detector.state_dict()]
    assert {name for name, _ in network.named_buffers()} >= {"mean", "std"}
