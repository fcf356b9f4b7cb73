import numpy as np
import pytest
import torch
from pycocotools.cocoeval import COCOeval

from dwtriton.config.schema import Config
from dwtriton.data.coco import CocoDataset
from dwtriton.data.prepare import prepare_data, prepare_validation
from dwtriton.data.problems import DataError


def target_of(dataset, image_id):
    (sample,) = [dataset[i] for i in range(len(dataset)) if dataset[i].image_id == image_id]
    return sample.target


def original_boxes(dataset, image_id):
    (sample,) = [dataset[i] for i in range(len(dataset)) if dataset[i].image_id == image_id]
    return (sample.target["boxes"] / torch.tensor(sample.scale_factor * 2)).tolist()


def test_labels_follow_the_sorted_category_ids(tiny):
    dataset = CocoDataset(tiny.write(), "val", inference=tiny.inference)
    assert dataset.category_ids == [7, 33, 90]
    assert dataset.class_names == ["train", "kite", "zebra"]
    assert target_of(dataset, 11)["labels"].tolist() == [1, 2]  # categories 33 and 90
    assert target_of(dataset, 5)["labels"].tolist() == [0]
    assert target_of(dataset, 11)["labels"].dtype == torch.int64
    assert target_of(dataset, 11)["boxes"].dtype == torch.float32


def test_boxes_become_corners_scaled_to_the_network_image(tiny):
    dataset = CocoDataset(tiny.write(), "val", inference=tiny.inference)
    sample = next(dataset[i] for i in range(len(dataset)) if dataset[i].image_id == 8)  # 50 x 50 to 48 x 48
    assert sample.image.shape == (3, 48, 48)
    np.testing.assert_allclose(sample.target["boxes"], np.array([[25, 25, 35, 35]]) * 48 / 50, rtol=1e-6)
    assert sample.scale_factor == (48 / 50, 48 / 50)
    np.testing.assert_allclose(original_boxes(dataset, 11), [[4, 6, 24, 36], [10.5, 0, 40.5, 20]], rtol=1e-6)


def test_orientation_is_landscape_only_if_wider_than_high(tiny):
    dataset = CocoDataset(tiny.write(), "train")
    by_id = {dataset[i].image_id: bool(dataset.landscape[i]) for i in range(len(dataset))}
    assert by_id == {11: True, 5: False, 8: False, 20: True}


def test_unusable_boxes_are_left_out_of_targets(tiny):
    tiny.add(bbox=[5, 5, 20, 20], area=400, iscrowd=1)
    tiny.add(bbox=[5, 5, 20, 20], area=0)
    tiny.add(bbox=[5, 5, 0.9, 20], area=18)
    tiny.add(bbox=[5, 5, 20, 0.9], area=18)
    tiny.add(bbox=[64, 5, 20, 20], area=400)  # begins where the image ends
    tiny.add(bbox=[-20, 5, 20, 20], area=400)
    tiny.add(bbox=[5, 48, 20, 20], area=400)
    tiny.add(bbox=[5, -20, 20, 20], area=400)
    tiny.add(bbox=[60, 40, 20, 20], area=400)  # partly outside: stays
    dataset = CocoDataset(tiny.write(), "train")
    assert len(target_of(dataset, 11)["boxes"]) == 4
    tiny_boxes, outside = (
        "box without area or under 1 pixel, not used as a target",
        "box outside the image, annotation skipped",
    )
    no_area = "area of 0 though the box has one, that of the box is used"
    crowd = "crowd region, not learned: trained as background"
    assert dataset.problems.counts == {crowd: 1, no_area: 1, tiny_boxes: 2, outside: 4}
    assert dataset.problems.left_out == 7
    assert "iscrowd" not in target_of(dataset, 11)


def test_images_without_usable_boxes_or_too_small_are_left_out_of_training_only(tiny):
    tiny.content["images"] += [
        {"id": 30, "file_name": "empty.jpg", "width": 64, "height": 48},
        {"id": 31, "file_name": "crowd_only.jpg", "width": 64, "height": 48},
        {"id": 32, "file_name": "small.jpg", "width": 100, "height": 31},
        {"id": 33, "file_name": "just_large_enough.jpg", "width": 32, "height": 32},
    ]
    tiny.add(image_id=31, bbox=[5, 5, 20, 20], area=400, iscrowd=1)
    tiny.add(image_id=32, bbox=[5, 5, 20, 20], area=400)
    tiny.add(image_id=33, bbox=[5, 5, 20, 20], area=400)
    cfg = tiny.write()
    for crowd in ("background", "ignore"):
        train = CocoDataset(cfg.model_copy(update={"crowd": crowd}), "train")
        assert sorted(train[i].image_id for i in range(len(train))) == [5, 8, 11, 20, 33]
    val = CocoDataset(cfg, "val", inference=tiny.inference)
    assert sorted(val[i].image_id for i in range(len(val))) == [5, 8, 11, 20, 30, 31, 32, 33]
    assert target_of(val, 30)["boxes"].shape == (0, 4)
    assert "1 x image with a side under 32 pixels, not trained on: small.jpg" in train.problems.summary()


def test_crowd_ignore_marks_crowd_boxes_in_the_targets(tiny):
    tiny.add(bbox=[5, 5, 20, 20], area=400, iscrowd=1)
    dataset = CocoDataset(tiny.write().model_copy(update={"crowd": "ignore"}), "train")
    target = target_of(dataset, 11)
    assert target["iscrowd"].tolist() == [False, False, True]
    assert target["iscrowd"].dtype == torch.bool
    assert len(target["boxes"]) == len(target["labels"]) == 3
    assert target_of(dataset, 5)["iscrowd"].tolist() == [False]


def test_validation_does_not_augment_and_training_does_by_the_seed_alone(tiny):
    cfg = tiny.write().model_copy(update={"short_side": (30, 60)})
    val, train = CocoDataset(cfg, "val", inference=tiny.inference), CocoDataset(cfg, "train")
    assert torch.equal(val[0, 1].image, val[0, 2].image)
    assert torch.equal(train[0, 1].image, train[0, 1].image)
    shapes = {tuple(train[0, seed].image.shape) for seed in range(20)}
    assert len(shapes) > 5


def test_reading_changes_no_stored_target(tiny):
    dataset = CocoDataset(tiny.write(), "train")
    first = target_of(dataset, 11)
    first["boxes"].zero_()
    first["labels"].zero_()
    assert (target_of(dataset, 11)["boxes"] != 0).any()
    assert (target_of(dataset, 11)["labels"] != 0).any()


def test_ground_truth_works_in_cocoeval_without_area_iscrowd_or_positive_ids(tiny):
    for annotation in tiny.content["annotations"]:
        del annotation["area"], annotation["iscrowd"]
        annotation["id"] -= 1  # the first has id 0, which COCOeval takes for no match
    dataset = CocoDataset(tiny.write(), "val", inference=tiny.inference)
    perfect = [
        {"image_id": a["image_id"], "category_id": a["category_id"], "bbox": a["bbox"], "score": 0.9}
        for a in tiny.content["annotations"]
    ]
    evaluation = COCOeval(dataset.coco, dataset.coco.loadRes(perfect), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1.0)


def test_reading_prints_nothing(tiny, capsys):
    CocoDataset(tiny.write(), "val", inference=tiny.inference)
    assert capsys.readouterr() == ("", "")


def test_prepare_data_gives_both_splits_and_validation_alone_needs_no_training_files(tiny):
    data = tiny.write().model_copy(update={"crowd": "ignore"})
    cfg = Config(data=data, head={"num_classes": 3})
    train, val = prepare_data(cfg)
    assert (train.training, val.training) == (True, False)
    assert "iscrowd" in train[0].target
    tiny.json_path("train").unlink()
    assert len(prepare_validation(cfg)) == 4
    with pytest.raises(DataError, match=r"lacks annotations/instances_train2017.json"):
        prepare_data(cfg)
