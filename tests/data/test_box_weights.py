"""Weights of boxes: from the key `weight` of annotations and `data.class_weights` to the targets of batches."""

import json

import numpy as np
import pytest
import torch

from dwtriton.config.kinds import MAX_WEIGHT
from dwtriton.config.schema import Config
from dwtriton.core.targets import pack_targets
from dwtriton.data.coco import CocoDataset
from dwtriton.data.formats.check import check_split
from dwtriton.data.formats.splits import find_splits
from dwtriton.data.loaders import train_loader
from dwtriton.data.prepare import prepare_data
from dwtriton.data.problems import DataError

UNUSABLE = [[900, 1, 9, 9], [1, 1, 0.5, 9], [1, 1, 9, 0], [1, 1, 9]]


def with_weights(cfg, **class_weights):
    return cfg.model_copy(update={"class_weights": class_weights})


def weights_of(dataset):
    """The weights of each image's boxes, by image id."""
    targets = {dataset[i].image_id: dataset[i].target for i in range(len(dataset))}
    return {image_id: target["weights"].tolist() for image_id, target in targets.items()}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("crowd", ["background", "ignore"])
def test_every_box_of_a_batch_has_its_weight_wherever_augmentation_moves_it(tiny, crowd, seed):
    """The weight of an annotation is the height of its box in the file less 10, times that of its class."""
    rng = np.random.default_rng(seed)
    for annotation in tiny.content["annotations"]:
        annotation["weight"] = annotation["bbox"][3] - 10
    for _ in range(40):
        x, y, width, height = [*rng.uniform(0, 10, 2), rng.uniform(2, 20), rng.integers(10, 14).item()]
        usable = {"bbox": [x, y, width, height]} | ({} if height == 11 else {"weight": height - 10})
        unusable = {"bbox": UNUSABLE[rng.integers(4)], "weight": 99}
        ids = {"image_id": [11, 5, 8, 20][rng.integers(4)], "category_id": [7, 33, 90][rng.integers(3)]}
        tiny.add(**(usable if rng.random() < 0.7 else unusable), **ids, iscrowd=int(rng.random() < 0.2))
    augmented = {"short_side": (48, 96), "long_side": 160, "workers": seed % 2, "crowd": crowd}
    data = with_weights(tiny.write(), kite=0.5, zebra=2).model_copy(update=augmented)
    loader = train_loader(CocoDataset(data, "train"), Config(data=data, head={"num_classes": 3}))
    for batch in loader:
        assert len(pack_targets(batch.targets, "cpu").weights) == sum(len(target["labels"]) for target in batch.targets)
        for target, (_, scale) in zip(batch.targets, batch.scale_factors):
            assert ("iscrowd" in target) == (crowd == "ignore")
            height = (target["boxes"][:, 3] - target["boxes"][:, 1]) / scale
            expected = (height - 10) * torch.tensor([1, 0.5, 2])[target["labels"]]
            assert len(expected) > 3
            torch.testing.assert_close(target["weights"], expected, rtol=0, atol=1e-4)


def test_without_weights_targets_have_none_and_nothing_changes(tiny):
    cfg = tiny.write()
    plain = CocoDataset(cfg, "train")
    tiny.content["annotations"][0]["weight"] = 1
    tiny.write_json("train", json.dumps(tiny.content))
    for dataset in (plain, CocoDataset(with_weights(cfg, kite=1), "train")):
        assert not dataset.weighted
        assert all(dataset[i].target.keys() == {"boxes", "labels"} for i in range(len(dataset)))
        assert dataset.fingerprint == plain.fingerprint


def test_one_weight_gives_weights_to_every_target(tiny):
    tiny.content["annotations"][1]["weight"] = 0.5
    tiny.add(bbox=[1, 1, 0.5, 9], weight=7)  # no target
    dataset = CocoDataset(tiny.write(), "train")
    assert dataset.weighted
    assert weights_of(dataset) == {11: [1, 0.5], 5: [1], 8: [1], 20: [1]}
    assert dataset[0].target["weights"].dtype == torch.float32


def test_weights_of_boxes_that_are_no_targets_give_none_to_the_others(tiny):
    tiny.add(bbox=[1, 1, 0.5, 9], weight=7)
    tiny.add(bbox=[1, 1, 9, 9], weight=7, iscrowd=1)
    assert not CocoDataset(tiny.write(), "train").weighted


def test_images_whose_boxes_all_weigh_nothing_are_trained_on(tiny):
    """Outside of these boxes their points are negatives."""
    for annotation in tiny.content["annotations"]:
        annotation["weight"] = 0
    dataset = CocoDataset(tiny.write(), "train")
    assert weights_of(dataset) == {11: [0, 0], 5: [0], 8: [0], 20: [0]}
    assert dataset.problems.summary() == []


def test_weights_of_classes_multiply_those_of_their_boxes(tiny):
    tiny.content["annotations"][0]["weight"] = 0.5  # a kite
    cfg = with_weights(tiny.write(), kite=3, train=0)
    assert weights_of(CocoDataset(cfg, "train")) == {11: [1.5, 1], 5: [0], 8: [1], 20: [0]}


def test_the_fingerprint_differs_for_other_weights(tiny):
    cfg = tiny.write()
    datasets = [CocoDataset(with_weights(cfg, kite=weight), "train") for weight in (1, 2, 3)]
    assert len({dataset.fingerprint for dataset in datasets}) == 3


def test_a_class_that_the_data_lack_names_the_nearest_one(tiny):
    cfg = with_weights(tiny.write(), zebr=2.0, zebra=2.0, wagon=1.0)
    message = (
        r"data\.class_weights: .*instances_train2017\.json has no class 'zebr'; did you mean 'zebra'\? \(and 1 more\)"
    )
    with pytest.raises(DataError, match=message):
        prepare_data(Config(data=cfg, head={"num_classes": 3}))


def test_evaluation_knows_no_weights(tiny):
    """Neither those of boxes, be they right or wrong, nor those of classes."""
    cfg = with_weights(tiny.write(), wagon=2.0)
    for annotation, weight in zip(tiny.content["annotations"], (0, 0.5, "high", -1, None)):
        annotation["weight"] = weight
    before = CocoDataset(cfg, "val", inference=tiny.inference)
    tiny.write_json("val", json.dumps(tiny.content))
    dataset = CocoDataset(cfg, "val", inference=tiny.inference)
    assert not dataset.weighted
    assert dataset.fingerprint == before.fingerprint
    assert dataset.problems.summary() == []
    assert dataset.coco.dataset == before.coco.dataset


BAD = [
    -0.5,
    -1,
    float("nan"),
    float("inf"),
    -float("inf"),
    "0.5",
    "",
    True,
    False,
    None,
    [1],
    {},
    2 * MAX_WEIGHT,
    10**400,
]


@pytest.mark.parametrize("weight", BAD, ids=repr)
def test_training_and_check_refuse_a_bad_weight_with_its_place_and_the_rule(tiny, console, weight):
    tiny.content["annotations"][3]["weight"] = weight
    cfg = tiny.write()
    with pytest.raises(DataError) as error:
        CocoDataset(cfg, "train")
    assert str(error.value) == (
        f"{tiny.json_path('train')}: annotation 4 of image 8 (square.jpg) has the weight {weight!r}; "
        "a weight is a number from 0 to 3e+38, and 1 where it is left out"
    )
    train, val = find_splits(tiny.root)[0]
    assert check_split(train, console).fatal == [str(error.value)]
    assert check_split(val, console, training=False).fatal == []


def test_several_bad_weights_are_counted(tiny):
    for annotation in tiny.content["annotations"]:
        annotation["weight"] = None
    with pytest.raises(DataError, match=r"annotation 1 of image 11 \(wide\.jpg\) has the weight None \(and 4 more\);"):
        CocoDataset(tiny.write(), "train")


@pytest.mark.parametrize("weight", [0, 0.0, 1e-30, 3, 0.25, MAX_WEIGHT])
def test_any_finite_number_from_0_is_a_weight(tiny, weight):
    tiny.content["annotations"][2]["weight"] = weight
    assert weights_of(CocoDataset(tiny.write(), "train"))[5] == [np.float32(weight)]
