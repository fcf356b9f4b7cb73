"""`load_detector`: images of every kind give the detections of the commands, and bad ones a clear error."""

import json
import random
import re
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import dwtriton
from dwtriton.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from dwtriton.core.errors import UserError
from dwtriton.data.images import read_image
from dwtriton.evaluate import __main__ as evaluate_command
from dwtriton.predict import __main__ as predict_command

PAGE = Path(__file__).parents[2] / "docs" / "predict.md"
THRESHOLD = 0.02  # some detections of the tiny run score above it
KINDS = {
    "path": lambda path: path,
    "text": str,
    "PIL": Image.open,
    "array": lambda path: np.array(Image.open(path)),
    "read-only array": lambda path: np.asarray(Image.open(path)),
    "strided array": lambda path: np.repeat(np.array(Image.open(path)), 2, 1)[::-1, ::2][::-1],
    "tensor": read_image,
    "strided tensor": lambda path: torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1),
}


@pytest.fixture(scope="module")
def ready(finished):
    return dwtriton.load_detector(finished[0] / "last.pt", overrides=[f"inference.score_threshold={THRESHOLD}"])


@pytest.fixture(scope="module")
def files(shapes_root, tmp_path_factory):
    """Validation images of the tiny run and pieces of them in other sizes, without loss."""
    folder = tmp_path_factory.mktemp("files")
    for number, path in enumerate(sorted((shapes_root / "val").glob("*.jpg"))):
        image = Image.open(path)
        pieces = [(0, 0, *image.size), (0, 0, image.width // 2, image.height), (3, 5, image.width, image.height // 2)]
        image.crop(pieces[number % 3]).save(folder / f"{number}.png")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def alone(ready, files):
    """Detections of each file, one at a time."""
    return {file: ready(file)[0] for file in files}


def assert_same(found, expected):
    assert found["labels"].tolist() == expected["labels"].tolist()
    torch.testing.assert_close(found["scores"], expected["scores"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found["boxes"], expected["boxes"], rtol=1e-4, atol=1e-3)
    assert found["names"] == expected["names"]


def test_results_have_the_promised_form(ready, files, alone):
    assert sum(len(found["scores"]) for found in alone.values()) > 20
    for file, found in alone.items():
        width, height = Image.open(file).size
        count = len(found["scores"])
        assert [(t.dtype, t.device.type) for t in list(found.values())[:3]] == [
            (torch.float32, "cpu"),
            (torch.float32, "cpu"),
            (torch.int64, "cpu"),
        ]
        assert tuple(found["boxes"].shape) == (count, 4)
        assert found["names"] == [ready.class_names[label] for label in found["labels"]]
        assert found["scores"].tolist() == sorted(found["scores"].tolist(), reverse=True)
        assert found["boxes"].min() >= 0
        assert found["boxes"][:, ::2].max() <= width + 1e-3
        assert found["boxes"][:, 1::2].max() <= height + 1e-3
        (2 * found["boxes"].requires_grad_()).sum().backward()  # ordinary tensors, whatever made them


@given(st.lists(st.tuples(st.integers(0, 7), st.sampled_from(sorted(KINDS))), max_size=9), st.integers(1, 4))
@settings(max_examples=15, deadline=None)
def test_any_mixture_of_kinds_and_sizes_gives_what_each_file_gives_alone(ready, files, alone, chosen, batch_size):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        results = ready([KINDS[kind](files[number]) for number, kind in chosen], batch_size=batch_size)
    assert len(results) == len(chosen)
    for (number, _), found in zip(chosen, results, strict=True):
        assert_same(found, alone[files[number]])


def test_it_finds_what_predict_and_evaluate_find(finished, ready, shapes_root, tmp_path, call):
    """Bit for bit, where all have one image in a batch."""
    weights = ["--weights", finished[0] / "last.pt"]
    truth = json.loads((shapes_root / "annotations" / "val.json").read_text())
    paths = [shapes_root / "val" / image["file_name"].split("/")[-1] for image in truth["images"]]
    one = ["--set", "data.batch_size=1", "--set", f"inference.score_threshold={THRESHOLD}"]
    assert call(evaluate_command, *weights, *one, "--out", tmp_path / "e")[0] == 0
    command = [*weights, *paths, "--threshold", THRESHOLD, "--batch", 1, "--no-pictures", "--out", tmp_path / "p"]
    assert call(predict_command, *command)[0] == 0
    evaluated = json.loads((tmp_path / "e" / "detections.json").read_text())
    predicted = json.loads((tmp_path / "p" / "detections.json").read_text())
    assert [image["file_name"] for image in predicted["images"]] == list(map(str, paths))
    results = ready(paths, batch_size=1)
    for number, (image, found) in enumerate(zip(truth["images"], results, strict=True), 1):
        x1, y1, x2, y2 = found["boxes"].double().T
        boxes = torch.stack([x1, y1, x2 - x1, y2 - y1], 1).tolist()
        categories = [ready.category_ids[label] for label in found["labels"]]
        own = list(zip(categories, boxes, found["scores"].tolist(), strict=True))
        for results_of, image_id in ((evaluated, image["id"]), (predicted["annotations"], number)):
            others = [r for r in results_of if r["image_id"] == image_id]
            assert own == [(r["category_id"], r["bbox"], r["score"]) for r in others]


def test_one_image_several_and_none(ready, files):
    tensor = read_image(files[0])
    assert len(ready(tensor)) == 1
    assert len(ready(np.asarray(Image.open(files[0])))) == 1
    assert ready([]) == []
    assert len(ready(path for path in files[:2])) == 2
    first, second = ready(torch.stack([tensor, tensor.flip(1)]))  # a batch
    assert_same(first, ready(tensor)[0])
    assert_same(second, ready(tensor.flip(1))[0])


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (500, 2), (33, 31), (900, 1400)])
def test_sizes_from_a_single_pixel_to_beyond_the_long_side(ready, size):
    height, width = size
    pixels = torch.randint(256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    (found,) = ready(pixels, score_threshold=0)
    assert len(found["scores"])
    assert found["boxes"].isfinite().all()
    assert (found["boxes"].amax(0) <= torch.tensor([width, height, width, height]) * (1 + 1e-6)).all()


def test_files_are_turned_upright_and_pil_images_are_taken_as_they_lie(ready, files, alone, tmp_path):
    upright = Image.open(files[0])
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    lying = upright.transpose(Image.Transpose.ROTATE_90)
    lying.save(tmp_path / "turned.png", exif=exif)
    from_file, from_pil, without_exif = ready([tmp_path / "turned.png", Image.open(tmp_path / "turned.png"), lying])
    assert_same(from_file, alone[files[0]])
    assert_same(from_pil, without_exif)


def test_grey_transparent_palette_and_deep_images(ready, files, tmp_path):
    image = Image.open(files[0])
    grey = image.convert("L")
    deep = Image.fromarray(np.array(grey).astype(np.uint16) * 257)
    bw = [grey, deep, np.array(grey), np.array(grey)[..., None], grey.convert("LA"), torch.from_numpy(np.array(grey))]
    expected = ready(grey.convert("RGB"))[0]
    for found in ready(bw):
        assert_same(found, expected)
    transparent = image.convert("RGBA")
    transparent.putalpha(grey)
    for found in ready([transparent, np.array(transparent)]):
        assert_same(found, ready(image)[0])
    palette = image.convert("P")
    assert_same(ready(palette)[0], ready(palette.convert("RGB"))[0])


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((8, 8, 3)), r"images\[1\]: an array of float64; .*\(255 \* image\)\.round\(\)\.astype\(np\.uint8\)"),
        (torch.zeros(3, 8, 8), r"images\[1\]: a tensor of torch\.float32; .*\.to\(torch\.uint8\)"),
        (np.zeros((3, 8, 9), np.uint8), r"images\[1\]: an array of shape \(3, 8, 9\); arrays are \[h, w, 3\]"),
        (
            torch.zeros(8, 9, 3, dtype=torch.uint8),
            r"images\[1\]: a tensor of shape \(8, 9, 3\); arrays are .* tensors \[3, h",
        ),
        (np.zeros((0, 9, 3), np.uint8), r"images\[1\]: an array of shape \(0, 9, 3\) has no pixels"),
        (Image.new("F", (4, 4)), r"images\[1\]: a PIL image of mode F has no known range"),
        ("absent.jpg", r"images\[1\]: absent\.jpg: "),
        (None, r"images\[1\] is a NoneType, not a path"),
    ],
)
def test_a_bad_image_is_one_error_that_names_it_and_the_remedy(ready, files, image, message):
    with pytest.raises(UserError, match=message):
        ready([files[0], image])


def test_a_damaged_file_is_named_whoever_opens_it(ready, files, tmp_path):
    cut = tmp_path / "cut.png"
    cut.write_bytes(files[0].read_bytes()[:500])
    with pytest.raises(UserError, match=r"images\[0\]: .*cut\.png: "):
        ready(cut)
    with pytest.raises(UserError, match=r"images\[0\]: the PIL image cannot be decoded"):
        ready(Image.open(cut))


def test_what_is_no_image_at_all(ready):
    with pytest.raises(UserError, match="images are a int, not an image or a list of images"):
        ready(3)


def test_the_threshold_can_be_lower_and_higher_than_the_configs(ready, files):
    (usual,), (many,), (few,) = ready(files[0]), ready(files[0], score_threshold=0), ready(files[0], score_threshold=1)
    assert len(few["scores"]) == 0
    assert few["names"] == []
    assert len(many["scores"]) > len(usual["scores"]) > 0
    assert many["scores"].min() < THRESHOLD < usual["scores"].min()
    for limits in ({"score_threshold": 1.5}, {"score_threshold": float("nan")}, {"batch_size": 0}):
        with pytest.raises(UserError, match=next(iter(limits))):
            ready(files[0], **limits)


def test_neither_autocast_nor_gradients_of_the_caller_matter(ready, files, alone):
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(ready(files[0])[0], alone[files[0]])
    assert not ready.network.training
    assert not ready(files[0])[0]["scores"].requires_grad


def test_inputs_stay_as_they_were(ready, files):
    array, tensor = np.array(Image.open(files[0])), read_image(files[0])
    before = array.copy(), tensor.clone()
    ready([array, tensor])
    assert np.array_equal(array, before[0])
    assert torch.equal(tensor, before[1])


def test_a_checkpoint_without_class_names_gives_category_ids(finished, files, tmp_path):
    checkpoint = load_checkpoint(finished[0] / "last.pt")
    save_checkpoint(tmp_path / "nameless.pt", checkpoint._replace(class_names=[]))
    nameless = dwtriton.load_detector(str(tmp_path / "nameless.pt"), device="cpu")
    assert nameless.class_names == [str(id_) for id_ in checkpoint.category_ids]
    (found,) = nameless(files[0], score_threshold=THRESHOLD)
    assert set(found["names"]) <= set(nameless.class_names)


def test_a_run_whose_loss_needed_a_gpu_detects_without_one(finished, files, alone):
    overrides = ["loss.backend=triton", f"inference.score_threshold={THRESHOLD}"]
    ready = dwtriton.load_detector(finished[0] / "last.pt", overrides=overrides)
    assert_same(ready(files[0])[0], alone[files[0]])
    assert ready.config.loss.backend == "triton"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": "absent.pt"}, "absent.pt does not exist"),
        ({"device": "cuda:99"}, "device 'cuda:99' cannot be used"),
        ({"device": "gpu"}, "device 'gpu' cannot be used"),
        ({"overrides": ["inference.nms=1"]}, "unknown key 'inference.nms'"),
        ({"overrides": ["head.num_classes=7"]}, "does not fit the model"),
    ],
)
def test_what_cannot_be_loaded_is_one_clear_error(finished, arguments, message):
    with pytest.raises(UserError, match=message):
        dwtriton.load_detector(**{"path": finished[0] / "last.pt"} | arguments)


def test_many_images_wait_in_small_numbers(ready, files, monkeypatch):
    """Memory does not grow with the list: images are read as their batch comes."""
    read, given = [], []
    predict = ready.predict

    def counting_predict(images, *rest, **limits):
        given.append(len(images))
        return predict(images, *rest, **limits)

    def counted(name):
        read.append(len(read) - sum(given))
        return name

    monkeypatch.setattr(ready, "predict", counting_predict)
    monkeypatch.setattr("dwtriton.inference.ready.read_pixels", lambda image, *_: counted(read_image(image)))
    order = random.Random(0).choices(files, k=40)
    assert len(ready(order, batch_size=2)) == len(order) == sum(given)
    assert max(read) <= 4 * 2


def test_the_example_of_the_page_runs(finished, files, tmp_path, monkeypatch, capsys):
    (tmp_path / "runs" / "RUN").mkdir(parents=True)
    shutil.copy(finished[0] / "last.pt", tmp_path / "runs" / "RUN" / "best.pt")
    Image.open(files[0]).save(tmp_path / "street.jpg")
    shutil.copy(files[1], tmp_path / "cat.png")
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```py\n(.*?)```", PAGE.read_text(), re.DOTALL)
    names = {}
    exec(compile(example, str(PAGE), "exec"), names)
    assert len(names["street"]["scores"]) == capsys.readouterr().out.count("\n") > 0
    assert len(names["few"]) == 1
