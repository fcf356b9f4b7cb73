"""Images at the edge of what `load_detector` takes, and just beyond it."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

import dwtriton
from dwtriton.core.errors import UserError


@pytest.fixture(scope="module")
def ready(finished):
    return dwtriton.load_detector(finished[0] / "last.pt", "cpu", overrides=["inference.score_threshold=0.02"])


@pytest.fixture(scope="module")
def pixels(shapes_root):
    """A validation image of the tiny run, uint8 [h, w, 3]."""
    return np.array(Image.open(min((shapes_root / "val").glob("*.jpg"))))


def assert_same(found, expected):
    assert len(expected["scores"])
    assert found["labels"].tolist() == expected["labels"].tolist()
    torch.testing.assert_close(found["scores"], expected["scores"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found["boxes"], expected["boxes"], rtol=1e-4, atol=1e-3)


def test_no_images_a_generator_and_a_single_array(ready, pixels):
    assert ready([]) == []
    assert ready(image for image in ()) == []
    (alone,) = ready(pixels)
    for found in ready(image for image in [pixels, pixels]):
        assert_same(found, alone)


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1)])
def test_images_of_a_single_pixel_and_of_a_single_row_or_column(ready, size):
    height, width = size
    (found,) = ready(np.full((*size, 3), 128, np.uint8), score_threshold=0.0)
    assert len(found["scores"])
    assert found["boxes"].isfinite().all()
    assert found["boxes"].min() >= 0
    assert (found["boxes"].amax(0) <= torch.tensor([width, height, width, height]) * (1 + 1e-6)).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int64, np.uint16, bool])
def test_other_dtypes_are_refused_with_the_index_of_the_image(ready, pixels, dtype):
    with pytest.raises(UserError, match=rf"images\[2\]: an array of {np.dtype(dtype)}; images are uint8"):
        ready([pixels, pixels, pixels.astype(dtype)])


def test_modes_of_pillow(ready, pixels):
    image = Image.fromarray(pixels)
    grey = image.convert("L")
    alpha = Image.new("L", image.size, 7)
    layers = {"RGBA": (image, Image.merge("RGBA", (*image.split(), alpha)))}
    layers |= {"LA": (grey.convert("RGB"), Image.merge("LA", (grey, alpha)))}
    layers |= {"I;16": (grey.convert("RGB"), Image.fromarray(np.array(grey).astype(np.uint16) << 8))}
    layers |= {mode: (image.convert(mode).convert("RGB"), image.convert(mode)) for mode in ("P", "1", "CMYK")}
    for mode, (plain, other) in layers.items():
        assert other.mode == mode
        assert_same(ready(other)[0], ready(np.array(plain))[0])


def test_memory_that_cannot_be_written_or_runs_backwards(ready, pixels):
    (expected,) = ready(pixels)
    frozen = pixels.copy()
    frozen.flags.writeable = False
    backwards = pixels[::-1, ::-1].copy()[::-1, ::-1]
    bgr = pixels[..., ::-1].copy()[..., ::-1]
    assert min(*backwards.strides, *bgr.strides) < 0
    for found in ready([frozen, backwards, bgr, np.asfortranarray(pixels)]):
        assert_same(found, expected)


@pytest.mark.parametrize("name", ["folder", "empty.jpg", "text.jpg", "absent.jpg"])
def test_what_is_no_image_file_is_one_line_that_names_it(ready, pixels, tmp_path, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("not an image")
    with pytest.raises(UserError, match=rf"images\[1\]: {re.escape(str(tmp_path / name))}: ") as error:
        ready([pixels, tmp_path / name])
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"images\[0\]"):
        ready(str(tmp_path / name))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(finished):
    with pytest.raises(UserError, match="device 'cuda' cannot be used") as error:
        dwtriton.load_detector(finished[0] / "last.pt", device="cuda")
    assert "\n" not in str(error.value)


def test_a_threshold_of_one_gives_empty_tensors(ready, pixels):
    (found,) = ready(pixels, score_threshold=1.0)
    expected = {"boxes": ((0, 4), torch.float32), "scores": ((0,), torch.float32), "labels": ((0,), torch.int64)}
    assert {name: (tuple(found[name].shape), found[name].dtype) for name in expected} == expected
    assert found["names"] == []


@pytest.mark.parametrize("images", [[], [np.zeros((8, 8, 3), np.uint8)]])
@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_has_at_least_one_image(ready, images, batch_size):
    with pytest.raises(UserError, match=f"batch_size must be at least 1, not {batch_size}"):
        ready(images, batch_size=batch_size)


def test_only_values_in_0_to_1_are_told_to_be_multiplied(ready, pixels):
    for dtype, multiplies in ((np.float32, True), (np.int64, False), (np.uint16, False), (bool, False)):
        with pytest.raises(UserError) as error:
            ready([pixels.astype(dtype)])
        assert ("255 * image" in str(error.value)) == multiplies, dtype


@pytest.mark.parametrize("images", [b"photo.jpg", {"image": "photo.jpg"}, 3], ids=["bytes", "dict", "number"])
def test_what_is_neither_an_image_nor_a_list_is_named(ready, images):
    with pytest.raises(UserError, match=f"images are a {type(images).__name__}"):
        ready(images)


def test_changes_and_files_that_do_not_fit_are_named(finished, tmp_path):
    with pytest.raises(UserError, match=r"^config with loss.loc=1: loss.loc is now loss.weight_loc"):
        dwtriton.load_detector(finished[0] / "last.pt", overrides=["loss.loc=1"])
    with pytest.raises(UserError, match="is a folder; name a file"):
        dwtriton.load_detector(tmp_path)
