"""Every kind of unusable data: what stops the run, what is skipped, and what is said about it."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from dwtriton.config.schema import Config, DataConfig
from dwtriton.data.batch import collate
from dwtriton.data.coco import CocoDataset, Sample
from dwtriton.data.images import BrokenImageError, read_image
from dwtriton.data.loaders import eval_loader, train_loader
from dwtriton.data.prepare import check_layout, prepare_data
from dwtriton.data.problems import DataError, DataProblems


def truncate(path, share=0.5):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


# --- folders


def test_no_root_asks_for_data_and_shows_the_layout():
    with pytest.raises(DataError, match=r"pass --data DIR") as error:
        prepare_data(Config())
    assert "annotations/instances_val2017.json" in str(error.value)


def test_absent_root_is_said_to_be_absent(tmp_path):
    with pytest.raises(DataError, match=r"Found: .*nowhere does not exist"):
        check_layout(DataConfig(root=tmp_path / "nowhere"))


def test_wrong_folder_shows_what_is_missing_expected_and_found(tiny):
    cfg = tiny.write()
    tiny.json_path("val").rename(tiny.root / "annotations" / "mine.json")
    (tiny.root / "train2017").rename(tiny.root / "pictures")
    with pytest.raises(DataError) as error:
        check_layout(cfg)
    message = str(error.value)
    assert "lacks train2017, annotations/instances_val2017.json" in message
    assert "train2017/" in message.split("Expected")[1].split("Found")[0]
    found = message.split("Found: ")[1].splitlines()[0].split(", ")
    assert {"pictures/", "mine.json", "val2017/"} <= set(found)
    assert "--set data.train_images=NAME" in message


def test_layout_of_validation_alone_needs_validation_alone(tiny):
    cfg = tiny.write()
    tiny.json_path("train").unlink()
    check_layout(cfg, ("val",))


def test_wrong_number_of_classes_names_the_remedy(tiny):
    with pytest.raises(DataError, match=r"--set head.num_classes=3"):
        prepare_data(Config(data=tiny.write()))


def test_splits_with_different_categories_stop(tiny):
    cfg = tiny.write()
    tiny.content["categories"][0]["name"] = "horse"
    tiny.write_json("val", json.dumps(tiny.content))
    with pytest.raises(DataError, match=r"different categories: 90 horse, 90 zebra in one of them alone"):
        prepare_data(Config(data=cfg, head={"num_classes": 3}))


# --- annotation files


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"images": [', "not valid JSON.*truncated"),
        ("", "not valid JSON"),
        ("[]", "not COCO detection JSON: it holds a list"),
        ('{"images": [], "categories": []}', "it has no list 'annotations'"),
        ('{"images": [], "categories": [], "annotations": []}', "'categories' is empty"),
        ('{"images": [{"id": 1}], "categories": [], "annotations": []}', "images entry 1 has no 'file_name'"),
        ('{"images": ["a.jpg"], "categories": [], "annotations": []}', "images entry number 0 has no 'id'"),
    ],
)
def test_files_that_are_not_coco_stop(tiny, text, message):
    cfg = tiny.write()
    tiny.write_json("train", text)
    with pytest.raises(DataError, match=message) as error:
        CocoDataset(cfg, "train")
    assert "instances_train2017.json" in str(error.value)


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("images", {"id": 11}, "two entries of images have the id 11"),
        ("annotations", {"id": 2}, "two entries of annotations have the id 2"),
        ("categories", {"id": 7}, "two entries of categories have the id 7"),
        ("images", {"id": [1]}, r"id \[1\]; ids must be whole numbers or names"),
        ("images", {"file_name": 3}, "image 20: file_name must be a string"),
        ("categories", {"name": "train"}, "two categories have the name 'train'"),
    ],
)
def test_bad_ids_and_sizes_stop(tiny, section, change, message):
    cfg = tiny.write()
    tiny.content[section][-1].update(change)
    tiny.write_json("train", json.dumps(tiny.content))
    with pytest.raises(DataError, match=message):
        CocoDataset(cfg, "train")


def test_a_missing_area_is_that_of_the_box(tiny):
    tiny.content["annotations"][0]["area"] = None
    del tiny.content["annotations"][1]["area"]
    dataset = CocoDataset(tiny.write(), "val", inference=tiny.inference)
    assert [dataset.coco.anns[i]["area"] for i in (1, 2)] == [600, 600]
    assert dataset.problems.summary() == []


@pytest.mark.parametrize("key", ["id", "image_id", "category_id", "bbox"])
def test_annotation_without_a_key_stops(tiny, key):
    del tiny.content["annotations"][1][key]
    with pytest.raises(DataError, match=f"annotations entry .* has no '{key}'"):
        CocoDataset(tiny.write(), "train")


def test_unusable_annotations_are_skipped_counted_and_named(tiny):
    tiny.add(category_id=55, bbox=[1, 1, 9, 9])
    tiny.add(image_id=404, bbox=[1, 1, 9, 9])
    tiny.add(image_id=[11], bbox=[1, 1, 9, 9])
    for box in ([1, 1, 9], [1, 1, 9, None], "1 1 9 9", [1, 1, 9, float("nan")]):
        tiny.add(bbox=box)
    tiny.add(bbox=[700, 1, 9, 9])
    dataset = CocoDataset(tiny.write(), "val", inference=tiny.inference)
    assert len(dataset.coco.anns) == 5
    assert dataset.problems.summary() == [
        "1 x unknown category, annotation skipped: category 55 in annotation 105 of image 11 (wide.jpg)",
        "2 x unknown image, annotation skipped: annotation 106 of image 404, annotation 107 of image [11]",
        "4 x box is not four finite numbers, annotation skipped: annotation 108 of image 11 (wide.jpg), "
        "annotation 109 of image 11 (wide.jpg), annotation 110 of image 11 (wide.jpg) and 1 more",
        "1 x box outside the image, annotation skipped: annotation 112 of image 11 (wide.jpg)",
    ]


def test_no_usable_box_at_all_stops_training_and_says_why(tiny):
    for annotation in tiny.content["annotations"]:
        annotation["iscrowd"] = 1
    with pytest.raises(DataError, match=r"no image is left; 5 of 5 boxes are marked as crowd .*; 4 x image without a"):
        CocoDataset(tiny.write(), "train")


def test_report_of_nothing_is_empty():
    assert DataProblems().summary() == []


# --- image files


def test_missing_images_are_skipped_and_their_ground_truth_still_counts(tiny):
    cfg = tiny.write()
    for split in ("train", "val"):
        tiny.image_path(split, "tall.jpg").unlink()
        dataset = CocoDataset(cfg, split)
        assert sorted(dataset[i].image_id for i in range(len(dataset))) == [8, 11, 20]
        (line,) = dataset.problems.summary()
        assert line.startswith("1 x image file missing, image skipped")
        assert str(tiny.image_path(split, "tall.jpg")) in line
        assert ("its ground truth still counts" in line) == (split == "val")
    assert 5 in dataset.coco.imgs


def test_all_images_missing_stops_with_the_layout(tiny):
    cfg = tiny.write()
    for image in tiny.content["images"]:
        tiny.image_path("train", image["file_name"]).rename(tiny.root / image["file_name"])
    with pytest.raises(DataError, match=r"none of the images of .* is in .*train2017") as error:
        prepare_data(Config(data=cfg, head={"num_classes": 3}))
    assert "Expected" in str(error.value)


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.99])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_truncated_files_are_never_taken_for_images(tmp_path, kind, share):
    path = tmp_path / "image"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(path, kind)
    truncate(path, share)
    with pytest.raises(BrokenImageError, match=str(path)):
        read_image(path)


def test_training_replaces_a_broken_image_by_the_next_of_its_orientation(tiny):
    cfg = tiny.write()
    broken = tiny.image_path("train", "wide.jpg")
    truncate(broken)
    dataset = CocoDataset(cfg, "train")
    index = dataset.paths.index(str(broken))
    sample = dataset[index, 3]
    assert sample.image_id == 20
    (line,) = sample.broken
    assert line.startswith(f"{broken}: ")
    replacement = dataset[dataset.paths.index(sample.path), 3]
    assert torch.equal(sample.image, replacement.image)
    assert replacement.broken == []


def test_an_orientation_without_a_readable_image_gives_no_image_but_the_reasons(tiny):
    cfg = tiny.write()
    dataset = CocoDataset(cfg, "train")
    for name in ("wide.jpg", "wide_two.jpg"):  # during a run; a new one leaves them out
        truncate(tiny.image_path("train", name))
    sample = dataset[int(np.flatnonzero(dataset.landscape)[0])]
    assert sample.image is None
    assert sorted(line.split(":")[0] for line in sample.broken) == sorted(
        str(tiny.image_path("train", name)) for name in ("wide.jpg", "wide_two.jpg")
    )


@pytest.mark.parametrize("workers", [0, 1])
def test_loaders_report_broken_files_through_the_batch(tiny, workers):
    data = tiny.write().model_copy(update={"workers": workers})
    cfg = Config(data=data, head={"num_classes": 3})
    for split in ("train", "val"):
        truncate(tiny.image_path(split, "wide.jpg"))
    train = list(train_loader(CocoDataset(data, "train"), cfg))
    assert [len(batch) for batch in train] == [2, 2]
    assert {line.split(": ")[0] for batch in train for line in batch.broken} == {
        str(tiny.image_path("train", "wide.jpg"))
    }
    val = list(eval_loader(CocoDataset(data, "val", inference=tiny.inference), cfg))
    assert sorted(id_ for batch in val for id_ in batch.image_ids) == [5, 8, 20]
    assert [line.split(": ")[0] for batch in val for line in batch.broken] == [str(tiny.image_path("val", "wide.jpg"))]


def test_a_batch_whose_files_are_all_broken_is_empty(tiny):
    cfg = tiny.write()
    truncate(tiny.image_path("val", "wide.jpg"))
    dataset = CocoDataset(cfg, "val", inference=tiny.inference)
    batch = collate([dataset[dataset.paths.index(str(tiny.image_path("val", "wide.jpg")))]], 3, 32)
    assert len(batch) == 0
    assert batch.images.shape == (0, 3, 32, 32)
    assert len(batch.broken) == 1


def test_size_that_disagrees_with_the_annotations_is_broken(tiny):
    cfg = tiny.write()
    tiny.draw(tiny.image_path("val", "wide.jpg"), 48, 64)
    dataset = CocoDataset(cfg, "val", inference=tiny.inference)
    (line,) = dataset[0].broken
    assert line.endswith("wide.jpg: is 48x64 when upright, its annotations say 64x48")


def test_orientation_of_exif_is_applied(tmp_path):
    pixels = np.zeros((40, 60, 3), dtype=np.uint8)
    pixels[:, :30] = 255  # left half white
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned a quarter clockwise
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif, quality=95)
    image = read_image(tmp_path / "a.jpg", (60, 40))
    assert image[:, :25].float().mean() > 250
    assert image[:, 35:].float().mean() < 5


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("L", "JPEG"), ("CMYK", "JPEG"), ("L", "PNG"), ("P", "PNG"), ("RGBA", "PNG"), ("1", "PNG"), ("I;16", "PNG")],
)
def test_every_colour_mode_becomes_rgb(tmp_path, mode, kind):
    ramp = np.tile(np.linspace(0, 255, 64).astype(np.uint8), (48, 1))
    if mode == "I;16":
        image = Image.fromarray(ramp.astype(np.uint16) * 257)
    else:
        image = Image.fromarray(ramp).convert("RGB").convert(mode)
    image.save(tmp_path / "image", kind)
    decoded = read_image(tmp_path / "image", (48, 64))
    assert decoded.dtype == torch.uint8
    assert decoded.shape == (3, 48, 64)
    # palettes have steps of 51 and dithering, 1-bit images are dithered: compare the mean of each quarter
    expected = ramp.reshape(48, 4, 16).mean((0, 2))
    tolerance = {"P": 20, "1": 20}.get(mode, 3)
    np.testing.assert_allclose(decoded.float().reshape(3, 48, 4, 16).mean((1, 3)), [expected] * 3, atol=tolerance)


def test_a_file_with_several_frames_is_broken(tmp_path):
    frames = [Image.fromarray(np.full((40, 40), value, dtype=np.uint8)) for value in (0, 128, 255)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(BrokenImageError, match="has 3 frames"):
        read_image(tmp_path / "a.gif")


# --- targets


@pytest.mark.parametrize(
    ("box", "label", "message"),
    [
        ([1.0, 1, 5, 5], 3, r"box 1: .* label 3: labels must be below the number of classes, 3"),
        ([1.0, 1, 5, 5], -1, r"box 1: .* label -1: labels start at 0"),
        ([5.0, 1, 1, 5], 0, r"box 1: box \[5.0, 1.0, 1.0, 5.0\]"),
        ([1.0, 5, 5, 1], 0, "box 1"),
        ([float("nan"), 1, 5, 5], 0, "finite"),
        ([1.0, 1, float("inf"), 5], 0, "finite"),
    ],
)
def test_collate_names_the_image_and_index_of_a_bad_target(box, label, message):
    target = {"boxes": torch.tensor([[0.0, 0, 1, 1], box]), "labels": torch.tensor([0, label])}
    sample = Sample(torch.zeros(3, 32, 32), target, 77, "folder/a.jpg", (1.0, 1.0))
    with pytest.raises(ValueError, match=message) as error:
        collate([sample], num_classes=3, size_divisor=32)
    assert "image 77 (folder/a.jpg)" in str(error.value)
