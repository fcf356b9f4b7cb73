"""Buckets: every batch fits in one of a few sizes, with little padding, whatever the images are."""

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dwtriton.config.schema import Config
from dwtriton.core.errors import UserError
from dwtriton.data.buckets import area, choose_buckets, fits, mean_area, padded_size, smallest_bucket
from dwtriton.data.coco import CocoDataset
from dwtriton.data.loaders import train_loader, training_buckets, unbucketed_sizes

sides = st.integers(1, 12).map(lambda n: 32 * n)
sizes = st.tuples(sides, sides)
counters = st.dictionaries(sizes, st.integers(1, 9), min_size=1, max_size=12).map(Counter)


@given(st.lists(st.tuples(st.integers(1, 200), st.integers(1, 200)), min_size=1, max_size=5), st.sampled_from([32, 64]))
def test_padding_is_to_the_least_multiples_that_hold_all(images, divisor):
    height, width = padded_size(images, divisor)
    assert (height % divisor, width % divisor) == (0, 0)
    assert all(fits(image, (height, width)) for image in images)
    assert not all(fits(image, (height - divisor, width)) for image in images)
    assert not all(fits(image, (height, width - divisor)) for image in images)


@given(counters, st.lists(sizes, max_size=3), st.integers(1, 15))
def test_every_size_fits_in_few_buckets_and_needs_the_smallest_of_them(batches, limits, count):
    buckets = choose_buckets(batches, limits, count)
    assert 1 <= len(buckets) <= count
    for size in [*batches, *limits]:
        bucket = smallest_bucket(size, buckets)
        assert fits(size, bucket)
        assert area(bucket) == min(area(other) for other in buckets if fits(size, other))


@given(counters)
def test_with_a_bucket_for_each_size_nothing_is_added_and_fewer_never_add_less(batches):
    own = mean_area(batches, [])
    assert mean_area(batches, choose_buckets(batches, [], len(batches))) == own
    areas = [mean_area(batches, choose_buckets(batches, [], count)) for count in (1, 2, len(batches))]
    assert areas[0] >= areas[1] >= areas[2] == own


def test_the_sizes_that_come_often_keep_buckets_of_their_own():
    batches = Counter({(800, 1344): 500, (800, 1216): 400, (1344, 800): 200, (800, 1088): 3, (1216, 800): 100})
    buckets = choose_buckets(batches, limits=[(800, 1344), (1344, 800)], count=4)
    assert buckets == [(800, 1216), (800, 1344), (1216, 800), (1344, 800)]
    assert choose_buckets(batches, [], 1) == [(1344, 1344)]


def test_a_size_that_no_bucket_holds_is_an_error():
    assert smallest_bucket((32, 64), []) == (32, 64)
    with pytest.raises(ValueError, match=r"no bucket of \[\(32, 32\)\] holds \(32, 64\)"):
        smallest_bucket((32, 64), [(32, 32)])


@pytest.fixture
def many(tiny):
    """many(**data settings) -> config of 30 images of many sizes, three in a batch, resized to many more."""
    rng = np.random.default_rng(0)
    shapes = rng.integers(33, 200, (30, 2)).tolist()
    tiny.content["images"] = [
        {"id": i, "file_name": f"{i}.jpg", "width": width, "height": height} for i, (width, height) in enumerate(shapes)
    ]
    tiny.content["annotations"] = [
        {"id": i + 1, "image_id": i, "category_id": 7, "bbox": [3, 4, 20, 25], "area": 500, "iscrowd": 0}
        for i in range(30)
    ]
    data = tiny.write().model_copy(update={"short_side": (32, 120), "long_side": 200, "batch_size": 3})

    def make(**settings) -> Config:
        return Config(data=data.model_dump() | settings, head={"num_classes": 3})

    return make


@pytest.mark.parametrize("buckets", [1, 2, 3])
def test_all_batches_of_all_epochs_have_the_size_of_their_bucket(buckets, many):
    cfg = many(buckets=buckets)
    dataset = CocoDataset(cfg.data, "train")
    chosen = training_buckets(dataset, cfg)
    loader = train_loader(dataset, cfg)
    seen = Counter()
    for epoch in range(3):
        loader.batch_sampler.set_epoch(epoch)
        for batch in loader:
            size = tuple(batch.images.shape[2:])
            seen[size] += 1
            assert size == smallest_bucket(padded_size(batch.image_sizes, 32), chosen)
    assert len(seen) <= len(chosen) <= buckets
    assert len(unbucketed_sizes(dataset, cfg)) > 3


def test_without_buckets_batches_are_as_large_as_their_images_need(many):
    cfg = many(buckets=0)
    dataset = CocoDataset(cfg.data, "train")
    loader = train_loader(dataset, cfg)
    counted = Counter(tuple(batch.images.shape[2:]) for batch in loader)
    assert counted == unbucketed_sizes(dataset, cfg)
    assert training_buckets(dataset, cfg) == []


def test_buckets_of_the_config_are_taken_or_refused_with_what_they_lack(many):
    cfg = many(buckets=[[224, 224]])
    dataset = CocoDataset(cfg.data, "train")
    assert training_buckets(dataset, cfg) == [(224, 224)]
    limits = dataset.largest_sizes()
    assert len(limits) == 2
    small = many(buckets=[[limits[0][0], 32], [224, 32]])
    with pytest.raises(UserError, match=rf"none of .* holds \({limits[0][0]}, {limits[0][1]}\), .* add it"):
        training_buckets(dataset, small)
    with pytest.raises(UserError, match=r"\(224, 230\) is not a multiple of data.size_divisor = 32"):
        training_buckets(dataset, many(buckets=[[224, 230]]))


def test_a_broken_image_is_replaced_by_one_that_fits(many):
    """Neither the batch nor its size changes for the others."""
    cfg = many(buckets=3)
    dataset = CocoDataset(cfg.data, "train")
    loader = train_loader(dataset, cfg)
    expected = list(loader)
    victim = expected[0].paths[0]
    (cfg.data.root / victim).write_bytes(b"broken")
    for before, batch in zip(expected, loader, strict=True):
        assert batch.images.shape == before.images.shape
        assert all(fits(size, batch.images.shape[2:]) for size in batch.image_sizes)
        kept = [path for path in before.paths if path != victim]
        assert [path for path in batch.paths if path in kept] == kept
    first = next(iter(loader))
    assert first.broken
    assert first.paths[0] != victim


@pytest.mark.parametrize("crowd", ["background", "ignore"])
@pytest.mark.parametrize(("world_size", "accumulate"), [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_no_micro_batch_has_more_boxes_than_its_images_can_have(crowd, world_size, accumulate, tiny):
    """Two landscape images fill batches of eight, which then hold each of them four times, or one alone eight times."""
    tiny.add(bbox=[2, 2, 9, 9], area=81, iscrowd=1)
    data = tiny.write().model_copy(update={"batch_size": 8, "crowd": crowd})
    cfg = Config(data=data, head={"num_classes": 3}, train={"accumulate": accumulate})
    dataset = CocoDataset(data, "train")
    images = 8 // (world_size * accumulate)
    assert dataset.most_boxes(images) == images * (3 if crowd == "ignore" else 2)

    def most() -> int:
        loaders = [train_loader(dataset, cfg, rank, world_size) for rank in range(world_size)]
        return max(sum(len(target["labels"]) for target in batch.targets) for loader in loaders for batch in loader)

    assert images * (2 if crowd == "ignore" else 1.5) <= most() <= dataset.most_boxes(images)
    tiny.image_path("train", "wide_two.jpg").write_bytes(b"broken")
    assert most() == dataset.most_boxes(images)


def test_the_fingerprint_differs_for_other_images_and_targets(tiny):
    cfg = tiny.write()
    before = CocoDataset(cfg, "train").fingerprint
    assert CocoDataset(cfg, "train").fingerprint == before
    tiny.content["annotations"][0]["bbox"][0] += 1
    tiny.write_json("train", json.dumps(tiny.content))
    moved = CocoDataset(cfg, "train").fingerprint
    tiny.content["images"].reverse()
    tiny.write_json("train", json.dumps(tiny.content))
    assert len({before, moved, CocoDataset(cfg, "train").fingerprint}) == 3
