"""How much of multi-scale batches is padding, on images of COCO's sizes: none is decoded."""

import json
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dwtriton.config.load import load_config
from dwtriton.data.buckets import area
from dwtriton.data.coco import CocoDataset
from dwtriton.data.images import draw_augmentation
from dwtriton.data.loaders import training_sampler, unbucketed_sizes
from dwtriton.train.plan import make_plan

SIZES = Path(__file__).parents[1] / "support" / "coco_sizes.txt"  # of 618 images of COCO's 2014 validation images
COPIES = 8


@pytest.fixture(scope="module")
def images_of_coco(tmp_path_factory):
    """images_of_coco(*overrides): config of the multi-scale recipe, and images to train on with COCO's sizes."""
    root = tmp_path_factory.mktemp("coco")
    table = np.loadtxt(SIZES, dtype=int, skiprows=1)
    sizes = np.random.default_rng(0).permutation(np.repeat(table[:, :2], COPIES * table[:, 2], axis=0)).tolist()
    (root / "train2017").mkdir()
    images = [{"id": i, "file_name": f"{i}.jpg", "width": w, "height": h} for i, (w, h) in enumerate(sizes)]
    for image in images:
        (root / "train2017" / image["file_name"]).touch()
    for wide in (True, False):  # one image of each orientation has to be readable
        image = next(image for image in images if (image["width"] > image["height"]) == wide)
        Image.new("RGB", (image["width"], image["height"])).save(root / "train2017" / image["file_name"])
    box = {"category_id": 1, "bbox": [10, 10, 100, 100], "area": 10000, "iscrowd": 0}
    annotations = [{"id": i + 1, "image_id": i, **box} for i in range(len(images))]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    (root / "annotations").mkdir()
    (root / "annotations" / "instances_train2017.json").write_text(json.dumps(content))

    @cache
    def images_of_coco(*overrides):
        cfg = load_config("r50_refine_ms_2x", list(overrides), root)
        return cfg, CocoDataset(cfg.data, "train")

    return images_of_coco


def padding_before_buckets(cfg, dataset):
    inside = whole = 0
    for requests in training_sampler(dataset, cfg).global_batches():
        inside += sum(area(dataset.network_size(request)) for request in requests)
        whole += len(requests) * area(dataset.padded_size(requests))
    return 1 - inside / whole


def test_batches_of_one_scale_and_like_aspect_have_little_padding(images_of_coco):
    cfg, dataset = images_of_coco()
    assert (cfg.data.scale_per, cfg.data.buckets) == ("batch", 16)
    assert 0.03 < padding_before_buckets(cfg, dataset) < 0.10
    plan = make_plan(cfg, dataset)
    assert len(plan.buckets) == 16
    assert 0.10 < plan.padding < 0.18


def test_as_in_the_released_code_two_fifths_are_padding(images_of_coco):
    assert 0.39 < padding_before_buckets(*images_of_coco("data.scale_per=image")) < 0.42


@pytest.mark.parametrize("scale_per", ["image", "batch"])
def test_every_image_is_in_an_epoch_and_every_scale_is_as_likely(images_of_coco, scale_per):
    cfg, dataset = images_of_coco(f"data.scale_per={scale_per}")
    requests = [request for batch in training_sampler(dataset, cfg).global_batches() for request in batch]
    assert {request.index for request in requests} == set(range(len(dataset)))
    shorts = np.array([draw_augmentation(cfg.data, request.seed, request.scale_seed)[0] for request in requests])
    assert 480 <= shorts.min() < 490 < 950 < shorts.max() <= 960
    expected = len(shorts) * np.array([97, 96, 96, 96, 96]) / 481
    draws = len(shorts) if scale_per == "image" else len(shorts) // cfg.data.batch_size
    counts = np.histogram(shorts, [480, 577, 673, 769, 865, 961])[0]
    assert (np.abs(counts / expected - 1) < 4 * np.sqrt(5 / draws)).all()  # four standard deviations


def test_a_batch_has_one_scale_and_different_flips(images_of_coco):
    cfg, dataset = images_of_coco()
    batches = list(training_sampler(dataset, cfg).global_batches())[:30]
    drawn = [[draw_augmentation(cfg.data, request.seed, request.scale_seed) for request in batch] for batch in batches]
    assert all(len({short for short, _ in batch}) == 1 for batch in drawn)
    assert len({batch[0][0] for batch in drawn}) > 20
    assert all(len({flipped for _, flipped in batch}) == 2 for batch in drawn)
    spreads = [np.ptp(dataset.aspects[[request.index for request in batch]]) for batch in batches]
    assert np.median(spreads) < 0.05


def test_other_epochs_join_other_images(images_of_coco):
    cfg, dataset = images_of_coco()
    sampler = training_sampler(dataset, cfg)
    pairs = Counter()
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        for batch in sampler.global_batches():
            indices = sorted({request.index for request in batch})
            pairs.update((first, second) for i, first in enumerate(indices) for second in indices[i + 1 :])
    assert sum(count > 1 for count in pairs.values()) < 0.05 * len(pairs)


def test_a_resumed_epoch_goes_on_with_the_same_requests(images_of_coco):
    cfg, dataset = images_of_coco()
    sampler = training_sampler(dataset, cfg)
    sampler.set_epoch(3)
    whole = list(sampler.global_batches())
    sampler.set_epoch(3, start=5)
    assert list(sampler.global_batches()) == whole[5:]
    assert unbucketed_sizes(dataset, cfg).total() == len(whole)
